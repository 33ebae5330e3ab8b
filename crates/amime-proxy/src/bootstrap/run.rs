//! Runs the proxy from a bootstrap.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use amime_config::secrets::NoSecrets;
use amime_core::log::LogHandle;
use amime_engine::runtime::{Inherited, Runtime, RuntimeOptions};
use amime_rules::{Fault, Faults};
use amime_telemetry::{Telemetry, TelemetryOptions};
use amime_xds::client::{AdsClient, ClientConfig, Handler};
use amime_xds::{Resource, TypeUrl};
use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog, access_log};
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use envoy_types::pb::google::protobuf::{Any, BoolValue};
use prost::{Message, Name};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::ads::AdsServer;
use super::check::Plan;
use super::files::Files;
use super::handler::{Scope, Shared, SourceHandler};
use super::restart::{AdminServer, Predecessor, Restart, await_successor};
use super::sources::Origin;
use super::{BootstrapError, shell};
use crate::admin::{AdminLog, CommandLine, Context, Server, Wish, serve_admin, serve_admin_on};
use crate::agent::{
    AgentError, DiscoveryHandler, Readiness, server_info_node, until_end, watch_connection,
};
use crate::json::Converter;

/// What the command line says.
#[derive(Debug)]
pub(crate) struct BootstrapRun {
    pub(crate) bootstrap: Bootstrap,
    pub(crate) options: CommandLine,
    pub(crate) allow_unsupported: bool,
    /// Check only, serve nothing.
    pub(crate) validate: bool,
    pub(crate) admin_address_path: Option<PathBuf>,
    /// How another process takes over, if one may.
    pub(crate) restart: Option<Restart>,
    pub(crate) log: Option<LogHandle>,
    pub(crate) converter: Converter,
}

/// Serves until asked to end.
pub(crate) async fn run(mut run: BootstrapRun) -> Result<(), AgentError> {
    let mut faults = Faults::default();
    shell::report(&run.converter, &run.bootstrap, &mut faults).await;
    run.bootstrap.node = Some(server_info_node(run.bootstrap.node.take().unwrap_or_default()));
    let mut plan = Plan::of(&run.bootstrap, &mut faults);
    let telemetry =
        Telemetry::new(TelemetryOptions { istio_tags: false, ..TelemetryOptions::default() });
    let node = run.bootstrap.node.clone().unwrap_or_default();
    let restart = run.restart.as_ref().filter(|_| !run.validate);
    let kept = restart.map(|_| Inherited::default());
    let mut predecessor = match restart.filter(|it| it.take_over) {
        Some(restart) => Some(Predecessor::knock(&restart.door)?),
        None => None,
    };
    let runtime = Runtime::start(RuntimeOptions {
        concurrency: run.options.concurrency,
        telemetry: telemetry.clone(),
        identity: Arc::new(NoSecrets),
        mark: None,
        gateway: true,
        node_id: node.id,
        service_cluster: node.cluster,
        address: None,
        local_cluster: plan.local_cluster.clone(),
        overload: std::mem::take(&mut plan.overload),
        inherited: predecessor.as_mut().map(|it| std::mem::take(&mut it.sockets)).or(kept),
    })
    .map_err(AgentError::Runtime)?;
    let resources = plan.resources.iter().map(|one| one.resource.clone());
    let resources = match run.validate {
        true => resources.map(unbound).collect(),
        false => resources.collect(),
    };
    plan.judge(runtime.apply_static(resources), &mut faults);
    let access_log = admin_log(&run.bootstrap, &telemetry, &mut faults);
    accept(faults.into_list(), run.allow_unsupported)?;
    if run.validate {
        println!("configuration '{}' OK", run.options.config_path);
        return Ok(());
    }
    let shared = Shared::new(std::mem::take(&mut plan.at_hand));
    for one in std::mem::take(&mut plan.resources) {
        let owner = (one.resource.type_url, one.resource.name);
        shared.references().set(owner, one.references);
    }
    serve(run, plan, (shared, predecessor), (telemetry, runtime, access_log)).await
}

/// The access log of the admin server, if the bootstrap asks for one.
#[allow(deprecated, reason = "bootstraps of today still set access_log_path")]
fn admin_log(
    bootstrap: &Bootstrap,
    telemetry: &Telemetry,
    faults: &mut Faults,
) -> Option<AdminLog> {
    let admin = bootstrap.admin.as_ref()?;
    let mut logs = admin.access_log.clone();
    if !admin.access_log_path.is_empty() {
        let path = admin.access_log_path.clone();
        let file = FileAccessLog { path, access_log_format: None };
        let config = Any { type_url: FileAccessLog::type_url(), value: file.encode_to_vec() };
        let config_type = Some(access_log::ConfigType::TypedConfig(config));
        logs.push(AccessLog { config_type, ..AccessLog::default() });
    }
    let mut loggers = vec![];
    for (index, log) in logs.iter().enumerate() {
        let field = format!("admin.access_log[{index}]");
        match telemetry.access_log(log) {
            Ok(logger) => {
                for name in logger.absent() {
                    faults.ignore(&field, format!("%{name}% is always empty"));
                }
                loggers.push(logger);
            }
            Err(error) => faults.ignore(&field, error.to_string()),
        }
    }
    (!loggers.is_empty()).then(|| AdminLog::new(telemetry, loggers))
}

