//! From records to metrics, access log lines and the flight recorder.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use envoy_types::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use envoy_types::pb::envoy::config::accesslog::v3::{
    AccessLog, AccessLogFilter, GrpcStatusFilter, HeaderFilter, LogTypeFilter,
    access_log::ConfigType,
};
use envoy_types::pb::envoy::config::core::v3::{
    SubstitutionFormatString, substitution_format_string,
};
use envoy_types::pb::envoy::config::route::v3::{
    HeaderMatcher, header_matcher::HeaderMatchSpecifier,
};
use envoy_types::pb::envoy::data::accesslog::v3::AccessLogType;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::{
    FileAccessLog, file_access_log::AccessLogFormat,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};
use envoy_types::pb::google::protobuf::Any;
use http::HeaderMap;
use prost::{Message, Name};

use super::*;

fn address(text: &str) -> Option<SocketAddr> {
    Some(text.parse().expect("address parses"))
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

fn workload(name: &str) -> PeerMetadata {
    PeerMetadata {
        workload: format!("{name}-v1"),
        namespace: "default".into(),
        canonical_service: name.into(),
        canonical_revision: "v1".into(),
        app: name.into(),
        version: "v1".into(),
        cluster: "Kubernetes".into(),
        ..PeerMetadata::default()
    }
}

fn reviews_cluster() -> ClusterInfo {
    ClusterInfo {
        name: "outbound|9080||reviews.default.svc.cluster.local".into(),
        service: Some(ServiceIdentity {
            host: "reviews.default.svc.cluster.local".into(),
            name: "reviews".into(),
            namespace: "default".into(),
        }),
    }
}

/// A request from productpage to reviews, shaped by `change` and given to `use_it`.
fn with_request<R>(
    listener: &ListenerTelemetry,
    change: impl FnOnce(&mut HttpRecord<'_>),
    use_it: impl FnOnce(&HttpRecord<'_>) -> R,
) -> R {
    let request = headers(&[
        ("user-agent", "curl/8.0"),
        ("x-request-id", "0f6f7b4e"),
        ("x-forwarded-for", "10.0.0.1"),
    ]);
    let response = headers(&[("x-envoy-upstream-service-time", "3")]);
    let (cluster, peer) = (reviews_cluster(), Arc::new(workload("reviews")));
    let tls = TlsRecord {
        version: "TLSv1.3",
        peer_uri_san: Some("spiffe://cluster.local/ns/default/sa/reviews"),
        local_uri_san: Some("spiffe://cluster.local/ns/default/sa/productpage"),
        mutual: true,
        ..TlsRecord::default()
    };
    let start = UNIX_EPOCH + Duration::from_millis(1_522_796_769_123);
    let mut record = HttpRecord::new(listener, start, &request, &response);
    record.timing.total = Duration::from_millis(5);
    record.method = "GET";
    record.path = "/reviews/0?full=true";
    record.authority = "reviews:9080";
    record.response_code = 200;
    record.response_code_details = "via_upstream";
    record.bytes_sent = 295;
    record.wire_bytes_sent = 400;
    record.wire_bytes_received = 120;
    record.route_name = Some("default");
    record.downstream = DownstreamRecord {
        local_address: address("10.96.0.1:9080"),
        remote_address: address("10.0.0.7:40000"),
        ..DownstreamRecord::default()
    };
    record.upstream = UpstreamRecord {
        host: address("10.0.0.8:9080"),
        local_address: address("10.0.0.7:50000"),
        cluster: Some(&cluster),
        tls: Some(tls),
        peer: Some(&peer),
        attempts: 1,
        ..UpstreamRecord::default()
    };
    change(&mut record);
    use_it(&record)
}

fn print(format: &Format, change: impl FnOnce(&mut HttpRecord<'_>)) -> String {
    with_request(&ListenerTelemetry::default(), change, |record| {
        let mut out = vec![];
        format.write_http(record, &mut out);
        String::from_utf8(out).expect("utf-8")
    })
}

#[track_caller]
fn check(format: &str, want: &str) {
    assert_eq!(print(&Format::parse(format).expect("format parses"), |_| {}), want);
}

#[test]
fn istios_default_line_is_envoys() {
    assert_eq!(
        print(&Format::istio_default(), |_| {}),
        "[2018-04-03T23:06:09.123Z] \"GET /reviews/0?full=true HTTP/1.1\" 200 - via_upstream - \
         \"-\" 0 295 5 3 \"10.0.0.1\" \"curl/8.0\" \"0f6f7b4e\" \"reviews:9080\" \
         \"10.0.0.8:9080\" outbound|9080||reviews.default.svc.cluster.local 10.0.0.7:50000 \
         10.96.0.1:9080 10.0.0.7:40000 - default\n"
    );
}

#[test]
fn operators_take_alternatives_lengths_and_formats() {
    check("%REQ(X-MISSING?USER-AGENT)%", "curl/8.0");
    check("%REQ(X-MISSING)% %REQ(USER-AGENT):4%", "- curl");
    check("%REQ_WITHOUT_QUERY(:PATH)%", "/reviews/0");
    check("%START_TIME(%Y/%m/%d %H:%M:%S.%3f)%", "2018/04/03 23:06:09.123");
    check("100%% %RESP(:STATUS)% %PROTOCOL%", "100% 200 HTTP/1.1");
    check("%UPSTREAM_PEER_URI_SAN%", "spiffe://cluster.local/ns/default/sa/reviews");
    check("%DOWNSTREAM_PEER_URI_SAN% %GRPC_STATUS% %TRAILER(a)%", "- - -");
    check("%DYNAMIC_METADATA(a:b)% %FILTER_STATE(x:PLAIN)%", "- -");
    check("%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_PORT%", "10.0.0.8 9080");
}

#[test]
fn arguments_say_what_is_printed() {
    check("%PATH% %PATH(NQ)% %PATH(WQ:ORIG)%", "/reviews/0?full=true /reviews/0 -");
    check("%QUERY_PARAM(full)% %QUERY_PARAM(none)% %QUERY_PARAMS%", "true - full=true");
    check("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(16)%", "10.0.0.0/16");
    check("%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%", "5000");
    check("%REQUESTED_SERVER_NAME(SNI_FIRST)%", "reviews:9080");
    check("%ENVIRONMENT(NO_SUCH_VARIABLE)% %DOWNSTREAM_HEADER_BYTES_SENT%", "- 105");
    let encoded = |record: &mut HttpRecord<'_>| record.path = "/p?a%20b=c%2Fd&x=%zz";
    let format = Format::parse("%QUERY_PARAM(a b)% %QUERY_PARAM(x)% %QUERY_PARAMS(DECODED)%");
    assert_eq!(print(&format.expect("parses"), encoded), "c/d %zz a b=c/d&x=%zz");
    let id = print(&Format::parse("%UNIQUE_ID%").expect("parses"), |_| {});
    assert!(id.len() == 36 && id.as_bytes()[14] == b'4', "{id}");
    for bad in ["PATH(X)", "GRPC_STATUS(X)", "QUERY_PARAMS(X)", "QUERY_PARAM", "PROTOCOL(a)"] {
        assert!(Format::parse(&format!("%{bad}%")).is_err(), "{bad}");
    }
}

#[test]
fn a_grpc_status_has_three_forms_and_follows_from_the_http_status() {
    let format = "%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS(NUMBER)%";
    let format = Format::parse(format).expect("parses");
    let of = |code: u16| {
        print(&format, |record| {
            record.grpc = true;
            record.response_code = code;
        })
    };
    assert_eq!(of(200), "Unknown UNKNOWN 2");
    assert_eq!(of(403), "PermissionDenied PERMISSION_DENIED 7");
    assert_eq!(of(503), "Unavailable UNAVAILABLE 14");
}

#[test]
fn operators_without_data_are_named() {
    let telemetry = Telemetry::new(TelemetryOptions::default());
    let text = "%TRACE_ID% %REQ(a)% %SPAN_ID% %COMMON_DURATION(DS_RX_BEG:US_TX_BEG)%";
    let log = telemetry.access_log(&file_log("/dev/null", text)).expect("compiles");
    let want = ["TRACE_ID", "SPAN_ID", "COMMON_DURATION(DS_RX_BEG:US_TX_BEG)"];
    assert_eq!(log.absent(), want);
    let json = serde_json::json!({"a": "%PROTOCOL%", "b": ["x%FILTER_STATE(k)%"]});
    let format = Format::parse_json(&json, false, true).expect("parses");
    assert_eq!(format.absent(), ["FILTER_STATE"]);
}

/// Whether a log with this filter takes a request.
fn takes(filter: FilterSpecifier, change: impl FnOnce(&mut HttpRecord<'_>)) -> bool {
    let telemetry = Telemetry::new(TelemetryOptions::default());
    let filter = AccessLogFilter { filter_specifier: Some(filter) };
    let log = AccessLog { filter: Some(filter), ..file_log("/dev/null", "x") };
    let log = telemetry.access_log(&log).expect("compiles");
    let listener = ListenerTelemetry::default();
    with_request(&listener, change, |record| log.accepts(&accesslog::Subject::from(record)))
}

fn header_filter(by: HeaderMatchSpecifier, name: &str, invert: bool) -> bool {
    let header = HeaderMatcher {
        name: name.to_owned(),
        invert_match: invert,
        header_match_specifier: Some(by),
        ..HeaderMatcher::default()
    };
    takes(FilterSpecifier::HeaderFilter(HeaderFilter { header: Some(header) }), |_| {})
}

#[test]
fn a_header_filter_looks_at_the_request() {
    use HeaderMatchSpecifier as By;
    let text = |pattern, ignore_case| {
        let match_pattern = Some(pattern);
        By::StringMatch(StringMatcher { match_pattern, ignore_case })
    };
    let prefix = |text_of_it: &str, ignore| text(MatchPattern::Prefix(text_of_it.into()), ignore);
    assert!(header_filter(prefix("curl/", false), "user-agent", false));
    assert!(!header_filter(prefix("CURL/", false), "user-agent", false));
    assert!(header_filter(prefix("CURL/", true), "user-agent", false));
    assert!(!header_filter(prefix("curl/", false), "user-agent", true));
    assert!(header_filter(prefix("/reviews", false), ":path", false));
    assert!(header_filter(text(MatchPattern::Exact("GET".into()), false), ":method", false));
    let regex = |regex: &str| {
        let regex = RegexMatcher { regex: regex.into(), ..RegexMatcher::default() };
        text(MatchPattern::SafeRegex(regex), false)
    };
    assert!(header_filter(regex("curl/[0-9.]+"), "user-agent", false));
    assert!(!header_filter(regex("curl"), "user-agent", false), "the whole value");
    assert!(header_filter(By::PresentMatch(true), "user-agent", false));
    assert!(!header_filter(By::PresentMatch(true), "missing", false));
    assert!(header_filter(By::PresentMatch(true), "missing", true));
    assert!(!header_filter(prefix("x", false), "missing", true), "nothing is known of it");
}

#[test]
fn grpc_and_log_type_filters_choose() {
    let grpc = |statuses: &[i32], exclude| {
        let statuses = statuses.to_vec();
        FilterSpecifier::GrpcStatusFilter(GrpcStatusFilter { statuses, exclude })
    };
    let failed = |record: &mut HttpRecord<'_>| {
        record.grpc = true;
        record.response_code = 503;
    };
    assert!(takes(grpc(&[14], false), failed));
    assert!(!takes(grpc(&[14], true), failed));
    assert!(!takes(grpc(&[0], false), failed));
    let kind = |kind: AccessLogType, exclude| {
        let types = vec![kind.into()];
        FilterSpecifier::LogTypeFilter(LogTypeFilter { types, exclude })
    };
    assert!(takes(kind(AccessLogType::DownstreamEnd, false), |_| {}));
    assert!(!takes(kind(AccessLogType::TcpConnectionEnd, false), |_| {}));
    assert!(takes(kind(AccessLogType::TcpConnectionEnd, true), |_| {}));
}

#[test]
fn what_cannot_be_compiled_is_named() {
    let error = |format| Format::parse(format).expect_err("invalid").to_string();
    assert!(error("a %NO_SUCH_THING% b").contains("%NO_SUCH_THING%"));
    assert!(error("abc %REQ(").contains("byte 4"));
    assert!(error("%REQ%").contains("needs a header name"));
    assert!(error("%REQ(a?b?c)%").contains("more than one"));
    assert!(error("%PROTOCOL(x)%").contains("takes no argument"));
    assert!(error("%REQ(a):x%").contains("not a number"));
}

#[test]
fn details_have_no_blanks_and_failures_show_their_flags() {
    let format = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% \
                  %UPSTREAM_TRANSPORT_FAILURE_REASON% %RESPONSE_FLAGS_LONG%";
    let line = print(&Format::parse(format).expect("format parses"), |record| {
        record.response_code = 503;
        record.flags = ResponseFlags::UF | ResponseFlags::URX;
        record.response_code_details = "upstream reset{connection failure}";
        record.upstream.transport_failure = Some("delayed connect error: 111");
    });
    assert_eq!(
        line,
        "503 UF,URX upstream_reset{connection_failure} delayed_connect_error:_111 \
         UpstreamConnectionFailure,UpstreamRetryLimitExceeded"
    );
}

#[test]
fn json_keeps_types_and_escapes() {
    let format = serde_json::json!({
        "code": "%RESPONSE_CODE%", "agent": "%REQ(USER-AGENT)%", "mixed": "d=%DURATION%",
        "none": "%REQ(X-NONE)%", "nested": {"flags": "%RESPONSE_FLAGS%"}, "fixed": 7,
        "quoted": "a\"b",
    });
    let json = Format::parse_json(&format, false, true).expect("format parses");
    assert_eq!(
        print(&json, |_| {}),
        "{\"agent\":\"curl/8.0\",\"code\":200,\"fixed\":7,\"mixed\":\"d=5\",\
         \"nested\":{\"flags\":\"-\"},\"none\":null,\"quoted\":\"a\\\"b\"}\n"
    );
    let omitting = Format::parse_json(&format, true, true).expect("format parses");
    assert!(!print(&omitting, |_| {}).contains("none"));
}

fn file_log(path: &str, format: &str) -> AccessLog {
    #[allow(deprecated, reason = "Istio still sends text_format")]
    let text = substitution_format_string::Format::TextFormat(format.into());
    let format = SubstitutionFormatString { format: Some(text), ..Default::default() };
    let file = FileAccessLog {
        path: path.into(),
        access_log_format: Some(AccessLogFormat::LogFormat(format)),
    };
    let config = Any { type_url: FileAccessLog::type_url(), value: file.encode_to_vec() };
    AccessLog { config_type: Some(ConfigType::TypedConfig(config)), ..Default::default() }
}

#[test]
fn lines_of_all_workers_reach_the_file() {
    let file = tempfile::NamedTempFile::new().expect("file");
    let path = file.path().to_str().expect("utf-8 path").to_owned();
    let telemetry = Telemetry::new(TelemetryOptions::default());
    let log = telemetry.access_log(&file_log(&path, "%RESPONSE_CODE%\n")).expect("compiles");
    let listener = ListenerTelemetry { access_logs: vec![log], ..Default::default() };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let worker = telemetry.worker();
                for _ in 0..1000 {
                    with_request(&listener, |_| {}, |record| worker.http(record));
                }
            });
        }
    });
    telemetry.flush();
    drop(telemetry);
    let text = std::fs::read_to_string(&path).expect("readable");
    assert_eq!(text.lines().filter(|line| *line == "200").count(), 2000);
}

