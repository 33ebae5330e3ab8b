//! HTTP/2 frames as they go by: how many there are of which kind.
//!
//! Owns finding the heads of frames in what is read and written, and the
//! limits of frames that cost us more than their sender. What is in a frame is
//! decoded by `h2`, which bounds what else there is: CONTINUATION, streams that
//! are reset before they are served, and answers, of which it keeps one.
//!
//! Invariant: a connection costs a few numbers here, whatever comes.
//!
//! Spec: <https://www.rfc-editor.org/rfc/rfc9113#section-10.5>

use amime_rules::h2::FrameLimits;
use amime_telemetry::Http2Stats;

/// Bytes of a frame's head.
const HEAD: usize = 9;
/// Bytes with which a client begins.
const PREFACE: u32 = 24;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// Also the acknowledgement of SETTINGS and PING.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// WINDOW_UPDATE frames that are never too many.
const FREE_WINDOW_UPDATES: u64 = 5;

/// RST_STREAM frames beyond one for each stream that are never too many.
const FREE_RESETS: u64 = 500;

/// Why a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Flood {
    #[error("too many frames without payload")]
    Empty,
    #[error("too many PRIORITY frames")]
    Priority,
    #[error("too many WINDOW_UPDATE frames")]
    WindowUpdate,
    #[error("too many frames that want an answer")]
    Unanswered,
    #[error("too many requests that are given up at once")]
    Resets,
}

impl Flood {
    /// Envoy's details of requests that end with the connection.
    pub(super) fn details(self) -> &'static str {
        match self {
            Self::Empty => "http2.inbound_empty_frames_flood",
            Self::Priority => "codec_error:Too_many_PRIORITY_frames",
            Self::WindowUpdate => "codec_error:Too_many_WINDOW_UPDATE_frames",
            Self::Unanswered => "codec_error:Too_many_control_frames_in_the_outbound_queue.",
            Self::Resets => "too_many_premature_resets",
        }
    }

    pub(super) fn count(self, stats: &Http2Stats) {
        match self {
            Self::Empty => stats.inbound_empty_frames_flood.inc(),
            Self::Priority => stats.inbound_priority_frames_flood.inc(),
            Self::WindowUpdate => stats.inbound_window_update_frames_flood.inc(),
            Self::Unanswered => stats.outbound_control_flood.inc(),
            Self::Resets => {}
        }
    }
}

/// The head of a frame.
#[derive(Clone, Copy, Debug)]
struct Head {
    kind: u8,
    flags: u8,
    stream: u32,
    /// Bytes of payload that are no padding.
    content: u32,
}

/// Where in a row of frames the bytes stand.
#[derive(Debug, Default)]
struct Scanner {
    /// A head that has come in part, with the length of padding behind it.
    head: [u8; HEAD + 1],
    have: usize,
    /// Bytes of payload still to come.
    skip: u32,
}

impl Scanner {
    /// Calls `visit` for each head that ends within `bytes`.
    fn scan(
        &mut self,
        mut bytes: &[u8],
        mut visit: impl FnMut(Head) -> Result<(), Flood>,
    ) -> Result<(), Flood> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = bytes.len().min(self.skip as usize);
                bytes = &bytes[skipped..];
                // At most `skip`, so it fits.
                self.skip -= u32::try_from(skipped).unwrap_or(self.skip);
                continue;
            }
            self.head[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            if let Some(head) = self.whole() {
                visit(head)?;
            }
        }
        Ok(())
    }

    /// The head, once it is there.
    fn whole(&mut self) -> Option<Head> {
        let have = self.have;
        if have < HEAD {
            return None;
        }
        let [a, b, c, kind, flags, d, e, f, g, padding] = self.head;
        let length = u32::from_be_bytes([0, a, b, c]);
        let padded = flags & PADDED != 0 && length > 0 && matches!(kind, DATA | HEADERS);
        if padded && have == HEAD {
            return None;
        }
        // The byte that says how much padding there is counts as padding.
        let padding = if padded { u32::from(padding) + 1 } else { 0 };
        self.have = 0;
        self.skip = length - u32::from(padded);
        let stream = u32::from_be_bytes([d & 0x7f, e, f, g]);
        Some(Head { kind, flags, stream, content: length.saturating_sub(padding) })
    }
}

/// What has gone by on a connection with a client.
#[derive(Debug)]
pub(super) struct Frames {
    limits: FrameLimits,
    inbound: Scanner,
    outbound: Scanner,
    streams: u64,
    last_stream: u32,
    empty: u32,
    priorities: u64,
    window_updates: u64,
    data_sent: u64,
    unanswered: u32,
    resets: u64,
    /// Of them, those that nobody has asked for yet.
    new_resets: u64,
    in_block: bool,
}

