//! Plans for workloads whose pods come and go.

use super::*;

/// Plays the plan against the objects until it is empty; pods become ready
/// one after the other. Returns the least number of ready pods seen after
/// `from` were.
struct World {
    objects: Vec<Arc<Resource>>,
    named: u32,
}

impl World {
    fn new(yaml: &str) -> Self {
        let decoded = amime_api::decode::decode("test.yaml", yaml);
        assert!(decoded.errors.is_empty(), "{:?}", decoded.errors);
        let mut objects = Vec::new();
        for (n, mut resource) in decoded.resources.into_iter().enumerate() {
            resource.metadata_mut().uid = Some(format!("uid-{n}"));
            objects.push(Arc::new(resource));
        }
        Self { objects, named: 0 }
    }

    fn change(&mut self, from: &str, to: &str) {
        for object in &mut self.objects {
            if matches!(**object, Resource::Pod(_)) {
                continue;
            }
            let text = object.to_json().to_string().replace(from, to);
            let mut decoded = amime_api::decode::decode("test.json", &text);
            *object = Arc::new(decoded.resources.remove(0));
        }
    }

    /// Takes one plan's steps; false when there were none.
    fn step(&mut self) -> bool {
        let named = &mut self.named;
        let plan = plan(&self.objects, || {
            *named += 1;
            format!("p{named}")
        });
        let idle = plan.create.is_empty() && plan.delete.is_empty();
        self.objects.retain(|object| !plan.delete.contains(&object.key()));
        self.objects.extend(plan.create.into_iter().map(|pod| Arc::new(Resource::from(pod))));
        for (key, status) in plan.statuses {
            self.update(&key, status);
        }
        !idle
    }

    fn update(&mut self, key: &ObjectKey, status: Value) {
        let object = self.objects.iter_mut().find(|object| object.key() == *key).expect("there");
        *Arc::make_mut(object).status_mut() = Some(status);
    }

    fn pods(&self) -> Vec<String> {
        let pods = self.objects.iter().filter(|object| object.kind() == amime_api::Kind::Pod);
        pods.map(|pod| pod.name().to_owned()).collect()
    }

    fn ready(&self) -> usize {
        self.objects.iter().filter_map(PodView::of).filter(|pod| pod.ready).count()
    }

    fn set_phase(&mut self, name: &str, phase: &str, ready: bool) {
        let status = serde_json::json!({
            "phase": phase,
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        });
        let key = |object: &&Arc<Resource>| object.name() == name;
        let key = self.objects.iter().find(key).expect("pod").key();
        self.update(&key, status);
    }

    /// Makes one more pod ready; false if all are.
    fn one_more_ready(&mut self) -> bool {
        let views = self.objects.iter().filter_map(PodView::of);
        let next = views.filter(|pod| !pod.ready).map(|p| p.object.metadata.name.clone()).next();
        next.is_some_and(|name| {
            self.set_phase(&name, "Running", true);
            true
        })
    }
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: reviews-v1, namespace: default}
spec:
  replicas: 3
  selector: {matchLabels: {app: reviews}}
  template:
    metadata: {labels: {app: reviews}}
    spec: {containers: [{name: c, image: one}]}
";

#[test]
fn a_changed_template_never_lowers_the_number_of_ready_pods() {
    let mut world = World::new(DEPLOYMENT);
    while world.step() || world.one_more_ready() {}
    assert_eq!(world.ready(), 3);
    let before = world.pods();
    world.change("\"one\"", "\"two\"");
    loop {
        let moved = world.step();
        assert!(world.ready() >= 3, "{:?}", world.pods());
        if !moved && !world.one_more_ready() {
            break;
        }
    }
    let after = world.pods();
    assert_eq!(after.len(), 3);
    assert!(after.iter().all(|name| !before.contains(name)));
}

#[test]
fn pods_follow_the_number_of_replicas_and_go_with_their_owner() {
    let mut world = World::new(DEPLOYMENT);
    while world.step() || world.one_more_ready() {}
    world.change("\"replicas\":3", "\"replicas\":1");
    while world.step() {}
    assert_eq!(world.ready(), 1);
    let Resource::Pod(pod) = &**world.objects.last().expect("a pod") else { panic!("a pod") };
    let owner = &pod.metadata.owner_references[0];
    let hash = &pod.metadata.labels["pod-template-hash"];
    assert_eq!((owner.kind.as_str(), &owner.name), ("ReplicaSet", &format!("reviews-v1-{hash}")));
    assert!(pod.metadata.name.starts_with(&format!("reviews-v1-{hash}-p")));
    world.objects.remove(0);
    while world.step() {}
    assert!(world.pods().is_empty());
}

#[test]
fn a_stateful_set_has_numbered_pods_and_replaces_them_one_by_one() {
    let text = DEPLOYMENT.replace("kind: Deployment", "kind: StatefulSet");
    let mut world = World::new(&text);
    while world.step() || world.one_more_ready() {}
    assert_eq!(world.pods(), ["reviews-v1-0", "reviews-v1-1", "reviews-v1-2"]);
    world.change("\"one\"", "\"two\"");
    loop {
        let moved = world.step();
        assert!(world.ready() >= 2);
        if !moved && !world.one_more_ready() {
            break;
        }
    }
    let mut names = world.pods();
    names.sort();
    assert_eq!(names, ["reviews-v1-0", "reviews-v1-1", "reviews-v1-2"]);
}

#[test]
fn a_job_runs_until_it_succeeded_or_failed_too_often() {
    let text = "
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: default}
spec:
  backoffLimit: 1
  template:
    spec: {restartPolicy: Never, containers: [{name: c, image: one}]}
";
    let mut world = World::new(text);
    while world.step() {}
    assert_eq!(world.pods(), ["once-p1"]);
    world.set_phase("once-p1", "Failed", false);
    while world.step() {}
    assert_eq!(world.pods(), ["once-p1", "once-p2"]);
    world.set_phase("once-p2", "Succeeded", false);
    while world.step() {}
    assert_eq!(world.pods(), ["once-p1", "once-p2"]);
    world.set_phase("once-p2", "Failed", false);
    while world.step() {}
    assert_eq!(world.pods().len(), 2, "gave up");
}

#[test]
fn a_pod_without_owner_is_left_alone() {
    let mut world = World::new(
        "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: default}, \
         spec: {containers: [{name: c, image: one}]}}",
    );
    assert!(!world.step());
    assert_eq!(world.pods(), ["p"]);
}
