//! A document as a tree of values with positions.
//!
//! Owns the step from text to tree and its limits; knows nothing of kinds.
//!
//! Invariant: a tree is no deeper than [`MAX_DEPTH`], so walking it by recursion is safe.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{Location, Spanned};

/// Deepest nesting; real manifests stay below twenty.
const MAX_DEPTH: usize = 64;
/// Most values in a document; a `List` of ten thousand pods stays below.
const MAX_NODES: usize = 2_000_000;

/// Most parser events that aliases may repeat.
const MAX_ALIAS_EVENTS: usize = 100_000;

/// Line and column, both from 1; 0 if unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl From<Location> for Position {
    fn from(location: Location) -> Self {
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Self { line: narrow(location.line()), column: narrow(location.column()) }
    }
}

impl Position {
    fn below(self, lines: u32) -> Self {
        let line = if self.line == 0 { 0 } else { self.line.saturating_add(lines) };
        Self { line, ..self }
    }
}

/// One value.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) position: Position,
    pub(crate) content: Content,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// One pair of a mapping.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_position: Position,
    pub(crate) value: Node,
}

/// Why a text is no tree.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) position: Position,
    pub(crate) message: String,
    /// The rest of the document can still be read, by taking the first of the two keys.
    pub(crate) duplicate_key: bool,
}

/// Parses one YAML (or JSON) document that starts `lines_before` lines into its file.
pub(crate) fn parse(
    text: &str,
    lines_before: u32,
    duplicates: serde_saphyr::DuplicateKeyPolicy,
) -> Result<Node, SyntaxError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: MAX_NODES * 2,
            flow_nesting_limit: MAX_DEPTH,
            max_recorded_anchor_events: MAX_ALIAS_EVENTS,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_ALIAS_EVENTS },
        duplicate_keys: duplicates,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    let mut node = serde_saphyr::from_str_with_options::<Node>(text, options)
        .map_err(|error| SyntaxError::of(&error, lines_before))?;
    node.shift(lines_before);
    Ok(node)
}

impl SyntaxError {
    fn of(error: &serde_saphyr::Error, lines_before: u32) -> Self {
        let error = error.without_snippet();
        let duplicate_key = matches!(error, serde_saphyr::Error::DuplicateMappingKey { .. });
        let position = error.location().map(Position::from).unwrap_or_default();
        let message = match error {
            serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
                format!("duplicate key {key:?}")
            }
            _ => without_location(&error.to_string()),
        };
        Self { position: position.below(lines_before), message, duplicate_key }
    }
}

/// The parser's message without the place it repeats, on one line and bounded.
fn without_location(message: &str) -> String {
    let line = message.lines().find(|line| !line.trim().is_empty()).unwrap_or("malformed YAML");
    let line = line.rfind(" at line ").map_or(line, |end| &line[..end]);
    let line = line.strip_prefix("error: ").unwrap_or(line).trim();
    if line.contains("recursion limit") || line.contains("breached: Depth") {
        return format!("nested deeper than {MAX_DEPTH} levels");
    }
    if line.contains("budget breached") || line.contains("alias replay limit") {
        return "too many values, or too much repeated through aliases".to_owned();
    }
    line.chars().take(300).collect()
}

impl Node {
    /// The tree of a JSON value, without positions.
    pub(crate) fn from_json(value: &Value) -> Self {
        let content = match value {
            Value::Null => Content::Null,
            Value::Bool(value) => Content::Bool(*value),
            Value::Number(number) => Content::Number(number.clone()),
            Value::String(text) => Content::String(text.clone()),
            Value::Array(items) => Content::Sequence(items.iter().map(Self::from_json).collect()),
            Value::Object(fields) => {
                let entry = |(key, value): (&String, &Value)| Entry {
                    key: key.clone(),
                    key_position: Position::default(),
                    value: Self::from_json(value),
                };
                Content::Mapping(fields.iter().map(entry).collect())
            }
        };
        Self { position: Position::default(), content }
    }

    /// The value as JSON.
    pub(crate) fn to_json(&self) -> Value {
        match &self.content {
            Content::Null => Value::Null,
            Content::Bool(value) => Value::Bool(*value),
            Content::Number(number) => Value::Number(number.clone()),
            Content::String(text) => Value::String(text.clone()),
            Content::Sequence(items) => items.iter().map(Self::to_json).collect(),
            Content::Mapping(entries) => entries
                .iter()
                .map(|e| (e.key.clone(), e.value.to_json()))
                .collect::<Map<_, _>>()
                .into(),
        }
    }

    /// The entry of a mapping with this key.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.content {
            Content::Mapping(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The text under this key.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match &self.entry(key)?.value.content {
            Content::String(text) => Some(text),
            _ => None,
        }
    }

    fn shift(&mut self, lines: u32) {
        self.position = self.position.below(lines);
        match &mut self.content {
            Content::Sequence(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Content::Mapping(entries) => {
                for entry in entries {
                    entry.key_position = entry.key_position.below(lines);
                    entry.value.shift(lines);
                }
            }
            _ => {}
        }
    }
}

/// Names a value in a message: `the number 1`, `a list`.
impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("nothing"),
            Self::Bool(value) => write!(f, "the boolean {value}"),
            Self::Number(number) => write!(f, "the number {number}"),
            Self::String(text) if text.chars().count() <= 40 => write!(f, "the string {text:?}"),
            Self::String(_) => f.write_str("a string"),
            Self::Sequence(_) => f.write_str("a list"),
            Self::Mapping(_) => f.write_str("a mapping"),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Content>::deserialize(deserializer)?;
        Ok(Self { position: spanned.referenced.into(), content: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Content, E> {
        Number::from_f64(value)
            .map(Content::Number)
            .ok_or_else(|| E::custom("a number must be finite"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Content, E> {
        Ok(Content::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Content, E> {
        Ok(Content::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = items.next_element::<Node>()? {
            nodes.push(node);
        }
        Ok(Content::Sequence(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Content, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = pairs.next_key::<Spanned<String>>()? {
            let value = pairs.next_value::<Node>()?;
            entries.push(Entry { key_position: key.referenced.into(), key: key.value, value });
        }
        Ok(Content::Mapping(entries))
    }
}
