//! serde over a positioned tree, reporting every fault with its place and field path.
//!
//! Unknown fields, oneof clashes and doubled fields are recorded and skipped, so one pass finds
//! all of them. A wrong type stops a pass; [`decode_all`] then leaves the offending value out and
//! tries again.
//!
//! Invariant: a pass that fails has recorded at least one fault, and names one value to leave out.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
};
use serde::de::{Unexpected, VariantAccess, Visitor};

use super::rules;
use super::tree::{Content, Entry, Node, Position};
use crate::suggest;

/// Faults reported of one part of a document; more help nobody.
const MAX_FAULTS: usize = 50;

/// One thing wrong.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) position: Position,
    pub(crate) path: String,
    pub(crate) message: String,
}

/// State of a decode: what was found, and what to leave out.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    faults: RefCell<Vec<Fault>>,
    /// Values (by address in the tree) that already have a fault.
    skipped: RefCell<HashSet<usize>>,
}

impl Findings {
    fn is_skipped(&self, node: &Node) -> bool {
        self.skipped.borrow().contains(&address(node))
    }

    fn skip(&self, node: &Node, fault: Fault) {
        if self.skipped.borrow_mut().insert(address(node)) {
            self.faults.borrow_mut().push(fault);
        }
    }

    fn count(&self) -> usize {
        self.faults.borrow().len()
    }

    pub(crate) fn into_faults(self) -> Vec<Fault> {
        self.faults.into_inner()
    }
}

fn address(node: &Node) -> usize {
    std::ptr::from_ref(node) as usize
}

/// Runs `decode` until it succeeds or enough faults are known; `None` if there was any fault.
pub(crate) fn decode_all<'a, T>(
    node: &'a Node,
    root: &'a str,
    findings: &'a Findings,
    mut decode: impl FnMut(NodeDeserializer<'_>) -> Result<T, Failed>,
) -> Option<T> {
    loop {
        let before = findings.count();
        let path = Path { parent: None, segment: Segment::Root(root) };
        match decode(NodeDeserializer { node, path: &path, findings }) {
            Ok(value) => return (findings.count() == 0).then_some(value),
            Err(failed) => {
                if !failed.recorded {
                    let position = node.position;
                    findings.skip(
                        node,
                        Fault { position, path: path.to_string(), message: failed.message },
                    );
                }
                if findings.count() == before || findings.count() >= MAX_FAULTS {
                    return None;
                }
                if findings.is_skipped(node) {
                    return None;
                }
            }
        }
    }
}

/// Why a pass stopped.
#[derive(Debug)]
pub(crate) struct Failed {
    message: String,
    /// The fault is among the findings already.
    recorded: bool,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failed {}

impl serde::de::Error for Failed {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { message: message.to_string(), recorded: false }
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn serde::de::Expected) -> Self {
        Self::custom(format_args!("expected {expected}, found {unexpected}"))
    }
}

/// Where in the document a value is.
struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    segment: Segment<'a>,
}

enum Segment<'a> {
    Root(&'a str),
    Key(&'a str),
    Index(usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.segment {
            Segment::Root(name) => f.write_str(name),
            Segment::Index(index) => write!(f, "[{index}]"),
            Segment::Key(key) if is_plain(key) => {
                let top = self.parent.is_none_or(|p| matches!(p.segment, Segment::Root("")));
                if !top {
                    f.write_str(".")?;
                }
                f.write_str(key)
            }
            Segment::Key(key) => write!(f, "[{key:?}]"),
        }
    }
}

fn is_plain(key: &str) -> bool {
    !key.is_empty()
        && key.len() <= 64
        && key.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-')
}

/// Deserializer of one value.
#[derive(Clone, Copy)]
pub(crate) struct NodeDeserializer<'a> {
    node: &'a Node,
    path: &'a Path<'a>,
    findings: &'a Findings,
}

impl<'a> NodeDeserializer<'a> {
    fn mismatch(&self, expected: &str) -> Failed {
        let found = &self.node.content;
        let hint = match found {
            _ if expected != "a string" => "",
            Content::Number(_) => "; put it in quotes",
            Content::Bool(_) => "; put it in quotes (y, n, yes, no, on and off are booleans too)",
            _ => "",
        };
        serde::de::Error::custom(format_args!("expected {expected}, found {found}{hint}"))
    }