#[test]
fn an_access_log_of_an_unknown_kind_is_refused_by_name() {
    let mut log = file_log("/dev/null", "x");
    log.config_type = Some(ConfigType::TypedConfig(Any {
        type_url: "type.googleapis.com/no.Such".into(),
        value: vec![],
    }));
    let telemetry = Telemetry::new(TelemetryOptions::default());
    let error = telemetry.access_log(&log).expect_err("refused").to_string();
    assert!(error.contains("no.Such"), "{error}");
}

fn istio_listener(direction: Direction) -> ListenerTelemetry {
    ListenerTelemetry {
        listener: "virtualOutbound".into(),
        direction,
        istio_stats: Some(Arc::default()),
        ..ListenerTelemetry::default()
    }
}

fn productpage() -> Arc<Telemetry> {
    Telemetry::new(TelemetryOptions {
        local: workload("productpage"),
        ..TelemetryOptions::default()
    })
}

/// The lines of one metric.
fn lines(telemetry: &Telemetry, metric: &str) -> Vec<String> {
    let text = telemetry.prometheus(&StatsFilter::default());
    let wanted = |line: &&str| line.starts_with(metric) && line.as_bytes()[metric.len()] == b'{';
    text.lines().filter(wanted).map(str::to_owned).collect()
}

