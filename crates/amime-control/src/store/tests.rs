//! Applies, watches and restarts of a store.

use std::fs;

use super::*;

fn clock() -> SystemTime {
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000)
}

fn options() -> StoreOptions {
    StoreOptions { clock, ..StoreOptions::default() }
}

fn memory() -> Store {
    Store::open(options()).expect("opens")
}

fn on_disk(dir: &Path) -> Store {
    Store::open(StoreOptions { dir: Some(dir.to_owned()), ..options() }).expect("opens")
}

fn files(files: &[(&str, &str)]) -> Apply {
    let files = files
        .iter()
        .map(|(name, text)| SourceFile { name: (*name).to_owned(), text: (*text).to_owned() })
        .collect();
    Apply { files, namespace: "default".to_owned() }
}

#[track_caller]
fn apply(store: &Store, text: &str) -> Vec<String> {
    let applied = store.apply(&files(&[("f.yaml", text)])).expect("applies");
    let line =
        |outcome: &Outcome| format!("{} {:?}", outcome.object, outcome.action).to_lowercase();
    applied.results.iter().map(line).collect()
}

fn key(kind: Kind, namespace: &str, name: &str) -> ObjectKey {
    ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() }
}

const RULE: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews}
";

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\n\
         spec: {{ports: [{{port: 80, name: http}}], selector: {{app: {name}}}}}\n"
    )
}

#[test]
fn results_read_like_kubectl() {
    let store = memory();
    let line = "destinationrule.networking.istio.io/reviews";
    assert_eq!(apply(&store, RULE), [format!("{line} created")]);
    assert_eq!(apply(&store, RULE), [format!("{line} unchanged")]);
    let changed = RULE.replace("host: reviews", "host: ratings");
    assert_eq!(apply(&store, &changed), [format!("{line} configured")]);
    assert_eq!(apply(&store, &service("details")), ["service/details created"]);

    let stored = store.get(&key(Kind::DestinationRule, "default", "reviews")).expect("stored");
    let meta = stored.metadata();
    assert_eq!(meta.creation_timestamp.as_deref(), Some("2027-01-15T08:00:00Z"));
    assert_eq!(meta.generation, Some(2));
    assert!(meta.uid.as_ref().is_some_and(|uid| uid.len() == 36));
}

#[test]
fn one_bad_object_keeps_the_whole_apply_out() {
    #[track_caller]
    fn check(bad: &str, want: &str) {
        let store = memory();
        let before = store.revision();
        let apply = files(&[("good.yaml", RULE), ("bad.yaml", bad)]);
        let rejected = store.apply(&apply).expect_err("must be refused");
        let errors = rejected.errors.join("\n");
        assert!(errors.contains(want), "{errors:?} does not say {want:?}");
        assert_eq!(store.revision(), before);
        assert!(store.list(Kind::DestinationRule, None).is_empty(), "nothing half-applied");
    }
    check(": : :", "bad.yaml:1:");
    check(&RULE.replace("host: reviews", "hots: reviews"), "bad.yaml:5:8: DestinationRule");
    check(&RULE.replace("DestinationRule", "DestinationRuul"), "bad.yaml:3:");
    let elsewhere = RULE.replace("name: reviews", "name: reviews, namespace: nowhere");
    check(
        &elsewhere,
        "bad.yaml:2: DestinationRule nowhere/reviews: namespaces \"nowhere\" not found",
    );
    check(&RULE.replace("{host: reviews}", "{}"), "DestinationRule default/reviews: spec.host: ");
    let wrong_ip = service("a").replace("spec: {", "spec: {clusterIP: nonsense, ");
    check(&wrong_ip, "spec.clusterIP: \"nonsense\" is not an IP address");
}

