//! Gateway credentials: certificates by name, their rotation, several in one
//! context, and what is told of handshakes that fail.

use std::path::PathBuf;

use amime_identity::{TlsOptions, TlsVersion};
use amime_xds::client::Update;
use amime_xds::{Resource, TypeUrl};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Backend, Proxy, cluster, http_listener, listener, routes, static_cluster};
use crate::pki::{Authority, Client, inline, secret, shown};

const CONTEXT: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const HCM: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

fn update(added: Vec<Resource>) -> Update {
    let type_url = added[0].type_url;
    Update { type_url, added, removed: Vec::new() }
}

/// A TLS listener `http` that answers `ok`, with these fields of its context.
fn tls_listener(context: &str) -> Resource {
    logging_listener(context, "[]")
}

fn logging_listener(context: &str, access_log: &str) -> Resource {
    listener(&format!(
        r#"name: http
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
access_log: {access_log}
filter_chains:
- transport_socket:
    name: tls
    typed_config: {{"@type": {CONTEXT}, {context}}}
  filters:
  - name: hcm
    typed_config:
      "@type": {HCM}
      stat_prefix: gw
      route_config: {{name: r, virtual_hosts: [{{name: v, domains: ["*"], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: ok}}}}}}]}}]}}
      http_filters: [{{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]"#
    ))
}

const BY_NAME: &str = "common_tls_context: {tls_certificate_sds_secret_configs: [{name: 'kubernetes://shop', sds_config: {ads: {}, initial_fetch_timeout: 0.001s}}]}";

#[tokio::test]
async fn a_credential_is_asked_for_by_name_and_rotates_without_a_break() {
    let ca = Authority::new();
    let proxy = Proxy::with(vec![tls_listener(BY_NAME)]).await;
    assert_eq!(proxy.runtime.required_names(TypeUrl::Secret), ["kubernetes://shop"]);
    let address = proxy.address();
    let client = || Client::of(&ca, "shop.test");
    assert!(client().connect(address).await.is_err(), "no certificate yet");
    proxy.until_stat("ssl.context_not_ready: 1").await;

    let first = ca.host("shop.test");
    assert_eq!(proxy.runtime.apply(&update(vec![first.secret("kubernetes://shop")])), vec![]);
    let mut old = client().connect(address).await.expect("a handshake");
    assert_eq!(shown(&old), first.chain.replace("\r\n", "\n"));

    let second = ca.host("shop.test");
    assert_eq!(proxy.runtime.apply(&update(vec![second.secret("kubernetes://shop")])), vec![]);
    let new = client().connect(address).await.expect("a handshake");
    assert_eq!(shown(&new), second.chain.replace("\r\n", "\n"));

    // What cannot be used is refused by name, and changes nothing.
    let mut broken = second.clone();
    broken.key = first.key.clone();
    let refused = proxy.runtime.apply(&update(vec![broken.secret("kubernetes://shop")]));
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].name, "kubernetes://shop");
    assert!(refused[0].error.contains("tls_certificate.certificate_chain"), "{}", refused[0].error);
    let again = client().connect(address).await.expect("a handshake");
    assert_eq!(shown(&again), second.chain.replace("\r\n", "\n"));

    // The connection from before all this is still served.
    assert!(crate::pki::get(&mut old, "/", "connection: close\r\n").await.ends_with("ok"));
    proxy.until_stat("ssl.versions.TLSv1.3: 3").await;
}

