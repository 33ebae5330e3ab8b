//! Unix sockets: listeners at paths and under abstract names, endpoints, and
//! checks of these.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use amime_xds::client::Update;
use amime_xds::{Resource, TypeUrl};
use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::harness::{Proxy, Reply, cluster, http_listener, http_listener_yaml, listener, routes};

/// A server at a path that answers every request with its name.
fn serve(path: &Path, name: &'static str) {
    let socket = UnixListener::bind(path).expect("a free path");
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            let service =
                service_fn(move |request: http::Request<hyper::body::Incoming>| async move {
                    let _ = request.into_body().collect().await;
                    Ok::<_, std::convert::Infallible>(http::Response::new(name.to_owned()))
                });
            tokio::spawn(async move {
                let builder = hyper::server::conn::http1::Builder::new();
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}

fn at_paths(paths: &[&Path], fields: &str) -> Resource {
    let endpoint = |path: &&Path| {
        format!("{{endpoint: {{address: {{pipe: {{path: \"{}\"}}}}}}}}", path.display())
    };
    let endpoints: Vec<_> = paths.iter().map(endpoint).collect();
    let endpoints = endpoints.join(", ");
    cluster(&format!(
        "name: c\ntype: STATIC\n{fields}\nload_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{endpoints}]}}]}}"
    ))
}

/// The listener of the harness at a Unix socket.
fn at_pipe(name: &str, pipe: &str) -> Resource {
    let yaml = http_listener_yaml(&routes("- match: {prefix: /}\n  route: {cluster: c}"));
    let tcp = "address: {socket_address: {address: 127.0.0.1, port_value: 0}}";
    assert!(yaml.contains(tcp));
    let yaml = yaml.replace(tcp, &format!("address: {{pipe: {pipe}}}"));
    listener(&yaml.replace("name: http\n", &format!("name: {name}\n")))
}

async fn get(path: impl AsRef<Path>) -> Reply {
    let mut stream = UnixStream::connect(path).await.expect("the proxy accepts");
    let request = b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.expect("the proxy reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    Reply::parse(&answer)
}

#[tokio::test]
async fn a_listener_at_a_path_serves_endpoints_at_paths() {
    let dir = tempfile::tempdir().expect("a folder");
    let (front, back) = (dir.path().join("front"), dir.path().join("back"));
    serve(&back, "from a path");
    // What a process that was killed has left does not keep the path.
    drop(std::os::unix::net::UnixListener::bind(&front).expect("a free path"));
    let pipe = format!("{{path: \"{}\", mode: 384}}", front.display());
    let proxy = Proxy::with(vec![at_pipe("front", &pipe), at_paths(&[&back], "")]).await;
    for _ in 0..4 {
        let reply = get(&front).await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "from a path"));
    }
    let mode = std::fs::metadata(&front).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let counted = format!("listener.{}.downstream_cx_total: 4", front.display());
    proxy.until_stat(&counted).await;
}

#[tokio::test]
async fn a_changed_listener_keeps_its_path_and_a_new_one_takes_it_over() {
    let dir = tempfile::tempdir().expect("a folder");
    let (front, back) = (dir.path().join("front"), dir.path().join("back"));
    serve(&back, "ok");
    let pipe = format!("{{path: \"{}\"}}", front.display());
    let proxy = Proxy::with(vec![at_paths(&[&back], "")]).await;
    let send = |name: &str, removed: &[&str]| {
        let removed = removed.iter().map(|name| (*name).to_owned()).collect();
        let added = vec![at_pipe(name, &pipe)];
        proxy.runtime.apply(&Update { type_url: TypeUrl::Listener, added, removed })
    };
    for _ in 0..2 {
        assert_eq!(send("front", &[]), vec![]);
        proxy.settle().await;
        assert_eq!(get(&front).await.status, 200);
    }
    let refused = format!("{:?}", send("other", &[]));
    assert!(refused.contains(&format!("{} is the address of listener `front`", front.display())));
    assert_eq!(send("other", &["front"]), vec![]);
    proxy.settle().await;
    assert_eq!(get(&front).await.status, 200);
}

#[tokio::test]
async fn abstract_names_need_no_file() {
    let name = format!("amime-test-{}", std::process::id());
    let dir = tempfile::tempdir().expect("a folder");
    let back = dir.path().join("back");
    serve(&back, "ok");
    let pipe = format!("{{path: \"@{name}\"}}");
    let _proxy = Proxy::with(vec![at_pipe("front", &pipe), at_paths(&[&back], "")]).await;
    assert_eq!(get(format!("\0{name}")).await.status, 200);
}

#[tokio::test]
async fn endpoints_at_paths_are_checked() {
    let dir = tempfile::tempdir().expect("a folder");
    let (good, gone) = (dir.path().join("good"), dir.path().join("gone"));
    serve(&good, "good");
    let fields = "common_lb_config: {healthy_panic_threshold: {value: 0}}
health_checks: [{timeout: 1s, interval: 0.01s, no_traffic_interval: 0.01s, unhealthy_threshold: 1, healthy_threshold: 1, http_health_check: {path: /}}]";
    let hcm = routes("- match: {prefix: /}\n  route: {cluster: c}");
    let proxy = Proxy::with(vec![at_paths(&[&good, &gone], fields), http_listener(&hcm)]).await;
    let flags = || {
        let dump = proxy.runtime.dump();
        dump.clusters[0].endpoints.iter().map(|one| one.health_flags.clone()).collect::<Vec<_>>()
    };
    assert_eq!(flags(), [vec![], vec!["failed_active_hc"]]);
    for _ in 0..6 {
        assert_eq!(proxy.get("h", "/").await.body, "good");
    }
}

#[tokio::test]
async fn a_path_that_cannot_be_one_refuses_the_listener() {
    let proxy = Proxy::empty();
    let long = "x".repeat(108);
    for pipe in [format!("{{path: \"/{long}\"}}"), "{path: \"/tmp/a\", mode: 4096}".to_owned()] {
        let refused = proxy.runtime.apply_static(vec![at_pipe("front", &pipe)]).rejected;
        assert!(format!("{refused:?}").contains("address.pipe."), "{refused:?}");
    }
    // A file that is no socket is left alone.
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("precious");
    std::fs::write(&file, "x").expect("a file");
    let pipe = format!("{{path: \"{}\"}}", file.display());
    let refused = proxy.runtime.apply_static(vec![at_pipe("front", &pipe)]).rejected;
    assert!(format!("{refused:?}").contains("cannot bind"), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "x");
}
