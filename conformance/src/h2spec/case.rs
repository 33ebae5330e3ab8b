//! Cases as they stand in `h2spec/cases.yaml`.

use serde::Deserialize;

/// One rule of the specification.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    pub(super) section: String,
    pub(super) name: String,
    /// Whether connections begin as they should.
    #[serde(default = "yes")]
    pub(super) handshake: bool,
    pub(super) send: Vec<Step>,
    pub(super) want: Want,
}

/// What is sent, or waited for before going on.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Step {
    Headers(Headers),
    Data(Data),
    Continuation(Continuation),
    Priority(Priority),
    Reset {
        #[serde(default = "one")]
        stream: u32,
        #[serde(default = "cancel")]
        code: u32,
    },
    /// Identifiers and values.
    Settings(Vec<(u16, u32)>),
    PushPromise {
        stream: u32,
        promised: u32,
    },
    /// Opaque data, filled up with zeros.
    Ping(String),
    PingAck(String),
    Goaway {
        code: u32,
    },
    Window {
        #[serde(default)]
        stream: u32,
        by: u32,
    },
    /// Bytes in hexadecimal digits.
    Raw(String),
    /// So many streams that the peer's limit is passed by one.
    TooManyStreams,
    Await(Await),
}

/// What has to come before the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Await {
    Ack,
    Data,
    /// The end of the response.
    End,
}

/// A HEADERS frame; by default a whole GET.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Headers {
    pub(super) stream: u32,
    pub(super) method: String,
    pub(super) end: bool,
    /// END_HEADERS.
    pub(super) whole: bool,
    /// Bytes of padding.
    pub(super) pad: u8,
    /// Claim more padding than there are bytes.
    pub(super) pad_too_long: bool,
    pub(super) priority: Option<Dependency>,
    /// These fields and none of the usual.
    pub(super) only: Vec<(String, String)>,
    pub(super) first: Vec<(String, String)>,
    pub(super) more: Vec<(String, String)>,
    /// Usual fields that are left out.
    pub(super) without: Vec<String>,
    /// An empty path.
    pub(super) empty_path: bool,
    /// Large fields.
    pub(super) dummies: usize,
    /// Hexadecimal digits before and after the fields.
    pub(super) prefix: String,
    pub(super) suffix: String,
    /// A table size above the peer's limit, before the fields.
    pub(super) table_too_large: bool,
    /// Where the block is cut into CONTINUATION frames.
    pub(super) split: Vec<usize>,
}

impl Default for Headers {
    fn default() -> Self {
        Self {
            stream: 1,
            method: "GET".into(),
            end: true,
            whole: true,
            pad: 0,
            pad_too_long: false,
            priority: None,
            only: vec![],
            first: vec![],
            more: vec![],
            without: vec![],
            empty_path: false,
            dummies: 0,
            prefix: String::new(),
            suffix: String::new(),
            table_too_large: false,
            split: vec![],
        }
    }
}

/// A DATA frame.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Data {
    pub(super) stream: u32,
    pub(super) end: bool,
    pub(super) pad: u8,
    pub(super) bytes: usize,
    /// As many bytes as the peer takes in a frame, and `bytes` more.
    pub(super) max_and: bool,
}

impl Default for Data {
    fn default() -> Self {
        Self { stream: 1, end: true, pad: 0, bytes: 4, max_and: false }
    }
}

/// A CONTINUATION frame.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Continuation {
    pub(super) stream: u32,
    pub(super) whole: bool,
    /// The fields of a request instead of a large one.
    pub(super) request: bool,
}

impl Default for Continuation {
    fn default() -> Self {
        Self { stream: 1, whole: true, request: false }
    }
}

/// A PRIORITY frame.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Priority {
    #[serde(default = "one")]
    pub(super) stream: u32,
    #[serde(default)]
    pub(super) dependency: Dependency,
}

/// On which stream one depends.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Dependency {
    pub(super) on: u32,
    pub(super) exclusive: bool,
    pub(super) weight: u8,
}

/// What keeps the rule. Lists are of error codes by name.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Want {
    /// GOAWAY, or the connection ends.
    ConnectionError(Vec<String>),
    /// The same, or RST_STREAM.
    StreamError(Vec<String>),
    Goaway(Vec<String>),
    Reset(Vec<String>),
    Closed,
    /// HEADERS of this stream.
    Headers(u32),
    /// DATA of so many bytes.
    Data(usize),
    AnyData,
    Ack,
    /// The acknowledgement of the last PING that was sent.
    Ping,
    AnyPing,
    PingOrClosed,
    /// SETTINGS first of all.
    Settings,
}

fn yes() -> bool {
    true
}

fn one() -> u32 {
    1
}

fn cancel() -> u32 {
    8
}
