//! Limits of a proxy's connections, with a profile of defaults.
//!
//! Invariant: what decodes is within the bounds that proxies accept.

use amime_core::Duration;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

messages! {
    /// Limits of connections.
    pub struct ConnectionSettings {
        /// Set of defaults for what is not said here.
        pub profile: ConnectionProfile,
        /// Bytes that a gateway's listener buffers for a connection.
        pub listener_per_connection_buffer_limit_bytes: Option<u32>,
        /// Bytes that a cluster buffers for a connection.
        pub cluster_per_connection_buffer_limit_bytes: Option<u32>,
        /// How long an HTTP connection may have no requests.
        pub http_idle_timeout: Option<Duration>,
        /// How long an HTTP connection takes requests.
        pub http_max_connection_duration: Option<Duration>,
        /// Time for requests under way when a connection is to close.
        pub http_drain_timeout: Option<Duration>,
        /// Time for a whole request to come.
        pub http_request_timeout: Option<Duration>,
        /// Time for the head of a request to come.
        pub http_request_headers_timeout: Option<Duration>,
        /// How long a request or its answer may stand still.
        pub http_stream_idle_timeout: Option<Duration>,
        /// How long a request and its answer may take.
        pub http_max_stream_duration: Option<Duration>,
        /// Requests at a time on a connection of HTTP/2.
        #[serde(deserialize_with = "positive")]
        pub http_max_concurrent_streams: Option<u32>,
        /// Window of an HTTP/2 stream in bytes.
        #[serde(deserialize_with = "window")]
        pub http2_initial_stream_window_size: Option<u32>,
        /// Window of an HTTP/2 connection in bytes.
        #[serde(deserialize_with = "window")]
        pub http2_initial_connection_window_size: Option<u32>,
        /// What becomes of headers with `_` in their names.
        pub http_headers_with_underscores_action: UnderscoresAction,
        /// Whether slashes in a row are one.
        pub http_merge_slashes: Option<bool>,
        /// What becomes of `%2F` and `%5C` in paths.
        pub http_path_with_escaped_slashes_action: EscapedSlashesAction,
        /// Connections to one listener.
        #[serde(deserialize_with = "positive")]
        pub listener_connection_limit: Option<u32>,
        /// Connections to all listeners together.
        #[serde(deserialize_with = "positive")]
        pub global_downstream_connection_limit: Option<u32>,
    }
}

values! {
    /// Defaults of connection settings.
    pub enum ConnectionProfile {
        /// Those of the proxy.
        #[default]
        Sidecar,
        /// Those for gateways that strangers reach; sidecars take no notice.
        Edge,
    }

    /// What becomes of headers with `_` in their names.
    pub enum UnderscoresAction {
        /// Nothing is said.
        #[default]
        HeadersWithUnderscoresUnspecified,
        /// They are headers like others.
        HeadersWithUnderscoresAllow,
        /// The request is refused.
        HeadersWithUnderscoresRejectRequest,
        /// They are dropped.
        HeadersWithUnderscoresDropHeader,
    }

    /// What becomes of `%2F` and `%5C` in paths.
    pub enum EscapedSlashesAction {
        /// Nothing is said.
        #[default]
        PathWithEscapedSlashesUnspecified,
        /// They stay.
        KeepUnchanged,
        /// The request is refused.
        RejectRequest,
        /// The client is sent to the path without them.
        UnescapeAndRedirect,
        /// They become slashes.
        UnescapeAndForward,
    }
}

/// A number above zero.
fn positive<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u32>, D::Error> {
    at_least(1, input)
}

/// A window of HTTP/2, which has a smallest size.
fn window<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u32>, D::Error> {
    at_least(65_535, input)
}

fn at_least<'de, D: Deserializer<'de>>(least: u32, input: D) -> Result<Option<u32>, D::Error> {
    match Option::<u32>::deserialize(input)? {
        Some(number) if number < least => {
            Err(D::Error::custom(format!("{number} is less than {least}")))
        }
        number => Ok(number),
    }
}