/// Refuses what cannot be honoured, all of it at once.
fn accept(faults: Vec<Fault>, allow_unsupported: bool) -> Result<(), BootstrapError> {
    let refused = |fault: &&Fault| fault.fatal || !allow_unsupported;
    let hint = |fault: &Fault| {
        if fault.fatal { "" } else { " (--allow-unsupported ignores it)" }
    };
    let refused: Vec<_> =
        faults.iter().filter(refused).map(|fault| format!("{fault}{}", hint(fault))).collect();
    if !refused.is_empty() {
        return Err(BootstrapError::Faults { faults: refused });
    }
    for fault in faults {
        tracing::warn!(field = fault.path, reason = fault.reason, "ignored");
    }
    Ok(())
}

/// A listener that takes no port: a check must not disturb a running proxy.
fn unbound(resource: Resource) -> Resource {
    match resource.decode::<Listener>() {
        Ok(listener) if resource.type_url == TypeUrl::Listener => {
            let listener = Listener { bind_to_port: Some(BoolValue { value: false }), ..listener };
            Resource::encode(resource.name, &listener)
        }
        _ => resource,
    }
}

async fn serve(
    run: BootstrapRun,
    plan: Plan,
    (shared, mut predecessor): (Arc<Shared>, Option<Predecessor>),
    (telemetry, runtime, access_log): (Arc<Telemetry>, Arc<Runtime>, Option<AdminLog>),
) -> Result<(), AgentError> {
    let drain = Duration::from_secs(run.options.drain_s);
    let context = Arc::new(Context {
        telemetry,
        runtime,
        identity: None,
        ready: Arc::new(Readiness::default()),
        needs_names: false,
        log: run.log,
        bootstrap: run.bootstrap,
        options: run.options,
        app_metrics: None,
        wish: watch::Sender::new(Wish::Run),
        converter: run.converter,
        access_log,
    });
    let socket = predecessor.as_mut().and_then(|it| it.admin.take());
    let server = start_admin(plan.admin, socket, &context)?;
    if let (Some(server), Some(path)) = (&server, run.admin_address_path) {
        let address = server.address().to_string();
        std::fs::write(&path, address)
            .map_err(|source| AgentError::AdminAddress { path, source })?;
    }
    let admin: AdminServer = Arc::new(Mutex::new(server));
    if let Some(restart) = run.restart {
        let (context, admin) = (context.clone(), admin.clone());
        tokio::spawn(async move { follow_on(restart, predecessor, &context, &admin).await });
    }
    let mut tasks = JoinSet::new();
    start_discovery(plan, &shared, &context, &mut tasks);
    until_end(&context, drain).await
}

/// The admin server, at the socket of the process before where that was asked
/// for the same address.
fn start_admin(
    address: Option<SocketAddr>,
    socket: Option<TcpListener>,
    context: &Arc<Context>,
) -> Result<Option<Server>, AgentError> {
    let Some(address) = address else { return Ok(None) };
    let same = |socket: &TcpListener| {
        let bound = socket.local_addr().ok();
        address.port() == 0 || bound == Some(address)
    };
    let server = match socket.filter(same) {
        Some(socket) => serve_admin_on(socket, context).map_err(AgentError::AdminSocket)?,
        None => serve_admin(address, context)?,
    };
    Ok(Some(server))
}

/// Relieves the process before once this one serves, and is there for the next.
async fn follow_on(
    restart: Restart,
    predecessor: Option<Predecessor>,
    context: &Arc<Context>,
    admin: &AdminServer,
) {
    while context.readiness().is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    context.runtime.forget_inherited();
    // The door is this process' before the other one's is no more.
    if let Err(error) = await_successor(&restart.door, context, admin) {
        tracing::error!(error = &error as &dyn std::error::Error, "no process can take over");
    }
    if let Some(predecessor) = predecessor
        && let Err(error) = predecessor.relieve()
    {
        tracing::error!(%error, "the process before cannot be told to end");
    }
}

fn start_discovery(
    mut plan: Plan,
    shared: &Arc<Shared>,
    context: &Arc<Context>,
    tasks: &mut JoinSet<()>,
) {
    if plan.clusters.is_none() {
        context.ready.clusters_received();
    }
    if plan.listeners.is_none() {
        context.ready.listeners_received();
    }
    let inner = DiscoveryHandler {
        runtime: context.runtime.clone(),
        telemetry: context.telemetry.clone(),
        ready: context.ready.clone(),
        dns: None,
        names: Arc::default(),
        changed: Arc::new(Notify::new()),
    };
    let ads = plan.ads.take();
    let roots = plan.root_files();
    // What a control plane sends may name files later.
    if ads.is_some() || !roots.is_empty() || !shared.references().files().is_empty() {
        let starting =
            Files::start(roots, shared.clone(), inner.clone(), context.converter.clone());
        tasks.spawn(async move {
            match starting.await {
                Ok(files) => files.follow().await,
                Err(error) => tracing::error!(%error, "files cannot be watched"),
            }
        });
    }
    if let Some(server) = ads {
        let scope = Scope::Ads {
            listeners: plan.listeners == Some(Origin::Ads),
            clusters: plan.clusters == Some(Origin::Ads),
        };
        let handler = SourceHandler { inner, shared: shared.clone(), scope };
        start_ads(server, handler, context, tasks);
    }
}

fn start_ads(
    server: AdsServer,
    mut handler: SourceHandler,
    context: &Arc<Context>,
    tasks: &mut JoinSet<()>,
) {
    let node = context.bootstrap.node.clone().unwrap_or_default();
    let config = ClientConfig { variant: server.variant, ..ClientConfig::new(node) };
    let client = AdsClient::new(config);
    let shared = handler.shared.clone();
    *shared.ads.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.wake());
    tasks.spawn(watch_connection(client.connection(), context.telemetry.clone()));
    tasks.spawn(async move {
        let connect = || async { server.dial().await.map_err(Into::into) };
        match client.run(connect, &mut handler as &mut dyn Handler).await {}
    });
}
