//! What a bootstrap says, and what is wrong with it.

use amime_rules::Faults;
use amime_xds::TypeUrl;

use super::check::Plan;
use super::sources::Origin;
use super::*;

fn here() -> Converter {
    Converter::default()
}

async fn parse(yaml: &str) -> Bootstrap {
    let input = Input { overlay: Some(yaml), ..Input::default() };
    load(&here(), input).await.expect("a bootstrap")
}

const BOOTSTRAP: &str = "
node: {id: n, cluster: c}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
stats_flush_interval: 5s
static_resources:
  clusters:
  - name: app
    connect_timeout: 1s
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: 80}}
";

#[tokio::test]
async fn a_bootstrap_is_read_merged_and_split_into_resources() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("envoy.yaml");
    std::fs::write(&file, BOOTSTRAP).expect("written");
    let overlay = "{node: {id: other}, static_resources: {clusters: [{name: more}]}}";
    let input = Input { path: Some(&file), overlay: Some(overlay), ..Input::default() };
    let bootstrap = load(&here(), input).await.expect("valid");
    assert_eq!(bootstrap.node.as_ref().expect("node").id, "other");
    let mut faults = Faults::default();
    let plan = Plan::of(&bootstrap, &mut faults);
    let names: Vec<_> = plan.resources.iter().map(|one| one.resource.name.as_str()).collect();
    assert_eq!(names, ["app", "more", "listener_0"]);
    assert_eq!(plan.admin.expect("set").to_string(), "127.0.0.1:0");
    assert_eq!(faults.into_list(), []);
}

#[tokio::test]
async fn json_and_binary_files_are_read_by_their_names() {
    let dir = tempfile::tempdir().expect("directory");
    let bootstrap = parse(BOOTSTRAP).await;
    let json = dir.path().join("envoy.json");
    std::fs::write(&json, r#"{"node": {"id": "n"}}"#).expect("written");
    let read = load(&here(), Input { path: Some(&json), ..Input::default() }).await;
    assert_eq!(read.expect("JSON").node.expect("node").id, "n");
    let binary = dir.path().join("envoy.pb");
    std::fs::write(&binary, bootstrap.encode_to_vec()).expect("written");
    let read = load(&here(), Input { path: Some(&binary), ..Input::default() }).await;
    assert_eq!(read.expect("protobuf"), bootstrap);
    let text = dir.path().join("envoy.pb_text");
    std::fs::write(&text, "node {}").expect("written");
    let read = load(&here(), Input { path: Some(&text), ..Input::default() }).await;
    assert!(matches!(read, Err(BootstrapError::Format { .. })));
}

#[tokio::test]
async fn faults_of_the_text_name_the_file_and_the_position() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("bad.yaml");
    std::fs::write(&file, "node:\n  idd: x\n").expect("written");
    let input = Input { path: Some(&file), ..Input::default() };
    let error = load(&here(), input).await.expect_err("invalid").to_string();
    assert!(error.contains("bad.yaml:2:") && error.contains("idd"), "{error}");
    let lenient = Input { allow_unknown_fields: true, ..input };
    assert!(load(&here(), lenient).await.is_ok());
    assert!(matches!(load(&here(), Input::default()).await, Err(BootstrapError::Missing)));
}

/// `path: reason` of all faults, `!` in front of those that refuse.
async fn faults(yaml: &str) -> Vec<String> {
    let bootstrap = parse(yaml).await;
    let mut faults = Faults::default();
    shell::report(&here(), &bootstrap, &mut faults).await;
    Plan::of(&bootstrap, &mut faults);
    let mark = |fatal| if fatal { "!" } else { "" };
    faults.into_list().iter().map(|fault| format!("{}{fault}", mark(fault.fatal))).collect()
}

