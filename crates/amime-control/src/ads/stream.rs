//! One discovery stream: from the first request to the last response.

use std::sync::Arc;
use std::time::{Duration, Instant};

use amime_ca::CallerIdentity;
use amime_translate::Proxy;
use amime_xds::TypeUrl;
use amime_xds::server::{Pusher, Reaction, Session, Verdict, Wanted};
use envoy_types::pb::envoy::config::core::v3::Node;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::progress::Progress;
use super::source::ProxyView;
use crate::discovery::{Discovery, Missed, Published, Reached, Registration, is_of};
use crate::metrics::TypeLabel;

/// Time that a client gets to say who it is, and us to have a snapshot.
const FIRST_REQUEST: Duration = Duration::from_secs(30);

pub(super) struct Stream<T> {
    pub(super) id: u64,
    pub(super) delta: bool,
    pub(super) discovery: Discovery,
    pub(super) turns: Arc<Semaphore>,
    pub(super) warm_up: Duration,
    pub(super) shutdown: CancellationToken,
    pub(super) caller: Option<CallerIdentity>,
    pub(super) responses: mpsc::Sender<Result<T, Status>>,
}

/// Why a stream ends; the client is told unless it left.
enum End {
    ClientLeft,
    Refused(Status),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

impl<T: Send + 'static> Stream<T> {
    /// Serves the client until one side ends the stream.
    pub(super) async fn run<S>(self, session: S, mut requests: Streaming<S::Request>)
    where
        S: Session<Response = T>,
    {
        let end = match self.admit::<S>(&mut requests).await {
            Ok((first, proxy)) => {
                let gauge = &self.discovery.metrics().connected;
                gauge.inc();
                let end = self.serve(Pusher::new(session), first, &proxy, requests).await;
                self.discovery.registry().disconnect(self.id);
                gauge.dec();
                tracing::info!(proxy = %proxy.id, stream = self.id, "proxy disconnected");
                end
            }
            Err(end) => end,
        };
        if let End::Refused(status) = end {
            tracing::debug!(stream = self.id, %status, "discovery stream ended");
            // Nobody may be left to read it.
            let _ = self.responses.try_send(Err(status));
        }
    }

    /// Waits for the first request and finds out who speaks.
    async fn admit<S: Session>(
        &self,
        requests: &mut Streaming<S::Request>,
    ) -> Result<(S::Request, Arc<Proxy>), End> {
        let first = tokio::select! {
            first = requests.message() => first.map_err(|_| End::ClientLeft)?,
            () = self.shutdown.cancelled() => return Err(going_away().into()),
            () = tokio::time::sleep(FIRST_REQUEST) => {
                return Err(Status::deadline_exceeded("no request was sent").into());
            }
        };
        let first = first.ok_or(End::ClientLeft)?;
        let node = S::node(&first)
            .ok_or_else(|| Status::invalid_argument("the first request carries no node"))?;
        let mut proxy = identify(node, self.caller.as_ref())?;
        proxy.quic_listeners = self.discovery.quic_listeners();
        let proxy = Arc::new(proxy);
        tokio::select! {
            () = self.discovery.synced() => {}
            () = self.responses.closed() => return Err(End::ClientLeft),
            () = self.shutdown.cancelled() => return Err(going_away().into()),
            () = tokio::time::sleep(FIRST_REQUEST) => {
                return Err(Status::unavailable("configuration is still being read").into());
            }
        }
        self.discovery.registry().connect(Registration {
            proxy: Arc::clone(&proxy),
            node_id: node.id.clone(),
            delta: self.delta,
            stream: self.id,
        });
        tracing::info!(proxy = %proxy.id, stream = self.id, delta = self.delta, "proxy connected");
        Ok((first, proxy))
    }