#[tokio::test]
async fn mutual_tls_takes_its_roots_by_name_and_counts_refusals() {
    let (ca, other) = (Authority::new(), Authority::new());
    let context = "require_client_certificate: true, common_tls_context: {tls_certificate_sds_secret_configs: [{name: 'kubernetes://shop', sds_config: {ads: {}, initial_fetch_timeout: 0.001s}}], combined_validation_context: {default_validation_context: {match_typed_subject_alt_names: [{san_type: DNS, matcher: {suffix: .friends.test}}]}, validation_context_sds_secret_config: {name: 'kubernetes://shop-cacert', sds_config: {ads: {}, initial_fetch_timeout: 0.001s}}}}";
    let log = std::env::temp_dir().join(format!("amime-credentials-{}.log", std::process::id()));
    let log_config = format!(
        r#"[{{name: f, typed_config: {{"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: "{}", log_format: {{text_format_source: {{inline_string: "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%\n"}}}}}}}}]"#,
        log.display()
    );
    let proxy = Proxy::with(vec![logging_listener(context, &log_config)]).await;
    assert_eq!(
        proxy.runtime.required_names(TypeUrl::Secret),
        ["kubernetes://shop", "kubernetes://shop-cacert"]
    );
    let secrets = vec![
        ca.host("shop.test").secret("kubernetes://shop"),
        ca.secret("kubernetes://shop-cacert"),
    ];
    assert_eq!(proxy.runtime.apply(&update(secrets)), vec![]);
    let get = async |shows| {
        let client = Client { shows, ..Client::of(&ca, "shop.test") };
        client.get(proxy.address(), "/").await
    };
    assert!(get(Some(ca.host("a.friends.test"))).await.ends_with("ok"));
    assert_eq!(get(None).await, "");
    assert_eq!(get(Some(ca.host("stranger.test"))).await, "");
    assert_eq!(get(Some(other.host("a.friends.test"))).await, "");
    proxy.until_stat("ssl.fail_verify_no_cert: 1").await;
    proxy.until_stat("ssl.fail_verify_san: 1").await;
    proxy.until_stat("ssl.fail_verify_error: 1").await;
    proxy.until_stat("ssl.handshake: 1").await;

    let logged = || {
        proxy.telemetry.flush();
        std::fs::read_to_string(&log).unwrap_or_default()
    };
    while logged().lines().count() < 4 {
        tokio::task::yield_now().await;
    }
    let logged = logged();
    for part in [
        "TLS_error:|268435648:SSL_routines:OPENSSL_internal:PEER_DID_NOT_RETURN_A_CERTIFICATE",
        "SAN_matcher,_certificate_SANs_are_[stranger.test]:TLS_error_end",
        "verify_cert_failed:_X509_verify_cert:_certificate_verification_error_at_depth_0",
    ] {
        assert!(logged.contains(part), "{part} in {logged}");
    }
    let _ = std::fs::remove_file(log);
}

#[tokio::test]
async fn a_client_may_come_without_a_certificate_but_not_with_a_bad_one() {
    let (ca, other) = (Authority::new(), Authority::new());
    let context = format!(
        "require_client_certificate: false, common_tls_context: {{tls_certificates: [{}], validation_context: {{trusted_ca: {}}}}}",
        ca.host("shop.test").yaml(),
        inline(&ca.pem())
    );
    let proxy = Proxy::with(vec![tls_listener(&context)]).await;
    let get = async |shows| {
        let client = Client { shows, ..Client::of(&ca, "shop.test") };
        client.get(proxy.address(), "/").await
    };
    assert!(get(None).await.ends_with("ok"));
    assert!(get(Some(ca.host("a.test"))).await.ends_with("ok"));
    assert_eq!(get(Some(other.host("a.test"))).await, "");
}

#[tokio::test]
async fn one_context_shows_each_name_its_certificate() {
    let ca = Authority::new();
    let (shop, pay) = (ca.host("shop.test"), ca.host("*.pay.test"));
    let context = "common_tls_context: {tls_certificate_sds_secret_configs: [{name: shop, sds_config: {ads: {}, initial_fetch_timeout: 0.001s}}, {name: pay, sds_config: {ads: {}, initial_fetch_timeout: 0.001s}}]}";
    let proxy = Proxy::with(vec![tls_listener(context)]).await;
    let secrets = vec![shop.secret("shop"), pay.secret("pay")];
    assert_eq!(proxy.runtime.apply(&update(secrets)), vec![]);
    for (name, want) in [("shop.test", &shop), ("eu.pay.test", &pay)] {
        let stream = Client::of(&ca, name).connect(proxy.address()).await.expect("a handshake");
        assert_eq!(shown(&stream), want.chain.replace("\r\n", "\n"), "{name}");
    }
    let other = Client { trusts: None, ..Client::of(&ca, "other.test") };
    let stream = other.connect(proxy.address()).await.expect("a handshake");
    assert_eq!(shown(&stream), shop.chain.replace("\r\n", "\n"), "the first one by default");
}