#[tokio::test]
async fn every_field_without_effect_is_named_with_its_path() {
    let yaml = "
stats_flush_interval: 5s
overload_manager: {refresh_interval: 1s}
cluster_manager: {local_cluster_name: xds, outlier_detection: {event_log_path: /tmp/x}}
admin: {profile_path: /tmp/p, address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
layered_runtime: {layers: [{name: a, static_layer: {x: 1}}]}
dynamic_resources:
  ads_config:
    api_type: GRPC
    transport_api_version: V3
    grpc_services: [{envoy_grpc: {cluster_name: xds}, timeout: 1s}]
static_resources: {clusters: [{name: xds, load_assignment: {endpoints: [{lb_endpoints: [
  {endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}]}}]}
";
    let mut found = faults(yaml).await;
    found.sort();
    assert_eq!(
        found,
        [
            "admin.profile_path: not supported",
            "cluster_manager.outlier_detection: not supported",
            "dynamic_resources.ads_config.grpc_services[0].timeout: not supported",
            "layered_runtime.layers[0].static_layer.x: not supported",
            "stats_flush_interval: not supported",
        ]
    );
}

#[tokio::test]
async fn the_cluster_of_the_proxy_must_be_there() {
    let found = faults("cluster_manager: {local_cluster_name: here}").await;
    let want = "!cluster_manager.local_cluster_name: there is no static cluster \"here\"";
    assert_eq!(found, [want]);
}

#[tokio::test]
async fn sources_that_cannot_be_served_are_refused_by_name() {
    let yaml = r#"
dynamic_resources:
  lds_config: {ads: {}, resource_api_version: V3}
  cds_config: {path_config_source: {path: /no/such/file}, resource_api_version: V3}
static_resources:
  clusters:
  - name: app
    type: EDS
    eds_cluster_config:
      eds_config:
        resource_api_version: V3
        api_config_source: {api_type: REST, cluster_names: [x], refresh_delay: 1s}
  - name: old
    type: EDS
    eds_cluster_config: {eds_config: {path: Cargo.toml}}
  - name: old
  listeners:
  - name: tls
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context: {tls_certificate_sds_secret_configs: [{name: absent}, {name: present}]}
  secrets: [{name: present}]
"#;
    let secret = "static_resources.listeners[0].filter_chains[0].transport_socket.typed_config.\
        common_tls_context.tls_certificate_sds_secret_configs[0].name";
    let clusters = "static_resources.clusters";
    let eds = "eds_cluster_config.eds_config";
    assert_eq!(
        faults(yaml).await,
        [
            "!dynamic_resources.cds_config.path_config_source.path: /no/such/file: No such file or \
             directory (os error 2)"
                .to_owned(),
            "!dynamic_resources.lds_config.ads: there is no dynamic_resources.ads_config".into(),
            format!(
                "!{clusters}[0].{eds}.api_config_source.api_type: REST is not supported; use ads \
                 or path_config_source"
            ),
            format!("!{clusters}[1].{eds}.resource_api_version: only V3 is spoken"),
            format!("!{clusters}[2].name: \"old\" is used twice"),
            format!("!{secret}: no static secret is named \"absent\""),
        ]
    );
}

#[tokio::test]
async fn the_control_plane_of_either_variant_is_found() {
    for (api_type, want) in [("GRPC", "StateOfTheWorld"), ("DELTA_GRPC", "Delta")] {
        let yaml = format!(
            "
dynamic_resources:
  lds_config: {{ads: {{}}, resource_api_version: V3}}
  ads_config:
    api_type: {api_type}
    transport_api_version: V3
    grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]
static_resources:
  clusters:
  - name: xds
    load_assignment: {{endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address:
      {{address: 127.0.0.1, port_value: 18000}}}}}}}}]}}]}}
"
        );
        let bootstrap = parse(&yaml).await;
        let mut faults = Faults::default();
        let plan = Plan::of(&bootstrap, &mut faults);
        assert_eq!(faults.into_list(), []);
        assert_eq!(format!("{:?}", plan.ads.expect("a server").variant), want);
        assert_eq!((plan.listeners, plan.clusters), (Some(Origin::Ads), None));
    }
    let refused = faults(
        "
dynamic_resources: {ads_config: {api_type: REST, transport_api_version: V3, cluster_names: [x]}}
",
    )
    .await;
    let ads = "dynamic_resources.ads_config";
    assert!(
        refused
            .contains(&format!("!{ads}.api_type: REST is not supported; use GRPC or DELTA_GRPC")),
        "{refused:?}"
    );
    assert!(refused.contains(&format!("{ads}.cluster_names: not supported")), "{refused:?}");
}

#[tokio::test]
async fn what_a_resource_refers_to_is_found_with_the_way_to_it() {
    let yaml = r#"
dynamic_resources:
  ads_config: {api_type: GRPC, transport_api_version: V3}
static_resources:
  clusters:
  - name: app
    type: EDS
    eds_cluster_config: {service_name: svc, eds_config: {resource_api_version: V3, path_config_source: {path: Cargo.toml}}}
  listeners:
  - name: main
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          rds: {route_config_name: routes, config_source: {ads: {}, resource_api_version: V3}}
"#;
    let mut faults = Faults::default();
    let plan = Plan::of(&parse(yaml).await, &mut faults);
    let shared = handler::Shared::new(plan.at_hand);
    for one in plan.resources {
        shared.references().set((one.resource.type_url, one.resource.name), one.references);
    }
    let references = shared.references();
    let routes: Vec<_> = references.names(TypeUrl::Route, &Origin::Ads).into_iter().collect();
    assert_eq!(routes, ["routes"]);
    let files: Vec<_> = references.files().into_iter().collect();
    let [(TypeUrl::Endpoint, file)] = files.as_slice() else { panic!("{files:?}") };
    let names = references.names(TypeUrl::Endpoint, &Origin::File(file.clone()));
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["svc"]);
}
