//! What operators read from the admin ports, without sockets.

use std::net::SocketAddr;
use std::sync::Arc;

use amime_config::secrets::NoSecrets;
use amime_engine::overload::OverloadPlan;
use amime_engine::runtime::{ClusterDump, EndpointDump, ListenerDump, RuntimeDump, RuntimeOptions};
use amime_telemetry::TelemetryOptions;
use amime_xds::client::Update;
use amime_xds::{Resource, TypeUrl};
use bytes::Bytes;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use http_body_util::BodyExt;
use tokio::sync::watch;

use ::http::{Method, StatusCode};

use super::http::{Answer, Query};
use super::*;

fn context() -> Arc<Context> {
    let telemetry = Telemetry::new(TelemetryOptions::default());
    let runtime = Runtime::start(RuntimeOptions {
        concurrency: 1,
        telemetry: telemetry.clone(),
        identity: Arc::new(NoSecrets),
        mark: None,
        gateway: false,
        node_id: String::new(),
        service_cluster: String::new(),
        address: None,
        local_cluster: None,
        overload: OverloadPlan::default(),
        inherited: None,
    });
    Arc::new(Context {
        telemetry,
        runtime: runtime.expect("starts"),
        identity: None,
        ready: Arc::default(),
        needs_names: false,
        log: None,
        bootstrap: Bootstrap::default(),
        options: CommandLine { concurrency: 1, ..CommandLine::default() },
        app_metrics: None,
        wish: watch::Sender::new(Wish::Run),
        converter: Converter::default(),
        access_log: None,
    })
}

fn query(method: Method, target: &str, from: &str) -> Query {
    let request = ::http::Request::builder().method(method).uri(target).body(());
    let from: SocketAddr = from.parse().expect("an address");
    Query::of(&request.expect("valid"), from)
}

async fn body(answer: Answer) -> (StatusCode, String) {
    let (status, bytes) = (answer.status(), answer.into_body().collect().await);
    let bytes: Bytes = bytes.expect("a full body").to_bytes();
    (status, String::from_utf8(bytes.to_vec()).expect("utf-8"))
}

async fn get(context: &Arc<Context>, target: &str) -> (StatusCode, String) {
    let query = query(Method::GET, target, "127.0.0.1:1");
    body(routes::answer(context.clone(), query).await).await
}

async fn post(context: &Arc<Context>, target: &str) -> StatusCode {
    let query = query(Method::POST, target, "127.0.0.1:1");
    routes::answer(context.clone(), query).await.status()
}

fn apply_cluster(context: &Context) {
    let cluster = Cluster {
        name: "app".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        ..Cluster::default()
    };
    let added = vec![Resource::encode("app", &cluster)];
    let update = Update { type_url: TypeUrl::Cluster, added, removed: vec![] };
    assert_eq!(context.runtime.apply(&update), []);
}

#[tokio::test]
async fn every_path_of_the_help_page_answers() {
    let context = context();
    let (_, help) = get(&context, "/").await;
    let lines = help.lines().filter_map(|line| line.strip_prefix("  /"));
    for line in lines {
        let path = format!("/{}", line.split([':', ' ']).next().unwrap_or_default());
        let (status, _) = get(&context, &path).await;
        let want = match (line.contains("(POST)"), path.as_str()) {
            (true, _) => StatusCode::METHOD_NOT_ALLOWED,
            (false, "/ready") => StatusCode::SERVICE_UNAVAILABLE,
            (false, _) => StatusCode::OK,
        };
        assert_eq!(status, want, "{path}");
    }
    let (status, body) = get(&context, "/nothing").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body.starts_with("invalid path. admin commands are:\n"), "{body}");
}