#[test]
fn every_fault_of_every_file_is_reported_at_once() {
    let bad = RULE.replace("host:", "hots:");
    let apply = files(&[("a.yaml", &bad), ("b.yaml", &bad), ("c.yaml", "kind: [")]);
    let errors = memory().apply(&apply).expect_err("must be refused").errors;
    for file in ["a.yaml:", "b.yaml:", "c.yaml:"] {
        assert!(errors.iter().any(|error| error.starts_with(file)), "{errors:?}");
    }
    let nothing = memory().apply(&files(&[("empty.yaml", "# nothing\n")]));
    assert_eq!(nothing.expect_err("refused").errors, ["no objects passed to apply"]);
}

#[test]
fn a_namespace_may_be_made_by_the_apply_that_uses_it() {
    let store = memory();
    let namespaced = RULE.replace("name: reviews", "name: reviews, namespace: shop");
    let text =
        format!("{namespaced}---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n");
    assert_eq!(
        apply(&store, &text),
        ["namespace/shop created", "destinationrule.networking.istio.io/reviews created"]
    );
    let deleted = store.delete(&key(Kind::Namespace, "", "shop")).expect("deleted");
    assert_eq!(deleted.len(), 2, "the namespace and what was in it");
    assert!(store.list(Kind::DestinationRule, None).is_empty());
    let protected = store.delete(&key(Kind::Namespace, "", "default"));
    assert!(matches!(protected, Err(StoreError::Protected { .. })));
}

#[test]
fn services_keep_the_address_that_they_were_given() {
    let store = memory();
    apply(&store, &service("details"));
    let address = |name: &str| {
        let object = store.get(&key(Kind::Service, "default", name)).expect("stored").to_json();
        object["spec"]["clusterIP"].as_str().map(str::to_owned)
    };
    let first = address("details").expect("has one");
    assert!(first.starts_with("10.96."), "{first}");
    assert_eq!(apply(&store, &service("details")), ["service/details unchanged"]);
    apply(&store, &service("details").replace("port: 80", "port: 81"));
    assert_eq!(address("details"), Some(first.clone()));

    let headless = service("headless").replace("spec: {", "spec: {clusterIP: None, ");
    apply(&store, &headless);
    assert_eq!(address("headless").as_deref(), Some("None"));
    let taken = service("thief").replace("spec: {", &format!("spec: {{clusterIP: {first}, "));
    let refused = store.apply(&files(&[("f.yaml", &taken)])).expect_err("taken");
    assert!(refused.errors[0].contains("already used by Service default/details"), "{refused:?}");
    // Freed with its owner, and the same on every machine.
    store.delete(&key(Kind::Service, "default", "details")).expect("deleted");
    apply(&store, &service("details"));
    assert_eq!(address("details"), Some(first));
}

#[test]
fn a_full_range_is_an_error() {
    let service_range = "10.0.0.0/29".parse().expect("range");
    let store = Store::open(StoreOptions { service_range, ..options() }).expect("opens");
    for name in ["a", "b", "c", "d", "e"] {
        apply(&store, &service(name));
    }
    let refused = store.apply(&files(&[("f.yaml", &service("f"))])).expect_err("full");
    assert!(refused.errors[0].contains("no free address is left in 10.0.0.0/29"), "{refused:?}");
}

#[test]
fn labels_set_by_hand_survive_an_apply_that_does_not_name_them() {
    let store = memory();
    apply(&store, &service("details"));
    let service_key = key(Kind::Service, "default", "details");
    let label = |name: &str, value: Option<&str>| {
        let labels = BTreeMap::from([(name.to_owned(), value.map(str::to_owned))]);
        store.label(&service_key, &labels).expect("labelled").1
    };
    assert!(label("tier", Some("front")));
    assert!(!label("tier", Some("front")), "as before");
    let without_app = service("details").replace("labels: {app: details}", "labels: {}");
    apply(&store, &without_app);
    let labels = store.get(&service_key).expect("stored").metadata().labels.clone();
    assert_eq!(labels, BTreeMap::from([("tier".to_owned(), "front".to_owned())]));
    assert!(label("tier", None));
    let missing = store.label(&key(Kind::Service, "default", "none"), &BTreeMap::new());
    assert_eq!(missing.expect_err("missing").to_string(), "services \"none\" not found");
}

