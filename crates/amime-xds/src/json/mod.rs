//! proto3-JSON for every Envoy and Istio message, through reflection.
//!
//! Owns the descriptor pool, which is decoded at first use and takes tens of
//! megabytes: programs that never read or print JSON never pay for it. Field
//! names are printed as in the `.proto` files, as Envoy's `/config_dump` does;
//! both spellings are read. An `Any` is expanded at any depth.

mod lenient;
mod patch;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use prost::{Message, Name};
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions,
};
use serde_json::Value;

pub use patch::{JsonMessage, Lists, merge_any};

static DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(DESCRIPTORS).expect("the build script wrote a valid descriptor set")
});

/// Text that is not the message it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The text is not JSON or YAML, or a field in it is unknown or wrong.
    #[error("{line}:{column}: {message}")]
    Invalid {
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What is wrong; names the field.
        message: String,
    },
    /// A value that is not the message it should be.
    #[error("not of type {type_name}: {message}")]
    Malformed {
        /// Full name of the message.
        type_name: String,
        /// What is wrong.
        message: String,
    },
    /// The program has no descriptor for a type.
    #[error("message type {0} is not known")]
    UnknownType(String),
    /// A message holds bytes that are not what they claim to be.
    #[error("{type_name} cannot be printed: {message}")]
    Unprintable {
        /// Full name of the message.
        type_name: String,
        /// Why.
        message: String,
    },
}

/// How text is read by [`encode`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// The text is JSON rather than YAML.
    pub is_json: bool,
    /// Fields that the message does not have are skipped instead of refused.
    pub allow_unknown_fields: bool,
}

/// Reads JSON as `M`. Unknown fields are errors.
///
/// # Errors
/// [`JsonError::Invalid`] with the position of the first fault.
pub fn from_json<M: Message + Name + Default>(text: &str) -> Result<M, JsonError> {
    let options = ReadOptions { is_json: true, ..ReadOptions::default() };
    transcode(&read(descriptor::<M>()?, text, options)?)
}

/// Reads one YAML document (or JSON) as `M`. Unknown fields are errors.
///
/// # Errors
/// [`JsonError::Invalid`] with the position of the first fault.
pub fn from_yaml<M: Message + Name + Default>(text: &str) -> Result<M, JsonError> {
    transcode(&read(descriptor::<M>()?, text, ReadOptions::default())?)
}

/// Reads text as the message `full_name` and encodes it.
///
/// # Errors
/// [`JsonError::Invalid`] with the position of the first fault.
pub fn encode(full_name: &str, text: &str, options: ReadOptions) -> Result<Vec<u8>, JsonError> {
    let descriptor = find(full_name).ok_or_else(|| JsonError::UnknownType(full_name.to_owned()))?;
    Ok(read(descriptor, text, options)?.encode_to_vec())
}

fn read(
    descriptor: MessageDescriptor,
    text: &str,
    options: ReadOptions,
) -> Result<DynamicMessage, JsonError> {
    let strictness = DeserializeOptions::new().deny_unknown_fields(!options.allow_unknown_fields);
    if options.is_json {
        let mut input = serde_json::Deserializer::from_str(text);
        let message = DynamicMessage::deserialize_with_options(descriptor, &mut input, &strictness)
            .map_err(|e| located(&e))?;
        input.end().map_err(|e| located(&e))?;
        return Ok(message);
    }
    let message = serde_saphyr::with_deserializer_from_str(text, |input| {
        DynamicMessage::deserialize_with_options(descriptor, input, &strictness)
    });
    message.map_err(|e| {
        let e = e.without_snippet();
        let (line, column) = e.location().map_or((1, 1), |l| (l.line(), l.column()));
        JsonError::Invalid { line, column, message: without_position(&e.to_string()) }
    })
}

/// Prints `message`. An `Any` of a type that we do not know is printed as a
/// `TypedStruct` with its bytes in hexadecimal.
///
/// # Errors
/// [`JsonError::UnknownType`] when `M` itself is not known.
pub fn to_json<M: Message + Name>(message: &M) -> Result<Value, JsonError> {
    let descriptor = find(&M::full_name()).ok_or_else(|| JsonError::UnknownType(M::full_name()))?;
    bytes_to_json(descriptor, &message.encode_to_vec())
}

/// Prints an encoded message given by its type URL, with `@type` as in an
/// `Any`.
///
/// # Errors
/// When the type is not known or the bytes are not of it.
pub fn any_to_json(type_url: &str, body: &[u8]) -> Result<Value, JsonError> {
    let name = type_url.rsplit('/').next().unwrap_or(type_url);
    let descriptor = find(name).ok_or_else(|| JsonError::UnknownType(name.to_owned()))?;
    let mut value = bytes_to_json(descriptor, body)?;
    if let Value::Object(fields) = &mut value {
        let mut with_type = serde_json::Map::new();
        with_type.insert("@type".to_owned(), Value::from(type_url));
        with_type.append(fields);
        *fields = with_type;
    }
    Ok(value)
}

fn bytes_to_json(descriptor: MessageDescriptor, body: &[u8]) -> Result<Value, JsonError> {
    let type_name = descriptor.full_name().to_owned();
    let unprintable =
        |message: String| JsonError::Unprintable { type_name: type_name.clone(), message };
    let mut message =
        DynamicMessage::decode(descriptor, body).map_err(|e| unprintable(e.to_string()))?;
    // Most messages hold only known types; the walk is for the others.
    if let Ok(value) = print(&message) {
        return Ok(value);
    }
    lenient::replace_unknown(&mut message);
    print(&message).map_err(|e| unprintable(e.to_string()))
}

fn print(message: &DynamicMessage) -> Result<Value, serde_json::Error> {
    let options =
        SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(true);
    message.serialize_with_options(serde_json::value::Serializer, &options)
}

/// Names of the fields of a message, as in its `.proto` file.
pub fn fields(full_name: &str) -> Option<Vec<String>> {
    Some(find(full_name)?.fields().map(|field| field.name().to_owned()).collect())
}

fn find(full_name: &str) -> Option<MessageDescriptor> {
    POOL.get_message_by_name(full_name)
}

fn descriptor<M: Name>() -> Result<MessageDescriptor, JsonError> {
    find(&M::full_name()).ok_or_else(|| JsonError::UnknownType(M::full_name()))
}

fn transcode<M: Message + Name + Default>(message: &DynamicMessage) -> Result<M, JsonError> {
    message
        .transcode_to()
        .map_err(|e| JsonError::Unprintable { type_name: M::full_name(), message: e.to_string() })
}

fn located(error: &serde_json::Error) -> JsonError {
    JsonError::Invalid {
        line: error.line() as u64,
        column: error.column() as u64,
        message: without_position(&error.to_string()),
    }
}

/// The position stands in front; the parsers put it behind as well.
fn without_position(message: &str) -> String {
    let end = message.rfind(" at line ").unwrap_or(message.len());
    message[..end].to_owned()
}
