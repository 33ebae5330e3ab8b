//! Runs a [`DeltaClient`] over gRPC: one stream at a time, for ever.
//!
//! Owns connecting, back-off and the stream; what is held and asked is the
//! state machine's. A message over the size limit ends the stream, not the
//! client.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::{Body, Bytes, StdError};

use super::{DeltaClient, Handler};
use crate::Resource;

/// Requests that may wait for a server that does not read.
const MAX_QUEUED_REQUESTS: usize = 256;

/// How the client identifies itself and behaves when the server is away.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Sent with the first request of a stream.
    pub node: Node,
    /// First pause after a failure. Default 200 ms.
    pub backoff_min: Duration,
    /// Longest pause between attempts. Default 15 s.
    pub backoff_max: Duration,
    /// Largest response in bytes. Default 64 MiB.
    pub max_message_bytes: usize,
}

impl ClientConfig {
    /// Defaults for `node`.
    pub fn new(node: Node) -> Self {
        Self {
            node,
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(15),
            max_message_bytes: 64 * 1024 * 1024,
        }
    }
}

/// State of the connection, for readiness and status pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Connection {
    /// No stream has been open since the last failure, or ever.
    #[default]
    Connecting,
    /// The server has answered on the current stream.
    Connected,
    /// The last attempt or stream failed.
    Lost {
        /// Why, with its causes.
        error: String,
    },
}

#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("cannot connect")]
    Connect(#[source] StdError),
    #[error("{code:?}: {message}")]
    Status { code: tonic::Code, message: String },
    #[error("the server closed the stream")]
    Closed,
    #[error("the server does not read requests")]
    Stuck,
}

impl From<tonic::Status> for StreamError {
    fn from(status: tonic::Status) -> Self {
        Self::Status { code: status.code(), message: status.message().to_owned() }
    }
}

/// A delta ADS client with its connection state.
#[derive(Debug)]
pub struct AdsClient {
    config: ClientConfig,
    state: DeltaClient,
    connection: watch::Sender<Connection>,
    wake: Arc<Notify>,
}

impl AdsClient {
    /// Not connected yet.
    pub fn new(config: ClientConfig) -> Self {
        let state = DeltaClient::new(config.node.clone());
        let connection = watch::Sender::new(Connection::default());
        Self { config, state, connection, wake: Arc::new(Notify::new()) }
    }

    /// Claims resources that are in force already; see
    /// [`DeltaClient::preload`].
    pub fn preload<'a>(&mut self, resources: impl IntoIterator<Item = &'a Resource>) {
        for resource in resources {
            self.state.preload(resource);
        }
    }

    /// Follows the state of the connection.
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.subscribe()
    }

    /// Notify it when [`Handler::subscriptions`] changed for a reason other
    /// than an update.
    pub fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// Connects, applies, reconnects; ends only by being dropped.
    ///
    /// `connect` yields a fresh channel with whatever authentication it needs;
    /// it is called again after each failure.
    pub async fn run<C, F, S>(mut self, mut connect: C, handler: &mut dyn Handler) -> Infallible
    where
        C: FnMut() -> F,
        F: Future<Output = Result<S, StdError>>,
        S: tonic::client::GrpcService<tonic::body::Body>,
        S::Error: Into<StdError>,
        S::ResponseBody: Body<Data = Bytes> + Send + 'static,
        <S::ResponseBody as Body>::Error: Into<StdError> + Send,
    {
        let mut pause = self.config.backoff_min;
        loop {
            let error = match connect().await {
                Ok(channel) => self.stream(channel, handler).await,
                Err(error) => StreamError::Connect(error),
            };
            // A stream that worked ended for a new reason: start over.
            if *self.connection.borrow() == Connection::Connected {
                pause = self.config.backoff_min;
            }
            let error = chain(&error);
            tracing::warn!(%error, pause_ms = pause.as_millis() as u64, "discovery stream ended");
            self.connection.send_replace(Connection::Lost { error });
            // Half fixed, half random: a restarted control plane must not meet
            // all its proxies at once.
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(self.config.backoff_max);
        }
    }

    async fn stream<S>(&mut self, channel: S, handler: &mut dyn Handler) -> StreamError
    where
        S: tonic::client::GrpcService<tonic::body::Body>,
        S::Error: Into<StdError>,
        S::ResponseBody: Body<Data = Bytes> + Send + 'static,
        <S::ResponseBody as Body>::Error: Into<StdError> + Send,
    {
        match self.try_stream(channel, handler).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_stream<S>(
        &mut self,
        channel: S,
        handler: &mut dyn Handler,
    ) -> Result<Infallible, StreamError>
    where
        S: tonic::client::GrpcService<tonic::body::Body>,
        S::Error: Into<StdError>,
        S::ResponseBody: Body<Data = Bytes> + Send + 'static,
        <S::ResponseBody as Body>::Error: Into<StdError> + Send,
    {
        let (outbound, requests) = mpsc::channel(MAX_QUEUED_REQUESTS);
        let mut client = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(self.config.max_message_bytes);
        send(&outbound, self.state.on_connect(handler))?;
        let responses = client.delta_aggregated_resources(ReceiverStream::new(requests)).await?;
        let mut responses = responses.into_inner();
        loop {
            tokio::select! {
                response = responses.message() => {
                    let response = response?.ok_or(StreamError::Closed)?;
                    self.connection.send_if_modified(|connection| {
                        std::mem::replace(connection, Connection::Connected) != Connection::Connected
                    });
                    send(&outbound, self.state.on_response(response, handler))?;
                }
                () = self.wake.notified() => {
                    send(&outbound, self.state.refresh(handler))?;
                }
            }
        }
    }
}

// Waiting here for a server that itself waits for us to read would never end.
fn send(
    outbound: &mpsc::Sender<DeltaDiscoveryRequest>,
    requests: Vec<DeltaDiscoveryRequest>,
) -> Result<(), StreamError> {
    for request in requests {
        outbound.try_send(request).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => StreamError::Stuck,
            mpsc::error::TrySendError::Closed(_) => StreamError::Closed,
        })?;
    }
    Ok(())
}

fn chain(error: &StreamError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
