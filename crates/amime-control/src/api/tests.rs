//! The API over a real socket, as its client sees it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::StatusCode;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::store::{Action, Apply, ResumePoint, SourceFile, Store, StoreOptions};

const RULE: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews}
";

/// A store served on a socket of its own.
struct Served {
    _dir: tempfile::TempDir,
    shutdown: CancellationToken,
}

impl Served {
    fn start() -> (Self, ApiClient) {
        let dir = tempfile::tempdir().expect("dir");
        let store = Arc::new(Store::open(StoreOptions::default()).expect("opens"));
        let shutdown = serve_on(&dir.path().join("api"), store);
        let client = ApiClient::new(socket(dir.path()));
        (Self { _dir: dir, shutdown }, client)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("api")
}

fn serve_on(socket: &Path, store: Arc<Store>) -> CancellationToken {
    let shutdown = CancellationToken::new();
    let listener = UnixListener::bind(socket).expect("free path");
    tokio::spawn(serve(listener, router(store), shutdown.clone()));
    shutdown
}

fn request(text: &str) -> Apply {
    let files = vec![SourceFile { name: "f.yaml".to_owned(), text: text.to_owned() }];
    Apply { files, namespace: "default".to_owned() }
}

#[tokio::test]
async fn objects_are_applied_listed_labelled_and_deleted() {
    let (_served, client) = Served::start();
    let applied = client.apply(&request(RULE)).await.expect("applied");
    assert_eq!(applied.results[0].action, Action::Created);

    let listed = client.objects("dr", Some("default"), None).await.expect("listed");
    assert_eq!(listed.items[0]["metadata"]["name"], "reviews");
    let one =
        client.objects("destinationrules.networking.istio.io", Some("default"), Some("reviews"));
    assert_eq!(one.await.expect("found").items.len(), 1);

    let label = LabelRequest {
        kind: "ns".to_owned(),
        namespace: String::new(),
        name: "default".to_owned(),
        labels: [("istio-injection".to_owned(), Some("enabled".to_owned()))].into(),
    };
    assert!(client.label(&label).await.expect("labelled").changed);
    assert!(!client.label(&label).await.expect("labelled").changed);

    let deleted = client.delete("dr", Some("default"), "reviews").await.expect("deleted");
    assert_eq!(deleted.deleted[0]["kind"], "DestinationRule");
}

#[tokio::test]
async fn refusals_say_what_kubectl_says() {
    let (_served, client) = Served::start();
    let refused = |error: ClientError| match error {
        ClientError::Refused { status, error } => (status, error),
        other => panic!("unexpected {other:?}"),
    };
    let missing = client.delete("vs", Some("default"), "x").await.expect_err("missing");
    let text = "virtualservices.networking.istio.io \"x\" not found".to_owned();
    assert_eq!(refused(missing), (StatusCode::NOT_FOUND, text));
    let unknown = client.objects("virtualservce", None, None).await.expect_err("unknown");
    let (status, text) = refused(unknown);
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(text.contains("did you mean"), "{text}");

    let bad = client.apply(&request("a: [")).await.expect_err("malformed");
    assert!(matches!(&bad, ClientError::Rejected(rejected) if rejected.errors.len() == 1));
    assert!(bad.to_string().starts_with("f.yaml:1:"), "{bad}");
    let garbage = client.apply(&request(&"\u{1}".repeat(10 << 20))).await;
    assert!(matches!(garbage, Err(ClientError::Rejected(_))), "ten megabytes are one clear error");
}

#[tokio::test]
async fn nobody_at_the_socket_is_one_clear_error() {
    let dir = tempfile::tempdir().expect("dir");
    let client = ApiClient::new(dir.path().join("none"));
    let error = client.watch(None).await.expect_err("nobody").to_string();
    assert!(error.starts_with("cannot connect to "), "{error}");
}

#[tokio::test]
async fn a_watch_tells_what_there_is_and_what_comes() {
    let (served, client) = Served::start();
    let mut watch = client.watch(None).await.expect("watch");
    let mut initial = Vec::new();
    let point = loop {
        match watch.next().await.expect("readable").expect("open") {
            WatchLine::Added(watched) => initial.push(watched.object["metadata"]["name"].clone()),
            WatchLine::Synced { revision, instance } => break ResumePoint { instance, revision },
            other => panic!("unexpected {other:?}"),
        }
    };
    assert_eq!(initial, ["default", "istio-system"]);
    client.apply(&request(RULE)).await.expect("applied");
    let line = watch.next().await.expect("readable").expect("open");
    assert!(matches!(line, WatchLine::Added(watched) if watched.revision == point.revision + 1));

    let mut resumed = client.watch(Some(&point)).await.expect("known");
    let line = resumed.next().await.expect("readable").expect("open");
    assert!(matches!(line, WatchLine::Added(_)));
    let gone = client.watch(Some(&ResumePoint { instance: String::new(), ..point })).await;
    let gone = gone.expect_err("of no store");
    assert!(matches!(gone, ClientError::Refused { status: StatusCode::GONE, .. }));
    drop(served);
    // The server's end is the watch's end.
    while let Ok(Some(_)) = watch.next().await {}
}
