//! The names of a cluster's endpoints, and the addresses they resolved to.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use amime_config::discovery::Dns;
use amime_config::endpoint::Resolved;

/// A name with the port to use with its addresses.
pub type NamePort = (String, u16);

/// What a lookup came to: addresses and how long they are valid, or nothing
/// known.
pub type Answer = Option<(Vec<IpAddr>, Option<Duration>)>;

#[derive(Clone, Debug)]
struct Name {
    due: Instant,
    /// A lookup is under way.
    asked: bool,
    answered: bool,
    failures: u32,
    addresses: Option<Vec<SocketAddr>>,
}

/// The names of one cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names(BTreeMap<NamePort, Name>);

impl Names {
    /// Keeps what is known of names that stay, and looks up those that come.
    pub(crate) fn follow(&mut self, names: Vec<NamePort>, now: Instant) {
        let mut old = std::mem::take(&mut self.0);
        for name in names {
            let known = old.remove(&name).unwrap_or(Name {
                due: now,
                asked: false,
                answered: false,
                failures: 0,
                addresses: None,
            });
            self.0.insert(name, known);
        }
    }

    /// The same for another version of the cluster, which asks for itself.
    pub(crate) fn for_successor(&self) -> Self {
        let mut next = self.clone();
        next.0.values_mut().for_each(|name| name.asked = false);
        next
    }

    /// Names to be looked up now; each counts as under way.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<NamePort> {
        let due = self.0.iter_mut().filter(|(_, name)| !name.asked && name.due <= now);
        due.map(|(key, name)| {
            name.asked = true;
            key.clone()
        })
        .collect()
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.0.values().filter(|name| !name.asked).map(|name| name.due).min()
    }

    /// True once every name was looked up, with or without success.
    pub(crate) fn all_answered(&self) -> bool {
        self.0.values().all(|name| name.answered)
    }

    /// Takes an answer over; true if addresses change. A name that could not
    /// be looked up keeps those it had, one of logical DNS also when it has
    /// none any more.
    pub(crate) fn answer(
        &mut self,
        key: &NamePort,
        answer: &Answer,
        (dns, logical): (&Dns, bool),
        now: Instant,
    ) -> bool {
        let Some(name) = self.0.get_mut(key) else { return false };
        name.asked = false;
        name.answered = true;
        let Some((addresses, ttl)) = answer else {
            name.failures += 1;
            name.due = now + dns.failure_pause(name.failures);
            return false;
        };
        name.failures = 0;
        name.due = now + dns.pause(ttl.filter(|_| !addresses.is_empty()));
        if logical && addresses.is_empty() {
            return false;
        }
        let port = key.1;
        let found = addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        let changed = name.addresses.as_ref() != Some(&found);
        name.addresses = Some(found);
        changed
    }

    pub(crate) fn resolved(&self) -> Resolved {
        let known = |(key, name): (&NamePort, &Name)| Some((key.clone(), name.addresses.clone()?));
        self.0.iter().filter_map(known).collect()
    }
}
