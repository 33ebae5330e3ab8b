//! What one client wants and holds of one type; shared by both variants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_types::pb::google::rpc::Status;

use super::{MAX_NAME_BYTES, MAX_NAMES, Nack, Push, Removals, SessionError};
use super::{Stamp, TypeStatus, Verdict, Wanted};
use crate::{Resource, TypeUrl};

/// Bytes kept of a client's error message.
const MAX_ERROR_BYTES: usize = 4096;

/// The name that stands for all names.
pub(super) const WILDCARD: &str = "*";

/// What a client was told last about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Version(Arc<str>),
    Absent,
}

#[derive(Debug)]
struct InFlight {
    stamp: Stamp,
    names: Vec<String>,
}

/// What a push changes for the client.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Diff {
    pub(super) changed: Vec<Resource>,
    pub(super) removed: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Watch {
    pub(super) wildcard: bool,
    pub(super) names: BTreeSet<String>,
    told: BTreeMap<String, Told>,
    /// Gone, but not yet taken from the client.
    pub(super) leaving: BTreeSet<String>,
    in_flight: Option<InFlight>,
    /// The client waits for a response even if there is nothing to say.
    pub(super) must_answer: bool,
    pub(super) status: TypeStatus,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            wildcard: false,
            names: BTreeSet::new(),
            told: BTreeMap::new(),
            leaving: BTreeSet::new(),
            in_flight: None,
            must_answer: true,
            status: TypeStatus::default(),
        }
    }

    pub(super) fn wanted(&self) -> Wanted<'_> {
        if self.wildcard { Wanted::All } else { Wanted::Names(&self.names) }
    }

    pub(super) fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    pub(super) fn was_told(&self, name: &str) -> bool {
        self.wants(name) && self.told.contains_key(name)
    }

    pub(super) fn in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    pub(super) fn flying_nonce(&self) -> Option<&str> {
        self.in_flight.as_ref().map(|f| f.stamp.nonce.as_str())
    }

    /// Adds a name; its resource will be sent even if it was sent before.
    pub(super) fn subscribe(&mut self, name: String) {
        self.told.remove(&name);
        self.leaving.remove(&name);
        self.names.insert(name);
    }

    pub(super) fn unsubscribe(&mut self, name: &str) {
        self.names.remove(name);
        if !self.wildcard {
            self.forget(name);
            self.status.rejected.remove(name);
            self.clear_settled_nack();
            self.count();
        }
    }

    /// Leaves the wildcard: only names asked for one by one stay.
    pub(super) fn unsubscribe_wildcard(&mut self) {
        self.wildcard = false;
        let gone: Vec<_> = self.told.keys().filter(|n| !self.names.contains(*n)).cloned().collect();
        for name in gone {
            self.unsubscribe(&name);
        }
    }

    /// Believes that the client holds `version` of `name`.
    pub(super) fn holds(&mut self, name: String, version: &str) {
        self.told.insert(name, Told::Version(version.into()));
    }

    /// Takes names as answered that are not there and cannot be said to be.
    pub(super) fn absent(&mut self, names: Vec<String>) {
        self.told.extend(names.into_iter().map(|name| (name, Told::Absent)));
    }

    /// Makes the next push send `name` again.
    pub(super) fn forget(&mut self, name: &str) {
        self.told.remove(name);
        self.leaving.remove(name);
    }

    /// Compares a push with what the client was told.
    pub(super) fn diff(&mut self, push: Push<'_>) -> Diff {
        let in_scope = |name: &str| push.only.is_none_or(|only| only.contains(name));
        let mut diff = Diff::default();
        let mut present = BTreeSet::new();
        for resource in push.resources {
            let name = resource.name.as_str();
            if !in_scope(name) || !self.wants(name) || !present.insert(name) {
                continue;
            }
            self.leaving.remove(name);
            let same =
                matches!(self.told.get(name), Some(Told::Version(v)) if *v == resource.version);
            if !same {
                diff.changed.push(resource.clone());
            }
        }
        let told_gone = self.told.iter().filter(|(name, told)| {
            matches!(told, Told::Version(_)) && in_scope(name) && !present.contains(name.as_str())
        });
        let gone: Vec<_> = told_gone.map(|(name, _)| name.clone()).collect();
        match push.removals {
            Removals::Now => diff.removed = gone,
            Removals::Later => self.leaving.extend(gone),
        }
        // Asked for by name, never answered, and not there: the client must
        // not wait for it.
        let unknown = self.names.iter().filter(|name| {
            in_scope(name) && !present.contains(name.as_str()) && !self.told.contains_key(*name)
        });
        diff.removed.extend(unknown.cloned());
        diff
    }

    /// Records that `diff` goes out under `stamp`.
    pub(super) fn sent(&mut self, stamp: Stamp, diff: &Diff) {
        let mut names = Vec::with_capacity(diff.changed.len() + diff.removed.len());
        for resource in &diff.changed {
            let told = Told::Version(Arc::clone(&resource.version));
            self.told.insert(resource.name.clone(), told);
            names.push(resource.name.clone());
        }
        for name in &diff.removed {
            self.leaving.remove(name);
            if self.names.contains(name) {
                self.told.insert(name.clone(), Told::Absent);
            } else {
                self.told.remove(name);
            }
            names.push(name.clone());
        }
        self.must_answer = false;
        self.status.sent = Some(stamp.clone());
        self.in_flight = Some(InFlight { stamp, names });
        self.count();
    }

    fn count(&mut self) {
        self.status.resources =
            self.told.values().filter(|told| matches!(told, Told::Version(_))).count();
    }

    /// Settles the response in flight.
    pub(super) fn settle(&mut self, nonce: &str, error: Option<&Status>) -> Verdict {
        let Some(flying) = self.in_flight.take_if(|f| f.stamp.nonce == nonce) else {
            return Verdict::Stale;
        };
        let Some(error) = error else {
            for name in &flying.names {
                self.status.rejected.remove(name);
            }
            self.status.acked = Some(flying.stamp);
            self.clear_settled_nack();
            return Verdict::Ack;
        };
        let nack = Nack {
            nonce: flying.stamp.nonce,
            version: flying.stamp.version,
            code: error.code,
            message: cut(&error.message, MAX_ERROR_BYTES),
        };
        self.reject(flying.names, &nack.message);
        self.status.nack = Some(nack.clone());
        Verdict::Nack(nack)
    }

    // A refusal covers a whole response, but clients name the resources they
    // refuse. Blaming all would report errors for resources that are in force.
    fn reject(&mut self, names: Vec<String>, message: &str) {
        let named = names.iter().any(|name| mentions(message, name));
        for name in names {
            if !named || mentions(message, &name) {
                self.status.rejected.insert(name, message.to_owned());
            } else {
                self.status.rejected.remove(&name);
            }
        }
    }

    fn clear_settled_nack(&mut self) {
        if self.status.rejected.is_empty() {
            self.status.nack = None;
        }
    }
}

