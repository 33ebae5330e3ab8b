//! From Envoy's `AccessLog` message to a logger.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog, access_log::ConfigType};
use envoy_types::pb::envoy::config::core::v3::{
    SubstitutionFormatString, data_source::Specifier, substitution_format_string,
};
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::{
    FileAccessLog, file_access_log::AccessLogFormat,
};
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::{
    StderrAccessLog, StdoutAccessLog, stderr_access_log, stdout_access_log,
};
use envoy_types::pb::google::protobuf::{Any, Struct, Value, value::Kind};
use prost::{Message, Name};

use super::filter::Filter;
use super::{AccessLogger, Format, FormatError, WriterPool};

/// Why an access log is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AccessLogError {
    /// A message that does not decode.
    #[error("access log {name}: its configuration does not decode")]
    Malformed {
        /// Name of the access log.
        name: String,
        /// Why.
        #[source]
        source: prost::DecodeError,
    },
    /// Something that is not built in.
    #[error("access log: {what} is not supported")]
    Unsupported {
        /// What it is.
        what: String,
    },
    /// A required field is not set.
    #[error("access log: {field} is not set")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// The format string.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The file cannot be opened.
    #[error("access log file {path} cannot be opened")]
    Open {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl AccessLogger {
    /// Compiles one configured access log and opens its sink.
    pub(crate) fn compile(log: &AccessLog, writers: &WriterPool) -> Result<Self, AccessLogError> {
        let ConfigType::TypedConfig(config) =
            log.config_type.as_ref().ok_or(AccessLogError::Missing { field: "typed_config" })?;
        let (path, format) = destination(&log.name, config)?;
        let filter = log.filter.as_ref().map(Filter::compile).transpose()?;
        Ok(Self {
            format: Arc::new(format),
            filter: filter.map(Arc::new),
            sink: writers
                .open(&path)
                .map_err(|source| AccessLogError::Open { path: path.clone(), source })?,
        })
    }
}

fn destination(name: &str, config: &Any) -> Result<(String, Format), AccessLogError> {
    let is = |url: String| config.type_url == url;
    if is(FileAccessLog::type_url()) {
        let file: FileAccessLog = decode(name, config)?;
        return Ok((file.path, file_format(file.access_log_format.as_ref())?));
    }
    if is(StdoutAccessLog::type_url()) {
        let log: StdoutAccessLog = decode(name, config)?;
        let format = log.access_log_format.map(|format| match format {
            stdout_access_log::AccessLogFormat::LogFormat(format) => format,
        });
        return Ok(("/dev/stdout".into(), stream_format(format.as_ref())?));
    }
    if is(StderrAccessLog::type_url()) {
        let log: StderrAccessLog = decode(name, config)?;
        let format = log.access_log_format.map(|format| match format {
            stderr_access_log::AccessLogFormat::LogFormat(format) => format,
        });
        return Ok(("/dev/stderr".into(), stream_format(format.as_ref())?));
    }
    Err(AccessLogError::Unsupported { what: config.type_url.clone() })
}

fn decode<M: Message + Default>(name: &str, config: &Any) -> Result<M, AccessLogError> {
    M::decode(config.value.as_slice())
        .map_err(|source| AccessLogError::Malformed { name: name.to_owned(), source })
}

fn stream_format(format: Option<&SubstitutionFormatString>) -> Result<Format, AccessLogError> {
    format.map_or_else(|| Ok(Format::envoy_default()), substitution)
}

#[allow(deprecated, reason = "Envoy still reads the fields that log_format replaced")]
fn file_format(format: Option<&AccessLogFormat>) -> Result<Format, AccessLogError> {
    match format {
        None => Ok(Format::envoy_default()),
        Some(AccessLogFormat::Format(text)) if text.is_empty() => Ok(Format::envoy_default()),
        Some(AccessLogFormat::Format(text)) => Ok(Format::parse(text)?),
        Some(AccessLogFormat::JsonFormat(json) | AccessLogFormat::TypedJsonFormat(json)) => {
            Ok(Format::parse_json(&struct_to_json(json), false, true)?)
        }
        Some(AccessLogFormat::LogFormat(format)) => substitution(format),
    }
}

#[allow(deprecated, reason = "Envoy still reads text_format")]
fn substitution(format: &SubstitutionFormatString) -> Result<Format, AccessLogError> {
    let omit = format.omit_empty_values;
    match format.format.as_ref() {
        Some(substitution_format_string::Format::TextFormat(text)) => Ok(Format::text(text, omit)?),
        Some(substitution_format_string::Format::JsonFormat(json)) => {
            // A protobuf map has no order; sorted keys make lines comparable.
            Ok(Format::parse_json(&struct_to_json(json), omit, true)?)
        }
        Some(substitution_format_string::Format::TextFormatSource(source)) => {
            match source.specifier.as_ref() {
                Some(Specifier::InlineString(text)) => Ok(Format::text(text, omit)?),
                Some(Specifier::InlineBytes(bytes)) => {
                    Ok(Format::text(&String::from_utf8_lossy(bytes), omit)?)
                }
                _ => Err(AccessLogError::Unsupported {
                    what: "text_format_source other than inline".into(),
                }),
            }
        }
        None => Err(AccessLogError::Missing { field: "log_format.format" }),
    }
}

/// A protobuf `Struct` as JSON.
fn struct_to_json(value: &Struct) -> serde_json::Value {
    fields_to_json(&value.fields)
}

fn fields_to_json(fields: &HashMap<String, Value>) -> serde_json::Value {
    fields.iter().map(|(key, value)| (key.clone(), value_to_json(value))).collect()
}

fn value_to_json(value: &Value) -> serde_json::Value {
    match value.kind.as_ref() {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::NumberValue(number)) => (*number).into(),
        Some(Kind::StringValue(text)) => text.clone().into(),
        Some(Kind::BoolValue(value)) => (*value).into(),
        Some(Kind::StructValue(value)) => fields_to_json(&value.fields),
        Some(Kind::ListValue(list)) => list.values.iter().map(value_to_json).collect(),
    }
}
