//! Runs either client over gRPC: one stream at a time, for ever.
//!
//! Owns connecting, back-off and the stream; what is held and asked is the
//! state machine's. A message over the size limit ends the stream, not the
//! client.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::codegen::{Body, Bytes, StdError};

use super::{DeltaClient, Handler, SotwClient, StreamState};
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
    /// Variant of the protocol. Default delta.
    pub variant: Variant,
}

/// Which of the two variants of ADS a server is spoken to in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// `DeltaAggregatedResources`: changes only.
    #[default]
    Delta,
    /// `StreamAggregatedResources`: whole sets.
    StateOfTheWorld,
}

impl ClientConfig {
    /// Defaults for `node`.
    pub fn new(node: Node) -> Self {
        Self {
            node,
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(15),
            max_message_bytes: 64 * 1024 * 1024,
            variant: Variant::default(),
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

#[derive(Debug)]
enum State {
    Delta(DeltaClient),
    Sotw(SotwClient),
}

/// An ADS client with its connection state.
#[derive(Debug)]
pub struct AdsClient {
    config: ClientConfig,
    state: State,
    connection: watch::Sender<Connection>,
    wake: Arc<Notify>,
}

impl AdsClient {
    /// Not connected yet.
    pub fn new(config: ClientConfig) -> Self {
        let state = match config.variant {
            Variant::Delta => State::Delta(DeltaClient::new(config.node.clone())),
            Variant::StateOfTheWorld => State::Sotw(SotwClient::new(config.node.clone())),
        };
        let connection = watch::Sender::new(Connection::default());
        Self { config, state, connection, wake: Arc::new(Notify::new()) }
    }

    /// Claims resources that are in force already; see
    /// [`DeltaClient::preload`].
    pub fn preload<'a>(&mut self, resources: impl IntoIterator<Item = &'a Resource>) {
        for resource in resources {
            match &mut self.state {
                State::Delta(state) => state.preload(resource),
                State::Sotw(state) => state.preload(resource),
            }
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
        let mut client = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(self.config.max_message_bytes);
        let Self { state, connection, wake, .. } = self;
        match state {
            State::Delta(state) => {
                let (outbound, requests) = open(state, handler)?;
                let responses = client.delta_aggregated_resources(requests).await?;
                pump(state, handler, &outbound, responses.into_inner(), (connection, wake)).await
            }
            State::Sotw(state) => {
                let (outbound, requests) = open(state, handler)?;
                let responses = client.stream_aggregated_resources(requests).await?;
                pump(state, handler, &outbound, responses.into_inner(), (connection, wake)).await
            }
        }
    }
}

type Requests<S> = mpsc::Sender<<S as StreamState>::Request>;

/// The queue of requests, with the first ones in it.
fn open<S: StreamState>(
    state: &mut S,
    handler: &dyn Handler,
) -> Result<(Requests<S>, ReceiverStream<S::Request>), StreamError> {
    let (outbound, requests) = mpsc::channel(MAX_QUEUED_REQUESTS);
    send(&outbound, state.on_connect(handler))?;
    Ok((outbound, ReceiverStream::new(requests)))
}

/// Answers responses until the stream ends.
async fn pump<S: StreamState>(
    state: &mut S,
    handler: &mut dyn Handler,
    outbound: &Requests<S>,
    mut responses: Streaming<S::Response>,
    (connection, wake): (&watch::Sender<Connection>, &Notify),
) -> Result<Infallible, StreamError> {
    loop {
        tokio::select! {
            response = responses.message() => {
                let response = response?.ok_or(StreamError::Closed)?;
                connection.send_if_modified(|connection| {
                    std::mem::replace(connection, Connection::Connected) != Connection::Connected
                });
                send(outbound, state.on_response(response, handler))?;
            }
            () = wake.notified() => send(outbound, state.refresh(handler))?,
        }
    }
}

// Waiting here for a server that itself waits for us to read would never end.
fn send<R>(outbound: &mpsc::Sender<R>, requests: Vec<R>) -> Result<(), StreamError> {
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
