//! Abuse of signing requests, tokens and state directories.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use amime_core::SpiffeId;
use amime_identity::{CertificateDetails, SubjectAltName, new_key_and_csr};
use rcgen::{CertificateParams, KeyPair, SanType};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn ca(dir: &Path) -> CertificateAuthority {
    CertificateAuthority::self_signed(dir, "cluster.local", now()).expect("a new CA")
}

fn caller(text: &str) -> CallerIdentity {
    let spiffe_id = text.parse().expect("a SPIFFE ID");
    CallerIdentity { spiffe_id, credential: Credential::ClientCertificate }
}

fn reviews() -> CallerIdentity {
    caller("spiffe://cluster.local/ns/default/sa/reviews")
}

fn csr(id: &SpiffeId) -> String {
    new_key_and_csr(id).expect("CSR").csr_pem
}

fn subject() -> TokenSubject {
    TokenSubject {
        namespace: "default".into(),
        service_account: "reviews".into(),
        pod_name: "reviews-v1-1".into(),
        pod_uid: "0b0c".into(),
    }
}

#[test]
fn a_leaf_names_its_caller_whatever_the_request_asks_for() {
    let dir = tempfile::tempdir().expect("dir");
    let admin: SpiffeId = "spiffe://cluster.local/ns/kube-system/sa/admin".parse().expect("ID");
    let mut greedy = CertificateParams::default();
    greedy.subject_alt_names = vec![
        SanType::URI(admin.to_string().try_into().expect("ASCII")),
        SanType::DnsName("istiod.istio-system.svc".try_into().expect("ASCII")),
    ];
    greedy.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    greedy.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().expect("key");
    let greedy = greedy.serialize_request(&key).and_then(|csr| csr.pem()).expect("CSR");

    let ca = ca(dir.path());
    for csr in [greedy, csr(&admin)] {
        let signed = ca.sign(&csr, &reviews(), None, now()).expect("signed");
        let leaf = CertificateDetails::of_pem(signed[0].as_bytes()).expect("leaf");
        let only = SubjectAltName::Uri(reviews().to_string());
        assert_eq!(leaf.subject_alt_names, [only]);
        assert!(!leaf.is_ca && leaf.subject.is_empty());
    }
}

#[test]
fn lifetimes_default_to_a_day_and_end_at_the_maximum() {
    let dir = tempfile::tempdir().expect("dir");
    let ca = ca(dir.path());
    let request = csr(&reviews().spiffe_id);
    let life = |ttl| {
        let signed = ca.sign(&request, &reviews(), ttl, now())?;
        let leaf = CertificateDetails::of_pem(signed[0].as_bytes()).expect("leaf");
        assert!(leaf.not_before < now(), "backdated for clocks that are behind");
        Ok::<_, SignError>(leaf.not_after.duration_since(now()).expect("in the future"))
    };
    assert_eq!(life(None).expect("default"), DEFAULT_TTL);
    assert_eq!(life(Some(Duration::ZERO)).expect("zero is the default"), DEFAULT_TTL);
    assert_eq!(life(Some(HOUR)).expect("shorter"), HOUR);
    assert_eq!(life(Some(MAX_TTL)).expect("longest"), MAX_TTL);
    assert!(matches!(life(Some(MAX_TTL + HOUR)), Err(SignError::Lifetime { .. })));

    let end = ca.signing_cert().not_after;
    let late = ca.sign(&request, &reviews(), None, end - HOUR).expect("still valid");
    let leaf = CertificateDetails::of_pem(late[0].as_bytes()).expect("leaf");
    assert_eq!(leaf.not_after, end, "never beyond the CA");
    assert!(matches!(ca.sign(&request, &reviews(), None, end), Err(SignError::CaExpired)));
}