    async fn serve<S: Session<Response = T>>(
        &self,
        mut pusher: Pusher<S>,
        first: S::Request,
        proxy: &Arc<Proxy>,
        mut requests: Streaming<S::Request>,
    ) -> End {
        let mut published = self.discovery.follow();
        let Some(mut current) = published.borrow_and_update().clone() else {
            return going_away().into();
        };
        if let Err(end) = self.take_in(&mut pusher, first, proxy) {
            return end;
        }
        let mut release: Option<tokio::time::Instant> = None;
        let mut progress = Progress::default();
        loop {
            let pushed = self.push(&mut pusher, &current, proxy, &mut progress).await;
            release = pusher
                .is_holding()
                .then(|| release.unwrap_or_else(|| tokio::time::Instant::now() + self.warm_up));
            let (version, status) = (current.snapshot.version(), pusher.status());
            let reached = Reached {
                sent: Some(version).filter(|_| release.is_none()),
                answered: progress.answered(version, &status, |t| pusher.has_waiting(t)),
            };
            self.discovery.registry().update(self.id, reached, status);
            if let Err(end) = pushed {
                return end;
            }
            let taken = tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => self.take_in(&mut pusher, request, proxy),
                    Ok(None) | Err(_) => Err(End::ClientLeft),
                },
                news = next(&mut published) => match news {
                    Some(news) => {
                        note(&mut pusher, news.since(current.snapshot.version()));
                        current = news;
                        Ok(())
                    }
                    None => Err(going_away().into()),
                },
                () = until(release) => {
                    tracing::debug!(proxy = %proxy.id, "endpoints of new clusters not asked for");
                    pusher.release_held();
                    Ok(())
                }
                () = self.responses.closed() => Err(End::ClientLeft),
                () = self.shutdown.cancelled() => Err(going_away().into()),
            };
            if let Err(end) = taken {
                return end;
            }
        }
    }

    fn take_in<S: Session<Response = T>>(
        &self,
        pusher: &mut Pusher<S>,
        request: S::Request,
        proxy: &Proxy,
    ) -> Result<(), End> {
        let reaction =
            pusher.on_request(request).map_err(|e| Status::resource_exhausted(e.to_string()))?;
        self.record(&reaction, proxy);
        Ok(())
    }

    fn record(&self, reaction: &Reaction, proxy: &Proxy) {
        let Some(type_url) = reaction.type_url else { return };
        let metrics = self.discovery.metrics();
        match &reaction.verdict {
            Some(Verdict::Nack(nack)) => {
                metrics.rejects.get_or_create(&label(type_url)).increment();
                tracing::warn!(
                    proxy = %proxy.id,
                    r#type = type_url.short(),
                    version = %nack.version,
                    error = %nack.message,
                    "proxy refused configuration"
                );
            }
            Some(Verdict::Stale) => {
                metrics.expired_nonces.get_or_create(&label(type_url)).increment();
            }
            Some(Verdict::Ack) | None => {}
        }
    }

    /// Sends whatever can be sent now.
    async fn push<S: Session<Response = T>>(
        &self,
        pusher: &mut Pusher<S>,
        current: &Published,
        proxy: &Arc<Proxy>,
        progress: &mut Progress,
    ) -> Result<(), End> {
        let mut view =
            ProxyView::new(Arc::clone(&current.snapshot), Arc::clone(proxy), self.caller.is_some());
        let mut sent = false;
        loop {
            let queued = Instant::now();
            let turn = self.turns.acquire().await;
            self.discovery.metrics().queue_seconds.observe(queued.elapsed().as_secs_f64());
            let response = pusher.next(&mut view);
            drop(turn);
            let Some((type_url, response)) = response else { break };
            progress.sent(type_url, current.snapshot.version());
            self.discovery.metrics().pushes.get_or_create(&label(type_url)).increment();
            self.send(response).await?;
            sent = true;
        }
        if sent {
            let since = current.at.elapsed().as_secs_f64();
            self.discovery.metrics().convergence_seconds.observe(since);
        }
        Ok(())
    }

    async fn send(&self, response: T) -> Result<(), End> {
        tokio::select! {
            sent = self.responses.send(Ok(response)) => sent.map_err(|_| End::ClientLeft),
            () = self.shutdown.cancelled() => Err(going_away().into()),
        }
    }
}

/// Reads the node and checks that the caller may speak for it.
fn identify(node: &Node, caller: Option<&CallerIdentity>) -> Result<Proxy, Status> {
    let proxy = Proxy::from_node(node).map_err(|e| Status::invalid_argument(e.to_string()))?;
    // Who may ask for a namespace's secrets follows from the namespace, so it
    // must be the one that was authenticated.
    let foreign = caller.filter(|c| c.spiffe_id.namespace != proxy.namespace);
    match foreign {
        None => Ok(proxy),
        Some(caller) => Err(Status::new(
            Code::PermissionDenied,
            format!("{} may not ask for namespace {}", caller.spiffe_id, proxy.namespace),
        )),
    }
}

async fn next(published: &mut watch::Receiver<Option<Arc<Published>>>) -> Option<Arc<Published>> {
    published.changed().await.ok()?;
    published.borrow_and_update().clone()
}

/// Waits for ever when there is nothing to wait for.
async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Marks what has to be compared again.
fn note<S: Session>(pusher: &mut Pusher<S>, missed: Missed) {
    match missed {
        Missed::Nothing => {}
        Missed::Everything => pusher.invalidate_all(),
        Missed::Endpoints(services) => match pusher.wanted(TypeUrl::Endpoint) {
            None => {}
            Some(Wanted::All) => pusher.invalidate(TypeUrl::Endpoint),
            Some(Wanted::Names(names)) => {
                let touched: Vec<_> =
                    names.iter().filter(|n| is_of(n, &services)).cloned().collect();
                pusher.invalidate_names(TypeUrl::Endpoint, touched);
            }
        },
    }
}

fn going_away() -> Status {
    Status::unavailable("the control plane is shutting down")
}

/// Labels are lower case, as in Istio's metrics.
fn label(type_url: TypeUrl) -> TypeLabel {
    let r#type = match type_url {
        TypeUrl::Cluster => "cds",
        TypeUrl::Endpoint => "eds",
        TypeUrl::Listener => "lds",
        TypeUrl::Route => "rds",
        TypeUrl::Secret => "sds",
        TypeUrl::ExtensionConfig => "ecds",
        TypeUrl::NameTable => "nds",
    };
    TypeLabel { r#type }
}
