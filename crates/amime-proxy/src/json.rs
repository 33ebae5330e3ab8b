//! proto3-JSON in a process of its own.
//!
//! The descriptors behind it take tens of megabytes that a process never gives
//! back. A proxy therefore starts itself once more for each conversion and
//! keeps its own memory small; without a command to start (in tests, or when
//! starting fails) it converts here.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::process::Stdio;
use std::time::Duration;

use amime_xds::json::{JsonError, ReadOptions, any_to_json, encode};
use prost::{Message, Name};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Time for one conversion.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What is to be converted.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Work {
    #[prost(message, repeated, tag = "1")]
    print: Vec<Print>,
    #[prost(message, repeated, tag = "2")]
    parse: Vec<Parse>,
}

/// A message to be printed.
#[derive(Clone, PartialEq, Message)]
struct Print {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    body: bytes::Bytes,
}

/// A text to be read.
#[derive(Clone, PartialEq, Message)]
struct Parse {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(bool, tag = "2")]
    is_json: bool,
    #[prost(bool, tag = "3")]
    allow_unknown_fields: bool,
    /// Full name of the message.
    #[prost(string, tag = "4")]
    message: String,
}

#[derive(Clone, PartialEq, Message)]
struct Done {
    /// JSON texts, in the order asked for.
    #[prost(string, repeated, tag = "1")]
    printed: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    parsed: Vec<Parsed>,
}

#[derive(Clone, PartialEq, Message)]
struct Parsed {
    /// The encoded message; none if the text is not one.
    #[prost(bytes = "bytes", optional, tag = "1")]
    body: Option<bytes::Bytes>,
    #[prost(uint64, tag = "2")]
    line: u64,
    #[prost(uint64, tag = "3")]
    column: u64,
    #[prost(string, tag = "4")]
    message: String,
}

impl Work {
    /// Adds a message to be printed with its `@type`.
    pub(crate) fn print(&mut self, type_url: &str, body: bytes::Bytes) {
        self.print.push(Print { type_url: type_url.to_owned(), body });
    }

    fn convert(&self) -> Done {
        let printed = self.print.iter().map(|one| match any_to_json(&one.type_url, &one.body) {
            Ok(value) => value.to_string(),
            Err(error) => serde_json::json!({ "error": error.to_string() }).to_string(),
        });
        let parsed = self.parse.iter().map(Parse::read);
        Done { printed: printed.collect(), parsed: parsed.collect() }
    }
}

impl Parse {
    fn read(&self) -> Parsed {
        let Self { is_json, allow_unknown_fields, .. } = *self;
        match encode(&self.message, &self.text, ReadOptions { is_json, allow_unknown_fields }) {
            Ok(body) => Parsed { body: Some(body.into()), ..Parsed::default() },
            Err(JsonError::Invalid { line, column, message }) => {
                Parsed { body: None, line, column, message }
            }
            Err(error) => Parsed { message: error.to_string(), ..Parsed::default() },
        }
    }
}

/// Starts this program again as a converter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Converter {
    /// Program and arguments; empty: convert in this process.
    command: Vec<OsString>,
}

impl Converter {
    /// The command that runs [`serve`] in this very program.
    pub(crate) fn of_this_program(role: &str) -> Self {
        let Ok(program) = std::env::current_exe() else { return Self::default() };
        let mut command = vec![program.into_os_string()];
        // `amime proxy …` and `amime-proxy …` share this code.
        command.extend(std::env::args_os().nth(1).filter(|first| first == "proxy"));
        command.push(role.into());
        Self { command }
    }

    /// Prints messages as JSON, in the order in which they were added.
    pub(crate) async fn print(&self, work: &Work) -> Vec<Value> {
        let done = match tokio::time::timeout(TIMEOUT, self.run(work)).await {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => {
                tracing::debug!(%error, "JSON is converted in this process");
                work.convert()
            }
            Err(_) => Done::default(),
        };
        let values = done.printed.iter().map(|text| serde_json::from_str(text).unwrap_or_default());
        values.collect()
    }

    /// Reads a message.
    pub(crate) async fn parse<M: Message + Name + Default>(
        &self,
        text: &str,
        options: ReadOptions,
    ) -> Result<M, JsonError> {
        let ReadOptions { is_json, allow_unknown_fields } = options;
        let message = M::full_name();
        let parse = Parse { text: text.to_owned(), is_json, allow_unknown_fields, message };
        let work = Work { print: vec![], parse: vec![parse] };
        let done = match tokio::time::timeout(TIMEOUT, self.run(&work)).await {
            Ok(Ok(done)) => done,
            _ => work.convert(),
        };
        let Parsed { body, line, column, message } =
            done.parsed.into_iter().next().unwrap_or_default();
        let body = body.ok_or(JsonError::Invalid { line, column, message })?;
        M::decode(body).map_err(|error| JsonError::Unprintable {
            type_name: M::full_name(),
            message: error.to_string(),
        })
    }

    async fn run(&self, work: &Work) -> io::Result<Done> {
        let Some((program, arguments)) = self.command.split_first() else {
            return Ok(work.convert());
        };
        let mut child = tokio::process::Command::new(program)
            .args(arguments)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let (mut input, mut output) = match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => (input, output),
            _ => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        input.write_all(&work.encode_to_vec()).await?;
        drop(input);
        let mut bytes = vec![];
        output.read_to_end(&mut bytes).await?;
        if !child.wait().await?.success() {
            return Err(io::Error::other("the converter failed"));
        }
        Done::decode(bytes.as_slice()).map_err(io::Error::other)
    }
}

/// Converts what stands on standard input.
///
/// # Errors
/// When it cannot be read, or the result cannot be written.
pub(crate) fn serve() -> io::Result<()> {
    let mut bytes = vec![];
    io::stdin().lock().read_to_end(&mut bytes)?;
    let work = Work::decode(bytes.as_slice()).map_err(io::Error::other)?;
    io::stdout().lock().write_all(&work.convert().encode_to_vec())
}