#[test]
fn a_source_reports_istios_labels() {
    let telemetry = productpage();
    let listener = istio_listener(Direction::Outbound);
    for _ in 0..2 {
        // Two workers count into one series.
        let worker = telemetry.worker();
        with_request(&listener, |_| {}, |record| worker.http(record));
    }
    let want = concat!(
        "istio_requests_total{reporter=\"source\",source_workload=\"productpage-v1\",",
        "source_canonical_service=\"productpage\",source_canonical_revision=\"v1\",",
        "source_workload_namespace=\"default\",",
        "source_principal=\"spiffe://cluster.local/ns/default/sa/productpage\",",
        "source_app=\"productpage\",source_version=\"v1\",source_cluster=\"Kubernetes\",",
        "destination_workload=\"reviews-v1\",destination_workload_namespace=\"default\",",
        "destination_principal=\"spiffe://cluster.local/ns/default/sa/reviews\",",
        "destination_app=\"reviews\",destination_version=\"v1\",",
        "destination_service=\"reviews.default.svc.cluster.local\",",
        "destination_canonical_service=\"reviews\",destination_canonical_revision=\"v1\",",
        "destination_service_name=\"reviews\",destination_service_namespace=\"default\",",
        "destination_cluster=\"Kubernetes\",request_protocol=\"http\",response_code=\"200\",",
        "response_flags=\"-\",connection_security_policy=\"unknown\",",
        "grpc_response_status=\"\"} 2"
    );
    assert_eq!(lines(&telemetry, "istio_requests_total"), [want]);
    let bucket = lines(&telemetry, "istio_request_duration_milliseconds_bucket");
    assert!(bucket.iter().any(|line| line.contains("le=\"5\"") && line.ends_with(" 2")));
    assert!(bucket.iter().any(|line| line.contains("le=\"1\"") && line.ends_with(" 0")));
    let sum = lines(&telemetry, "istio_response_bytes_sum");
    assert!(sum[0].ends_with(" 800"));
}

