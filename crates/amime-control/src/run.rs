//! The daemon: source → discovery → servers.
//!
//! Owns the order of starting and stopping. Readiness is reported only when
//! the source is in sync and the first snapshot is built; certificates are
//! issued before that, so that an outage of the source expires nobody.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use amime_api::mesh::{MeshConfig, decode_mesh_config};
use amime_ca::{CertificateAuthority, OpenError, SignError, TokenError, WorkloadTokens};
use amime_identity::{
    CertificateDetails, ClientAuth, ConfigError, LiveBundle, LiveCert, PeerIdentities, TlsOptions,
};
use amime_xds::istio::ca::IstioCertificateServiceServer;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::ads::AdsService;
use crate::ca::CertificateService;
use crate::config::{ControlPlaneConfig, SourceConfig};
use crate::discovery::Discovery;
use crate::metrics::Metrics;
use crate::server::http::{Monitored, monitoring, readiness, serve};
use crate::server::{Authenticator, serve_plaintext, serve_tls};
use crate::source::{ApiSource, Events, FileSource, FileSourceError, MESH_FILE};

/// Lifetime of the certificate that we serve with; renewed at half of it.
const SERVING_TTL: Duration = Duration::from_secs(24 * 3600);
/// Wait before a failed renewal is tried again.
const RENEWAL_RETRY: Duration = Duration::from_secs(60);