#[test]
fn broken_requests_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let ca = ca(dir.path());
    let sign = |csr: &str| ca.sign(csr, &reviews(), None, now()).map(|_| ());
    for garbage in ["", "garbage", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END"] {
        assert!(matches!(sign(garbage), Err(SignError::Malformed { .. })), "{garbage:?}");
    }
    assert!(matches!(sign(&"A".repeat(1 << 20)), Err(SignError::TooLarge { .. })));

    let good = csr(&reviews().spiffe_id);
    sign(&good).expect("untouched");
    // A request whose own signature is wrong proves no possession of the key.
    let body: Vec<char> = good.chars().collect();
    let last_line = good.trim_end().rfind("\n-----END").expect("PEM end");
    let mut forged = body.clone();
    forged[last_line - 12] = if body[last_line - 12] == 'A' { 'B' } else { 'A' };
    assert!(sign(&forged.into_iter().collect::<String>()).is_err());
}

#[test]
fn the_authority_survives_a_restart_with_private_files() {
    let dir = tempfile::tempdir().expect("dir");
    let first = ca(&dir.path().join("ca"));
    let again = ca(&dir.path().join("ca"));
    assert_eq!(first.roots().to_pem(), again.roots().to_pem());
    let mode = |path: &str| {
        let meta = fs::metadata(dir.path().join(path)).expect("exists");
        meta.permissions().mode() & 0o777
    };
    assert_eq!(mode("ca/ca-key.pem"), 0o600);
    assert_eq!(mode("ca"), 0o700);
}

