//! Listeners in force and those that warm, with their sockets.
//!
//! Invariant: a listener is in force only after its routes and secrets, or
//! after the time that its configuration gives them; until then the version
//! it replaces serves on. An address that stays keeps its sockets, so no
//! client that is about to be accepted is lost.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::awaited::{Awaited, Need};
use crate::dump::ListenerDump;
use crate::published::SocketSet;
use crate::state::Refusal;
use amime_config::Required;
use amime_config::binding::{Binding, SocketOption, SocketStage};
use amime_config::listener::ListenerConfig;
use amime_core::unix::{self, Shown};
use amime_net::socket::{ListenerBuilder, OptionStage, RawOption, listen_unix};

/// One version of a listener.
pub(crate) struct ListenerEntry {
    pub(crate) config: Arc<ListenerConfig>,
    required: Required,
    /// One of each address; none if it is reached only by hand-off.
    pub(crate) sockets: Vec<Arc<SocketSet>>,
    awaited: Awaited,
}

/// All listeners.
pub(crate) struct Listeners {
    pub(crate) active: HashMap<Arc<str>, ListenerEntry>,
    warming: HashMap<Arc<str>, ListenerEntry>,
    /// Sockets of listeners that the present update removed: one that comes
    /// with the same update may take them over.
    spare: Vec<Arc<SocketSet>>,
    workers: usize,
}

impl Listeners {
    pub(crate) fn new(workers: usize) -> Self {
        Self { active: HashMap::new(), warming: HashMap::new(), spare: Vec::new(), workers }
    }

    /// Takes a compiled listener over, to warm until [`Listeners::promote`].
    pub(crate) fn add(
        &mut self,
        config: ListenerConfig,
        required: Required,
        now: Instant,
    ) -> Result<(), Refusal> {
        // Bound before it is in force, so that a busy port refuses the resource.
        let mut sockets = Vec::new();
        for binding in config.bindings.iter().filter(|_| config.bind) {
            sockets.push(self.bind(&config, binding)?);
        }
        let mut awaited = Awaited::default();
        for (name, timeout) in &required.routes {
            awaited.add(Need::Routes(name.clone()), *timeout, now);
        }
        for (name, timeout) in &required.secrets {
            awaited.add(Need::Secret(name.clone()), *timeout, now);
        }
        let name = config.name.clone();
        let config = Arc::new(config);
        self.warming.insert(name, ListenerEntry { config, required, sockets, awaited });
        Ok(())
    }

    fn bind(
        &mut self,
        config: &ListenerConfig,
        binding: &Binding,
    ) -> Result<Arc<SocketSet>, Refusal> {
        let address = binding.address;
        for (name, entry) in self.active.iter().chain(&self.warming) {
            let mine = *name == config.name;
            for sockets in &entry.sockets {
                if mine && sockets.asked == *binding {
                    return Ok(sockets.clone());
                }
                if !mine
                    && sockets.asked.address == address
                    && sockets.asked.datagrams == binding.datagrams
                    && takes_one(address)
                {
                    let address = Shown(address);
                    return Err(format!("address: {address} is the address of listener `{name}`"));
                }
            }
        }
        if let Some(at) = self.spare.iter().position(|spare| spare.asked == *binding) {
            return Ok(self.spare.swap_remove(at));
        }
        bind_all(binding, config.backlog, self.workers)
            .map_err(|error| format!("address: cannot bind {}: {error}", Shown(address)))
    }

    /// Puts listeners in force that have all they need; their names.
    pub(crate) fn promote(&mut self, now: Instant, met: impl Fn(&Need) -> bool) -> Vec<Arc<str>> {
        let mut ready = Vec::new();
        for (name, entry) in &mut self.warming {
            if entry.awaited.settle(now, &met) {
                ready.push(name.clone());
            }
        }
        for name in &ready {
            if let Some(entry) = self.warming.remove(name) {
                self.active.insert(name.clone(), entry);
            }
        }
        ready
    }

