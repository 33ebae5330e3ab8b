//! From text to resources.
//!
//! Owns splitting into documents, finding the kind, strictness, and error messages with file,
//! line, column and field path. All faults of a text are collected, not only the first; a
//! document with a fault yields no resource. Whether a resource makes sense is not decided here.
//!
//! Strict are: unknown fields, wrong types, doubled keys, and more than one member of a oneof.
//! As proto3-JSON allows, field names may be in snake_case and enums may be numbers.

mod de;
mod document;
mod rules;
mod tree;

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::DuplicateKeyPolicy;

use self::tree::{Node, Position, SyntaxError};
use crate::honoured::{self, FieldWarning};
use crate::resource::{Resource, Source};

pub(crate) use self::de::{Failed, NodeDeserializer};

/// Longest text that is read.
pub const MAX_BYTES: usize = 64 << 20;

/// Address space of the reading thread; only what is used costs memory.
const STACK_BYTES: usize = 32 << 20;

/// Most errors reported of one text.
const MAX_ERRORS: usize = 100;

/// What a text holds.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// Objects without a fault, in order; lists are flattened.
    pub resources: Vec<Resource>,
    /// Everything wrong, in order.
    pub errors: Vec<DecodeError>,
    /// Fields that are accepted but not acted on.
    pub warnings: Vec<FieldWarning>,
}

/// One thing wrong with a text.
///
/// Prints as `file:line:column: Kind name.namespace: path.to.field: message`, without the parts
/// that are unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// File or other origin.
    pub file: Arc<str>,
    /// Line from 1; 0 if unknown.
    pub line: u32,
    /// Column from 1; 0 if unknown.
    pub column: u32,
    /// Kind and name of the object; empty if unknown.
    pub object: String,
    /// Path of the field inside the object; empty for the object as a whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            f.write_str(&self.file)?;
            if self.line > 0 {
                write!(f, ":{}:{}", self.line, self.column)?;
            }
            f.write_str(": ")?;
        }
        for part in [&self.object, &self.path] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for DecodeError {}

/// Reads all objects of a YAML or JSON text; `file` only names it in messages.
pub fn decode(file: &str, text: &str) -> Decoded {
    let file: Arc<str> = file.into();
    with_deep_stack(|| decode_documents(&file, text)).unwrap_or_else(|error| {
        let message = format!("could not start a thread to read it: {error}");
        let errors = vec![error_at(&file, Position::default(), "", message)];
        Decoded { errors, ..Decoded::default() }
    })
}

fn decode_documents(file: &Arc<str>, text: &str) -> Decoded {
    let mut decoded = Decoded::default();
    for (lines_before, text) in documents(file, text, &mut decoded.errors) {
        if decoded.errors.len() >= MAX_ERRORS {
            break;
        }
        if let Some(node) = parse(file, lines_before, text, &mut decoded.errors) {
            document::decode(file, &node, &mut decoded);
        }
    }
    decoded.errors.truncate(MAX_ERRORS);
    let warnings = decoded.resources.iter().flat_map(honoured::unhonoured);
    decoded.warnings = warnings.collect();
    decoded
}

/// Runs `work` where the deepest document that is allowed fits the stack.
///
/// The YAML deserializer takes tens of kilobytes a level in builds without optimization, more
/// than the 2 MiB of an ordinary thread hold.
fn with_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work)?;
        thread.join().map_err(|_| std::io::Error::other("the reader panicked"))
    })
}

/// Reads one object from JSON, as the API and the store exchange it.
pub fn from_json(origin: &str, value: &Value) -> Result<Resource, Vec<DecodeError>> {
    let mut decoded = Decoded::default();
    document::decode(&origin.into(), &Node::from_json(value), &mut decoded);
    match decoded.resources.pop() {
        Some(resource) if decoded.errors.is_empty() => Ok(resource),
        _ => Err(decoded.errors),
    }
}

/// Reads a text that is one message without `kind` and `metadata`, such as a mesh configuration.
///
/// An empty text is the message's default.
pub(crate) fn decode_message<T: DeserializeOwned + Default + Send>(
    file: &str,
    name: &str,
    text: &str,
) -> Result<T, Vec<DecodeError>> {
    let file: Arc<str> = file.into();
    with_deep_stack(|| decode_one(&file, name, text)).unwrap_or_else(|error| {
        let message = format!("could not start a thread to read it: {error}");
        Err(vec![error_at(&file, Position::default(), name, message)])
    })
}

