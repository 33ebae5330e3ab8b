//! Handshakes in memory between configurations of this crate.

mod checks;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection, NamedGroup, ProtocolVersion, ServerConfig};
use rustls::{ServerConnection, SupportedCipherSuite};
use rustls_pki_types::UnixTime;

use super::SanType as PeerSanType;
use super::*;
use rcgen::SanType;

const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";
const PRODUCTPAGE: &str = "spiffe://cluster.local/ns/default/sa/productpage";
const FOREIGN: &str = "spiffe://other.mesh/ns/default/sa/productpage";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A clock that stands still at one time.
#[derive(Debug)]
struct At(SystemTime);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        Some(UnixTime::since_unix_epoch(since))
    }
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn at(time: SystemTime) -> TlsOptions {
    TlsOptions {
        clock: Arc::new(At(time)),
        ..TlsOptions::with_alpn(["istio-peer-exchange", "istio"])
    }
}

/// A certificate authority for tests; the shipped one is a higher layer.
struct Root(CertifiedIssuer<'static, KeyPair>);

impl Root {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("key");
        Self(CertifiedIssuer::self_signed(params, key).expect("root"))
    }

    fn bundle(&self) -> TrustBundle {
        TrustBundle::from_pem(self.0.as_ref().pem().as_bytes()).expect("root parses")
    }

    /// Valid for a day from `now()`.
    fn issue(&self, sans: Vec<SanType>) -> WorkloadCert {
        let key = PrivateKey::generate().expect("key");
        let pair = KeyPair::try_from(key.secret_der()).expect("P-256");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = sans;
        params.not_before = now().into();
        params.not_after = (now() + DAY).into();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&pair, &self.0).expect("leaf");
        WorkloadCert::from_pem(leaf.pem().as_bytes(), key).expect("chain and key fit")
    }

    fn workload(&self, id: &str) -> WorkloadCert {
        self.issue(vec![uri(id)])
    }

    fn host(&self, name: &str) -> WorkloadCert {
        self.issue(vec![SanType::DnsName(name.try_into().expect("DNS name"))])
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

/// Both ends after a handshake.
#[derive(Debug)]
struct Pair {
    client: ClientConnection,
    server: ServerConnection,
}

impl Pair {
    /// True if a byte goes through each way.
    fn echoes(&mut self) -> bool {
        use std::io::{Read, Write};
        self.client.writer().write_all(b"?").expect("buffered");
        let mut got = [0u8; 1];
        if pump(&mut self.client, &mut self.server).is_err()
            || self.server.reader().read_exact(&mut got).is_err()
        {
            return false;
        }
        self.server.writer().write_all(&got).expect("buffered");
        pump(&mut self.client, &mut self.server).is_ok()
            && self.client.reader().read_exact(&mut got).is_ok()
    }
}

fn handshake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    sni: Option<&str>,
) -> Result<Pair, String> {
    let mut pair = Pair {
        client: ClientConnection::new(client.clone(), server_name(sni)).expect("client settings"),
        server: ServerConnection::new(server.clone()).expect("server settings"),
    };
    pump(&mut pair.client, &mut pair.server)?;
    Ok(pair)
}

fn pump(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), String> {
    while client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).expect("memory");
        while !wire.is_empty() {
            let taken = server.read_tls(&mut wire.as_slice()).expect("memory");
            wire.drain(..taken);
            server.process_new_packets().map_err(|error| chain("server", &error))?;
        }
        server.write_tls(&mut wire).expect("memory");
        while !wire.is_empty() {
            let taken = client.read_tls(&mut wire.as_slice()).expect("memory");
            wire.drain(..taken);
            client.process_new_packets().map_err(|error| chain("client", &error))?;
        }
    }
    Ok(())
}

fn chain(side: &str, error: &rustls::Error) -> String {
    if let rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) = error {
        return format!("{side}: {}", other.0);
    }
    format!("{side}: {error}")
}

/// One mutual-TLS attempt: what each end is and wants.
struct Attempt {
    client: Option<WorkloadCert>,
    server: WorkloadCert,
    client_roots: TrustBundle,
    server_roots: TrustBundle,
    expected: PeerIdentities,
    auth: ClientAuth,
    time: SystemTime,
}