#[tokio::test]
async fn the_dump_shows_resources_with_versions_and_can_be_narrowed() {
    let context = context();
    apply_cluster(&context);
    let (_, all) = get(&context, "/config_dump?include_eds").await;
    let all: serde_json::Value = serde_json::from_str(&all).expect("JSON");
    let kinds = all["configs"].as_array().expect("sections").iter();
    let kinds: Vec<_> = kinds.map(|one| one["@type"].as_str().unwrap_or_default()).collect();
    assert_eq!(kinds.len(), 7, "{kinds:?}");
    let (_, some) = get(&context, "/config_dump?resource=dynamic_active_clusters").await;
    let some: serde_json::Value = serde_json::from_str(&some).expect("JSON");
    let entry = &some["configs"][0];
    assert_eq!(entry["cluster"]["name"], "app");
    assert_eq!(entry["cluster"]["@type"], "type.googleapis.com/envoy.config.cluster.v3.Cluster");
    assert!(entry["version_info"].is_string() && entry["last_updated"].is_string());
    let (_, none) = get(&context, "/config_dump?name_regex=^other$").await;
    assert!(!none.contains("\"app\""));
    assert_eq!(get(&context, "/config_dump?resource=no").await.0, StatusCode::NOT_FOUND);
    assert_eq!(get(&context, "/config_dump?name_regex=(").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(get(&context, "/config_dump?mask=a").await.0, StatusCode::BAD_REQUEST);
    let target = "/config_dump?resource=dynamic_active_clusters&mask=cluster.name";
    let (_, masked) = get(&context, target).await;
    let masked: serde_json::Value = serde_json::from_str(&masked).expect("JSON");
    let entry = masked["configs"][0].clone();
    let want = serde_json::json!({
        "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.DynamicCluster",
        "cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "app"},
    });
    assert_eq!(entry, want);
    let (_, bootstrap) = get(&context, "/config_dump?mask=bootstrap").await;
    assert!(!bootstrap.contains("ClustersConfigDump"), "{bootstrap}");
}

#[tokio::test]
async fn certificates_of_the_configuration_are_listed_without_their_keys() {
    use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
        Secret, TlsCertificate, secret,
    };
    let dir = tempfile::tempdir().expect("directory");
    let now = std::time::SystemTime::now();
    let ca = amime_ca::CertificateAuthority::self_signed(dir.path(), "cluster.local", now);
    let hour = std::time::Duration::from_secs(3600);
    let cert = ca.expect("a CA").serving_cert(&["shop.example".to_owned()], hour, now);
    let cert = cert.expect("signed");
    let inline = |text: &str| {
        let specifier = Some(Specifier::InlineString(text.to_owned()));
        Some(DataSource { specifier, ..DataSource::default() })
    };
    let secret = Secret {
        name: "shop".into(),
        r#type: Some(secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: inline(&cert.chain_pem()),
            private_key: inline(&cert.key().to_pem()),
            ..TlsCertificate::default()
        })),
    };
    let context = context();
    let added = vec![Resource::encode("shop", &secret)];
    let update = Update { type_url: TypeUrl::Secret, added, removed: vec![] };
    assert_eq!(context.runtime.apply(&update), []);
    let (_, text) = get(&context, "/certs").await;
    assert!(!text.contains("PRIVATE"), "{text}");
    let certs: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let chain = &certs["certificates"][0]["cert_chain"];
    assert_eq!(chain.as_array().map(Vec::len), Some(1), "{text}");
    assert_eq!(chain[0]["subject_alt_names"][0]["dns"], "shop.example", "{text}");
    assert_eq!(chain[0]["path"], "<inline>");
}