fn decode_one<T: DeserializeOwned + Default>(
    file: &Arc<str>,
    name: &str,
    text: &str,
) -> Result<T, Vec<DecodeError>> {
    let mut errors = Vec::new();
    let texts: Vec<_> = documents(file, text, &mut errors).collect();
    let value = match texts[..] {
        [] => Some(T::default()),
        [(lines_before, text)] => parse(file, lines_before, text, &mut errors)
            .and_then(|node| decode_node(file, name, &node, &mut errors)),
        _ => {
            let message = "expected one document, found several".to_owned();
            errors.push(error_at(
                file,
                Position { line: texts[1].0 + 1, column: 1 },
                name,
                message,
            ));
            None
        }
    };
    match value {
        Some(value) if errors.is_empty() => Ok(value),
        _ => Err(errors),
    }
}

fn decode_node<T: DeserializeOwned>(
    file: &Arc<str>,
    name: &str,
    node: &Node,
    errors: &mut Vec<DecodeError>,
) -> Option<T> {
    let findings = de::Findings::default();
    let value = de::decode_all(node, "", &findings, |deserializer| T::deserialize(deserializer));
    errors.extend(findings.into_faults().into_iter().map(|fault| DecodeError {
        path: fault.path,
        ..error_at(file, fault.position, name, fault.message)
    }));
    value
}

fn error_at(file: &Arc<str>, position: Position, object: &str, message: String) -> DecodeError {
    DecodeError {
        file: file.clone(),
        line: position.line,
        column: position.column,
        object: object.to_owned(),
        path: String::new(),
        message,
    }
}

/// Parses one document; after a doubled key reads on with the first of the two.
fn parse(
    file: &Arc<str>,
    lines_before: u32,
    text: &str,
    errors: &mut Vec<DecodeError>,
) -> Option<Node> {
    let report = |error: SyntaxError, errors: &mut Vec<DecodeError>| {
        errors.push(error_at(file, error.position, "", error.message));
    };
    match tree::parse(text, lines_before, DuplicateKeyPolicy::Error) {
        Ok(node) => Some(node),
        Err(error) if error.duplicate_key => {
            report(error, errors);
            tree::parse(text, lines_before, DuplicateKeyPolicy::FirstWins)
                .map_err(|error| report(error, errors))
                .ok()
        }
        Err(error) => {
            report(error, errors);
            None
        }
    }
}

/// Documents with something in them, each with the number of lines before it.
///
/// A line that starts with `---` ends a document wherever it stands: YAML allows it inside no
/// scalar.
fn documents<'a>(
    file: &Arc<str>,
    text: &'a str,
    errors: &mut Vec<DecodeError>,
) -> impl Iterator<Item = (u32, &'a str)> + use<'a> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = if text.len() > MAX_BYTES {
        let message = format!("longer than {} MiB", MAX_BYTES >> 20);
        errors.push(error_at(file, Position::default(), "", message));
        ""
    } else {
        text
    };
    let mut starts = vec![(0, 0)];
    let mut offset = 0;
    for (number, line) in (0u32..).zip(text.split_inclusive('\n')) {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && offset > 0 {
            starts.push((number, offset));
        }
        offset += line.len();
    }
    let ends: Vec<usize> =
        starts.iter().skip(1).map(|(_, start)| *start).chain([text.len()]).collect();
    starts
        .into_iter()
        .zip(ends)
        .map(move |((line, start), end)| (line, &text[start..end]))
        .filter(|(_, text)| !is_blank(text))
}

fn is_blank(text: &str) -> bool {
    text.lines().map(str::trim_end).all(|line| {
        let start = line.trim_start();
        let marker = line.strip_prefix("---").map(str::trim_start);
        start.is_empty()
            || start.starts_with('#')
            || line.starts_with('%')
            || line == "..."
            || marker.is_some_and(|rest| rest.is_empty() || rest.starts_with('#'))
    })
}

impl Source {
    fn at(file: &Arc<str>, position: Position) -> Self {
        Self { file: file.clone(), line: position.line }
    }
}