/// Why the control plane cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The certificate authority.
    #[error("the certificate authority cannot be opened")]
    Authority(#[from] OpenError),
    /// The token key.
    #[error("the workload tokens' key cannot be opened")]
    Tokens(#[from] TokenError),
    /// Our own certificate.
    #[error("no certificate to serve with")]
    Serving(#[from] SignError),
    /// TLS settings.
    #[error("TLS cannot be set up")]
    Tls(#[from] ConfigError),
    /// The mesh-wide settings cannot be read.
    #[error("cannot read the mesh configuration {}", path.display())]
    MeshFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The mesh-wide settings have faults.
    #[error("{}", .0.join("\n"))]
    MeshConfig(Vec<String>),
    /// The source directory.
    #[error(transparent)]
    Files(#[from] FileSourceError),
    /// A port.
    #[error("cannot listen on {addr} ({purpose})")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What it is for.
        purpose: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something that runs for ever has ended.
    #[error("the {0} has stopped")]
    Stopped(&'static str),
}

/// Where a running control plane listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Plaintext discovery.
    pub grpc: Option<SocketAddr>,
    /// Discovery and certificates over TLS.
    pub secure_grpc: SocketAddr,
    /// Readiness.
    pub http: SocketAddr,
    /// Metrics and debug pages.
    pub monitoring: SocketAddr,
}

/// A running control plane; dropping it stops it.
#[derive(Debug)]
pub struct ControlPlane {
    addresses: Addresses,
    shutdown: CancellationToken,
    tasks: JoinSet<&'static str>,
}

/// Runs the control plane until `shutdown`.
pub async fn run(config: ControlPlaneConfig, shutdown: CancellationToken) -> Result<(), RunError> {
    ControlPlane::start(config, shutdown).await?.wait().await
}

impl ControlPlane {
    /// Opens everything that can fail and starts serving until `shutdown`.
    pub async fn start(
        config: ControlPlaneConfig,
        shutdown: CancellationToken,
    ) -> Result<Self, RunError> {
        let clock: fn() -> SystemTime = SystemTime::now;
        let mesh = Arc::new(mesh_config(&config)?);
        let authority = Arc::new(open_authority(&config.ca_dir, &mesh.trust_domain, clock())?);
        let tokens = Arc::new(WorkloadTokens::open(&config.ca_dir)?);
        let metrics = Metrics::new();
        metrics.certificates_end(root_end(&authority), authority.signing_cert().not_after);

        let listeners = Listeners::bind(&config).await?;
        let addresses = listeners.addresses;
        let discovery =
            Discovery::new(metrics.xds.clone()).with_quic_listeners(config.quic_listeners);
        let events = start_source(&config, &metrics, &shutdown)?;

        let mut plane = Self { addresses, shutdown: shutdown.clone(), tasks: JoinSet::new() };
        let cert = LiveCert::new(authority.serving_cert(
            &config.all_serving_names(),
            SERVING_TTL,
            clock(),
        )?);
        let tls = tls_settings(&authority, &mesh, cert.clone())?;
        let auth = Authenticator::new(Some(tokens), &mesh.trust_domain, clock);
        let ads = AdsService::new(discovery.clone(), shutdown.clone());
        let ca = CertificateService::new(authority.clone(), metrics.ca.clone(), clock);
        let secure = Routes::new(ads.clone().into_server())
            .add_service(IstioCertificateServiceServer::new(ca))
            .into_axum_router();

        let monitored = Monitored {
            discovery: discovery.clone(),
            metrics,
            cluster_id: config.cluster_id.as_str().into(),
            clock,
        };
        plane.serve_operators(listeners.http, listeners.monitoring, monitored);
        let tls_listener = serve_tls(listeners.secure_grpc, tls, auth, secure, shutdown.clone());
        plane.spawn("TLS listener", tls_listener);
        if let Some(listener) = listeners.grpc {
            let routes = Routes::new(ads.into_server()).into_axum_router();
            plane.spawn("plaintext listener", serve_plaintext(listener, routes, shutdown.clone()));
        }
        let names = config.all_serving_names();
        plane.spawn("certificate renewal", renew(authority, cert, names, clock, shutdown.clone()));
        let debounce = config.debounce;
        plane.spawn("discovery", async move {
            discovery.run(events, mesh, debounce, shutdown).await;
        });
        tracing::info!(
            secure_grpc = %addresses.secure_grpc,
            monitoring = %addresses.monitoring,
            "control plane started"
        );
        Ok(plane)
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Waits for the shutdown, or for a part that fails.
    pub async fn wait(mut self) -> Result<(), RunError> {
        let first = self.tasks.join_next().await;
        let expected = self.shutdown.is_cancelled();
        self.shutdown.cancel();
        while self.tasks.join_next().await.is_some() {}
        match first {
            Some(Ok(part)) if !expected => Err(RunError::Stopped(part)),
            Some(Err(_)) if !expected => Err(RunError::Stopped("control plane")),
            _ => Ok(()),
        }
    }

    fn serve_operators(&mut self, probes: TcpListener, pages: TcpListener, monitored: Monitored) {
        let shutdown = self.shutdown.clone();
        let probes = serve(probes, readiness(monitored.clone()), shutdown.clone());
        self.spawn("readiness listener", async { report(probes.await) });
        let pages = serve(pages, monitoring(monitored), shutdown);
        self.spawn("monitoring listener", async { report(pages.await) });
    }

    fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            work.await;
            name
        });
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn report(served: io::Result<()>) {
    if let Err(error) = served {
        tracing::error!(%error, "listener failed");
    }
}

/// The bound sockets, so that a busy port is an error before anything runs.
struct Listeners {
    grpc: Option<TcpListener>,
    secure_grpc: TcpListener,
    http: TcpListener,
    monitoring: TcpListener,
    addresses: Addresses,
}

impl Listeners {
    async fn bind(config: &ControlPlaneConfig) -> Result<Self, RunError> {
        let grpc = match config.grpc_addr {
            Some(addr) => Some(bind(addr, "plaintext discovery").await?),
            None => None,
        };
        let (secure_grpc, secure_addr) = bind(config.secure_grpc_addr, "discovery").await?;
        let (http, http_addr) = bind(config.http_addr, "readiness").await?;
        let (monitoring, monitoring_addr) = bind(config.monitoring_addr, "monitoring").await?;
        let addresses = Addresses {
            grpc: grpc.as_ref().map(|(_, addr)| *addr),
            secure_grpc: secure_addr,
            http: http_addr,
            monitoring: monitoring_addr,
        };
        let grpc = grpc.map(|(listener, _)| listener);
        Ok(Self { grpc, secure_grpc, http, monitoring, addresses })
    }
}

async fn bind(
    addr: SocketAddr,
    purpose: &'static str,
) -> Result<(TcpListener, SocketAddr), RunError> {
    let failed = |source| RunError::Listen { addr, purpose, source };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

fn open_authority(
    dir: &Path,
    trust_domain: &str,
    now: SystemTime,
) -> Result<CertificateAuthority, OpenError> {
    if CertificateAuthority::is_plugged(dir) {
        tracing::info!(dir = %dir.display(), "using a plugged certificate authority");
        return CertificateAuthority::plugged(dir, now);
    }
    CertificateAuthority::self_signed(dir, trust_domain, now)
}

fn root_end(authority: &CertificateAuthority) -> SystemTime {
    let roots = authority.roots().certificates();
    let ends = roots.iter().filter_map(|root| Some(CertificateDetails::of(root).ok()?.not_after));
    ends.min().unwrap_or(authority.signing_cert().not_after)
}

/// Asks for a client certificate; a caller without one has to have a token.
fn tls_settings(
    authority: &CertificateAuthority,
    mesh: &MeshConfig,
    cert: Arc<LiveCert>,
) -> Result<Arc<rustls::ServerConfig>, ConfigError> {
    let roots = LiveBundle::new(authority.roots().clone());
    let mut trust_domains = vec![mesh.trust_domain.clone()];
    trust_domains.extend(mesh.trust_domain_aliases.iter().cloned());
    let workloads = PeerIdentities { trust_domains, ..PeerIdentities::any() };
    let options = TlsOptions::with_alpn(["h2"]);
    amime_identity::server_config(cert, roots, ClientAuth::Optional(workloads), &options)
}

/// Replaces the serving certificate at half of its life.
async fn renew(
    authority: Arc<CertificateAuthority>,
    cert: Arc<LiveCert>,
    names: Vec<String>,
    clock: fn() -> SystemTime,
    shutdown: CancellationToken,
) {
    let due = |now: SystemTime| match cert.current() {
        Some(cert) => cert.rotate_at(0.5).duration_since(now).unwrap_or_default(),
        None => Duration::ZERO,
    };
    let mut wait = due(clock());
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = match authority.serving_cert(&names, SERVING_TTL, clock()) {
            Ok(renewed) => {
                cert.set(renewed);
                tracing::info!("serving certificate renewed");
                due(clock()).max(RENEWAL_RETRY)
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "serving certificate not renewed");
                RENEWAL_RETRY
            }
        };
    }
}

fn mesh_config(config: &ControlPlaneConfig) -> Result<MeshConfig, RunError> {
    let beside = match &config.source {
        SourceConfig::Files(dir) => Some(dir.join(MESH_FILE)).filter(|path| path.exists()),
        SourceConfig::Api(_) => None,
    };
    let mut mesh = match config.mesh_config.clone().or(beside) {
        Some(path) => read_mesh_config(path)?,
        None => MeshConfig::default(),
    };
    if let Some(trust_domain) = &config.trust_domain {
        mesh.trust_domain.clone_from(trust_domain);
    }
    Ok(mesh)
}

fn read_mesh_config(path: PathBuf) -> Result<MeshConfig, RunError> {
    let origin = path.display().to_string();
    let text =
        std::fs::read_to_string(&path).map_err(|source| RunError::MeshFile { path, source })?;
    decode_mesh_config(&origin, &text)
        .map_err(|errors| RunError::MeshConfig(errors.iter().map(ToString::to_string).collect()))
}

fn start_source(
    config: &ControlPlaneConfig,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> Result<Events, FileSourceError> {
    let (rejected, shutdown) = (metrics.rejected_configs.clone(), shutdown.clone());
    match &config.source {
        SourceConfig::Api(socket) => Ok(ApiSource::start(socket.clone(), rejected, shutdown)),
        SourceConfig::Files(dir) => FileSource::start(dir.clone(), rejected, shutdown),
    }
}

#[cfg(test)]
mod tests;
