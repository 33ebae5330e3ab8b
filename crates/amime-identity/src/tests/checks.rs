//! What may be asked of a peer's certificate, and which one a server shows.

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, PKCS_RSA_SHA256, RevokedCertParams, RsaKeySize,
    SerialNumber,
};

use super::*;

/// A client's verdict on a server's certificate at `time`.
fn verdict(checks: PeerChecks, server: &Arc<LiveCert>, sni: &str, time: SystemTime) -> Verdict {
    let options = at(time);
    let server = plain_server_config(server.clone(), &options).expect("server");
    let client = upstream_config(None, checks, 0, &options).expect("client");
    Verdict(handshake(&client, &server, Some(sni)).map(|_| ()))
}

#[derive(Debug)]
struct Verdict(Result<(), String>);

impl Verdict {
    #[track_caller]
    fn accepted(self) {
        self.0.expect("accepted");
    }

    #[track_caller]
    fn refused(self, why: &str) {
        let error = self.0.expect_err("refused");
        assert!(error.contains(why), "{error}");
    }
}

fn rooted(bundle: TrustBundle) -> PeerChecks {
    PeerChecks { roots: Some(LiveBundle::new(bundle)), ..PeerChecks::default() }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    sum.as_ref().try_into().expect("32 bytes")
}

#[test]
fn pins_hold_with_and_without_roots() {
    let root = Root::new("public");
    let cert = root.host("a.test");
    let leaf = cert.chain()[0].clone();
    let key = sha256(&crate::details::public_key_info(&leaf).expect("a key"));
    let server = LiveCert::new(cert);
    let check = |identities: PeerIdentities, bundle: Option<TrustBundle>| {
        let roots = bundle.map(LiveBundle::new);
        let checks = PeerChecks { identities, roots, ..PeerChecks::default() };
        verdict(checks, &server, "a.test", now())
    };
    let by_hash =
        |sum| PeerIdentities { certificate_hashes: vec![[0; 32], sum], ..PeerIdentities::any() };
    let by_key = |sum| PeerIdentities { key_hashes: vec![sum], ..PeerIdentities::any() };
    check(by_hash(sha256(&leaf)), None).accepted();
    check(by_key(key), None).accepted();
    check(by_key(key), Some(root.bundle())).accepted();
    check(by_hash([7; 32]), Some(root.bundle())).refused("pinned");
    check(by_key([7; 32]), None).refused("pinned");
    // Pins that came with the roots count as those of the configuration do.
    check(PeerIdentities::any(), Some(root.bundle().with_identities(by_key([7; 32]))))
        .refused("pinned");
    check(PeerIdentities::any(), Some(TrustBundle::empty().with_identities(by_key(key))))
        .accepted();
}

#[test]
fn validity_is_overlooked_and_mistrust_overruled_only_if_asked() {
    let (root, other) = (Root::new("public"), Root::new("other"));
    let server = LiveCert::new(root.host("a.test"));
    let late = now() + DAY * 30;
    verdict(rooted(root.bundle()), &server, "a.test", late).refused("expired");
    let lenient = PeerChecks { allow_expired: true, ..rooted(root.bundle()) };
    verdict(lenient.clone(), &server, "a.test", late).accepted();
    verdict(lenient.clone(), &server, "a.test", now() - DAY).accepted();
    let lenient = PeerChecks { allow_expired: true, ..rooted(other.bundle()) };
    verdict(lenient, &server, "a.test", late).refused("UnknownIssuer");
    let any = PeerChecks { accept_untrusted: true, ..rooted(other.bundle()) };
    verdict(any, &server, "a.test", now()).accepted();
}

#[test]
fn a_revoked_certificate_is_refused() {
    let root = Root::new("public");
    let (good, bad) = (root.host("a.test"), root.host("a.test"));
    let serial = |cert: &WorkloadCert| {
        let hex = cert.details().serial.clone();
        let hex = if hex.len() % 2 == 1 { format!("0{hex}") } else { hex };
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        SerialNumber::from((0..hex.len()).step_by(2).map(byte).collect::<Vec<_>>())
    };
    let list = CertificateRevocationListParams {
        this_update: now().into(),
        next_update: (now() + DAY).into(),
        crl_number: SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: serial(&bad),
            revocation_time: now().into(),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&root.0).expect("a list").pem().expect("PEM");
    let bundle = root.bundle().with_revocation_lists(list.as_bytes()).expect("it parses");
    let check = |cert| verdict(rooted(bundle.clone()), &LiveCert::new(cert), "a.test", now());
    check(good).accepted();
    check(bad).refused("Revoked");
    let broken = root
        .bundle()
        .with_revocation_lists(b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
    assert!(matches!(broken, Err(BundleError::RevocationList { position: 1, .. })));
}

#[test]
fn a_certificate_that_is_itself_trusted_needs_no_issuer() {
    let (root, other) = (Root::new("public"), Root::new("other"));
    let leaf = root.host("a.test");
    let bundle = TrustBundle::from_certificates(leaf.chain().to_vec()).expect("it parses");
    let server = LiveCert::new(leaf);
    verdict(rooted(bundle.clone()), &server, "a.test", now()).accepted();
    verdict(rooted(bundle.clone()), &server, "a.test", now() + DAY * 30).refused("");
    let server = LiveCert::new(other.host("a.test"));
    verdict(rooted(bundle), &server, "a.test", now()).refused("UnknownIssuer");
}

#[test]
fn the_name_asked_for_must_be_the_servers_if_wanted() {
    let root = Root::new("public");
    let server = LiveCert::new(root.host("*.shop.test"));
    let named = PeerChecks { server_name: ServerNameCheck::Also, ..rooted(root.bundle()) };
    verdict(named.clone(), &server, "a.shop.test", now()).accepted();
    verdict(named, &server, "a.other", now()).refused("do not include a.other");
}

#[test]
fn a_server_shows_the_certificate_that_fits_name_and_key() {
    let root = Root::new("public");
    let rsa = |name: &str| {
        let pair = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.not_before = now().into();
        let leaf = params.signed_by(&pair, &root.0).expect("leaf");
        let key = PrivateKey::from_pem(pair.serialize_pem().as_bytes()).expect("our own key");
        LiveCert::new(WorkloadCert::from_pem(leaf.pem().as_bytes(), key).expect("they fit"))
    };
    let ecdsa = |name: &str| LiveCert::new(root.host(name));
    let certs =
        vec![rsa("a.test"), ecdsa("a.test"), ecdsa("*.test"), rsa("r.test"), LiveCert::empty()];
    let shown = |sni: Option<&str>, full_scan: bool| {
        let set = CertSet::new(certs.clone(), full_scan);
        let options = at(now());
        let server =
            downstream_config(set, None, SessionResumption::default(), &options).expect("server");
        let client = upstream_config(None, rooted(root.bundle()), 0, &options).expect("client");
        let pair = handshake(&client, &server, sni).expect("a handshake");
        let shown = &pair.client.peer_certificates().expect("a certificate")[0];
        certs.iter().position(|cert| cert.current().is_some_and(|cert| cert.chain()[0] == *shown))
    };
    assert_eq!(shown(Some("a.test"), false), Some(1), "ECDSA before RSA");
    assert_eq!(shown(Some("b.test"), false), Some(2), "by wildcard");
    assert_eq!(shown(Some("r.test"), false), Some(3), "a whole name before a wildcard");
    assert_eq!(shown(Some("other.example"), false), Some(0), "the first if none fits");
    assert_eq!(shown(Some("other.example"), true), Some(1), "or the best of all");
    assert_eq!(shown(None, false), Some(1));
}