    fn whole_number(&self, min: i128, max: i128) -> Result<i128, Failed> {
        let expected = || format!("a whole number from {min} to {max}");
        let Content::Number(number) = &self.node.content else {
            return Err(self.mismatch("a whole number"));
        };
        let value = number
            .as_i64()
            .map(i128::from)
            .or_else(|| number.as_u64().map(i128::from))
            .or_else(|| {
                number.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 1e15).map(|f| f as i128)
            })
            .ok_or_else(|| self.mismatch("a whole number"))?;
        if value < min || value > max { Err(self.mismatch(&expected())) } else { Ok(value) }
    }

    /// Deserializes one child; a failure that has no place yet gets this child's.
    fn child<'de, T: DeserializeSeed<'de>>(
        &self,
        seed: T,
        node: &Node,
        segment: Segment<'_>,
    ) -> Result<T::Value, Failed> {
        let path = Path { parent: Some(self.path), segment };
        let deserializer = NodeDeserializer { node, path: &path, findings: self.findings };
        seed.deserialize(deserializer).map_err(|failed| {
            if failed.recorded {
                return failed;
            }
            let fault = Fault {
                position: node.position,
                path: path.to_string(),
                message: failed.message.clone(),
            };
            self.findings.skip(node, fault);
            Failed { recorded: true, ..failed }
        })
    }

    fn fault(&self, entry: &Entry, position: Position, message: String) {
        let path = Path { parent: Some(self.path), segment: Segment::Key(&entry.key) };
        let fault = Fault { position, path: path.to_string(), message };
        self.findings.skip(&entry.value, fault);
    }

    /// Entries that name declared fields, each once; all else is recorded.
    fn declared_entries(
        &self,
        struct_name: &str,
        declared: &'static [&'static str],
        entries: &'a [Entry],
    ) -> Vec<(&'a str, &'a Entry)> {
        let mut found: Vec<(&'a str, &'a Entry)> = Vec::with_capacity(entries.len());
        for entry in entries {
            if self.findings.is_skipped(&entry.value) {
                continue;
            }
            let Some(field) = rules::field_for(&entry.key, declared) else {
                if !rules::is_known_elsewhere(struct_name, &entry.key) {
                    self.fault(entry, entry.key_position, unknown_field(&entry.key, declared));
                }
                continue;
            };
            if matches!(entry.value.content, Content::Null) {
                continue;
            }
            if found.iter().any(|(earlier, _)| *earlier == field) {
                let message = format!("the same field as {field:?}, which is given too");
                self.fault(entry, entry.key_position, message);
                continue;
            }
            found.push((field, entry));
        }
        self.check_oneofs(struct_name, &mut found);
        found
    }

    fn check_oneofs(&self, struct_name: &str, found: &mut Vec<(&'a str, &'a Entry)>) {
        for members in rules::oneofs(struct_name) {
            let mut first = None;
            found.retain(|(field, entry)| {
                if !members.contains(field) {
                    return true;
                }
                let Some(first) = first else {
                    first = Some(*field);
                    return true;
                };
                let message = format!("cannot be given together with {first:?}");
                self.fault(entry, entry.key_position, message);
                false
            });
        }
    }
}

fn unknown_field(key: &str, declared: &'static [&'static str]) -> String {
    let hint = suggest::hint(key, declared.iter().copied());
    match declared {
        [] => "unknown field, expected none".to_owned(),
        _ => format!("unknown field, expected one of {}{hint}", declared.join(", ")),
    }
}

macro_rules! whole_numbers {
    ($($method:ident $type:ident $visit:ident,)*) => { $(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
            let value = self.whole_number($type::MIN.into(), $type::MAX.into())?;
            let value = $type::try_from(value).map_err(serde::de::Error::custom)?;
            visitor.$visit(value)
        }
    )* };
}

