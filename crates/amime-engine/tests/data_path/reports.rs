//! Weights from load reports, with a real Envoy and with us.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::{Backend, Proxy, cluster, http_listener, http_listener_yaml, routes};
use crate::placement::{Envoy, exchange, placements};

/// Long enough for weights to change several times.
const SETTLED: Duration = Duration::from_millis(700);

/// Shares in percent of backends that report `reports`, once they settled.
async fn shares(address: SocketAddr, names: &[String]) -> Vec<usize> {
    let begin = Instant::now();
    while begin.elapsed() < SETTLED {
        placements(address, 20).await;
    }
    let got = placements(address, 1200).await;
    names.iter().map(|name| got.iter().filter(|one| *one == name).count() * 100 / 1200).collect()
}

/// Backends that answer with these fields, `name: value`, each; what differs.
async fn compare(name: &str, policy: &str, reports: &[&str]) -> Option<String> {
    let names: Vec<String> = (0..reports.len()).map(|at| format!("e{at}")).collect();
    let mut yaml = format!(
        "name: c\nload_balancing_policy: {{policies: [{{typed_extension_config: {{name: p, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin, weight_update_period: 0.1s, {policy}}}}}}}]}}\nload_assignment:\n  cluster_name: c\n  endpoints:\n  - lb_endpoints:\n"
    );
    let mut backends = Vec::new();
    for (report, own) in reports.iter().zip(&names) {
        let field =
            report.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
        let own = own.clone();
        let backend = Backend::start(move |_| {
            let mut response = Response::builder();
            if let Some((name, value)) = &field {
                response = response.header(name, value);
            }
            response.body(own.clone().into()).expect("a response")
        });
        let backend = backend.await;
        let port = backend.address.port();
        yaml.push_str(&format!("    - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}\n"));
        backends.push(backend);
    }
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: c}");
    let envoy = Envoy::start(&http_listener_yaml(&hcm), &yaml).await;
    let proxy = Proxy::with(vec![http_listener(&hcm), cluster(&yaml)]).await;
    let want = shares(envoy.address, &names).await;
    let got = shares(proxy.address(), &names).await;
    let near = want.iter().zip(&got).all(|(want, got)| want.abs_diff(*got) <= 4);
    (!near).then(|| format!("{name}: {want:?} and {got:?}"))
}

/// All scenarios, so that all differences are told.
async fn check(scenarios: &[(&str, &str, &[&str])]) {
    let mut differ = Vec::new();
    for (name, policy, reports) in scenarios {
        differ.extend(compare(name, policy, reports).await);
    }
    assert!(differ.is_empty(), "{differ:#?}");
}

const NOW: &str = "blackout_period: 0s";

#[tokio::test]
async fn endpoints_weigh_what_they_report_as_in_envoy() {
    let text = |more: &str| format!("endpoint-load-metrics: TEXT rps_fractional=100,{more}");
    let (low, high) = (&*text("cpu_utilization=0.2"), &*text("cpu_utilization=0.8"));
    let used = &*text("cpu_utilization=0.2,application_utilization=0.6");
    let named = &*text("application_utilization=0.2,named_metrics.a=0.8");
    let errors = &*text("cpu_utilization=0.2,eps=60");
    let by_name = |names: &str| {
        format!("blackout_period: 0s, metric_names_for_computing_utilization: [{names}]")
    };
    check(&[
        ("by processor", NOW, &[low, high]),
        ("the median for the rest", NOW, &[low, high, "x-none: 1"]),
        ("too early", "blackout_period: 60s", &[low, high]),
        ("what the application says", NOW, &[low, used]),
        ("a metric by name", &by_name("named_metrics.a"), &[low, named]),
        ("any metric of a map", &by_name("named_metrics.*"), &[low, named]),
        ("the greatest metric", &by_name("cpu_utilization, eps"), &[low, errors]),
        ("errors cost nothing", NOW, &[low, errors]),
        ("dear errors", "blackout_period: 0s, error_utilization_penalty: 5", &[low, errors]),
        ("no rate", NOW, &["endpoint-load-metrics: TEXT cpu_utilization=0.9", low, high]),
    ])
    .await;
}

