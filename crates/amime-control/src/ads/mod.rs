//! The aggregated discovery service, both variants.
//!
//! Owns the streams: who may open one, and one task for each that waits for
//! the proxy and for news. What is sent is decided by `amime_xds::server`'s
//! state machines and `amime_translate`; when, by [`Discovery`].
//!
//! Invariant: a stream's fault ends that stream and nothing else. A proxy that
//! does not read holds up its own task only.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>

mod progress;
mod source;
mod stream;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use amime_ca::CallerIdentity;
use amime_xds::server::{DeltaSession, Session, SotwSession};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::discovery::Discovery;

/// Largest request. The first one lists a version for every resource held:
/// this is enough for a hundred thousand of them.
const MAX_REQUEST_BYTES: usize = 16 * 1024 * 1024;

/// See [`AdsService::with_warm_up`].
const WARM_UP: Duration = Duration::from_secs(15);

/// Responses that may wait for the transport to take them.
const QUEUED_RESPONSES: usize = 2;

type Responses<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

/// Serves discovery streams.
#[derive(Clone)]
pub struct AdsService {
    discovery: Discovery,
    shutdown: CancellationToken,
    /// Streams that may translate at the same time.
    turns: Arc<Semaphore>,
    warm_up: Duration,
}

impl AdsService {
    /// Serves `discovery` until `shutdown`, when open streams end with
    /// `UNAVAILABLE`.
    pub fn new(discovery: Discovery, shutdown: CancellationToken) -> Self {
        // One core stays free for requests, health checks and certificates.
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let turns = Arc::new(Semaphore::new(cores.saturating_sub(1).max(1)));
        Self { discovery, shutdown, turns, warm_up: WARM_UP }
    }

    /// Sets the time that a client gets to ask for the endpoints of new
    /// clusters before it is sent what refers to them. Default 15 s, Envoy's
    /// own patience with a cluster: a busy client is not told too early.
    #[must_use]
    pub fn with_warm_up(self, warm_up: Duration) -> Self {
        Self { warm_up, ..self }
    }

    /// The service as tonic mounts it.
    pub fn into_server(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    fn open<S: Session + 'static>(
        &self,
        request: Request<Streaming<S::Request>>,
        session: impl FnOnce(u64) -> S,
        delta: bool,
    ) -> ReceiverStream<Result<S::Response, Status>> {
        let caller = request.extensions().get::<CallerIdentity>().cloned();
        let (responses, queue) = mpsc::channel(QUEUED_RESPONSES);
        let id = self.discovery.registry().new_stream();
        let stream = stream::Stream {
            id,
            delta,
            discovery: self.discovery.clone(),
            turns: Arc::clone(&self.turns),
            warm_up: self.warm_up,
            shutdown: self.shutdown.clone(),
            caller,
            responses,
        };
        tokio::spawn(stream.run(session(id), request.into_inner()));
        ReceiverStream::new(queue)
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for AdsService {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let responses = self.open(request, SotwSession::new, false);
        Ok(Response::new(Box::pin(responses)))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let responses = self.open(request, DeltaSession::new, true);
        Ok(Response::new(Box::pin(responses)))
    }
}
