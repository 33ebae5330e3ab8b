//! Decides which response goes out next on one stream.
//!
//! Order of a full push: clusters, endpoints, extension configs, listeners,
//! routes, secrets; then, once the client has answered listeners and routes,
//! the name table, and the clusters and endpoints that are gone. So nothing in
//! force ever names what is not there, and nobody is given an address that
//! nothing listens for yet.
//!
//! Listeners and routes are held back until the client has the endpoints of
//! all clusters that were sent. A client that does not ask for them is not
//! held for ever: the caller keeps the time and calls
//! [`Pusher::release_held`].

use std::collections::{BTreeMap, BTreeSet};

use super::warming::Warming;
use super::{Push, Reaction, Removals, Session, SessionError, TypeStatus, Wanted};
use crate::{PUSH_ORDER, Resource, TypeUrl};

/// What has to be looked at again.
#[derive(Clone, Debug)]
enum Dirty {
    All,
    Names(BTreeSet<String>),
}

/// Where resources come from.
pub trait Source {
    /// What there is of a type for this client: everything, or the names given.
    fn generate(&mut self, type_url: TypeUrl, wanted: Wanted<'_>) -> Vec<Resource>;

    /// Version of the configuration that `generate` reads.
    fn version(&self) -> &str;
}

/// A session and what still has to be sent on it.
#[derive(Debug)]
pub struct Pusher<S> {
    session: S,
    dirty: BTreeMap<TypeUrl, Dirty>,
    warming: Warming,
}

impl<S: Session> Pusher<S> {
    /// Starts with nothing to send.
    pub fn new(session: S) -> Self {
        Self { session, dirty: BTreeMap::new(), warming: Warming::default() }
    }

    /// Takes in one request; what it asks for is sent by [`Pusher::next`].
    ///
    /// # Errors
    /// When the client breaks a bound; the stream has to end.
    pub fn on_request(&mut self, request: S::Request) -> Result<Reaction, SessionError> {
        let reaction = self.session.on_request(request)?;
        if let (Some(type_url), true) = (reaction.type_url, reaction.asks) {
            self.dirty.insert(type_url, Dirty::All);
        }
        if reaction.type_url == Some(TypeUrl::Cluster)
            && reaction.is_nack()
            && let Some(status) = self.session.status().get(&TypeUrl::Cluster)
        {
            self.warming.refused(&status.rejected);
        }
        Ok(reaction)
    }

    /// The configuration changed: everything is compared anew.
    pub fn invalidate_all(&mut self) {
        for type_url in PUSH_ORDER {
            self.dirty.insert(type_url, Dirty::All);
        }
    }

    /// All resources of one type may have changed.
    pub fn invalidate(&mut self, type_url: TypeUrl) {
        self.dirty.insert(type_url, Dirty::All);
    }

    /// Only these resources of one type changed.
    pub fn invalidate_names(&mut self, type_url: TypeUrl, names: impl IntoIterator<Item = String>) {
        match self.dirty.entry(type_url).or_insert_with(|| Dirty::Names(BTreeSet::new())) {
            Dirty::All => {}
            Dirty::Names(known) => known.extend(names),
        }
    }

    /// The next response to send; `None` until a request comes in or the
    /// configuration changes.
    pub fn next(&mut self, source: &mut dyn Source) -> Option<(TypeUrl, S::Response)> {
        self.settle_warming();
        for type_url in PUSH_ORDER {
            if self.waits(type_url) {
                continue;
            }
            let Some(dirty) = self.dirty.remove(&type_url) else { continue };
            if let Some(response) = self.push(type_url, dirty, source) {
                return Some((type_url, response));
            }
        }
        self.remove_leftovers(source.version())
    }

    /// Whether the client was sent clusters whose endpoints it still lacks, so
    /// that listeners and routes wait.
    pub fn is_holding(&self) -> bool {
        !self.warming.is_empty()
    }

    /// Whether there may be news of a type that cannot be sent yet.
    pub fn has_waiting(&self, type_url: TypeUrl) -> bool {
        self.dirty.contains_key(&type_url)
    }