/// A directory that is gone when the test is.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("amime-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    /// Writes a file as a whole, by renaming.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let (path, new) = (self.0.join(name), self.0.join(format!("{name}.new")));
        std::fs::write(&new, text).expect("a file");
        std::fs::rename(new, &path).expect("a rename");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn a_secret_in_a_file_is_watched_and_so_are_the_files_it_names() {
    let (ca, directory) = (Authority::new(), Directory::new("sds"));
    let put = |issued: &crate::pki::Issued| {
        directory.write("key.pem", &issued.key);
        directory.write("chain.pem", &issued.chain);
    };
    let first = ca.host("shop.test");
    put(&first);
    let sds = directory.write(
        "sds.yaml",
        &format!(
            r#"resources: [{{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret, name: shop, tls_certificate: {{certificate_chain: {{filename: "{0}/chain.pem"}}, private_key: {{filename: "{0}/key.pem"}}}}}}]"#,
            directory.0.display()
        ),
    );
    let context = format!(
        "common_tls_context: {{tls_certificate_sds_secret_configs: [{{name: shop, sds_config: {{path_config_source: {{path: '{}'}}}}}}]}}",
        sds.display()
    );
    let proxy = Proxy::with(vec![tls_listener(&context)]).await;
    assert!(proxy.runtime.required_names(TypeUrl::Secret).is_empty(), "not asked for over ADS");
    let met = async || {
        let stream = Client::of(&ca, "shop.test").connect(proxy.address()).await;
        shown(&stream.expect("a handshake"))
    };
    assert_eq!(met().await, first.chain.replace("\r\n", "\n"));
    let second = ca.host("shop.test");
    put(&second);
    while met().await != second.chain.replace("\r\n", "\n") {
        tokio::task::yield_now().await;
    }
    let third = ca.host("shop.test");
    directory.write(
        "sds.yaml",
        &format!(
            r#"resources: [{{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret, name: shop, tls_certificate: {}}}]"#,
            third.yaml()
        ),
    );
    while met().await != third.chain.replace("\r\n", "\n") {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn files_that_a_name_of_istios_agent_tells_are_read_and_watched() {
    let (ca, directory) = (Authority::new(), Directory::new("agent"));
    let put = |issued: &crate::pki::Issued| {
        directory.write("key.pem", &issued.key);
        directory.write("chain.pem", &issued.chain);
    };
    let context = format!(
        "common_tls_context: {{tls_certificate_sds_secret_configs: [{{name: 'file-cert:{0}/chain.pem~{0}/key.pem', sds_config: {{api_config_source: {{api_type: GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: sds-grpc}}}}]}}}}}}]}}",
        directory.0.display()
    );
    // Files may come after the listener.
    let proxy = Proxy::with(vec![tls_listener(&context)]).await;
    assert!(proxy.runtime.required_names(TypeUrl::Secret).is_empty(), "not asked for over ADS");
    for _ in 0..2 {
        let issued = ca.host("shop.test");
        put(&issued);
        let want = issued.chain.replace("\r\n", "\n");
        let met = async || match Client::of(&ca, "shop.test").connect(proxy.address()).await {
            Ok(stream) => shown(&stream) == want,
            Err(_) => false,
        };
        while !met().await {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn versions_and_suites_are_those_configured() {
    let ca = Authority::new();
    let context = format!(
        "common_tls_context: {{tls_params: {{tls_maximum_protocol_version: TLSv1_2, cipher_suites: ['[ECDHE-ECDSA-CHACHA20-POLY1305|ECDHE-RSA-CHACHA20-POLY1305]'], ecdh_curves: [P-384]}}, tls_certificates: [{}]}}",
        ca.host("shop.test").yaml()
    );
    let proxy = Proxy::with(vec![tls_listener(&context)]).await;
    let stream = Client::of(&ca, "shop.test").connect(proxy.address()).await.expect("TLS 1.2");
    let session = stream.get_ref().1;
    let suite = session.negotiated_cipher_suite().expect("a suite").suite();
    assert_eq!(suite, rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256);
    let group = session.negotiated_key_exchange_group().expect("a group").name();
    assert_eq!(group, rustls::NamedGroup::secp384r1);
    let modern = TlsOptions { min_version: TlsVersion::V1_3, ..TlsOptions::default() };
    let modern = Client { options: modern, ..Client::of(&ca, "shop.test") };
    assert!(modern.connect(proxy.address()).await.is_err());
    proxy.until_stat("ssl.connection_error: 1").await;
    proxy.until_stat("ssl.ciphers.ECDHE-ECDSA-CHACHA20-POLY1305: 1").await;
}

#[tokio::test]
async fn what_a_context_cannot_have_is_named() {
    let ca = Authority::new();
    let cert = ca.host("shop.test").yaml();
    let check = |common: &str, fields: &str, path: &str| {
        let context =
            format!("common_tls_context: {{tls_certificates: [{cert}], {common}}} {fields}");
        let refused = Proxy::empty().runtime.apply(&update(vec![tls_listener(&context)]));
        assert!(refused.len() == 1 && refused[0].error.contains(path), "{path}: {refused:?}");
    };
    check("tls_params: {cipher_suites: [NOT-ONE]}", "", "tls_params.cipher_suites: `NOT-ONE`");
    check("tls_params: {cipher_suites: [AES128-SHA]}", "", "tls_params.cipher_suites: none");
    check("tls_params: {ecdh_curves: [P-1]}", "", "tls_params.ecdh_curves: `P-1`");
    check(
        "tls_params: {tls_maximum_protocol_version: TLSv1_1}",
        "",
        "tls_maximum_protocol_version",
    );
    check(
        "validation_context: {match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: a}}]}",
        "",
        "validation_context.match_typed_subject_alt_names",
    );
    let hash = "validation_context: {verify_certificate_hash: [zz]}";
    check(hash, "", "validation_context.verify_certificate_hash: `zz`");
    let unknown = "common_tls_context: {tls_certificate_sds_secret_configs: [{name: nowhere}]}";
    let refused = Proxy::empty().runtime.apply(&update(vec![tls_listener(unknown)]));
    assert!(refused[0].error.contains("no static secret `nowhere`"), "{refused:?}");
}

#[tokio::test]
async fn a_static_secret_is_there_before_its_listener() {
    let ca = Authority::new();
    let context = "common_tls_context: {tls_certificate_sds_secret_configs: [{name: own}]}";
    let listener = tls_listener(context);
    let proxy = Proxy::with(vec![listener, ca.host("shop.test").secret("own")]).await;
    let answer = Client::of(&ca, "shop.test").get(proxy.address(), "/").await;
    assert!(answer.ends_with("ok"), "{answer}");
}

/// A cluster `a` that speaks TLS to `to`, with these fields of its context.
fn tls_cluster(to: &Proxy, context: &str, http: &str) -> Resource {
    let address = to.address();
    cluster(&format!(
        r#"name: a
type: STATIC
connect_timeout: 2s
transport_socket:
  name: tls
  typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, {context}}}
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {{http_protocol_options: {{}}}}, {http}}}
load_assignment: {{cluster_name: a, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}]}}]}}"#,
        address.ip(),
        address.port()
    ))
}