#[tokio::test]
async fn stats_are_filtered_and_printed_in_each_format() {
    let context = context();
    // Stats last as long as somebody holds them.
    let app = context.telemetry.shared_cluster("app");
    app.membership_total.set(2);
    let (_, text) = get(&context, "/stats?filter=membership&usedonly").await;
    assert_eq!(text, "cluster.app.membership_total: 2\n");
    let (_, json) = get(&context, "/stats?filter=app.membership_total&format=json").await;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["stats"][0]["value"], 2);
    let (_, metrics) = get(&context, "/stats?format=prometheus&usedonly").await;
    assert!(metrics.contains("envoy_server_concurrency{} 1"), "{metrics}");
    assert_eq!(get(&context, "/stats?filter=(").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(get(&context, "/stats?format=xml").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(get(&context, "/stats?type=Odd").await.0, StatusCode::BAD_REQUEST);
    app.upstream_rq_total.add(3);
    let ask = "/stats?filter=app.(upstream_rq_total|membership_total)&usedonly";
    let (_, counters) = get(&context, &format!("{ask}&type=Counters")).await;
    assert_eq!(counters, "cluster.app.upstream_rq_total: 3\n");
    assert_eq!(post(&context, "/reset_counters").await, StatusCode::OK);
    let (_, left) = get(&context, ask).await;
    assert_eq!(left, "cluster.app.membership_total: 2\n", "gauges stay");
    app.upstream_rq_total.inc();
    let (_, counted) = get(&context, &format!("{ask}&type=Counters")).await;
    assert_eq!(counted, "cluster.app.upstream_rq_total: 1\n");
}

#[tokio::test]
async fn readiness_follows_configuration_health_checks_and_drain() {
    let context = context();
    context.ready.clusters_received();
    context.ready.listeners_received();
    // Workers adopt an update on their own threads.
    apply_cluster(&context);
    let live = async {
        while get(&context, "/ready").await.0 != StatusCode::OK {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(10), live).await;
    assert!(waited.is_ok(), "never live");
    assert_eq!(post(&context, "/healthcheck/fail").await, StatusCode::OK);
    assert_eq!(get(&context, "/ready").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(post(&context, "/healthcheck/ok").await, StatusCode::OK);
    assert_eq!(get(&context, "/ready").await.1, "LIVE\n");
    assert_eq!(post(&context, "/drain_listeners").await, StatusCode::OK);
    assert_eq!(*context.wish.borrow(), Wish::Drain);
    assert_eq!(post(&context, "/quitquitquit").await, StatusCode::OK);
    assert_eq!(post(&context, "/drain_listeners").await, StatusCode::OK);
    assert_eq!(*context.wish.borrow(), Wish::Quit, "a wish to quit stands");
}

#[tokio::test]
async fn only_the_pod_itself_may_end_the_proxy() {
    let context = context();
    let ask = |from: &'static str| {
        let query = query(Method::POST, "/quitquitquit", from);
        status::answer(context.clone(), query)
    };
    assert_eq!(ask("10.0.0.9:1").await.status(), StatusCode::FORBIDDEN);
    assert_eq!(*context.wish.borrow(), Wish::Run);
    assert_eq!(ask("[::ffff:127.0.0.1]:1").await.status(), StatusCode::OK);
    assert_eq!(*context.wish.borrow(), Wish::Quit);
}

#[test]
fn clusters_and_listeners_print_as_envoys() {
    let endpoint = EndpointDump {
        address: "10.0.0.8:9080".parse().expect("an address"),
        hostname: "reviews".into(),
        locality: ["r".into(), "z".into(), String::new()],
        weight: 1,
        priority: 0,
        eds_healthy: true,
        health_flags: vec!["failed_outlier_check"],
        ejected: true,
        success_rate: None,
        local_success_rate: None,
        cx_active: 1,
        cx_total: 2,
        cx_connect_fail: 0,
        rq_active: 0,
        rq_total: 5,
        rq_success: 4,
        rq_error: 1,
        rq_timeout: 0,
    };
    let cluster = ClusterDump {
        name: "app".into(),
        added_via_api: true,
        limits: [1, 2, 3, 4],
        endpoints: vec![endpoint],
    };
    let listener = ListenerDump {
        name: "main".into(),
        address: Some("0.0.0.0:15006".parse().expect("an address")),
        bound: true,
    };
    let dump =
        RuntimeDump { clusters: vec![cluster], listeners: vec![listener], ..Default::default() };
    let text = clusters::text(&dump);
    for line in [
        "app::default_priority::max_retries::4\n",
        "app::added_via_api::true\n",
        "app::10.0.0.8:9080::rq_success::4\n",
        "app::10.0.0.8:9080::health_flags::/failed_outlier_check\n",
        "app::10.0.0.8:9080::zone::z\n",
    ] {
        assert!(text.contains(line), "{line}");
    }
    let json = clusters::json(&dump);
    let host = &json["cluster_statuses"][0]["host_statuses"][0];
    assert_eq!(host["address"]["socket_address"]["port_value"], 9080);
    assert_eq!(host["health_status"]["failed_outlier_check"], true);
    assert_eq!(listeners::text(&dump), "main::0.0.0.0:15006\n");
    let json = listeners::json(&dump);
    let address = &json["listener_statuses"][0]["local_address"]["socket_address"];
    assert_eq!(address["port_value"], 15006);
}