impl Attempt {
    fn good(root: &Root) -> Self {
        Self {
            client: Some(root.workload(PRODUCTPAGE)),
            server: root.workload(REVIEWS),
            client_roots: root.bundle(),
            server_roots: root.bundle(),
            expected: PeerIdentities {
                trust_domains: vec!["cluster.local".into()],
                sans: vec![SanMatcher::exact_uri(REVIEWS)],
                ..PeerIdentities::any()
            },
            auth: ClientAuth::Require(PeerIdentities::trust_domain("cluster.local")),
            time: now() + Duration::from_secs(60),
        }
    }

    fn run(self) -> Result<Pair, String> {
        let options = at(self.time);
        let cert = self.client.map_or_else(LiveCert::empty, LiveCert::new);
        let roots = LiveBundle::new(self.client_roots);
        let client = client_config(cert, roots, self.expected, &options).expect("client");
        let cert = LiveCert::new(self.server);
        let roots = LiveBundle::new(self.server_roots);
        let server = server_config(cert, roots, self.auth, &options).expect("server");
        handshake(&client, &server, Some("outbound_.9080_._.reviews.default.svc.cluster.local"))
    }

    #[track_caller]
    fn refused(self, want: &str) {
        let got = self.run().expect_err("must be refused");
        assert!(got.contains(want), "{got:?} does not say {want:?}");
    }
}

