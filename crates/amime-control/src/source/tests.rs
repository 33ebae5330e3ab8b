//! Sources through outages and faults.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use amime_model::Change;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::metrics::Count;
use crate::store::{Apply, SourceFile, Store, StoreOptions};

fn rule(name: &str, host: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: {name}, namespace: default}}\nspec: {{host: {host}}}\n"
    )
}

/// The next events in words, without revisions; one that never comes fails the test.
async fn next(events: &mut Events, count: usize) -> Vec<String> {
    let mut out = Vec::new();
    while out.len() < count {
        let event = tokio::time::timeout(Duration::from_secs(20), events.recv()).await;
        out.push(match event.unwrap_or_else(|_| panic!("no event after {out:?}")) {
            Some(Event::Change(Change::Set(resource))) => format!("set {}", resource.key()),
            Some(Event::Change(Change::Delete(key))) => format!("delete {key}"),
            Some(Event::Synced) => "synced".to_owned(),
            Some(Event::Revision(_)) => continue,
            None => "end".to_owned(),
        });
    }
    out
}

fn apply(store: &Store, text: &str) {
    let files = vec![SourceFile { name: "f.yaml".to_owned(), text: text.to_owned() }];
    store.apply(&Apply { files, namespace: "default".to_owned() }).expect("applies");
}

fn store_on(dir: &Path) -> Arc<Store> {
    let options = StoreOptions { dir: Some(dir.join("state")), ..StoreOptions::default() };
    Arc::new(Store::open(options).expect("opens"))
}

/// Serves until the token is cancelled and the store released.
async fn serve(
    socket: &Path,
    store: &Arc<Store>,
) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let shutdown = CancellationToken::new();
    let _ = fs::remove_file(socket);
    let listener = UnixListener::bind(socket).expect("free path");
    let (router, stopped) = (crate::api::router(store.clone()), shutdown.clone());
    let served = tokio::spawn(async move {
        crate::api::serve(listener, router, stopped).await.expect("serves");
    });
    (shutdown, served)
}

#[tokio::test]
async fn an_outage_of_the_api_changes_nothing_and_only_differences_follow() {
    let dir = tempfile::tempdir().expect("dir");
    let socket = dir.path().join("api");
    let stop = CancellationToken::new();
    let mut events = ApiSource::start(socket.clone(), Count::default(), stop.clone());

    let store = store_on(dir.path());
    apply(&store, &rule("a", "a"));
    apply(&store, &rule("b", "b"));
    let (shutdown, served) = serve(&socket, &store).await;
    assert_eq!(
        next(&mut events, 5).await,
        [
            "set Namespace default",
            "set Namespace istio-system",
            "set DestinationRule default/a",
            "set DestinationRule default/b",
            "synced",
        ]
    );
    shutdown.cancel();
    served.await.expect("stops");

    // While nobody serves, one rule goes and another comes.
    store
        .delete(&amime_api::ObjectKey {
            kind: amime_api::Kind::DestinationRule,
            namespace: "default".to_owned(),
            name: "a".to_owned(),
        })
        .expect("deleted");
    apply(&store, &rule("c", "c"));
    let (shutdown, served) = serve(&socket, &store).await;
    assert_eq!(
        next(&mut events, 2).await,
        ["delete DestinationRule default/a", "set DestinationRule default/c"]
    );
    shutdown.cancel();
    served.await.expect("stops");
    stop.cancel();
    assert_eq!(next(&mut events, 1).await, ["end"]);
}

#[tokio::test]
async fn a_restarted_store_that_forgot_its_history_is_compared_with_what_is_held() {
    let dir = tempfile::tempdir().expect("dir");
    let socket = dir.path().join("api");
    let stop = CancellationToken::new();
    let mut events = ApiSource::start(socket.clone(), Count::default(), stop.clone());
    let store = store_on(dir.path());
    apply(&store, &rule("a", "a"));
    let (shutdown, served) = serve(&socket, &store).await;
    next(&mut events, 4).await;
    shutdown.cancel();
    served.await.expect("stops");

    // Another store with other objects under the same names.
    let options = StoreOptions { namespaces: vec!["default".to_owned()], ..Default::default() };
    let other = Arc::new(Store::open(options).expect("opens"));
    apply(&other, &rule("b", "b"));
    let (_shutdown, _served) = serve(&socket, &other).await;
    let mut seen = next(&mut events, 4).await;
    seen.sort();
    assert_eq!(
        seen,
        [
            "delete DestinationRule default/a",
            "delete Namespace istio-system",
            "set DestinationRule default/b",
            "set Namespace default",
        ]
    );
    stop.cancel();
}

#[tokio::test]
async fn a_bad_file_keeps_its_last_good_objects_in_force() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("rules.yaml");
    fs::write(&path, rule("a", "a")).expect("written");
    fs::write(dir.path().join("notes.txt"), "not configuration").expect("written");
    let rejected = Count::default();
    let stop = CancellationToken::new();
    let events = FileSource::start(dir.path().to_owned(), rejected.clone(), stop.clone());
    let mut events = events.expect("starts");
    assert_eq!(next(&mut events, 2).await, ["set DestinationRule default/a", "synced"]);

    fs::write(&path, "kind: [").expect("written");
    // A file beside it shows that the bad one has been read and changed nothing.
    while rejected.value() == 0 {
        tokio::task::yield_now().await;
    }
    fs::write(dir.path().join("more.yaml"), rule("b", "b")).expect("written");
    assert_eq!(next(&mut events, 1).await, ["set DestinationRule default/b"]);

    fs::write(&path, rule("a", "elsewhere")).expect("written");
    assert_eq!(next(&mut events, 1).await, ["set DestinationRule default/a"]);
    fs::remove_file(&path).expect("removed");
    assert_eq!(next(&mut events, 1).await, ["delete DestinationRule default/a"]);
    stop.cancel();
}

#[tokio::test]
async fn a_missing_directory_is_an_error_at_the_start() {
    let stop = CancellationToken::new();
    let started = FileSource::start("/nonexistent/config".into(), Count::default(), stop);
    let error = started.expect_err("missing").to_string();
    assert_eq!(error, "cannot read the directory /nonexistent/config");
}

#[tokio::test]
async fn services_in_files_get_the_address_that_a_store_would_give() {
    let service = |name: &str, ip: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let store = Store::open(StoreOptions::default()).expect("opens");
    apply(&store, &service("a", "''"));
    let want = store.list(amime_api::Kind::Service, None)[0].to_json()["spec"]["clusterIP"].clone();

    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("a.yaml");
    fs::write(&path, service("a", "''")).expect("written");
    let stop = CancellationToken::new();
    let events = FileSource::start(dir.path().to_owned(), Count::default(), stop.clone());
    let mut events = events.expect("starts");
    let first = events.recv().await.expect("open");
    let Event::Change(Change::Set(resource)) = first else { panic!("unexpected {first:?}") };
    assert_eq!(resource.to_json()["spec"]["clusterIP"], want);
    assert_eq!(next(&mut events, 1).await, ["synced"]);
    // A new neighbour changes nothing about it.
    fs::write(&path, service("a", "''") + &service("b", "None")).expect("written");
    assert_eq!(next(&mut events, 1).await, ["set Service default/b"]);
    stop.cancel();
}
