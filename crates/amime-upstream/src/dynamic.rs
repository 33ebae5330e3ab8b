//! Endpoints that requests name: those of dynamic forward proxies.
//!
//! Owns a worker's endpoint for each name; what names resolve to is in the
//! cache that all workers share.
//!
//! Invariant: a request for a name that the worker knows takes no lock, and
//! connections outlive a change of the name's addresses.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use amime_config::endpoint::{Endpoint, HealthStatus};
use amime_config::endpoint_state::EndpointState;
use amime_config::host_cache::{self, CachedHost, Found, HostCache, HostFailure};
use tokio::sync::watch;

use super::cluster::{ClusterRuntime, Host, Pool};

/// A worker's endpoints by name, with and without a port.
pub(crate) struct NamedHosts<P>(RefCell<HashMap<Rc<str>, Named<P>>>);

struct Named<P> {
    host: Rc<Host<P>>,
    shared: Arc<CachedHost>,
    found: watch::Receiver<Found>,
}

impl<P> Named<P> {
    /// The host, unless its addresses have changed.
    fn current(&self) -> Option<&Rc<Host<P>>> {
        // Without a sender nobody knows the name any more.
        let changed = self.found.has_changed().unwrap_or(true);
        (!changed).then_some(&self.host)
    }
}

impl<P> Default for NamedHosts<P> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<P: Pool> NamedHosts<P> {
    pub(super) fn take(&self) -> Self {
        Self(RefCell::new(self.0.take()))
    }

    pub(super) fn each(&self, mut visit: impl FnMut(&Rc<Host<P>>)) {
        self.0.borrow().values().for_each(|named| visit(&named.host));
    }

    /// Lets go of endpoints that the shared cache has forgotten.
    pub(super) fn forget_gone(&self) {
        self.0.borrow_mut().retain(|_, named| {
            let gone = *named.found.borrow() == Found::Gone;
            if gone {
                named.host.retire();
            }
            !gone
        });
    }

    fn current(&self, authority: &str) -> Option<Rc<Host<P>>> {
        let all = self.0.borrow();
        let named = all.get(authority)?;
        let host = named.current()?;
        named.shared.touch();
        Some(host.clone())
    }
}

impl<P: Pool> ClusterRuntime<P> {
    /// The endpoint for `authority` if this worker knows it already.
    pub fn named_now(&self, authority: &str) -> Option<Rc<Host<P>>> {
        self.named.current(authority)
    }

    /// The endpoint for `authority`, once it is resolved; names without a port
    /// have the one given, or that of the cluster's transport.
    pub async fn named(
        &self,
        cache: &HostCache,
        authority: &str,
        port: Option<u16>,
    ) -> Result<Rc<Host<P>>, HostFailure> {
        let port = port.unwrap_or_else(|| self.default_port());
        let key = host_cache::key(authority, port);
        if let Some(host) = self.named.current(&key) {
            return Ok(host);
        }
        let found = cache.find(&key, port).await;
        let shared = found.inspect_err(|failure| {
            // Like Envoy, which does not count those that had to wait.
            if !matches!(failure, HostFailure::Unresolved { waited: true, .. }) {
                self.stats.upstream_cx_none_healthy.inc();
            }
        })?;
        shared.touch();
        self.take_in(authority, shared)
    }

    /// The endpoint of a host that is resolved already, by name and port.
    pub fn named_if_resolved(&self, cache: &HostCache, key: &str) -> Option<Rc<Host<P>>> {
        self.named.current(key).or_else(|| {
            let shared = cache.known(key).ok().flatten()?;
            shared.touch();
            self.take_in(key, shared).ok()
        })
    }

    /// The port of names without one.
    pub fn default_port(&self) -> u16 {
        if self.config().transport_of(None).1.tls().is_some() { 443 } else { 80 }
    }

    fn take_in(
        &self,
        authority: &str,
        shared: Arc<CachedHost>,
    ) -> Result<Rc<Host<P>>, HostFailure> {
        let mut found = shared.watch();
        let Found::At(addresses) = found.borrow_and_update().clone() else {
            return Err(HostFailure::Unresolved { reason: "no_host".into(), waited: false });
        };
        let Some((address, more)) = addresses.split_first() else {
            return Err(HostFailure::Unresolved { reason: "no_host".into(), waited: false });
        };
        let mut all = self.named.0.borrow_mut();
        let old = all.get(&*shared.key).filter(|old| Arc::ptr_eq(&old.shared, &shared));
        let host = match old.map(|old| (old.current(), &old.host)) {
            Some((Some(host), _)) => host.clone(),
            known => {
                let (transport_index, transport) = self.config().transport_of(None);
                let endpoint = Arc::new(Endpoint {
                    address: *address,
                    more: more.to_vec(),
                    checked_as: Default::default(),
                    hostname: shared.key.clone(),
                    weight: 1,
                    status: HealthStatus::Healthy,
                    priority: 0,
                    transport,
                    transport_index,
                    peer: None,
                    lb: None,
                    state: Arc::new(EndpointState::new(1)),
                });
                match known {
                    Some((_, old)) => old.moved(endpoint),
                    None => self.new_host(endpoint),
                }
            }
        };
        for name in [authority, &*shared.key] {
            let (shared, found) = (shared.clone(), found.clone());
            all.insert(name.into(), Named { host: host.clone(), shared, found });
        }
        Ok(host)
    }
}