/// Whether `name` stands in `message` as a word of its own.
fn mentions(message: &str, name: &str) -> bool {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || "|._-/~".contains(c);
    !name.is_empty()
        && message.match_indices(name).any(|(at, _)| {
            let before = message[..at].chars().next_back();
            let mut after = message[at + name.len()..].chars();
            let follows = match after.next() {
                // A full stop may end the sentence.
                Some('.') => after.next(),
                next => next,
            };
            !before.is_some_and(part_of_name) && !follows.is_some_and(part_of_name)
        })
}

fn cut(text: &str, max: usize) -> String {
    text[..text.floor_char_boundary(max)].to_owned()
}

/// Bounds what a client may make us remember.
pub(super) fn check_names<'a>(
    type_url: TypeUrl,
    held: usize,
    names: impl ExactSizeIterator<Item = &'a String>,
) -> Result<(), SessionError> {
    if held + names.len() > MAX_NAMES {
        return Err(SessionError::TooManyNames { type_url });
    }
    for name in names {
        if name.len() > MAX_NAME_BYTES {
            return Err(SessionError::NameTooLong { type_url, bytes: name.len() });
        }
    }
    Ok(())
}

/// Makes nonces that no other stream of this process uses.
#[derive(Debug)]
pub(super) struct Nonces {
    stream: u64,
    last: u64,
}

impl Nonces {
    pub(super) fn new(stream: u64) -> Self {
        Self { stream, last: 0 }
    }

    pub(super) fn stamp(&mut self, version: &str) -> Stamp {
        self.last += 1;
        Stamp { nonce: format!("{:x}-{:x}", self.stream, self.last), version: version.to_owned() }
    }
}
