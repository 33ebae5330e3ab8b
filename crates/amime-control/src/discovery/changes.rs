//! What changed between two snapshots, as far as streams must know.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use amime_api::{Kind, ObjectKey};
use amime_model::{Change, ChangeScope, ServiceKey, Snapshot};
use amime_translate::names::LOCAL_CLUSTER;

/// Snapshots whose scopes are remembered; a stream that is further behind
/// compares everything.
const HISTORY: usize = 64;

/// A snapshot and how it came to be.
pub(crate) struct Published {
    pub(crate) snapshot: Arc<Snapshot>,
    /// When the change was published.
    pub(crate) at: Instant,
    /// Scopes of the last changes, the newest last.
    history: Vec<(u64, Arc<ChangeScope>)>,
}

/// What a stream has to look at again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Missed {
    Nothing,
    Endpoints(BTreeSet<ServiceKey>),
    Everything,
}

impl Published {
    pub(super) fn after(
        previous: Option<&Self>,
        snapshot: Arc<Snapshot>,
        scope: ChangeScope,
    ) -> Self {
        let mut history = previous.map(|p| p.history.clone()).unwrap_or_default();
        if history.len() == HISTORY {
            history.remove(0);
        }
        history.push((snapshot.version(), Arc::new(scope)));
        Self { snapshot, at: Instant::now(), history }
    }

    /// What differs from the snapshot of `version`.
    pub(crate) fn since(&self, version: u64) -> Missed {
        if version == self.snapshot.version() {
            return Missed::Nothing;
        }
        // The scopes say something only if the one after `version` is known.
        let newer = self.history.iter().position(|(v, _)| *v > version);
        let complete = match newer {
            Some(0) => false,
            Some(at) => self.history[at - 1].0 == version,
            None => false,
        };
        let (true, Some(newer)) = (complete, newer) else { return Missed::Everything };
        let mut services = BTreeSet::new();
        for (_, scope) in &self.history[newer..] {
            match scope.as_ref() {
                ChangeScope::Full => return Missed::Everything,
                ChangeScope::Endpoints { services: some } => services.extend(some.iter().cloned()),
            }
        }
        Missed::Endpoints(services)
    }
}

/// Whether an EDS name belongs to one of these services.
pub(crate) fn is_of(name: &str, services: &BTreeSet<ServiceKey>) -> bool {
    // Which service a proxy's own kind belongs to, only its translation knows.
    if name == LOCAL_CLUSTER {
        return true;
    }
    // `outbound|9080|v1|HOST`, and `outbound_.9080_.v1_.HOST` behind a gateway.
    services.iter().any(|service| {
        name.strip_suffix(service.hostname.as_str())
            .is_some_and(|rest| rest.ends_with('|') || rest.ends_with("_."))
    })
}

pub(super) fn key(change: &Change) -> ObjectKey {
    match change {
        Change::Set(resource) => resource.key(),
        Change::Delete(key) => key.clone(),
    }
}

/// Kinds whose objects can be nothing but endpoints; the snapshot decides.
pub(super) fn may_be_endpoints(key: &ObjectKey) -> bool {
    matches!(key.kind, Kind::Pod | Kind::Endpoints | Kind::EndpointSlice | Kind::WorkloadEntry)
}

pub(super) fn update_label(change: &Change) -> &'static str {
    let key = key(change);
    if may_be_endpoints(&key) {
        "eds"
    } else if key.kind == Kind::Service {
        "svc"
    } else {
        "config"
    }
}