#[test]
fn status_put_by_the_platform_survives_an_apply() {
    let store = memory();
    let deployment = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec: {selector: {matchLabels: {app: d}}, template: {metadata: {labels: {app: d}}, spec: {containers: [{name: d, image: d}]}}}
";
    apply(&store, deployment);
    let deployment_key = key(Kind::Deployment, "default", "d");
    let mut object = (*store.get(&deployment_key).expect("stored")).clone();
    *object.status_mut() = Some(serde_json::json!({"readyReplicas": 1}));
    store.put(object).expect("put");
    assert_eq!(apply(&store, deployment), ["deployment.apps/d unchanged"]);
    let status = store.get(&deployment_key).expect("stored").status().cloned();
    assert_eq!(status, Some(serde_json::json!({"readyReplicas": 1})));
}

#[tokio::test]
async fn a_watch_lists_then_follows_then_resumes() {
    let store = memory();
    let mut watch = store.watch(None).expect("from now");
    let listed: Vec<String> =
        watch.initial().iter().map(|change| change.resource.key().to_string()).collect();
    assert_eq!(listed, ["Namespace default", "Namespace istio-system"]);
    apply(&store, RULE);
    let change = watch.next().await.expect("live");
    assert_eq!((change.change_type, change.resource.name()), (ChangeType::Added, "reviews"));

    let seen = change.revision;
    apply(&store, &RULE.replace("host: reviews", "host: ratings"));
    store.delete(&change.resource.key()).expect("deleted");
    let point = |revision| ResumePoint { instance: watch.point().instance.clone(), revision };
    let mut resumed = store.watch(Some(&point(seen))).expect("known");
    let types: Vec<ChangeType> =
        resumed.initial().iter().map(|change| change.change_type).collect();
    assert_eq!(types, [ChangeType::Modified, ChangeType::Deleted]);
    assert!(store.watch(Some(&point(seen + 100))).is_err(), "not yet counted");
    let elsewhere = memory();
    apply(&elsewhere, &format!("{RULE}---\n{}", service("a")));
    assert!(elsewhere.watch(Some(&point(seen))).is_err(), "counted by another store");
}

#[tokio::test]
async fn history_and_lag_are_bounded() {
    let store = memory();
    let mut slow = store.watch(None).expect("from now");
    let start = slow.point().clone();
    let service_key = key(Kind::Namespace, "", "default");
    for round in 0..5000 {
        let labels = BTreeMap::from([("round".to_owned(), Some(round.to_string()))]);
        store.label(&service_key, &labels).expect("labelled");
    }
    assert!(store.watch(Some(&start)).is_err(), "forgotten");
    let recent = ResumePoint { revision: store.revision() - 1, ..start };
    store.watch(Some(&recent)).expect("what is recent is known");
    assert!(slow.next().await.is_none(), "cut off, not fed for ever");
}

#[test]
fn everything_but_pods_survives_a_restart() {
    let dir = tempfile::tempdir().expect("dir");
    let store = on_disk(dir.path());
    apply(&store, &format!("{RULE}---\n{}", service("details")));
    apply(&store, &service("gone"));
    store.delete(&key(Kind::Service, "default", "gone")).expect("deleted");
    apply(
        &store,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i}]}",
    );
    let before: Vec<_> = store.list(Kind::Service, None).iter().map(|s| s.to_json()).collect();
    let revision = store.revision();
    drop(store);

    let store = on_disk(dir.path());
    let after: Vec<_> = store.list(Kind::Service, None).iter().map(|s| s.to_json()).collect();
    assert_eq!(before, after);
    assert_eq!(store.list(Kind::DestinationRule, None).len(), 1);
    assert!(store.list(Kind::Pod, None).is_empty());
    assert!(store.revision() + 2 >= revision, "numbers do not start over");
    assert_eq!(apply(&store, &service("details")), ["service/details unchanged"]);
}

