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
use crate::takeover::{Inherited, TakenSockets};
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
    /// Sockets of the proxy before this one.
    inherited: Inherited,
    /// Whether sockets are kept for a proxy after this one.
    keeps: bool,
}

impl Listeners {
    pub(crate) fn new(workers: usize, inherited: Option<Inherited>) -> Self {
        Self {
            active: HashMap::new(),
            warming: HashMap::new(),
            spare: Vec::new(),
            workers,
            keeps: inherited.is_some(),
            inherited: inherited.unwrap_or_default(),
        }
    }

    /// Copies of all sockets, for a proxy that takes over.
    pub(crate) fn copies(&self) -> std::io::Result<Vec<TakenSockets>> {
        let entries = self.active.iter().chain(&self.warming);
        let sets = entries.flat_map(|(name, it)| it.sockets.iter().map(move |set| (name, set)));
        sets.map(|(name, set)| Ok(TakenSockets::of(name, &set.asked, set.copies()?))).collect()
    }

    /// Lets go of what was kept.
    pub(crate) fn release(&mut self) {
        let entries = self.active.values().chain(self.warming.values());
        entries.flat_map(|entry| &entry.sockets).for_each(|set| set.release());
        self.keeps = false;
    }

    /// Closes sockets of the proxy before that no listener has asked for.
    pub(crate) fn forget_inherited(&mut self) {
        self.inherited = Inherited::default();
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
        let inherited = self.inherited.take(&config.name, binding).unwrap_or_default();
        bind_all(binding, config.backlog, self.workers, inherited)
            .and_then(|set| if self.keeps { set.keep() } else { Ok(set) })
            .map(Arc::new)
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
pub(crate) fn takes_one(address: SocketAddr) -> bool {
    address.port() != 0 || unix::is_stand_in(address.ip())
}

/// Sockets for all workers: those that are there already, and as many more as
/// there are workers without one.
fn bind_all(
    binding: &Binding,
    backlog: u32,
    workers: usize,
    mut sockets: Vec<TcpListener>,
) -> std::io::Result<SocketSet> {
    let mut address = binding.address;
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    if let Some(path) = unix::path_of(address) {
        // A path has one queue, which all workers take from.
        if sockets.is_empty() {
            sockets.push(listen_unix(&path, binding.mode, backlog)?);
        }
    } else if let Some(first) = sockets.first() {
        address = first.local_addr()?;
    }
    let shared = !binding.reuse_port || unix::path_of(address).is_some();
    while sockets.len() < workers {
        match sockets.first().filter(|_| shared) {
            Some(first) => sockets.push(first.try_clone()?),
            None => {
                let socket = bind_one(binding, address, backlog)?;
                // Port 0 is decided by the first; the others share it.
                address = socket.local_addr()?;
                sockets.push(socket);
            }
        }
    }
    let mut each: Vec<Vec<TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    for (index, socket) in sockets.into_iter().enumerate() {
        each[index % workers].push(socket);
    }
    Ok(SocketSet::new(binding.clone(), address, each))
}

fn bind_one(binding: &Binding, address: SocketAddr, backlog: i32) -> std::io::Result<TcpListener> {
    let options: Vec<RawOption> = binding.options.iter().map(raw_option).collect();
    let builder = ListenerBuilder::new(address)
        .backlog(backlog)
        .reuse_port(binding.reuse_port)
        .transparent(binding.transparent)
        .free_bind(binding.free_bind)
        .v6_only(binding.v6_only)
        .options(options);
    if binding.datagrams {
        // Kept and handed on like any other.
        return Ok(TcpListener::from(OwnedFd::from(builder.bind_datagrams()?)));
    }
    let socket = builder.listen()?;
    socket.set_nonblocking(true)?;
    Ok(socket)
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