#[test]
fn a_destination_reports_the_peer_and_mutual_tls() {
    let telemetry = Telemetry::new(TelemetryOptions {
        local: workload("reviews"),
        ..TelemetryOptions::default()
    });
    let (listener, worker) = (istio_listener(Direction::Inbound), telemetry.worker());
    let peer = Arc::new(workload("productpage"));
    let tls = TlsRecord {
        peer_uri_san: Some("spiffe://cluster.local/ns/default/sa/productpage"),
        mutual: true,
        ..TlsRecord::default()
    };
    let (listener, peer, request, response) =
        (&listener, &peer, HeaderMap::new(), HeaderMap::new());
    let mut record = HttpRecord::new(listener, UNIX_EPOCH, &request, &response);
    record.authority = "reviews.default:9080";
    record.response_code = 200;
    record.downstream =
        DownstreamRecord { tls: Some(tls), peer: Some(peer), ..DownstreamRecord::default() };
    worker.http(&record);
    let line = &lines(&telemetry, "istio_requests_total")[0];
    for part in [
        "reporter=\"destination\"",
        "source_workload=\"productpage-v1\"",
        "source_principal=\"spiffe://cluster.local/ns/default/sa/productpage\"",
        "destination_workload=\"reviews-v1\"",
        "destination_service=\"reviews.default:9080\"",
        "destination_service_name=\"reviews\"",
        "connection_security_policy=\"mutual_tls\"",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[test]
fn catch_all_clusters_name_the_service() {
    for (cluster, want) in [
        ("PassthroughCluster", "PassthroughCluster"),
        ("BlackHoleCluster", "BlackHoleCluster"),
        ("InboundPassthroughClusterIpv4", "InboundPassthroughCluster"),
    ] {
        let telemetry = productpage();
        let info = ClusterInfo { name: cluster.into(), service: None };
        let listener = istio_listener(Direction::Outbound);
        let mut record = TcpRecord::new(&listener, TcpEvent::Opened, UNIX_EPOCH);
        record.upstream = UpstreamRecord { cluster: Some(&info), ..UpstreamRecord::default() };
        let worker = telemetry.worker();
        worker.tcp(&record);
        (record.event, record.sent_delta) = (TcpEvent::Closed, 10);
        worker.tcp(&record);
        let opened = lines(&telemetry, "istio_tcp_connections_opened_total");
        assert!(opened[0].contains(&format!("destination_service_name=\"{want}\"")), "{opened:?}");
        assert!(!opened[0].contains("response_code"), "{opened:?}");
        assert!(opened[0].contains("request_protocol=\"tcp\""));
        assert!(lines(&telemetry, "istio_tcp_connections_closed_total")[0].ends_with(" 1"));
        assert!(lines(&telemetry, "istio_tcp_sent_bytes_total")[0].ends_with(" 10"));
    }
}

#[test]
fn invented_hosts_do_not_grow_memory_without_bound() {
    let telemetry = productpage();
    let (listener, worker) = (istio_listener(Direction::Outbound), telemetry.worker());
    for i in 0..6000 {
        let host = format!("host-{i}.example");
        let (request, response) = (HeaderMap::new(), HeaderMap::new());
        let mut record = HttpRecord::new(&listener, UNIX_EPOCH, &request, &response);
        record.authority = &host;
        record.response_code = 200;
        worker.http(&record);
    }
    let series = lines(&telemetry, "istio_requests_total");
    assert_eq!(series.len(), 4097);
    let overflow: Vec<_> = series.iter().filter(|line| line.ends_with(" 1904")).collect();
    assert!(overflow[0].contains("destination_service=\"unknown\""), "{overflow:?}");
    assert!(lines(&telemetry, "envoy_amime_label_sets_dropped")[0].ends_with(" 1904"));
}

#[test]
fn envoys_stats_have_its_names_and_tags() {
    let name = "outbound|9080||reviews.default.svc.cluster.local";
    let print = |istio_tags| {
        let telemetry =
            Telemetry::new(TelemetryOptions { istio_tags, ..TelemetryOptions::default() });
        let cluster = telemetry.worker().cluster(name);
        cluster.upstream_rq_total.add(3);
        cluster.upstream_rq_time.record(7);
        cluster.codes.record(200);
        cluster.codes.record(503);
        telemetry.shared_cluster(name).membership_total.set(2);
        let used = StatsFilter { used_only: true, ..StatsFilter::default() };
        (telemetry.prometheus(&used), telemetry.stats_text(&used))
    };
    let (istio, text) = print(true);
    for line in [
        format!("envoy_cluster_upstream_rq_total{{cluster_name=\"{name}\"}} 3"),
        format!("envoy_cluster_membership_total{{cluster_name=\"{name}\"}} 2"),
        format!(
            "envoy_cluster_upstream_rq_xx{{response_code_class=\"5xx\",cluster_name=\"{name}\"}} 1"
        ),
        format!("envoy_cluster_upstream_rq{{response_code=\"200\",cluster_name=\"{name}\"}} 1"),
    ] {
        assert!(istio.contains(&line), "{line}\n{istio}");
    }
    assert!(text.contains(&format!("cluster.{name}.upstream_rq_2xx: 1\n")), "{text}");
    assert!(text.contains(&format!("cluster.{name}.upstream_rq_time: P0(nan,")), "{text}");
    assert!(!text.contains("upstream_cx_total"), "never counted");
    let (envoy, _) = print(false);
    assert!(envoy.contains(&format!("upstream_rq_total{{envoy_cluster_name=\"{name}\"}} 3")));
    assert!(envoy.contains("envoy_response_code_class=\"5\""));
}

#[test]
fn failed_and_slow_requests_are_remembered_and_bounded() {
    let telemetry = productpage();
    let (listener, worker) = (ListenerTelemetry::default(), telemetry.worker());
    with_request(&listener, |_| {}, |record| worker.http(record));
    assert_eq!(telemetry.debug_requests(), serde_json::json!([]));
    for _ in 0..500 {
        let fail = |record: &mut HttpRecord<'_>| {
            record.response_code = 503;
            record.flags = ResponseFlags::UH;
            record.config_origin = Some("/apis/networking.istio.io/v1/reviews");
        };
        with_request(&listener, fail, |record| worker.http(record));
    }
    let entries = telemetry.debug_requests();
    let entries = entries.as_array().expect("a list");
    assert_eq!(entries.len(), 64);
    assert_eq!(entries[0]["response_flags"], "UH");
    assert_eq!(entries[0]["request"]["path"], "/reviews/0?full=true");
    assert_eq!(entries[0]["config"], "/apis/networking.istio.io/v1/reviews");
}