#[test]
fn a_torn_last_line_is_dropped_and_other_damage_named() {
    let dir = tempfile::tempdir().expect("dir");
    apply(&on_disk(dir.path()), RULE);
    let path = journal_path(dir.path());
    let good = fs::read_to_string(&path).expect("there");

    fs::write(&path, format!("{good}{{\"revision\":99,\"put\":[{{\"fi")).expect("written");
    let store = on_disk(dir.path());
    assert_eq!(store.list(Kind::DestinationRule, None).len(), 1);
    drop(store);

    let mut lines: Vec<&str> = good.lines().collect();
    lines[1] = "garbage";
    let damaged = lines.join("\n") + "\n";
    fs::write(&path, &damaged).expect("written");
    let options = StoreOptions { dir: Some(dir.path().to_owned()), ..options() };
    let error = Store::open(options).expect_err("corrupt").to_string();
    for part in ["objects.jsonl:2 is corrupt", "restore the file from a backup, or remove it"] {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
    assert_eq!(fs::read_to_string(&path).expect("there"), damaged, "left as it was");
}

#[test]
fn a_directory_is_used_by_one_process() {
    let dir = tempfile::tempdir().expect("dir");
    let _first = on_disk(dir.path());
    let options = StoreOptions { dir: Some(dir.path().to_owned()), ..options() };
    let error = Store::open(options).expect_err("in use").to_string();
    assert!(error.contains("objects.jsonl is in use by another process"), "{error}");
}

/// Real manifests of four Istio releases; not part of the repository.
#[test]
fn upstream_samples_of_all_releases_apply_and_reapply_unchanged() {
    let shared = std::env::var("AMIME_SHARED").unwrap_or_else(|_| "../../../shared".to_owned());
    let samples = Path::new(&shared).join("data/istio-samples");
    for release in ["1.0.0", "1.1.0", "1.6.4", "current"] {
        let bookinfo = samples.join(release).join("bookinfo");
        let mut paths = vec![bookinfo.join("platform/kube/bookinfo.yaml")];
        let networking = fs::read_dir(bookinfo.join("networking")).unwrap_or_else(|error| {
            panic!("{}: {error}; AMIME_SHARED says where it is", bookinfo.display())
        });
        paths.extend(networking.map(|entry| entry.expect("readable").path()));
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
        let store = memory();
        for path in paths {
            let text = fs::read_to_string(&path).expect("readable");
            let apply = files(&[(&path.display().to_string(), &text)]);
            store.apply(&apply).unwrap_or_else(|rejected| panic!("{rejected:#?}"));
            let again = store.apply(&apply).expect("applies again");
            let changed = again.results.iter().any(|outcome| outcome.action != Action::Unchanged);
            assert!(!changed, "{}: {:?}", path.display(), again.results);
        }
        assert!(store.list(Kind::Service, Some("default")).len() >= 4, "{release}");
    }
}

#[test]
fn a_pod_that_somebody_runs_stays_until_it_has_ended() {
    let options = StoreOptions { pods_end_gracefully: true, ..options() };
    let store = Store::open(options).expect("opens");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: default}\n\
               spec: {containers: [{name: web, image: web}]}\n";
    apply(&store, pod);
    let stored = store.list(Kind::Pod, None).remove(0);
    let (key, uid) = (stored.key(), stored.metadata().uid.clone().expect("has one"));

    store.delete(&key).expect("is there");
    let marked =
        |store: &Store| store.get(&key).map(|pod| pod.metadata().deletion_timestamp.clone());
    let since = marked(&store).expect("stays");
    assert!(since.is_some());
    // Neither a status of the one who runs it nor a second deletion changes that.
    store.put((*stored).clone()).expect("stored");
    store.delete(&key).expect("is there");
    assert_eq!(marked(&store).expect("stays"), since);

    store.finish_delete(&key, "another").expect("nothing to do");
    assert!(store.get(&key).is_ok());
    store.finish_delete(&key, &uid).expect("removed");
    assert!(store.get(&key).is_err());
}