    /// Removes a listener; a new one may have its sockets until
    /// [`Listeners::close_spare`].
    pub(crate) fn remove(&mut self, name: &str) {
        let gone = [self.active.remove(name), self.warming.remove(name)];
        for entry in gone.into_iter().flatten() {
            let known = entry.sockets.into_iter().filter(|set| takes_one(set.asked.address));
            self.spare.extend(known);
        }
    }

    pub(crate) fn close_spare(&mut self) {
        self.spare.clear();
    }

    pub(crate) fn any_warming(&self) -> bool {
        !self.warming.is_empty()
    }

    /// What the listeners refer to.
    pub(crate) fn required(&self) -> impl Iterator<Item = &Required> {
        self.active.values().chain(self.warming.values()).map(|entry| &entry.required)
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.warming.values().filter_map(|entry| entry.awaited.deadline()).min()
    }

    /// The first bound address of a listener in force, else of one that warms.
    pub(crate) fn address(&self, name: &str) -> Option<SocketAddr> {
        self.addresses(name).next()
    }

    /// All of them.
    pub(crate) fn addresses(&self, name: &str) -> impl Iterator<Item = SocketAddr> {
        let entry = self.active.get(name).or_else(|| self.warming.get(name));
        entry.into_iter().flat_map(|entry| &entry.sockets).map(|set| set.address)
    }

    pub(crate) fn dump(&self) -> Vec<ListenerDump> {
        let dump = |(name, entry): (&Arc<str>, &ListenerEntry)| {
            let bound = entry.sockets.first().map(|set| set.address);
            ListenerDump {
                name: name.to_string(),
                address: bound.or(Some(entry.config.address())),
                bound: entry.config.bind,
            }
        };
        let mut listeners: Vec<_> = self.active.iter().map(dump).collect();
        listeners.sort_by(|a, b| a.name.cmp(&b.name));
        listeners
    }
}

/// True for an address that is one: port 0 is another each time.
fn takes_one(address: SocketAddr) -> bool {
    address.port() != 0 || unix::is_stand_in(address.ip())
}

fn bind_all(binding: &Binding, backlog: u32, workers: usize) -> std::io::Result<Arc<SocketSet>> {
    let mut address = binding.address;
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    if let Some(path) = unix::path_of(address) {
        // A path has one queue, which all workers take from.
        let socket = listen_unix(&path, binding.mode, backlog)?;
        let more = (1..workers).map(|_| socket.try_clone()).collect::<std::io::Result<Vec<_>>>()?;
        let sockets = std::iter::once(socket).chain(more).collect();
        return Ok(SocketSet::new(binding.clone(), address, sockets));
    }
    let mut sockets: Vec<TcpListener> = Vec::with_capacity(workers);
    let options: Vec<RawOption> = binding.options.iter().map(raw_option).collect();
    for _ in 0..workers {
        if let Some(first) = sockets.first().filter(|_| !binding.reuse_port) {
            let shared = first.try_clone()?;
            sockets.push(shared);
            continue;
        }
        let builder = ListenerBuilder::new(address)
            .backlog(backlog)
            .reuse_port(binding.reuse_port)
            .transparent(binding.transparent)
            .free_bind(binding.free_bind)
            .v6_only(binding.v6_only)
            .options(options.clone());
        // Port 0 is decided by the first; the others share it.
        let socket = if binding.datagrams {
            let socket = builder.bind_datagrams()?;
            address = socket.local_addr()?;
            // Kept and handed on like any other.
            TcpListener::from(OwnedFd::from(socket))
        } else {
            let socket = builder.listen()?;
            socket.set_nonblocking(true)?;
            address = socket.local_addr()?;
            socket
        };
        sockets.push(socket);
    }
    Ok(SocketSet::new(binding.clone(), address, sockets))
}

fn raw_option(option: &SocketOption) -> RawOption {
    RawOption {
        level: option.level,
        name: option.name,
        value: option.value.clone(),
        when: match option.stage {
            SocketStage::BeforeBind => OptionStage::BeforeBind,
            SocketStage::Bound => OptionStage::Bound,
            SocketStage::Listening => OptionStage::Listening,
        },
    }
}