#[tokio::test]
async fn reports_are_read_in_the_formats_of_envoy() {
    let high = "endpoint-load-metrics: TEXT rps_fractional=100,cpu_utilization=0.8";
    let mut differ = Vec::new();
    for report in [
        "endpoint-load-metrics: TEXT rps_fractional:100, cpu_utilization:0.2",
        "endpoint-load-metrics: TEXT rps_fractional = 100, cpu_utilization = 0.2",
        "endpoint-load-metrics: TEXT rps_fractional= 100,cpu_utilization= 0.2",
        "endpoint-load-metrics: TEXT rps_fractional=100,cpu_utilization=0.2,",
        "endpoint-load-metrics: TEXT rps_fractional=100,cpu_utilization=0.2,utilization.x=1",
        "endpoint-load-metrics: TEXT rps_fractional=100,cpu_utilization=0.2,request_cost.x=1",
        "endpoint-load-metrics: TEXT rps_fractional=100,cpu_utilization=0.2,unknown=1",
        "endpoint-load-metrics: TEXT rps_fractional=100,cpu_utilization=0.2,utilization.=1",
        "endpoint-load-metrics: TEXT rps_fractional=100,cpu_utilization=0.2,cpu_utilization=0.2",
        "endpoint-load-metrics: TEXT  rps_fractional=100,cpu_utilization=0.2",
        "endpoint-load-metrics: text rps_fractional=100,cpu_utilization=0.2",
        "endpoint-load-metrics: rps_fractional=100,cpu_utilization=0.2",
        "endpoint-load-metrics: JSON {\"rps_fractional\": 100, \"cpuUtilization\": 0.2}",
        "endpoint-load-metrics: JSON {\"rps_fractional\": \"100\", \"cpu_utilization\": 0.2}",
        "endpoint-load-metrics: JSON {\"rpsFractional\": 100, \"cpu_utilization\": 0.2, \"rps\": \"5\", \"eps\": null}",
        "endpoint-load-metrics: JSON {\"rps_fractional\": 100, \"cpu_utilization\": 0.2, \"more\": 1}",
        "endpoint-load-metrics: BIN CZqZmZmZmck/MQAAAAAAAFlA",
        "endpoint-load-metrics-bin: CZqZmZmZmck/MQAAAAAAAFlA",
        "endpoint-load-metrics-bin: CZqZmZmZmck/MQAAAAAAAFlAIQ==",
        "endpoint-load-metrics-bin: CZqZmZmZmck/MQAAAAAAAFlAGAE",
        "endpoint-load-metrics-json: {\"rps_fractional\": 100, \"cpu_utilization\": 0.2}",
    ] {
        differ.extend(compare(report, NOW, &[report, high, high]).await);
    }
    assert!(differ.is_empty(), "{differ:#?}");
}

/// A server of its own kind: each answer ends with `trailer`.
async fn with_trailer(name: &'static str, trailer: &'static str) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = socket.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while stream.read_buf(&mut seen).await.is_ok_and(|count| count > 0) {
                    if seen.ends_with(b"\r\n\r\n") {
                        seen.clear();
                        let answer = format!(
                            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{name}\r\n0\r\n{trailer}\r\n\r\n"
                        );
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

/// Of 200 requests, how many the first of two endpoints answers, once shares
/// settled.
async fn to_the_first(address: SocketAddr) -> usize {
    let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let begin = Instant::now();
    while begin.elapsed() < SETTLED {
        exchange(address, request).await;
    }
    let mut count = 0;
    for _ in 0..200 {
        count += usize::from(exchange(address, request).await.contains("e0"));
    }
    count
}

#[tokio::test]
async fn trailers_may_have_the_report() {
    let low = "endpoint-load-metrics: TEXT rps_fractional=100,cpu_utilization=0.1";
    let high = "endpoint-load-metrics: TEXT rps_fractional=100,cpu_utilization=0.9";
    let servers = [with_trailer("e0", low).await, with_trailer("e1", high).await];
    let trailers = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {\"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http_protocol_options: {enable_trailers: true}}}}";
    let policy = "load_balancing_policy: {policies: [{typed_extension_config: {name: p, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin, weight_update_period: 0.1s, blackout_period: 0s}}}]}";
    let yaml =
        crate::harness::endpoints_cluster_yaml("c", &servers, &format!("{trailers}\n{policy}"));
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: c}");
    let envoy = Envoy::start(&http_listener_yaml(&hcm), &yaml).await;
    let proxy = Proxy::with(vec![http_listener(&hcm), cluster(&yaml)]).await;
    let (want, got) = (to_the_first(envoy.address).await, to_the_first(proxy.address()).await);
    assert!(want.abs_diff(got) <= 8 && got > 160, "{want} and {got} of 200");
}
