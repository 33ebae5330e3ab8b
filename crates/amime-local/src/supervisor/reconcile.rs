//! The loop that follows the objects: pods, service addresses, names, the
//! host port, and the progress of the start.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use amime_api::{Resource, k8s::PodStatus};
use tokio::sync::{mpsc, watch};

use crate::cluster::{Cluster, MESH_NAMESPACE};
use crate::controller;
use crate::convergence;
use crate::dns::Names;
use crate::kubelet::{Kubelet, chain};
use crate::network::{self, Forward};
use crate::progress::{Progress, StepState};
use crate::service::Services;

/// Changes within this time are taken together.
const GATHER: Duration = Duration::from_millis(3);
const INGRESS: &str = "istio-ingressgateway";

/// Where the results go.
pub(super) struct Outputs {
    pub(super) names: watch::Sender<Arc<Names>>,
    pub(super) targets: watch::Sender<Vec<SocketAddrV4>>,
    pub(super) progress: mpsc::UnboundedSender<Progress>,
}

/// Follows the objects until the task is dropped.
pub(super) async fn run(cluster: Arc<Cluster>, outputs: Outputs) {
    let mut state = Reconciler {
        kubelet: Kubelet::new(Arc::clone(&cluster)),
        translated: None,
        reported: Vec::new(),
        ready: false,
        cluster,
        outputs,
    };
    loop {
        // From the present state on, there is nothing to be gone.
        let Ok(mut watch) = state.cluster.store.watch(None) else { continue };
        drop(watch.initial());
        state.reconcile().await;
        while watch.next().await.is_some() {
            tokio::time::sleep(GATHER).await;
            while futures_util::FutureExt::now_or_never(watch.next()).flatten().is_some() {}
            state.reconcile().await;
        }
    }
}

/// A mesh whose proxies do not follow is shown as it is after this time.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tells that the mesh is ready once its proxies know all of it.
async fn tell_when_ready(cluster: Arc<Cluster>, progress: mpsc::UnboundedSender<Progress>) {
    // Nobody listens when `up` is on its way out.
    let step = |state| progress.send(Progress::Step { name: "configuration".to_owned(), state });
    let _ = step(StepState::Started);
    convergence::wait(&cluster, PATIENCE).await;
    let _ = step(StepState::Done);
    let elapsed_ms = u64::try_from(cluster.started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let _ = progress.send(Progress::Ready { url: cluster.url.clone(), elapsed_ms });
}

struct Reconciler {
    cluster: Arc<Cluster>,
    outputs: Outputs,
    kubelet: Kubelet,
    /// What the router translates at the moment.
    translated: Option<(Vec<Forward>, Vec<Ipv4Addr>)>,
    /// Pods whose progress was told, and whether they were ready.
    reported: Vec<(String, bool)>,
    ready: bool,
}

impl Reconciler {
    async fn reconcile(&mut self) {
        let objects = self.cluster.store.all();
        let services = Services::of(&objects);
        let translation = (services.forwards(), services.pod_addresses());
        self.outputs.names.send_if_modified(|names| {
            let new = services.names();
            let changed = **names != new;
            if changed {
                *names = Arc::new(new);
            }
            changed
        });
        let targets = services.targets_of(MESH_NAMESPACE, INGRESS, 80);
        self.outputs.targets.send_if_modified(|held| {
            let changed = *held != targets;
            *held = targets;
            changed
        });
        self.translate(translation);
        self.kubelet.reconcile(&objects);
        self.report(&objects);
        self.control(objects).await;
    }

    fn translate(&mut self, translation: (Vec<Forward>, Vec<Ipv4Addr>)) {
        if self.translated.as_ref() == Some(&translation) {
            return;
        }
        match network::translate_services(&translation.0, &translation.1) {
            Ok(()) => self.translated = Some(translation),
            Err(error) => {
                tracing::error!(error = chain(&error), "service addresses are out of date");
            }
        }
    }

    /// Takes the controllers' steps; what they change comes back as a change
    /// of objects.
    async fn control(&self, objects: Vec<Arc<Resource>>) {
        let plan = controller::plan(&objects, controller::random_suffix);
        let store = Arc::clone(&self.cluster.store);
        let steps = move || {
            for key in plan.delete {
                // Someone else may have deleted it in between.
                let _ = store.delete(&key);
            }
            for pod in plan.create {
                if let Err(error) = store.put(pod.into()) {
                    tracing::warn!(error = chain(&error), "a pod was not created");
                }
            }
            for (key, status) in plan.statuses {
                let Ok(object) = store.get(&key) else { continue };
                let mut object = (*object).clone();
                *object.status_mut() = Some(status);
                let _ = store.put(object);
            }
        };
        let _ = tokio::task::spawn_blocking(steps).await;
    }

    /// Tells of pods as they come and become ready, until all are.
    fn report(&mut self, objects: &[Arc<Resource>]) {
        if self.ready {
            return;
        }
        let mut all = Vec::new();
        for object in objects {
            let Resource::Pod(pod) = &**object else { continue };
            let status: PodStatus = pod.status_as();
            let workload = crate::sidecar::workload_name(&pod.metadata);
            let name = format!("{}/{workload}", pod.metadata.namespace);
            let finished = matches!(status.phase.as_str(), "Succeeded" | "Failed");
            all.push((name, status.is_ready() || finished));
        }
        for (name, ready) in &all {
            let told = self.reported.iter().find(|(told, _)| told == name).map(|(_, was)| *was);
            let state = match (told, ready) {
                (None, false) => StepState::Started,
                (None | Some(false), true) => StepState::Done,
                _ => continue,
            };
            self.tell(Progress::Step { name: name.clone(), state });
        }
        self.ready = !self.expects_pods(objects, &all) && all.iter().all(|(_, ready)| *ready);
        self.reported = all;
        if self.ready {
            let (cluster, progress) = (Arc::clone(&self.cluster), self.outputs.progress.clone());
            tokio::spawn(tell_when_ready(cluster, progress));
        }
    }

    /// True while a workload has fewer pods than it will have.
    fn expects_pods(&self, objects: &[Arc<Resource>], pods: &[(String, bool)]) -> bool {
        let plan = controller::plan(objects, String::new);
        !plan.create.is_empty() || (pods.is_empty() && !plan.statuses.is_empty())
    }

    fn tell(&self, progress: Progress) {
        // Nobody listens when `up` is on its way out.
        let _ = self.outputs.progress.send(progress);
    }
}