    /// The client had its time: listeners and routes wait for no endpoints but
    /// those of clusters that are sent from now on.
    pub fn release_held(&mut self) {
        self.warming.clear();
    }

    fn push(
        &mut self,
        type_url: TypeUrl,
        dirty: Dirty,
        source: &mut dyn Source,
    ) -> Option<S::Response> {
        let wanted = self.session.wanted(type_url)?;
        let subset: BTreeSet<String>;
        let (wanted, only) = match (&dirty, wanted) {
            (Dirty::All, wanted) => (wanted, None),
            (Dirty::Names(names), Wanted::All) => (Wanted::Names(names), Some(names)),
            (Dirty::Names(names), Wanted::Names(held)) => {
                subset = names.intersection(held).cloned().collect();
                if subset.is_empty() {
                    return None;
                }
                (Wanted::Names(&subset), Some(&subset))
            }
        };
        let resources = source.generate(type_url, wanted);
        if type_url == TypeUrl::Cluster {
            self.warming.keep(&resources, only);
        }
        let removals = if leaves_last(type_url) { Removals::Later } else { Removals::Now };
        let version = source.version();
        let push = Push { type_url, resources: &resources, only, removals, version };
        let response = self.session.push(push);
        self.warming.sent(self.session.take_sent_clusters());
        self.settle_warming();
        if let Some((type_url, names)) = self.session.take_forced() {
            self.invalidate_names(type_url, names);
        }
        response
    }

    fn settle_warming(&mut self) {
        self.warming.settle(|name| self.session.was_told(TypeUrl::Endpoint, name));
    }

    /// Whether a type has to wait although it may have news.
    fn waits(&self, type_url: TypeUrl) -> bool {
        if self.session.in_flight(type_url) {
            return true;
        }
        match type_url {
            // They may name clusters that are still to be sent. Endpoints never
            // wait: a client answers a cluster only when it is warm.
            TypeUrl::Listener | TypeUrl::Route => {
                self.session.wanted(TypeUrl::Cluster).is_some()
                    && (self.dirty.contains_key(&TypeUrl::Cluster) || self.is_holding())
            }
            // Its addresses lead to listeners and routes.
            TypeUrl::NameTable => [TypeUrl::Listener, TypeUrl::Route].into_iter().any(|to| {
                self.session.wanted(to).is_some()
                    && (self.dirty.contains_key(&to) || self.session.in_flight(to))
            }),
            _ => false,
        }
    }

    fn remove_leftovers(&mut self, version: &str) -> Option<(TypeUrl, S::Response)> {
        let leaving = [TypeUrl::Cluster, TypeUrl::Endpoint];
        if !leaving.into_iter().any(|t| self.session.has_removals(t)) || !self.may_remove() {
            return None;
        }
        leaving.into_iter().find_map(|t| Some((t, self.session.push_removals(t, version)?)))
    }

    // While a listener or route is unanswered or refused, an older one that
    // names a leaving cluster may be in force.
    fn may_remove(&self) -> bool {
        let status = self.session.status();
        [TypeUrl::Listener, TypeUrl::Route].into_iter().all(|t| {
            let asked = self.session.wanted(t).is_some();
            !asked
                || (!self.dirty.contains_key(&t)
                    && !self.session.in_flight(t)
                    && status.get(&t).is_none_or(|s| s.rejected.is_empty()))
        })
    }

    /// Where the client stands, by type.
    pub fn status(&self) -> BTreeMap<TypeUrl, TypeStatus> {
        self.session.status()
    }

    /// What the client wants of a type; `None` when it never asked.
    pub fn wanted(&self, type_url: TypeUrl) -> Option<Wanted<'_>> {
        self.session.wanted(type_url)
    }
}

/// Types that routes and listeners refer to by name.
fn leaves_last(type_url: TypeUrl) -> bool {
    matches!(type_url, TypeUrl::Cluster | TypeUrl::Endpoint)
}