impl<'de> Deserializer<'de> for NodeDeserializer<'_> {
    type Error = Failed;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        match &self.node.content {
            Content::Null => visitor.visit_unit(),
            Content::Bool(value) => visitor.visit_bool(*value),
            Content::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(value), ..) => visitor.visit_u64(value),
                (_, Some(value), _) => visitor.visit_i64(value),
                (.., value) => visitor.visit_f64(value.unwrap_or_default()),
            },
            Content::String(text) => visitor.visit_str(text),
            Content::Sequence(items) => visitor.visit_seq(Items::new(&self, items)),
            Content::Mapping(entries) => visitor.visit_map(Pairs::all(&self, entries)),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        match self.node.content {
            Content::Bool(value) => visitor.visit_bool(value),
            _ => Err(self.mismatch("true or false")),
        }
    }

    whole_numbers! {
        deserialize_i8 i8 visit_i8,
        deserialize_i16 i16 visit_i16,
        deserialize_i32 i32 visit_i32,
        deserialize_i64 i64 visit_i64,
        deserialize_u8 u8 visit_u8,
        deserialize_u16 u16 visit_u16,
        deserialize_u32 u32 visit_u32,
        deserialize_u64 u64 visit_u64,
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        match &self.node.content {
            Content::Number(number) => visitor.visit_f64(number.as_f64().unwrap_or_default()),
            _ => Err(self.mismatch("a number")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        match &self.node.content {
            Content::String(text) => visitor.visit_str(text),
            _ => Err(self.mismatch("a string")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        match self.node.content {
            Content::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        match self.node.content {
            Content::Null => visitor.visit_unit(),
            _ => Err(self.mismatch("nothing")),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failed> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        match &self.node.content {
            Content::Sequence(items) => visitor.visit_seq(Items::new(&self, items)),
            _ => Err(self.mismatch("a list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        match &self.node.content {
            Content::Mapping(entries) => visitor.visit_map(Pairs::all(&self, entries)),
            _ => Err(self.mismatch("a mapping")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failed> {
        match &self.node.content {
            Content::Mapping(entries) => {
                let entries = self.declared_entries(name, fields, entries);
                visitor.visit_map(Pairs::new(&self, entries))
            }
            _ => Err(self.mismatch("a mapping")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failed> {
        let name = match &self.node.content {
            Content::String(text) => variants.iter().copied().find(|name| name == text),
            // proto3-JSON also reads an enum by number.
            Content::Number(number) => number
                .as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .and_then(|n| variants.get(n).copied()),
            _ => return Err(self.mismatch("a string")),
        };
        let Some(name) = name else {
            let hint = match &self.node.content {
                Content::String(text) => suggest::hint(text, variants.iter().copied()),
                _ => String::new(),
            };
            let found = &self.node.content;
            return Err(serde::de::Error::custom(format_args!(
                "expected one of {}, found {found}{hint}",
                variants.join(", ")
            )));
        };
        visitor.visit_enum(UnitVariant { name })
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit_struct tuple tuple_struct
    }
}

/// Items of a list, without those that have a fault already.
struct Items<'a> {
    parent: &'a NodeDeserializer<'a>,
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'a> Items<'a> {
    fn new(parent: &'a NodeDeserializer<'a>, items: &'a [Node]) -> Self {
        Self { parent, items: items.iter().enumerate() }
    }
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Failed;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Failed> {
        let findings = self.parent.findings;
        match self.items.find(|(_, node)| !findings.is_skipped(node)) {
            Some((index, node)) => self.parent.child(seed, node, Segment::Index(index)).map(Some),
            None => Ok(None),
        }
    }
}

/// Pairs of a mapping under the names that the target type uses.
struct Pairs<'a> {
    parent: &'a NodeDeserializer<'a>,
    entries: std::vec::IntoIter<(&'a str, &'a Entry)>,
    current: Option<&'a Entry>,
}

impl<'a> Pairs<'a> {
    fn new(parent: &'a NodeDeserializer<'a>, entries: Vec<(&'a str, &'a Entry)>) -> Self {
        Self { parent, entries: entries.into_iter(), current: None }
    }

    fn all(parent: &'a NodeDeserializer<'a>, entries: &'a [Entry]) -> Self {
        let usable = entries.iter().filter(|entry| !parent.findings.is_skipped(&entry.value));
        Self::new(parent, usable.map(|entry| (entry.key.as_str(), entry)).collect())
    }
}

impl<'de> MapAccess<'de> for Pairs<'_> {
    type Error = Failed;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Failed> {
        let Some((name, entry)) = self.entries.next() else { return Ok(None) };
        self.current = Some(entry);
        match seed.deserialize(KeyDeserializer(name)) {
            Ok(key) => Ok(Some(key)),
            Err(failed) => {
                self.parent.fault(entry, entry.key_position, failed.message.clone());
                Err(Failed { recorded: true, ..failed })
            }
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Failed> {
        let entry = self.current.take().ok_or_else(|| {
            <Failed as serde::de::Error>::custom("a value was asked for before its key")
        })?;
        self.parent.child(seed, &entry.value, Segment::Key(&entry.key))
    }
}

/// Deserializer of a key; keys of numeric maps are text in YAML and JSON.
struct KeyDeserializer<'a>(&'a str);

macro_rules! numeric_keys {
    ($($method:ident $type:ident $visit:ident,)*) => { $(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
            match self.0.parse::<$type>() {
                Ok(value) => visitor.$visit(value),
                Err(_) => Err(serde::de::Error::custom(format_args!(
                    "expected a whole number from {} to {} as key", $type::MIN, $type::MAX
                ))),
            }
        }
    )* };
}

impl<'de> Deserializer<'de> for KeyDeserializer<'_> {
    type Error = Failed;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        visitor.visit_str(self.0)
    }

    numeric_keys! {
        deserialize_u16 u16 visit_u16,
        deserialize_u32 u32 visit_u32,
        deserialize_u64 u64 visit_u64,
        deserialize_i32 i32 visit_i32,
        deserialize_i64 i64 visit_i64,
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i128 u8 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// An enum value without content, the only sort the API has.
struct UnitVariant {
    name: &'static str,
}

impl<'de> EnumAccess<'de> for UnitVariant {
    type Error = Failed;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Failed> {
        let deserializer: StrDeserializer<'_, Failed> = self.name.into_deserializer();
        seed.deserialize(deserializer).map(|value| (value, self))
    }
}

impl<'de> VariantAccess<'de> for UnitVariant {
    type Error = Failed;

    fn unit_variant(self) -> Result<(), Failed> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _seed: T) -> Result<T::Value, Failed> {
        Err(serde::de::Error::custom("a name cannot carry content"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, _visitor: V) -> Result<V::Value, Failed> {
        Err(serde::de::Error::custom("a name cannot carry content"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Failed> {
        Err(serde::de::Error::custom("a name cannot carry content"))
    }
}