#[tokio::test]
async fn an_upstream_is_checked_as_configured() {
    let (ca, other) = (Authority::new(), Authority::new());
    let server =
        format!("common_tls_context: {{tls_certificates: [{}]}}", ca.host("up.test").yaml());
    let server = Proxy::with(vec![tls_listener(&server)]).await;
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: a}");
    let reply = async |context: &str, http: &str| {
        let proxy =
            Proxy::with(vec![http_listener(&hcm), tls_cluster(&server, context, http)]).await;
        proxy.get("up.test", "/").await.status
    };
    let trusting = |authority: &Authority, more: &str| {
        format!(
            "common_tls_context: {{validation_context: {{trusted_ca: {}{more}}}}}",
            inline(&authority.pem())
        )
    };
    let san = |name| {
        format!(", match_typed_subject_alt_names: [{{san_type: DNS, matcher: {{exact: {name}}}}}]")
    };
    let auto = "upstream_http_protocol_options: {auto_sni: true, auto_san_validation: true}";
    assert_eq!(reply(&trusting(&ca, ""), "").await, 200);
    assert_eq!(reply(&trusting(&other, ""), "").await, 503);
    assert_eq!(reply("common_tls_context: {}", "").await, 200, "nothing asked");
    assert_eq!(reply(&trusting(&ca, &san("up.test")), "").await, 200);
    assert_eq!(reply(&trusting(&ca, &san("other.test")), "").await, 503);
    assert_eq!(reply(&trusting(&ca, ""), auto).await, 200);
    let named = format!("sni: other.test, auto_sni_san_validation: true, {}", trusting(&ca, ""));
    assert_eq!(reply(&named, "").await, 503);

    let proxy =
        Proxy::with(vec![http_listener(&hcm), tls_cluster(&server, &trusting(&ca, ""), auto)])
            .await;
    assert_eq!(proxy.get("elsewhere.test", "/").await.status, 503, "not the request's host");
    proxy.until_stat("cluster.a.ssl.fail_verify_san: 1").await;
}

