//! Does one case on a connection of its own.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::case::{Await, Case, Dependency, Headers, Step, Want};
use super::frames::{self, Frame, frame};

/// Longest silence; what has not come then is not coming.
const PATIENCE: Duration = Duration::from_secs(2);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of the values of large fields.
const DUMMY_BYTES: usize = 4000;

const MAX_STREAMS: u16 = 3;
const MAX_FRAME: u16 = 5;
const TABLE_SIZE: u16 = 1;

/// What came instead of a frame.
#[derive(Clone, Debug)]
enum Event {
    Frame(Frame),
    Closed,
    Silence,
}

/// A connection and what the peer said of itself.
struct Connection {
    stream: TcpStream,
    settings: BTreeMap<u16, u32>,
    pinged: Vec<u8>,
    last: String,
}

/// Why a rule was not kept.
pub(super) type Failure = String;

/// Sends what the case says and judges what comes back.
pub(super) async fn run(case: &Case, address: SocketAddr) -> Result<(), Failure> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let mut connection =
        Connection { stream, settings: BTreeMap::new(), pinged: vec![], last: "silence".into() };
    if case.handshake {
        connection.handshake().await?;
    }
    for step in &case.send {
        match step {
            Step::Await(what) => connection.wait(*what).await?,
            step => {
                let bytes = connection.bytes(step);
                // The peer may have refused already; that shows below.
                if connection.send(&bytes).await.is_err() {
                    break;
                }
            }
        }
    }
    connection.judge(&case.want).await
}

impl Connection {
    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    async fn event(&mut self) -> Event {
        let event = match timeout(PATIENCE, Frame::read(&mut self.stream)).await {
            Ok(Some(frame)) => Event::Frame(frame),
            Ok(None) => Event::Closed,
            Err(_) => Event::Silence,
        };
        match &event {
            Event::Frame(frame) => self.last = frame.describe(),
            Event::Closed => self.last = "connection closed".into(),
            Event::Silence => {}
        }
        event
    }

    /// Prefaces and SETTINGS of both sides, acknowledged.
    async fn handshake(&mut self) -> Result<(), Failure> {
        let hello = [PREFACE, &frames::settings(&[(4, 65_535)])].concat();
        self.send(&hello).await.map_err(|error| format!("handshake: {error}"))?;
        let (mut theirs, mut ours) = (false, false);
        while !(theirs && ours) {
            match self.event().await {
                Event::Frame(one) if one.kind == frames::SETTINGS => {
                    if one.has(frames::END_STREAM) {
                        ours = true;
                        continue;
                    }
                    theirs = true;
                    self.settings.extend(one.settings());
                    let ack = frame(frames::SETTINGS, frames::END_STREAM, 0, &[]);
                    self.send(&ack).await.map_err(|error| format!("handshake: {error}"))?;
                }
                Event::Frame(_) => {}
                Event::Closed | Event::Silence => return Err(format!("handshake: {}", self.last)),
            }
        }
        self.last = "silence".into();
        Ok(())
    }

    async fn wait(&mut self, what: Await) -> Result<(), Failure> {
        loop {
            let Event::Frame(frame) = self.event().await else {
                return Err(format!("no {what:?}; {}", self.last));
            };
            let ends = frame.has(frames::END_STREAM);
            let came = match (what, frame.kind) {
                (Await::Ack, frames::SETTINGS) => ends,
                (Await::Data, frames::DATA) => true,
                (Await::End, frames::DATA | frames::HEADERS) => ends,
                (Await::End, frames::RST_STREAM) => frame.code() == Some("NO_ERROR"),
                _ => false,
            };
            if came {
                return Ok(());
            }
        }
    }

    async fn judge(&mut self, want: &Want) -> Result<(), Failure> {
        loop {
            let event = self.event().await;
            match self.verdict(want, &event) {
                Some(true) => return Ok(()),
                Some(false) => return Err(self.last.clone()),
                None if matches!(event, Event::Frame(_)) => {}
                None => return Err(self.last.clone()),
            }
        }
    }

