//! The names that requests were for, and the addresses that these resolved to.
//!
//! Owns what is known of each name, how many names there may be, and when a
//! name is next to be looked up or forgotten. Looking up is left to whoever
//! asks [`HostCache::take_due`] for work and tells [`HostCache::answer`].
//!
//! Invariant: names come from peers, so no more than the configured number is
//! kept, and no more requests wait than the configuration allows. Whoever has
//! found a host once goes on with it without taking a lock.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use amime_telemetry::DnsCacheStats;
use tokio::sync::{Notify, watch};

use super::dynamic_hosts::CacheSettings;
use super::endpoint_state::now_ms;

/// Hosts by `name:port`.
#[derive(Debug)]
pub struct HostCache {
    pub settings: CacheSettings,
    hosts: Mutex<HashMap<Arc<str>, Slot>>,
    /// Requests that wait for a lookup.
    pending: AtomicU32,
    /// Told when there is a name to look up.
    wake: Arc<Notify>,
    /// Written under the lock of `hosts` only.
    stats: Arc<DnsCacheStats>,
}

#[derive(Debug)]
struct Slot {
    host: Arc<CachedHost>,
    /// When it is next to be looked up, unless that is under way.
    due: Option<Instant>,
    failures: u32,
}

/// One host of a cache.
#[derive(Debug)]
pub struct CachedHost {
    /// As requests name it, with a port.
    pub key: Arc<str>,
    /// What is looked up.
    pub name: String,
    port: u16,
    found: watch::Sender<Found>,
    used_ms: AtomicU64,
}

/// What is known of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Awaited,
    /// At least one address.
    At(Arc<[SocketAddr]>),
    Failed(Arc<str>),
    /// Forgotten: the cache knows it no longer, or anew.
    Gone,
}

/// Why a request has no host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostFailure {
    #[error("the cache holds as many hosts as it may")]
    Overflow,
    #[error("too many requests wait for lookups")]
    PendingOverflow,
    /// With the resolver's words, and whether the request had to wait for them.
    #[error("the name was not resolved: {reason}")]
    Unresolved { reason: Arc<str>, waited: bool },
}