impl Frames {
    pub(super) fn new(limits: FrameLimits) -> Self {
        Self {
            limits,
            inbound: Scanner { skip: PREFACE, ..Scanner::default() },
            outbound: Scanner::default(),
            streams: 0,
            last_stream: 0,
            empty: 0,
            priorities: 0,
            window_updates: 0,
            data_sent: 0,
            unanswered: 0,
            resets: 0,
            new_resets: 0,
            in_block: false,
        }
    }

    /// Counts what the client sent.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(), Flood> {
        let mut inbound = std::mem::take(&mut self.inbound);
        let counted = inbound.scan(bytes, |head| self.received(head));
        self.inbound = inbound;
        counted
    }

    /// Counts what it was sent.
    pub(super) fn written(&mut self, bytes: &[u8]) {
        let Self { outbound, data_sent, unanswered, .. } = self;
        let counted = outbound.scan(bytes, |head| {
            match head.kind {
                DATA => *data_sent += 1,
                PING | SETTINGS if head.flags & END_STREAM != 0 => {
                    *unanswered = unanswered.saturating_sub(1);
                }
                _ => {}
            }
            Ok(())
        });
        debug_assert!(counted.is_ok(), "nothing that we send is too much");
    }

    /// True while the end of a request's head is awaited.
    pub(super) fn in_block(&self) -> bool {
        self.in_block
    }

    /// RST_STREAM frames since this was last asked.
    pub(super) fn take_resets(&mut self) -> u64 {
        std::mem::take(&mut self.new_resets)
    }

    fn received(&mut self, head: Head) -> Result<(), Flood> {
        match head.kind {
            HEADERS if head.stream > self.last_stream => {
                self.last_stream = head.stream;
                self.streams += 1;
            }
            PRIORITY => self.priorities += 1,
            WINDOW_UPDATE => self.window_updates += 1,
            RST_STREAM => {
                self.resets += 1;
                self.new_resets += 1;
            }
            PING | SETTINGS if head.flags & END_STREAM == 0 => self.unanswered += 1,
            _ => {}
        }
        if matches!(head.kind, HEADERS | CONTINUATION) {
            self.in_block = head.flags & END_HEADERS == 0;
        }
        if matches!(head.kind, DATA | HEADERS | CONTINUATION) {
            let ends = head.kind != CONTINUATION && head.flags & END_STREAM != 0;
            let empty = head.content == 0 && !ends;
            self.empty = if empty { self.empty.saturating_add(1) } else { 0 };
        }
        self.within_limits()
    }

    fn within_limits(&self) -> Result<(), Flood> {
        let limits = &self.limits;
        if self.empty > limits.empty {
            return Err(Flood::Empty);
        }
        if self.priorities > u64::from(limits.priorities) * (1 + self.streams) {
            return Err(Flood::Priority);
        }
        let for_data = u64::from(limits.window_updates) * self.data_sent;
        if self.window_updates > FREE_WINDOW_UPDATES + 2 * (self.streams + for_data) {
            return Err(Flood::WindowUpdate);
        }
        if self.unanswered > limits.unanswered {
            return Err(Flood::Unanswered);
        }
        if self.resets > FREE_RESETS + self.streams {
            return Err(Flood::Resets);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FrameLimits =
        FrameLimits { empty: 1, priorities: 2, window_updates: 1, unanswered: 3 };

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags];
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    /// Reads `frames` whole, byte by byte and in halves: the same comes of it.
    #[track_caller]
    fn check(frames: &[Vec<u8>], want: Result<(), Flood>) {
        let bytes = [vec![b'p'; PREFACE as usize], frames.concat()].concat();
        for size in [1, 2, bytes.len().div_ceil(2), bytes.len()] {
            let mut counted = Frames::new(LIMITS);
            let got = bytes.chunks(size).try_for_each(|part| counted.read(part));
            assert_eq!(got, want, "in parts of {size}");
        }
    }

    proptest::proptest! {
        #[test]
        fn fuzz_frames(
            kinds in proptest::collection::vec((0..12_u8, 0..64_u8, 0..5_u32, 0..40_usize), 0..40),
            cuts in proptest::collection::vec(1..30_usize, 1..20),
            noise in proptest::collection::vec(proptest::num::u8::ANY, 0..40),
        ) {
            let frames: Vec<u8> = kinds
                .iter()
                .flat_map(|(kind, flags, stream, size)| frame(*kind, *flags, *stream, &vec![1; *size]))
                .collect();
            let bytes = [vec![b'p'; PREFACE as usize], frames, noise].concat();
            let (mut whole, mut cut) = (Frames::new(LIMITS), Frames::new(LIMITS));
            let want = whole.read(&bytes);
            let mut rest = &bytes[..];
            let mut got = Ok(());
            for size in cuts.iter().cycle() {
                if rest.is_empty() || got.is_err() {
                    break;
                }
                let (part, after) = rest.split_at(rest.len().min(*size));
                got = cut.read(part);
                rest = after;
            }
            proptest::prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn empty_frames_in_a_row_are_too_many() {
        let empty = frame(DATA, 0, 1, b"");
        let full = frame(DATA, 0, 1, b"x");
        check(&[empty.clone(), full.clone(), empty.clone()], Ok(()));
        check(
            &[empty.clone(), frame(PING, END_STREAM, 0, &[0; 8]), empty.clone()],
            Err(Flood::Empty),
        );
        check(&[empty.clone(), frame(CONTINUATION, 0, 1, b"")], Err(Flood::Empty));
        check(&[empty, frame(DATA, END_STREAM, 1, b"")], Ok(()));
    }

    #[test]
    fn padding_is_nothing() {
        let padded = frame(DATA, PADDED, 1, &[3, 0, 0, 0]);
        check(&[padded.clone(), padded], Err(Flood::Empty));
        let full = frame(DATA, PADDED, 1, &[2, b'x', 0, 0]);
        check(&[full.clone(), full], Ok(()));
        // Claims more padding than there is.
        let wrong = frame(DATA, PADDED, 1, &[200, 0]);
        check(&[wrong.clone(), wrong], Err(Flood::Empty));
    }

    #[test]
    fn each_stream_allows_more_priorities() {
        let priority = frame(PRIORITY, 0, 1, &[0; 5]);
        let head = |stream| frame(HEADERS, END_HEADERS, stream, b"h");
        check(&[priority.clone(), priority.clone()], Ok(()));
        check(&[priority.clone(), priority.clone(), priority.clone()], Err(Flood::Priority));
        let four = [&[head(1)][..], &vec![priority.clone(); 4]].concat();
        check(&four, Ok(()));
        // Trailers open no stream.
        let five = [&[head(1), head(1)][..], &vec![priority; 5]].concat();
        check(&five, Err(Flood::Priority));
    }

    #[test]
    fn data_that_was_sent_allows_more_window_updates() {
        let update = frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
        check(&vec![update.clone(); 5], Ok(()));
        check(&vec![update.clone(); 6], Err(Flood::WindowUpdate));
        let mut counted = Frames::new(LIMITS);
        counted.written(&frame(DATA, 0, 1, b"abc"));
        let seven = [vec![b'p'; PREFACE as usize], update.repeat(7)].concat();
        assert_eq!(counted.read(&seven), Ok(()));
        assert_eq!(counted.read(&update), Err(Flood::WindowUpdate));
    }

    #[test]
    fn what_was_answered_is_not_counted_any_more() {
        let ping = frame(PING, 0, 0, &[0; 8]);
        check(&vec![ping.clone(); 3], Ok(()));
        check(&vec![ping.clone(); 4], Err(Flood::Unanswered));
        let mut counted = Frames::new(LIMITS);
        let three = [vec![b'p'; PREFACE as usize], ping.repeat(3)].concat();
        assert_eq!(counted.read(&three), Ok(()));
        counted.written(&frame(PING, END_STREAM, 0, &[0; 8]));
        assert_eq!(counted.read(&ping), Ok(()));
        assert_eq!(counted.read(&frame(SETTINGS, 0, 0, b"")), Err(Flood::Unanswered));
    }

    #[test]
    fn resets_of_what_is_over_are_too_many() {
        let reset = frame(RST_STREAM, 0, 1, &[0; 4]);
        check(&vec![reset.clone(); 500], Ok(()));
        check(&vec![reset; 501], Err(Flood::Resets));
    }

    #[test]
    fn the_end_of_a_head_is_awaited() {
        let mut counted = Frames::new(LIMITS);
        let first = [vec![b'p'; PREFACE as usize], frame(HEADERS, 0, 1, b"h")].concat();
        assert_eq!(counted.read(&first), Ok(()));
        assert!(counted.in_block());
        assert_eq!(counted.read(&frame(CONTINUATION, END_HEADERS, 1, b"h")), Ok(()));
        assert!(!counted.in_block());
    }
}
