//! Start, life and end of a workload's proxy.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use amime_core::log::LogHandle;
use amime_engine::overload::OverloadPlan;
use amime_engine::runtime::{Runtime, RuntimeOptions};
use amime_telemetry::{Telemetry, TelemetryOptions};
use amime_xds::client::{AdsClient, ClientConfig, Connection, Handler, Update};
use amime_xds::{Resource, TypeUrl};
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::channel::Dialer;
use super::env::{AgentConfig, EnvError, HostPort, ProxyKind};
use super::handler::DiscoveryHandler;
use super::handover::Handover;
use super::identity::{Identity, Renewal};
use super::last_good::LastGood;
use super::node;
use super::ready::Readiness;
use super::self_discovery;
use crate::admin::{
    AdminError, CommandLine, Context, Server, Wish, serve_admin, serve_metrics, serve_ready,
    serve_status,
};
use crate::bootstrap::{BootstrapError, RestartError};
use crate::dns::{DnsError, DnsOptions, DnsProxy, Upstreams};
use crate::json::Converter;

/// Changes come in bursts, of which only the end is worth keeping.
const BURST: Duration = Duration::from_millis(200);
/// Pause between two writes of the last good configuration, as a multiple of
/// the time that the first took: a slow disk is not kept busy.
const SAVE_PAUSE: u32 = 10;