#[test]
fn two_workloads_of_a_mesh_meet_over_tls_1_3_and_the_hybrid_key_exchange() {
    let root = Root::new("mesh");
    let mut pair = Attempt::good(&root).run().expect("both are welcome");
    assert!(pair.echoes());
    assert_eq!(pair.client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(pair.client.alpn_protocol(), Some(&b"istio-peer-exchange"[..]));
    let group = pair.client.negotiated_key_exchange_group().expect("done").name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    let peer = peer_spiffe_id(pair.server.peer_certificates().expect("client presented one"));
    assert_eq!(peer.expect("has an identity").to_string(), PRODUCTPAGE);
    assert!(matches!(pair.client.negotiated_cipher_suite(), Some(SupportedCipherSuite::Tls13(_))));
}

#[test]
fn each_wrong_thing_alone_is_refused_by_the_right_side() {
    let root = Root::new("mesh");
    let good = || Attempt::good(&root);
    let stranger = Root::new("stranger");

    Attempt { client: Some(root.workload(FOREIGN)), ..good() }
        .refused("server: the peer's trust domain other.mesh is not one of [cluster.local]");
    Attempt { server: root.workload(FOREIGN), ..good() }
        .refused("client: the peer's trust domain other.mesh is not one of");
    Attempt { server: root.workload(PRODUCTPAGE), ..good() }
        .refused("client: the peer's names [spiffe://cluster.local/ns/default/sa/productpage]");
    Attempt { client: Some(stranger.workload(PRODUCTPAGE)), ..good() }.refused("UnknownIssuer");
    Attempt { server: stranger.workload(REVIEWS), ..good() }.refused("client: ");
    Attempt { client: None, ..good() }.refused("server: peer sent no certificates");
    Attempt { client_roots: TrustBundle::empty(), ..good() }
        .refused("client: no trusted root certificate is known yet");
    Attempt { time: now() + DAY * 2, ..good() }.refused("certificate expired");
    Attempt { time: now() - DAY, ..good() }.refused("certificate not valid yet");
    Attempt { client: Some(root.issue(vec![uri(PRODUCTPAGE), uri(REVIEWS)])), ..good() }
        .refused("server: the peer's certificate names no single SPIFFE ID");
    Attempt { client: Some(root.host("productpage.default")), ..good() }
        .refused("server: the peer's certificate names no single SPIFFE ID");
}

#[test]
fn an_optional_client_certificate_may_be_missing_but_not_wrong() {
    let root = Root::new("mesh");
    let auth = || ClientAuth::Optional(PeerIdentities::trust_domain("cluster.local"));
    let pair = Attempt { client: None, auth: auth(), ..Attempt::good(&root) }.run();
    assert!(pair.expect("anonymous is fine").server.peer_certificates().is_none());
    Attempt { client: Some(root.workload(FOREIGN)), auth: auth(), ..Attempt::good(&root) }
        .refused("trust domain other.mesh");
}

#[test]
fn a_rotated_certificate_serves_new_connections_while_old_ones_live_on() {
    let root = Root::new("mesh");
    let options = at(now() + DAY * 3 / 4);
    let server_cert = LiveCert::new(root.workload(REVIEWS));
    let server = server_config(
        server_cert.clone(),
        LiveBundle::new(root.bundle()),
        ClientAuth::Require(PeerIdentities::any()),
        &options,
    )
    .expect("server");
    let client = client_config(
        LiveCert::new(root.workload(PRODUCTPAGE)),
        LiveBundle::new(root.bundle()),
        PeerIdentities::exact_uris([REVIEWS]),
        &options,
    )
    .expect("client");
    let serial = |pair: &Pair| {
        let leaf = &pair.client.peer_certificates().expect("presented")[0];
        CertificateDetails::of(leaf).expect("parses").serial
    };

    let mut old = handshake(&client, &server, None).expect("first certificate");
    server_cert.set(root.workload(REVIEWS));
    let mut new = handshake(&client, &server, None).expect("second certificate");
    assert_ne!(serial(&old), serial(&new));
    assert!(old.echoes() && new.echoes());
}

#[test]
fn roots_overlap_during_their_rotation_and_a_withdrawn_one_counts_at_once() {
    let (old, new) = (Root::new("old"), Root::new("new"));
    let options = at(now());
    let roots = LiveBundle::new(old.bundle().union(&new.bundle()));
    assert_eq!(roots.current().certificates().len(), 2);
    let server = server_config(
        LiveCert::new(new.workload(REVIEWS)),
        roots.clone(),
        ClientAuth::Require(PeerIdentities::any()),
        &options,
    )
    .expect("server");
    let client = client_config(
        LiveCert::new(old.workload(PRODUCTPAGE)),
        LiveBundle::new(new.bundle()),
        PeerIdentities::any(),
        &options,
    )
    .expect("client");

    let mut before = handshake(&client, &server, None).expect("both roots are trusted");
    roots.set(new.bundle());
    assert!(before.echoes(), "an open connection is left alone");
    // A second attempt from the same client must not slip in by resumption.
    let refused = handshake(&client, &server, None).expect_err("the old root is gone");
    assert!(refused.contains("UnknownIssuer"), "{refused}");
}

#[test]
fn a_gateway_serves_host_names_and_clients_check_them() {
    let root = Root::new("public");
    let options = at(now());
    let server = plain_server_config(LiveCert::new(root.host("*.example.com")), &options);
    let server = server.expect("server");
    let roots = LiveBundle::new(root.bundle());
    let check = |check: PlainServerCheck, sni: &str| {
        let client = plain_client_config(None, check, &options).expect("client");
        handshake(&client, &server, Some(sni)).map(|mut pair| pair.echoes())
    };
    let by_name = || PlainServerCheck::ServerName(roots.clone());
    let dns = |name: &str| SanMatcher {
        san_type: PeerSanType::Dns,
        pattern: SanPattern::Exact(name.to_owned()),
    };
    let by_san = |name: &str| {
        let names = PeerIdentities { sans: vec![dns(name)], ..PeerIdentities::any() };
        PlainServerCheck::Names(roots.clone(), names)
    };

    assert_eq!(check(by_name(), "shop.example.com"), Ok(true));
    assert!(check(by_name(), "a.shop.example.com").is_err());
    assert_eq!(check(by_san("shop.example.com"), "elsewhere.test"), Ok(true));
    assert!(check(by_san("a.shop.example.com"), "shop.example.com").is_err());
    let nobody = LiveBundle::new(TrustBundle::empty());
    assert!(check(PlainServerCheck::ServerName(nobody), "shop.example.com").is_err());
    assert_eq!(check(PlainServerCheck::Nothing, "elsewhere.test"), Ok(true));
}

#[test]
fn version_bounds_hold() {
    let root = Root::new("mesh");
    let bounded = |min_version, max_version| TlsOptions { min_version, max_version, ..at(now()) };
    let server =
        |options: &TlsOptions| plain_server_config(LiveCert::new(root.host("a.test")), options);
    let client = |options: &TlsOptions| {
        let check = PlainServerCheck::ServerName(LiveBundle::new(root.bundle()));
        plain_client_config(None, check, options).expect("client")
    };
    let old = bounded(TlsVersion::V1_2, TlsVersion::V1_2);
    let new = bounded(TlsVersion::V1_3, TlsVersion::V1_3);
    let pair = handshake(&client(&old), &server(&old).expect("server"), Some("a.test"));
    assert_eq!(pair.expect("1.2").client.protocol_version(), Some(ProtocolVersion::TLSv1_2));
    assert!(handshake(&client(&old), &server(&new).expect("server"), Some("a.test")).is_err());
    let crossed = server(&bounded(TlsVersion::V1_3, TlsVersion::V1_2));
    assert!(matches!(crossed, Err(ConfigError::Versions { .. })));
}

#[test]
fn a_server_without_a_certificate_refuses_until_one_arrives() {
    let root = Root::new("mesh");
    let cert = LiveCert::empty();
    let server = plain_server_config(cert.clone(), &at(now())).expect("server");
    let check = PlainServerCheck::ServerName(LiveBundle::new(root.bundle()));
    let client = plain_client_config(None, check, &at(now())).expect("client");
    assert!(handshake(&client, &server, Some("a.test")).is_err());
    cert.set(root.host("a.test"));
    assert!(handshake(&client, &server, Some("a.test")).is_ok());
}

#[test]
fn keys_fit_their_certificate_and_stay_out_of_debug_output() {
    let root = Root::new("mesh");
    let cert = root.workload(REVIEWS);
    let other = PrivateKey::generate().expect("key");
    let mismatch = WorkloadCert::from_pem(cert.chain_pem().as_bytes(), other);
    assert!(matches!(mismatch, Err(CertError::Mismatch)));

    let pem = cert.key().to_pem();
    let again = PrivateKey::from_pem(pem.as_bytes()).expect("own PEM");
    WorkloadCert::from_pem(cert.chain_pem().as_bytes(), again).expect("the same key");
    let secret = pem.lines().nth(1).expect("a line of base64");
    assert!(!format!("{cert:?}{:?}", cert.key()).contains(secret));

    assert_eq!(cert.rotate_at(0.5), now() + DAY / 2);
    assert_eq!(cert.spiffe_id().map(ToString::to_string).as_deref(), Some(REVIEWS));
}

#[test]
fn details_name_serial_validity_issuer_and_names() {
    let root = Root::new("mesh");
    let details = root.workload(REVIEWS).details().clone();
    assert_eq!(details.issuer, "O=mesh");
    assert_eq!(details.subject_alt_names, [SubjectAltName::Uri(REVIEWS.to_owned())]);
    assert!(!details.is_ca && details.serial.chars().all(|c| c.is_ascii_hexdigit()));
    assert!(details.valid_at(now()) && !details.valid_at(now() + DAY * 2));
}

#[test]
fn broken_certificates_are_errors() {
    let root = Root::new("mesh");
    let good = root.workload(REVIEWS).chain()[0].clone();
    for cut in 0..good.len() {
        let broken = rustls_pki_types::CertificateDer::from(good[..cut].to_vec());
        assert!(CertificateDetails::of(&broken).is_err(), "cut at {cut}");
        assert!(peer_spiffe_id(&[broken]).is_none(), "cut at {cut}");
    }
    assert!(matches!(TrustBundle::from_pem(b"garbage"), Err(BundleError::Empty { .. })));
    assert!(TrustBundle::from_pem(b"-----BEGIN CERTIFICATE-----\n!!\n").is_err());
    assert!(matches!(PrivateKey::from_pem(b"garbage"), Err(KeyError::NoKey)));
}

#[test]
fn san_patterns_match_whole_names_of_their_type() {
    use SanPattern::{Contains, Exact, Prefix, Regex, Suffix};
    let uri = SubjectAltName::Uri(REVIEWS.to_owned());
    let check = |san_type, pattern, want: bool| {
        let matcher = SanMatcher { san_type, pattern };
        assert_eq!(matcher.matches(&uri), want, "{matcher:?}");
    };
    check(PeerSanType::Uri, Exact(REVIEWS.into()), true);
    check(PeerSanType::Any, Exact(REVIEWS.into()), true);
    check(PeerSanType::Dns, Exact(REVIEWS.into()), false);
    check(PeerSanType::Uri, Prefix("spiffe://cluster.local/".into()), true);
    check(PeerSanType::Uri, Suffix("/sa/reviews".into()), true);
    check(PeerSanType::Uri, Contains("/ns/default/".into()), true);
    check(PeerSanType::Uri, Regex("spiffe://.*/sa/reviews".parse().expect("regex")), true);
    check(PeerSanType::Uri, Regex("cluster".parse().expect("regex")), false);
}
