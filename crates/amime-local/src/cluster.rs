//! What all parts of the supervisor share: the objects, the running pods and
//! the means to start more.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use amime_api::Resource;
use amime_ca::WorkloadTokens;
use amime_control::store::Store;
use amime_core::NamespacedName;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::address::Pool;
use crate::image::Images;
use crate::kubelet::Pod;
use crate::process::Reaper;
use crate::state::StateDir;

/// Identities of this mesh are below it.
pub(crate) const TRUST_DOMAIN: &str = "cluster.local";
/// Namespace of the mesh's own components.
pub(crate) const MESH_NAMESPACE: &str = "istio-system";

/// Shared by every task of the supervisor.
pub(crate) struct Cluster {
    pub(crate) store: Arc<Store>,
    pub(crate) state: StateDir,
    pub(crate) self_exe: PathBuf,
    pub(crate) images: Images,
    pub(crate) reaper: Reaper,
    pub(crate) tokens: WorkloadTokens,
    pub(crate) url: String,
    pub(crate) started: Instant,
    /// Cancelled when the mesh goes down.
    pub(crate) shutdown: CancellationToken,
    /// Pod tasks, to be waited for at the end.
    pub(crate) tasks: TaskTracker,
    addresses: Mutex<Pool>,
    pods: Mutex<BTreeMap<PodName, Arc<Pod>>>,
}

/// Namespace and name, in the order of listings.
type PodName = (String, String);

/// What [`Cluster::new`] is made of.
pub(crate) struct ClusterParts {
    pub(crate) store: Arc<Store>,
    pub(crate) state: StateDir,
    pub(crate) self_exe: PathBuf,
    pub(crate) images: Images,
    pub(crate) reaper: Reaper,
    pub(crate) tokens: WorkloadTokens,
    pub(crate) url: String,
}

impl Cluster {
    pub(crate) fn new(parts: ClusterParts) -> Arc<Self> {
        let ClusterParts { store, state, self_exe, images, reaper, tokens, url } = parts;
        Arc::new(Self {
            store,
            state,
            self_exe,
            images,
            reaper,
            tokens,
            url,
            started: Instant::now(),
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
            addresses: Mutex::new(Pool::pods()),
            pods: Mutex::new(BTreeMap::new()),
        })
    }

    /// Addresses of pods.
    pub(crate) fn addresses(&self) -> MutexGuard<'_, Pool> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pods_locked(&self) -> MutexGuard<'_, BTreeMap<PodName, Arc<Pod>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pods that have namespaces, sorted.
    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods_locked().values().cloned().collect()
    }

    /// One running pod.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods_locked().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    pub(crate) fn add_pod(&self, pod: Arc<Pod>) {
        self.pods_locked().insert(pod_name(&pod.name), pod);
    }

    /// Forgets a pod, unless another one has taken its name.
    pub(crate) fn remove_pod(&self, pod: &Arc<Pod>) {
        let mut pods = self.pods_locked();
        let name = pod_name(&pod.name);
        if pods.get(&name).is_some_and(|held| Arc::ptr_eq(held, pod)) {
            pods.remove(&name);
        }
    }

    /// What is wrong with the images of the workloads among `resources`, one
    /// line each.
    pub(crate) fn image_faults<'a>(
        &self,
        resources: impl IntoIterator<Item = &'a Resource>,
    ) -> Vec<String> {
        let mut faults = Vec::new();
        for resource in resources {
            let Some(spec) = crate::controller::pod_spec(resource) else { continue };
            for container in spec.init_containers.iter().chain(&spec.containers) {
                if self.images.resolve(&container.image).is_none() {
                    let source = resource.source();
                    let position = match source.file.as_ref() {
                        "" => String::new(),
                        file => format!("{file}:{}: ", source.line),
                    };
                    faults.push(format!(
                        "{position}{} {}/{}: container {:?}: no command is known for image {:?}; \
                         name one with --image {}=COMMAND on `amime up`",
                        resource.kind(),
                        resource.namespace(),
                        resource.name(),
                        container.name,
                        container.image,
                        container.image,
                    ));
                }
            }
        }
        faults
    }
}

fn pod_name(name: &NamespacedName) -> PodName {
    (name.namespace.clone(), name.name.clone())
}