/// Why the proxy does not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The environment.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// The bootstrap.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// Another process of the proxy.
    #[error(transparent)]
    Restart(#[from] RestartError),
    /// The sockets of the process before.
    #[error("the admin server's socket cannot be taken over")]
    AdminSocket(#[source] std::io::Error),
    /// A server of the agent.
    #[error("agent server")]
    Admin(#[from] AdminError),
    /// The DNS proxy.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// The inherited descriptor.
    #[error("AMIME_IDENTITY_FD is not usable")]
    Handover(#[source] std::io::Error),
    /// Workers cannot start.
    #[error("workers cannot start")]
    Runtime(#[source] std::io::Error),
    /// The admin address cannot be told.
    #[error("admin address cannot be written to {}", path.display())]
    AdminAddress {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Signal handlers cannot be set.
    #[error("signals cannot be handled")]
    Signals(#[source] std::io::Error),
}

/// A started agent; dropping it stops its servers and clients.
pub(crate) struct Agent {
    pub(crate) context: Arc<Context>,
    pub(crate) dns: Option<Arc<DnsProxy>>,
    pub(crate) servers: Servers,
    drain: Duration,
    _tasks: JoinSet<()>,
}

/// What the program around the agent gives it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outside {
    pub(crate) log: Option<LogHandle>,
    pub(crate) converter: Converter,
}

/// The agent's HTTP servers.
pub(crate) struct Servers {
    pub(crate) admin: Server,
    pub(crate) status: Server,
    pub(crate) ready: Server,
    pub(crate) metrics: Server,
}

/// Runs a workload's proxy until a signal or an operator ends it.
///
/// # Errors
/// When it cannot start; later faults are retried for ever.
pub(crate) async fn run(config: AgentConfig, outside: Outside) -> Result<(), AgentError> {
    let agent = Agent::start(config, outside).await?;
    until_end(&agent.context, agent.drain).await
}

impl Agent {
    pub(crate) async fn start(config: AgentConfig, outside: Outside) -> Result<Self, AgentError> {
        let handover = config.identity_fd.map(Handover::inherit).transpose();
        let identity = Identity::empty();
        let resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let upstreams = Upstreams::parse(&config.dns_upstream, &resolv_conf, config.mark);
        let cert = identity.cert.clone();
        let dialer = |server: &HostPort, roots: &Option<PathBuf>| Dialer {
            server: server.clone(),
            roots: roots.clone(),
            san: config.server_san.clone(),
            token: config.token_path.clone(),
            cert: cert.clone(),
            search: search_domains(&resolv_conf),
            upstreams: upstreams.clone(),
        };
        let renewal = Renewal {
            identity: identity.clone(),
            spiffe_id: config.spiffe_id(),
            dialer: dialer(&config.ca, &config.ca_root),
            ttl: config.secret_ttl,
            handover: handover.map_err(AgentError::Handover)?,
        };
        renewal.adopt(SystemTime::now());
        let telemetry = Telemetry::new(TelemetryOptions {
            local: node::peer(&config),
            ..TelemetryOptions::default()
        });
        let runtime = Runtime::start(RuntimeOptions {
            concurrency: config.concurrency,
            telemetry: telemetry.clone(),
            identity: identity.clone(),
            mark: config.mark,
            gateway: config.kind == ProxyKind::Router,
            node_id: node::id(&config),
            service_cluster: node::node(&config).cluster,
            address: config.instance_ips.first().copied(),
            local_cluster: self_discovery::local_cluster(&config),
            overload: OverloadPlan::default(),
            inherited: None,
        })
        .map_err(AgentError::Runtime)?;
        if self_discovery::wanted(&config) {
            runtime.apply_static(vec![self_discovery::cluster()]);
        }
        let dns = start_dns(&config, &upstreams, &resolv_conf).await?;
        let context = Arc::new(context(&config, outside, telemetry, runtime, identity));
        let servers = Servers::start(&config, &context)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(renewal.run());
        let xds = dialer(&config.discovery, &config.xds_root);
        start_discovery(&config, &context, dns.clone(), xds, &mut tasks);
        let agent = Self { context, dns, servers, drain: config.drain, _tasks: tasks };
        agent.announce(&config.discovery);
        Ok(agent)
    }

    fn announce(&self, discovery: &HostPort) {
        let Servers { admin, status, ready, metrics } = &self.servers;
        tracing::info!(
            node = self.context.options.service_node,
            %discovery,
            admin = %admin.address(),
            status = %status.address(),
            ready = %ready.address(),
            metrics = %metrics.address(),
            dns = ?self.dns.as_ref().map(|dns| dns.address()),
            "proxy started"
        );
    }
}

impl Servers {
    fn start(config: &AgentConfig, context: &Arc<Context>) -> Result<Self, AgentError> {
        let ports = config.ports;
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let any = |port| SocketAddr::from((any_ip(), port));
        Ok(Self {
            admin: serve_admin(loopback(ports.admin), context)?,
            status: serve_status(any(ports.status), context)?,
            ready: serve_ready(any(ports.ready), context)?,
            metrics: serve_metrics(any(ports.metrics), context)?,
        })
    }
}

/// All addresses of both families, or of IPv4 where the kernel has no IPv6.
fn any_ip() -> std::net::IpAddr {
    let v6 = std::path::Path::new("/proc/net/if_inet6").exists()
        && std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
    if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

fn context(
    config: &AgentConfig,
    Outside { log, converter }: Outside,
    telemetry: Arc<Telemetry>,
    runtime: Arc<Runtime>,
    identity: Arc<Identity>,
) -> Context {
    let node = node::node(config);
    let options = CommandLine {
        concurrency: config.concurrency,
        log_level: log.as_ref().map(LogHandle::directives).unwrap_or_default(),
        service_node: node.id.clone(),
        service_cluster: node.cluster.clone(),
        drain_s: config.drain.as_secs(),
        config_path: String::new(),
        others: serde_json::Map::new(),
    };
    Context {
        telemetry,
        runtime,
        identity: Some(identity),
        ready: Arc::new(Readiness::default()),
        needs_names: config.dns_capture,
        log,
        bootstrap: Bootstrap { node: Some(node), ..Bootstrap::default() },
        options,
        app_metrics: config.app_metrics.clone(),
        wish: watch::Sender::new(Wish::Run),
        converter,
        access_log: None,
    }
}

async fn start_dns(
    config: &AgentConfig,
    upstreams: &Upstreams,
    resolv_conf: &str,
) -> Result<Option<Arc<DnsProxy>>, AgentError> {
    if !config.dns_capture {
        return Ok(None);
    }
    let dns = DnsProxy::start(DnsOptions {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, config.ports.dns)),
        namespace: config.namespace.clone(),
        domain: config.service_domain(),
        search: search_domains(resolv_conf),
        upstreams: upstreams.servers.clone(),
        mark: config.mark,
    });
    Ok(Some(Arc::new(dns.await?)))
}

fn search_domains(resolv_conf: &str) -> Vec<String> {
    let lines = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("search "));
    lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
}

fn start_discovery(
    config: &AgentConfig,
    context: &Arc<Context>,
    dns: Option<Arc<DnsProxy>>,
    dialer: Dialer,
    tasks: &mut JoinSet<()>,
) {
    let mut handler = DiscoveryHandler {
        runtime: context.runtime.clone(),
        telemetry: context.telemetry.clone(),
        ready: context.ready.clone(),
        dns,
        names: Arc::default(),
        changed: Arc::new(Notify::new()),
    };
    let node = context.bootstrap.node.clone().unwrap_or_default();
    let file = config.state_dir.as_ref().map(|dir| LastGood::new(dir, &node.id));
    let mut client = AdsClient::new(ClientConfig::new(node));
    if let Some(file) = file {
        let held = restore(&file, &mut handler);
        client.preload(&held);
        let (context, names) = (context.clone(), handler.names.clone());
        tasks.spawn(keep_saving(file, context, names, handler.changed.clone()));
    }
    tasks.spawn(watch_connection(client.connection(), context.telemetry.clone()));
    tasks.spawn(async move {
        let connect = || async { dialer.dial().await.map_err(Into::into) };
        match client.run(connect, &mut handler as &mut dyn Handler).await {}
    });
}

/// Applies the last good configuration and returns what is in force of it.
fn restore(file: &LastGood, handler: &mut DiscoveryHandler) -> Vec<Resource> {
    let mut resources = file.load();
    if resources.is_empty() {
        return vec![];
    }
    for type_url in amime_xds::PUSH_ORDER {
        let of_type = resources.iter().filter(|one| one.type_url == type_url);
        let added: Vec<_> = of_type.cloned().collect();
        if added.is_empty() {
            continue;
        }
        let rejected = handler.apply(Update { type_url, added, removed: vec![] });
        resources.retain(|one| {
            one.type_url != type_url || !rejected.iter().any(|it| it.name == one.name)
        });
    }
    // What the control plane never had would be waited for in vain.
    let of_type = |one: &&Resource| one.type_url == TypeUrl::Endpoint;
    let have: Vec<_> = resources.iter().filter(of_type).map(|one| one.name.as_str()).collect();
    let mut removed = handler.runtime.required_names(TypeUrl::Endpoint);
    removed.retain(|name| !have.contains(&name.as_str()));
    if !removed.is_empty() {
        handler.runtime.apply(&Update { type_url: TypeUrl::Endpoint, added: vec![], removed });
    }
    tracing::info!(resources = resources.len(), "serving from the last good configuration");
    resources
}

async fn keep_saving(
    file: LastGood,
    context: Arc<Context>,
    names: Arc<std::sync::Mutex<Option<Resource>>>,
    changed: Arc<Notify>,
) {
    loop {
        changed.notified().await;
        tokio::time::sleep(BURST).await;
        // Half of a configuration is worse than the one on disk.
        if !context.ready.is_configured() || !context.runtime.ready() {
            continue;
        }
        let (file, started) = (file.clone(), Instant::now());
        let names = names.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let held = context.runtime.dump().resources.into_iter();
        let held = held.filter(|one| !one.is_static && !one.warming && !one.version.is_empty());
        let held: Vec<_> = held
            .map(|one| Resource {
                type_url: one.type_url,
                name: one.name,
                version: one.version,
                body: one.body,
            })
            .chain(names)
            .collect();
        let saved = tokio::task::spawn_blocking(move || file.save(held)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "last good configuration not saved");
        }
        tokio::time::sleep(started.elapsed() * SAVE_PAUSE).await;
    }
}

/// Counts and logs connections to the control plane.
pub(crate) async fn watch_connection(
    mut connection: watch::Receiver<Connection>,
    telemetry: Arc<Telemetry>,
) {
    loop {
        let connected = *connection.borrow_and_update() == Connection::Connected;
        let server = telemetry.server();
        server.control_plane_connected_state.set(i64::from(connected));
        if connected {
            server.control_plane_connected_total.inc();
            tracing::info!("connected to the control plane");
        }
        if connection.changed().await.is_err() {
            return;
        }
    }
}

/// Waits for a signal or an operator, then drains for at most `drain`.
///
/// # Errors
/// When signals cannot be handled.
pub(crate) async fn until_end(context: &Context, drain: Duration) -> Result<(), AgentError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::Signals)?;
    let mut wish = context.wish.subscribe();
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            changed = wish.changed() => {
                let wish = *wish.borrow_and_update();
                match (changed, wish) {
                    (Ok(()), Wish::Run) => {}
                    (Ok(()), Wish::Drain) => {
                        context.ready.set_draining();
                        let runtime = context.runtime.clone();
                        tokio::spawn(async move { runtime.drain(drain).await });
                    }
                    (Ok(()), Wish::Quit) | (Err(_), _) => break,
                }
            }
        }
    }
    tracing::info!(connections = context.runtime.connections(), "draining");
    context.ready.set_draining();
    tokio::select! {
        _ = context.runtime.drain(drain) => {}
        // A second signal means now.
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(connections = context.runtime.connections(), "proxy ends");
    context.telemetry.flush();
    Ok(())
}
