//! HTTP/2 settings of both sides.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Http2ProtocolOptions;

use super::values::{self, u32_or};

/// HTTP/2 settings; windows in bytes.
#[derive(Clone, Debug)]
pub struct H2Settings {
    pub max_concurrent_streams: u32,
    pub stream_window: u32,
    pub connection_window: u32,
    /// Extended CONNECT, by which WebSocket comes over HTTP/2.
    pub allow_connect: bool,
    pub keepalive: Option<(Duration, Duration)>,
    /// Bytes of names and values that a peer may have us remember.
    pub header_table: u32,
    pub frames: FrameLimits,
}

/// How many frames that carry nothing a peer may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Parts of messages without a byte that end nothing, in a row.
    pub empty: u32,
    /// PRIORITY, for each stream that was opened and once more.
    pub priorities: u32,
    /// WINDOW_UPDATE, for each DATA frame that was sent to it.
    pub window_updates: u32,
    /// Those whose answers wait to be written.
    pub unanswered: u32,
}

/// Envoy's defaults since 1.36: windows that bound the memory of a stream.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 24 << 20;
const CONCURRENT_STREAMS: u32 = 1024;
const HEADER_TABLE: u32 = 4096;

impl H2Settings {
    pub fn compile(value: Option<&Http2ProtocolOptions>) -> Self {
        let field = |pick: fn(&Http2ProtocolOptions) -> Option<&_>, default| {
            u32_or(value.and_then(pick), default)
        };
        let keepalive = value.and_then(|value| value.connection_keepalive.as_ref());
        Self {
            max_concurrent_streams: field(
                |value| value.max_concurrent_streams.as_ref(),
                CONCURRENT_STREAMS,
            ),
            stream_window: field(|value| value.initial_stream_window_size.as_ref(), STREAM_WINDOW)
                .clamp(65_535, i32::MAX as u32),
            connection_window: field(
                |value| value.initial_connection_window_size.as_ref(),
                CONNECTION_WINDOW,
            )
            .clamp(65_535, i32::MAX as u32),
            allow_connect: value.is_some_and(|value| value.allow_connect),
            header_table: field(|value| value.hpack_table_size.as_ref(), HEADER_TABLE),
            frames: FrameLimits::compile(value),
            keepalive: keepalive.and_then(|keepalive| {
                Some((
                    values::duration(keepalive.interval.as_ref()?),
                    keepalive.timeout.as_ref().map_or(Duration::from_secs(20), values::duration),
                ))
            }),
        }
    }
}

impl FrameLimits {
    fn compile(value: Option<&Http2ProtocolOptions>) -> Self {
        let field = |pick: fn(&Http2ProtocolOptions) -> Option<&_>, default| {
            u32_or(value.and_then(pick), default)
        };
        Self {
            empty: field(
                |value| value.max_consecutive_inbound_frames_with_empty_payload.as_ref(),
                1,
            ),
            priorities: field(|value| value.max_inbound_priority_frames_per_stream.as_ref(), 100),
            window_updates: field(
                |value| value.max_inbound_window_update_frames_per_data_frame_sent.as_ref(),
                10,
            ),
            unanswered: field(|value| value.max_outbound_control_frames.as_ref(), 1000),
        }
    }
}