#[tokio::test]
async fn a_cluster_waits_for_its_client_certificate_request_by_request() {
    let ca = Authority::new();
    let server = format!(
        "require_client_certificate: true, common_tls_context: {{tls_certificates: [{}], validation_context: {{trusted_ca: {}}}}}",
        ca.host("up.test").yaml(),
        inline(&ca.pem())
    );
    let server = Proxy::with(vec![tls_listener(&server)]).await;
    let context = "common_tls_context: {tls_certificate_sds_secret_configs: [{name: 'kubernetes://client', sds_config: {ads: {}, initial_fetch_timeout: 0.001s}}], validation_context_sds_secret_config: {name: 'kubernetes://client-cacert', sds_config: {ads: {}, initial_fetch_timeout: 0.001s}}}";
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: a}");
    let proxy = Proxy::with(vec![http_listener(&hcm), tls_cluster(&server, context, "")]).await;
    assert_eq!(proxy.get("h", "/").await.status, 503);
    let secrets = vec![
        ca.host("client.test").secret("kubernetes://client"),
        ca.secret("kubernetes://client-cacert"),
    ];
    assert_eq!(proxy.runtime.apply(&update(secrets)), vec![]);
    assert_eq!(proxy.get("h", "/").await.status, 200);
    let broken = secret(
        "kubernetes://client-cacert",
        "validation_context: {trusted_ca: {inline_string: nonsense}}",
    );
    let refused = proxy.runtime.apply(&update(vec![broken]));
    assert!(refused[0].error.contains("validation_context.trusted_ca"), "{refused:?}");
    assert_eq!(proxy.get("h", "/").await.status, 200);
}

#[tokio::test]
async fn a_tls_port_that_meets_plain_http_says_so() {
    let ca = Authority::new();
    let context =
        format!("common_tls_context: {{tls_certificates: [{}]}}", ca.host("shop.test").yaml());
    let proxy = Proxy::with(vec![tls_listener(&context)]).await;
    let mut stream = tokio::net::TcpStream::connect(proxy.address()).await.expect("accepts");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("the proxy reads");
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    proxy.until_stat("ssl.connection_error: 1").await;
}

#[tokio::test]
async fn server_names_choose_where_a_closed_connection_goes() {
    let ca = Authority::new();
    let backend = {
        let context =
            format!("common_tls_context: {{tls_certificates: [{}]}}", ca.host("in.test").yaml());
        Proxy::with(vec![tls_listener(&context)]).await
    };
    let plain = Backend::named("plain").await;
    let passthrough = listener(
        r#"name: http
address: {socket_address: {address: 127.0.0.1, port_value: 0}}
listener_filters:
- name: envoy.filters.listener.tls_inspector
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}
filter_chains:
- filter_chain_match: {server_names: ["outbound_.443_._.in.test"]}
  filters:
  - {name: sni, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.sni_cluster.v3.SniCluster}}
  - {name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: auto, cluster: BlackHole}}
- filter_chain_match: {server_names: ["in.test"]}
  filters:
  - {name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: in}}
default_filter_chain:
  filters:
  - {name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: rest, cluster: plain}}"#,
    );
    let proxy = Proxy::with(vec![
        passthrough,
        static_cluster("in", backend.address(), ""),
        static_cluster("outbound_.443_._.in.test", backend.address(), ""),
        static_cluster("plain", plain.address, ""),
    ])
    .await;
    let address = proxy.address();
    assert!(Client::of(&ca, "in.test").get(address, "/").await.ends_with("ok"));
    let auto = Client { trusts: None, ..Client::of(&ca, "outbound_.443_._.in.test") };
    assert!(auto.get(address, "/").await.ends_with("ok"));
    assert!(Client::of(&ca, "elsewhere.test").connect(address).await.is_err());
    assert_eq!(proxy.get("h", "/").await.body, "plain");
}

#[tokio::test]
async fn the_handshake_decides_the_protocol_where_it_may() {
    let ca = Authority::new();
    let auto = |to: &Proxy| {
        let address = to.address();
        cluster(&format!(
            r#"name: a
type: STATIC
connect_timeout: 2s
transport_socket:
  name: tls
  typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {{}}}}
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, auto_config: {{}}}}
load_assignment: {{cluster_name: a, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}]}}]}}"#,
            address.ip(),
            address.port()
        ))
    };
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: a}");
    for (alpn, http1, http2) in [("[h2, http/1.1]", 0, 1), ("[http/1.1]", 1, 0), ("[]", 1, 0)] {
        let context = format!(
            "common_tls_context: {{alpn_protocols: {alpn}, tls_certificates: [{}]}}",
            ca.host("up.test").yaml()
        );
        let server = Proxy::with(vec![tls_listener(&context)]).await;
        let proxy = Proxy::with(vec![http_listener(&hcm), auto(&server)]).await;
        // One worker, hence one pool, as both requests are on one connection.
        let two = "GET / HTTP/1.1\r\nhost: h\r\n\r\nGET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
        let answers = proxy.raw(two).await;
        assert_eq!(answers.matches("HTTP/1.1 200").count(), 2, "{alpn}: {answers}");
        proxy.until_stat(&format!("cluster.a.upstream_cx_http1_total: {http1}")).await;
        proxy.until_stat(&format!("cluster.a.upstream_cx_http2_total: {http2}")).await;
    }
}
