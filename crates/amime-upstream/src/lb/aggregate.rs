//! Aggregate clusters: which of their members takes a request.
//!
//! The priorities of all members, in order, share the requests as the
//! priorities of one cluster would; which endpoint it is, is the member's
//! business.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/aggregate_cluster>

use std::rc::Rc;

use amime_config::discovery::Discovery;
use amime_config::names::ClusterId;

use super::balancer::share;
use crate::cluster::{ClusterRuntime, Pool};

impl<P: Pool> ClusterRuntime<P> {
    /// The cluster that takes a request for this one: itself, unless it is an
    /// aggregate whose members `find` knows. An aggregate has no endpoints of
    /// its own, so as a member of another it takes nothing.
    pub fn member(self: &Rc<Self>, find: impl Fn(ClusterId) -> Option<Rc<Self>>) -> Rc<Self> {
        let Discovery::Aggregate(ids) = &self.config().discovery else { return self.clone() };
        // These lists are short, and aggregates are rare.
        let (mut members, mut parts) = (Vec::new(), Vec::new());
        for member in ids.iter().filter_map(|id| find(*id)) {
            let own = member.lb.parts(&member.spec, &member.stats);
            members.extend(own.iter().map(|_| member.clone()));
            parts.extend(own);
        }
        let (loads, _) = share(self.config().lb.panic_percent, &parts);
        let (at, _) = loads.choose(fastrand::u64(..));
        members.get(at).unwrap_or(self).clone()
    }
}