    /// Whether an event keeps or breaks the rule; none: it says nothing.
    fn verdict(&self, want: &Want, event: &Event) -> Option<bool> {
        let frame = match event {
            Event::Silence => return Some(false),
            Event::Closed => {
                return Some(matches!(
                    want,
                    Want::ConnectionError(_)
                        | Want::StreamError(_)
                        | Want::Closed
                        | Want::PingOrClosed
                ));
            }
            Event::Frame(frame) => frame,
        };
        let listed = |codes: &[String]| {
            frame.code().is_some_and(|code| codes.iter().any(|other| other == code))
        };
        let acknowledges = frame.has(frames::END_STREAM);
        let kept = match (want, frame.kind) {
            (Want::ConnectionError(codes) | Want::StreamError(codes), frames::GOAWAY)
            | (Want::StreamError(codes), frames::RST_STREAM) => listed(codes),
            (Want::Goaway(codes), frames::GOAWAY) | (Want::Reset(codes), frames::RST_STREAM) => {
                return Some(listed(codes));
            }
            (Want::Headers(stream), frames::HEADERS) => return Some(frame.stream == *stream),
            (Want::Data(length), frames::DATA) => return Some(frame.payload.len() == *length),
            (Want::AnyData, frames::DATA) | (Want::AnyPing, frames::PING) => true,
            (Want::Ack, frames::SETTINGS) => acknowledges,
            (Want::Ping | Want::PingOrClosed, frames::PING) => {
                acknowledges && frame.payload == self.pinged
            }
            (Want::Settings, kind) => return Some(kind == frames::SETTINGS && !acknowledges),
            _ => false,
        };
        kept.then_some(true)
    }

    fn bytes(&mut self, step: &Step) -> Vec<u8> {
        let end = |end: bool| if end { frames::END_STREAM } else { 0 };
        let whole = |whole: bool| if whole { frames::END_HEADERS } else { 0 };
        match step {
            Step::Headers(headers) => self.headers(headers),
            Step::Data(data) => {
                let most = if data.max_and { self.max_frame() } else { 0 };
                let mut payload = vec![b'x'; most + data.bytes];
                let mut flags = end(data.end);
                if data.pad > 0 {
                    flags |= frames::PADDED;
                    payload.insert(0, data.pad);
                    payload.extend(vec![0; usize::from(data.pad)]);
                }
                frame(frames::DATA, flags, data.stream, &payload)
            }
            Step::Continuation(one) => {
                let block = if one.request { request("GET", false) } else { dummy(0) };
                frame(frames::CONTINUATION, whole(one.whole), one.stream, &block)
            }
            Step::Priority(one) => {
                frame(frames::PRIORITY, 0, one.stream, &dependency(&one.dependency))
            }
            Step::Reset { stream, code } => {
                frame(frames::RST_STREAM, 0, *stream, &code.to_be_bytes())
            }
            Step::Settings(parameters) => frames::settings(parameters),
            Step::PushPromise { stream, promised } => {
                let payload = [promised.to_be_bytes().to_vec(), request("GET", false)].concat();
                frame(frames::PUSH_PROMISE, frames::END_HEADERS, *stream, &payload)
            }
            Step::Ping(text) => {
                self.pinged = opaque(text);
                frame(frames::PING, 0, 0, &self.pinged)
            }
            Step::PingAck(text) => frame(frames::PING, frames::END_STREAM, 0, &opaque(text)),
            Step::Goaway { code } => {
                frame(frames::GOAWAY, 0, 0, &[[0; 4], code.to_be_bytes()].concat())
            }
            Step::Window { stream, by } => {
                frame(frames::WINDOW_UPDATE, 0, *stream, &by.to_be_bytes())
            }
            Step::Raw(digits) => hex(digits),
            Step::TooManyStreams => self.too_many_streams(),
            Step::Await(_) => vec![],
        }
    }

