//! Runs the proxy from a bootstrap.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use amime_core::log::LogHandle;
use amime_engine::runtime::{Runtime, RuntimeOptions};
use amime_engine::tls::NoSecrets;
use amime_telemetry::{Telemetry, TelemetryOptions};
use amime_xds::client::{AdsClient, ClientConfig, Handler};
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::{BootstrapError, admin_address, ads, static_resources, unsupported};
use crate::admin::{CommandLine, Context, Wish, serve_admin};
use crate::agent::{AgentError, DiscoveryHandler, Readiness, server_info_node, until_end};
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
    pub(crate) log: Option<LogHandle>,
    pub(crate) converter: Converter,
}

/// Serves until asked to end.
pub(crate) async fn run(mut run: BootstrapRun) -> Result<(), AgentError> {
    let mut ignored = unsupported(&run.converter, &run.bootstrap).await;
    run.bootstrap.node = Some(server_info_node(run.bootstrap.node.take().unwrap_or_default()));
    let dialer = ads::dialer(&run.bootstrap)?;
    let telemetry =
        Telemetry::new(TelemetryOptions { istio_tags: false, ..TelemetryOptions::default() });
    let runtime = Runtime::start(RuntimeOptions {
        concurrency: run.options.concurrency,
        telemetry: telemetry.clone(),
        identity: Arc::new(NoSecrets),
        mark: None,
        gateway: true,
        node_id: String::new(),
    })
    .map_err(AgentError::Runtime)?;
    let report = runtime.apply_static(static_resources(&run.bootstrap));
    ignored.extend(report.ignored);
    if !report.rejected.is_empty() {
        let faults = report.rejected.into_iter().map(|one| format!("{}: {}", one.name, one.error));
        return Err(BootstrapError::Rejected { faults: faults.collect() }.into());
    }
    if !ignored.is_empty() {
        if !run.allow_unsupported {
            return Err(BootstrapError::Unsupported { fields: ignored }.into());
        }
        tracing::warn!(fields = ignored.join(", "), "ignored: not supported");
    }
    if run.validate {
        println!("configuration OK");
        return Ok(());
    }
    serve(run, dialer, telemetry, runtime).await
}

async fn serve(
    run: BootstrapRun,
    dialer: Option<crate::agent::Dialer>,
    telemetry: Arc<Telemetry>,
    runtime: Arc<Runtime>,
) -> Result<(), AgentError> {
    let drain = Duration::from_secs(run.options.drain_s);
    let admin = admin_address(&run.bootstrap)?;
    let context = Arc::new(Context {
        telemetry: telemetry.clone(),
        runtime: runtime.clone(),
        identity: None,
        ready: Arc::new(Readiness::default()),
        needs_names: false,
        log: run.log,
        bootstrap: run.bootstrap,
        options: run.options,
        app_metrics: None,
        wish: watch::Sender::new(Wish::Run),
        converter: run.converter,
    });
    let _server = match admin {
        None => None,
        Some(address) => {
            let server = serve_admin(address, &context)?;
            if let Some(path) = run.admin_address_path {
                let address = server.address().to_string();
                std::fs::write(&path, address)
                    .map_err(|source| AgentError::AdminAddress { path, source })?;
            }
            Some(server)
        }
    };
    let mut tasks = JoinSet::new();
    match dialer {
        None => {
            context.ready.clusters_received();
            context.ready.listeners_received();
        }
        Some(dialer) => {
            let mut handler = DiscoveryHandler {
                runtime,
                telemetry,
                ready: context.ready.clone(),
                dns: None,
                names: Arc::default(),
                changed: Arc::new(Notify::new()),
            };
            let node = context.bootstrap.node.clone().unwrap_or_default();
            let client = AdsClient::new(ClientConfig::new(node));
            tasks.spawn(async move {
                let connect = || async { dialer.dial().await.map_err(Into::into) };
                match client.run(connect, &mut handler as &mut dyn Handler).await {}
            });
        }
    }
    until_end(&context, drain).await
}