#[test]
fn a_broken_state_directory_is_one_error_that_names_the_file() {
    #[track_caller]
    fn check(damage: impl FnOnce(&Path), want: &[&str]) {
        let dir = tempfile::tempdir().expect("dir");
        ca(dir.path());
        damage(dir.path());
        let error = CertificateAuthority::self_signed(dir.path(), "cluster.local", now())
            .expect_err("must not start")
            .to_string();
        for part in want.iter().chain(&["restore it from a backup, or remove"]) {
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
        assert!(!error.contains('\n'));
    }
    let write = |name: &'static str, text: &'static str| {
        move |dir: &Path| fs::write(dir.join(name), text).expect("writable")
    };
    let remove =
        |name: &'static str| move |dir: &Path| fs::remove_file(dir.join(name)).expect("there");
    check(remove("ca-key.pem"), &["ca-key.pem is missing although", "ca-cert.pem exists"]);
    check(remove("ca-cert.pem"), &["ca-cert.pem is missing although", "ca-key.pem exists"]);
    check(write("ca-key.pem", "garbage"), &["ca-key.pem is corrupt: no private key"]);
    check(write("ca-cert.pem", ""), &["ca-cert.pem is corrupt"]);
    let foreign = |dir: &Path| {
        let key = KeyPair::generate().expect("key").serialize_pem();
        fs::write(dir.join("ca-key.pem"), key).expect("writable");
    };
    check(foreign, &["ca-key.pem is corrupt: it does not belong to"]);
}

#[test]
fn a_plugged_intermediate_sends_its_chain_and_root() {
    let (root_dir, dir) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    let root = ca(root_dir.path());
    let root_key = fs::read_to_string(root_dir.path().join("ca-key.pem")).expect("key");
    let root_pem = root.roots().to_pem();
    let issuer = KeyPair::from_pem(&root_key).expect("key");
    let issuer = rcgen::Issuer::from_ca_cert_pem(&root_pem, issuer).expect("issuer");
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let signing = params.signed_by(&key, &issuer).expect("intermediate").pem();
    let files = [
        ("ca-cert.pem", signing.clone()),
        ("ca-key.pem", key.serialize_pem()),
        ("root-cert.pem", root_pem.clone()),
        ("cert-chain.pem", format!("{signing}{root_pem}")),
    ];
    for (name, text) in &files {
        fs::write(dir.path().join(name), text).expect("writable");
    }
    assert!(CertificateAuthority::is_plugged(dir.path()));
    let ca = CertificateAuthority::plugged(dir.path(), now()).expect("opens");
    let signed = ca.sign(&csr(&reviews().spiffe_id), &reviews(), None, now()).expect("signs");
    let issuers: Vec<String> = signed
        .iter()
        .map(|pem| CertificateDetails::of_pem(pem.as_bytes()).expect("parses").issuer)
        .collect();
    assert_eq!(issuers.len(), 3, "leaf, intermediate, root");
    assert_eq!(issuers[1..], ["O=cluster.local", "O=cluster.local"]);

    fs::remove_file(dir.path().join("root-cert.pem")).expect("there");
    let error = CertificateAuthority::plugged(dir.path(), now()).expect_err("no root");
    assert!(error.to_string().contains("root-cert.pem is missing"), "{error}");
}

#[test]
fn the_serving_certificate_is_good_for_its_names() {
    let dir = tempfile::tempdir().expect("dir");
    let names = ["istiod.istio-system.svc".to_owned(), "10.0.0.1".to_owned()];
    let cert = ca(dir.path()).serving_cert(&names, HOUR, now()).expect("issued");
    let got: Vec<String> =
        cert.details().subject_alt_names.iter().map(ToString::to_string).collect();
    assert_eq!(got, names);
}

#[test]
fn a_token_proves_its_pod_until_it_ends() {
    let dir = tempfile::tempdir().expect("dir");
    let tokens = WorkloadTokens::open(dir.path()).expect("opens");
    let token = tokens.issue(&subject(), HOUR, now()).expect("issued");
    // Another process with the same directory accepts it.
    let tokens = WorkloadTokens::open(dir.path()).expect("opens again");
    assert_eq!(tokens.verify(&token, now() + HOUR / 2).expect("valid"), subject());
    let who = tokens.authenticate(&token, "cluster.local", now()).expect("valid");
    assert_eq!(who.to_string(), reviews().to_string());
    assert!(matches!(tokens.verify(&token, now() + HOUR * 2), Err(TokenError::Time)));
    assert!(matches!(tokens.verify(&token, now() - HOUR), Err(TokenError::Time)));
}

#[test]
fn foreign_tampered_and_misdirected_tokens_are_refused() {
    let (dir, elsewhere) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    let tokens = WorkloadTokens::open(dir.path()).expect("opens");
    let foreign = WorkloadTokens::open(elsewhere.path()).expect("opens");
    let good = tokens.issue(&subject(), HOUR, now()).expect("issued");
    let refused = |token: &str| matches!(tokens.verify(token, now()), Err(TokenError::Invalid(_)));

    assert!(refused(&foreign.issue(&subject(), HOUR, now()).expect("issued")));
    assert!(refused(&tokens.issue_for(&subject(), "vault", HOUR, now()).expect("issued")));
    assert!(refused(""));
    assert!(refused("a.b.c"));
    for position in (0..good.len()).step_by(7) {
        let mut bytes = good.clone().into_bytes();
        bytes[position] = if bytes[position] == b'A' { b'B' } else { b'A' };
        let text = String::from_utf8(bytes).expect("ASCII");
        assert!(tokens.verify(&text, now()).is_err(), "tampered at {position}");
    }
    let huge = format!("{good}{}", "A".repeat(1 << 20));
    assert!(matches!(tokens.verify(&huge, now()), Err(TokenError::TooLarge)));
    // The unsigned form of the same claims.
    let claims = good.split('.').nth(1).expect("three parts");
    assert!(refused(&format!("eyJhbGciOiJub25lIn0.{claims}.")));
}

#[test]
fn a_broken_token_key_is_reported() {
    let dir = tempfile::tempdir().expect("dir");
    fs::write(dir.path().join("token-key.pem"), "garbage").expect("writable");
    let error = WorkloadTokens::open(dir.path()).expect_err("must not start").to_string();
    assert!(error.contains("token-key.pem is corrupt"), "{error}");
}