/// What a lookup came to.
#[derive(Clone, Debug)]
pub enum Looked {
    /// Addresses and how long they are valid.
    Up(Vec<IpAddr>, Option<Duration>),
    /// The name has none.
    Empty(&'static str),
    Failed(&'static str),
    TimedOut,
}

/// All caches in use, by their settings.
#[derive(Debug, Default)]
pub struct HostCaches {
    wake: Arc<Notify>,
    caches: Vec<Weak<HostCache>>,
}

impl HostCaches {
    /// Told when a cache has something to look up.
    pub fn wake(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    /// The cache with these settings, which its users share.
    pub fn of(&mut self, settings: CacheSettings, stats: Arc<DnsCacheStats>) -> Arc<HostCache> {
        let same = self.live().into_iter().find(|cache| cache.settings == settings);
        same.unwrap_or_else(|| {
            let cache = Arc::new(HostCache::new(settings, self.wake.clone(), stats));
            self.caches.push(Arc::downgrade(&cache));
            cache
        })
    }

    /// The caches that somebody uses.
    pub fn live(&mut self) -> Vec<Arc<HostCache>> {
        self.caches.retain(|cache| cache.strong_count() > 0);
        self.caches.iter().filter_map(Weak::upgrade).collect()
    }
}

/// Counts a request as waiting until dropped.
struct Waiting<'a>(&'a AtomicU32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl HostCache {
    fn new(settings: CacheSettings, wake: Arc<Notify>, stats: Arc<DnsCacheStats>) -> Self {
        let cache =
            Self { settings, hosts: Mutex::default(), pending: AtomicU32::new(0), wake, stats };
        for (name, port) in &cache.settings.known {
            let key = key(name, *port);
            cache.insert(&mut cache.lock(), &key, *port);
        }
        cache.stats.circuit_breakers_rq_pending_remaining.set(cache.settings.max_pending.into());
        cache
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Slot>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host `key`, looked up if it is not known; `port` is that of names
    /// without one.
    pub async fn find(&self, key: &str, port: u16) -> Result<Arc<CachedHost>, HostFailure> {
        let Some(host) = self.known(key)? else { return self.await_host(key, port).await };
        Ok(host)
    }

    /// As [`find`](Self::find), for those who need room to wait even where
    /// they would not have to.
    pub async fn find_with_room(
        &self,
        key: &str,
        port: u16,
    ) -> Result<Arc<CachedHost>, HostFailure> {
        drop(self.wait()?);
        self.find(key, port).await
    }

    /// The host `key` if it is resolved, none if it is to be waited for.
    pub fn known(&self, key: &str) -> Result<Option<Arc<CachedHost>>, HostFailure> {
        let hosts = self.lock();
        let Some(slot) = hosts.get(key) else { return Ok(None) };
        let found = slot.host.found.borrow();
        match &*found {
            Found::At(_) => Ok(Some(slot.host.clone())),
            Found::Failed(reason) if self.settings.refresh_failed => {
                Err(HostFailure::Unresolved { reason: reason.clone(), waited: false })
            }
            Found::Failed(_) | Found::Awaited | Found::Gone => Ok(None),
        }
    }

    async fn await_host(&self, key: &str, port: u16) -> Result<Arc<CachedHost>, HostFailure> {
        let _waiting = self.wait()?;
        let host = self.host_to_await(key, port)?;
        let mut watched = host.found.subscribe();
        let found = watched.wait_for(|found| *found != Found::Awaited).await;
        let found = found.map_or(Found::Gone, |found| found.clone());
        let reason = match found {
            Found::At(_) => return Ok(host),
            Found::Failed(reason) => reason,
            Found::Awaited | Found::Gone => "no_host".into(),
        };
        Err(HostFailure::Unresolved { reason, waited: true })
    }

    fn wait(&self) -> Result<Waiting<'_>, HostFailure> {
        let most = self.settings.max_pending;
        let taken = self.pending.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            (now < most).then_some(now + 1)
        });
        if taken.is_ok() {
            return Ok(Waiting(&self.pending));
        }
        let _hosts = self.lock();
        self.stats.dns_rq_pending_overflow.inc();
        Err(HostFailure::PendingOverflow)
    }

    fn host_to_await(&self, key: &str, port: u16) -> Result<Arc<CachedHost>, HostFailure> {
        let mut hosts = self.lock();
        if let Some(slot) = hosts.get_mut(key) {
            let host = slot.host.clone();
            if !self.settings.refresh_failed && matches!(*host.found.borrow(), Found::Failed(_)) {
                slot.due = Some(Instant::now());
                host.touch();
                host.found.send_replace(Found::Awaited);
                self.wake.notify_one();
            }
            return Ok(host);
        }
        if hosts.len() >= self.settings.max_hosts {
            self.stats.host_overflow.inc();
            return Err(HostFailure::Overflow);
        }
        Ok(self.insert(&mut hosts, key, port))
    }

    fn insert(&self, hosts: &mut HashMap<Arc<str>, Slot>, key: &str, port: u16) -> Arc<CachedHost> {
        let (name, own_port) = split(key);
        let host = Arc::new(CachedHost {
            key: key.into(),
            name: name.to_owned(),
            port: own_port.unwrap_or(port),
            found: watch::Sender::new(Found::Awaited),
            used_ms: AtomicU64::new(now_ms()),
        });
        let slot = Slot { host: host.clone(), due: Some(Instant::now()), failures: 0 };
        hosts.insert(host.key.clone(), slot);
        self.stats.host_added.inc();
        self.stats.num_hosts.inc();
        self.wake.notify_one();
        host
    }

    /// Hosts to look up now; each counts as under way. Those that nobody has
    /// used for long are forgotten instead.
    pub fn take_due(&self, now: Instant) -> Vec<Arc<CachedHost>> {
        let mut due = Vec::new();
        let unused_since = now_ms().saturating_sub(millis(self.settings.host_ttl));
        self.lock().retain(|_, slot| {
            if slot.due.is_none_or(|at| at > now) {
                return true;
            }
            let again = slot.failures > 0 || matches!(*slot.host.found.borrow(), Found::At(_));
            if again && slot.host.used_ms.load(Ordering::Relaxed) < unused_since {
                slot.host.found.send_replace(Found::Gone);
                self.stats.host_removed.inc();
                self.stats.num_hosts.dec();
                return false;
            }
            if matches!(*slot.host.found.borrow(), Found::Failed(_))
                && !self.settings.refresh_failed
            {
                slot.due = Some(now + self.settings.host_ttl);
                return true;
            }
            slot.due = None;
            self.stats.dns_query_attempt.inc();
            due.push(slot.host.clone());
            true
        });
        due
    }

    /// When a host is next to be looked up or forgotten.
    pub fn next_due(&self) -> Option<Instant> {
        self.lock().values().filter_map(|slot| slot.due).min()
    }

    /// Takes over what a lookup came to. A host that has addresses keeps them
    /// until it gets others.
    pub fn answer(&self, host: &Arc<CachedHost>, looked: Looked, now: Instant) {
        let mut hosts = self.lock();
        let Some(slot) = hosts.get_mut(&host.key).filter(|slot| Arc::ptr_eq(&slot.host, host))
        else {
            return;
        };
        let dns = &self.settings.dns;
        let reason = match looked {
            Looked::Up(addresses, ttl) if !addresses.is_empty() => {
                self.stats.dns_query_success.inc();
                (slot.failures, slot.due) = (0, Some(now + dns.pause(ttl.map(at_least_a_second))));
                let at = addresses.into_iter().map(|ip| SocketAddr::new(ip, host.port)).collect();
                let changed = host.found.send_if_modified(|found| {
                    let next = Found::At(at);
                    let changed = *found != next;
                    *found = next;
                    changed
                });
                if changed {
                    self.stats.host_address_changed.inc();
                }
                return;
            }
            Looked::Up(..) => NO_RECORDS,
            Looked::Empty(reason) | Looked::Failed(reason) => reason,
            Looked::TimedOut => "resolve_timeout",
        };
        slot.failures += 1;
        match looked {
            Looked::Failed(_) | Looked::TimedOut => {
                self.stats.dns_query_failure.inc();
                slot.due = Some(now + dns.failure_pause(slot.failures));
            }
            Looked::Up(..) | Looked::Empty(_) => {
                self.stats.dns_query_success.inc();
                slot.due = Some(now + dns.pause(None));
            }
        }
        if let Looked::TimedOut = looked {
            self.stats.dns_query_timeout.inc();
        }
        host.found.send_if_modified(|found| {
            let without = !matches!(found, Found::At(_));
            if without {
                *found = Found::Failed(reason.into());
            }
            without
        });
    }
}

/// The resolver's words for a name that exists and has no addresses.
pub const NO_RECORDS: &str = "cares_norecords:DNS_server_returned_answer_with_no_data";

fn at_least_a_second(ttl: Duration) -> Duration {
    ttl.max(Duration::from_secs(1))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl CachedHost {
    /// What is known now, and a way to see it change.
    pub fn watch(&self) -> watch::Receiver<Found> {
        self.found.subscribe()
    }

    /// Notes that a request goes there, so that the host is kept.
    pub fn touch(&self) {
        const COARSE_MS: u64 = 1000;
        let now = now_ms();
        // Workers share it: a write for each request would move it between them.
        if now.saturating_sub(self.used_ms.load(Ordering::Relaxed)) >= COARSE_MS {
            self.used_ms.store(now, Ordering::Relaxed);
        }
    }
}

/// The name under which the host of `authority` is cached.
pub fn key(authority: &str, default_port: u16) -> Cow<'_, str> {
    match split(authority).1 {
        Some(_) => Cow::Borrowed(authority),
        None => Cow::Owned(format!("{authority}:{default_port}")),
    }
}

/// A name or address without brackets, and the port behind it.
fn split(authority: &str) -> (&str, Option<u16>) {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (authority, None),
        },
        _ => (authority, None),
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    (bare.unwrap_or(host), port)
}

#[cfg(test)]
mod tests;