    fn max_frame(&self) -> usize {
        let most = self.settings.get(&MAX_FRAME).copied().unwrap_or(16_384);
        usize::try_from(most).unwrap_or_default()
    }

    fn too_many_streams(&self) -> Vec<u8> {
        // Without a limit no number is too many; the case cannot be failed.
        let limit = self.settings.get(&MAX_STREAMS).copied().unwrap_or_default();
        let flags = frames::END_STREAM | frames::END_HEADERS;
        let streams = (0..=limit).map(|index| 1 + 2 * index);
        streams.flat_map(|id| frame(frames::HEADERS, flags, id, &request("GET", false))).collect()
    }

    fn headers(&self, headers: &Headers) -> Vec<u8> {
        let mut block = hex(&headers.prefix);
        if headers.table_too_large {
            let limit = self.settings.get(&TABLE_SIZE).copied().unwrap_or(4096);
            block.extend(frames::table_size(limit + 1));
        }
        let fields = |fields: &[(String, String)]| -> Vec<u8> {
            fields.iter().flat_map(|(name, value)| frames::field(name, value)).collect()
        };
        block.extend(fields(&headers.first));
        if headers.only.is_empty() {
            for (name, value) in usual(&headers.method, headers.empty_path) {
                if !headers.without.iter().any(|other| other == name) {
                    block.extend(frames::field(name, value));
                }
            }
        }
        block.extend(fields(&headers.only));
        block.extend(fields(&headers.more));
        block.extend((0..headers.dummies).flat_map(dummy));
        block.extend(hex(&headers.suffix));
        let mut flags = if headers.end { frames::END_STREAM } else { 0 };
        let mut payload = vec![];
        if headers.pad > 0 || headers.pad_too_long {
            flags |= frames::PADDED;
            let too_long = u8::try_from(block.len() + 1).unwrap_or(u8::MAX);
            payload.push(if headers.pad_too_long { too_long } else { headers.pad });
        }
        if let Some(priority) = &headers.priority {
            flags |= frames::WITH_PRIORITY;
            payload.extend(dependency(priority));
        }
        let mut cuts = headers.split.clone();
        cuts.push(block.len());
        payload.extend(&block[..cuts[0]]);
        payload.extend(vec![0; usize::from(headers.pad)]);
        if headers.whole && cuts.len() == 1 {
            flags |= frames::END_HEADERS;
        }
        let mut bytes = frame(frames::HEADERS, flags, headers.stream, &payload);
        for (index, pair) in cuts.windows(2).enumerate() {
            let last = index + 2 == cuts.len();
            let flags = if last { frames::END_HEADERS } else { 0 };
            let part = &block[pair[0]..pair[1]];
            bytes.extend(frame(frames::CONTINUATION, flags, headers.stream, part));
        }
        bytes
    }
}

fn usual(method: &str, empty_path: bool) -> [(&'static str, &str); 4] {
    let path = if empty_path { "" } else { "/" };
    [(":method", method), (":scheme", "http"), (":path", path), (":authority", "a.test")]
}

fn request(method: &str, empty_path: bool) -> Vec<u8> {
    let fields = usual(method, empty_path);
    fields.iter().flat_map(|(name, value)| frames::field(name, value)).collect()
}

fn dummy(index: usize) -> Vec<u8> {
    frames::field(&format!("x-dummy{index}"), &"x".repeat(DUMMY_BYTES))
}

fn dependency(dependency: &Dependency) -> Vec<u8> {
    let exclusive = if dependency.exclusive { 1 << 31 } else { 0 };
    let mut bytes = (dependency.on | exclusive).to_be_bytes().to_vec();
    bytes.push(dependency.weight);
    bytes
}

fn opaque(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(8, 0);
    bytes
}

fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(u8::is_ascii_hexdigit).collect();
    let value = |digit: u8| char::from(digit).to_digit(16).unwrap_or_default();
    let bytes = digits.chunks_exact(2).map(|pair| value(pair[0]) * 16 + value(pair[1]));
    bytes.map(|byte| u8::try_from(byte).unwrap_or_default()).collect()
}
