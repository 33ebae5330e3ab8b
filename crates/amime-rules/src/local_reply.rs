//! How answers that the proxy makes itself are changed before they are sent.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/local_reply>

use amime_telemetry::ResponseFlags;
use bytes::Bytes;
use envoy_types::pb::envoy::config::accesslog::v3 as log;
use envoy_types::pb::envoy::config::core::v3::{
    SubstitutionFormatString, substitution_format_string::Format as PbFormat,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::faults::Faults;
use super::format::{FormatInput, TextFormat};
use super::headers::HeaderEdits;
use super::matcher::HeaderMatcher;
use super::values;
use crate::head::RequestHead;

/// A compiled `LocalReplyConfig`.
#[derive(Debug)]
pub struct LocalReplies {
    mappers: Vec<Mapper>,
    format: Option<BodyFormat>,
}

#[derive(Debug)]
struct Mapper {
    filter: ReplyFilter,
    status: Option<StatusCode>,
    body: Option<Bytes>,
    format: Option<BodyFormat>,
    headers: HeaderEdits,
}

/// Which answers a mapper changes.
#[derive(Debug)]
enum ReplyFilter {
    All(Vec<ReplyFilter>),
    Any(Vec<ReplyFilter>),
    Status(log::comparison_filter::Op, u32),
    Header(HeaderMatcher),
    /// No names: any flag.
    Flags(Vec<ResponseFlags>),
    Always,
}

#[derive(Debug)]
struct BodyFormat {
    content_type: HeaderValue,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Text(TextFormat),
    Json(Json),
}

#[derive(Debug)]
enum Json {
    Text(TextFormat),
    Plain(String),
    List(Vec<Json>),
    /// Keys quoted and in order.
    Object(Vec<(String, Json)>),
}

/// An answer under change.
pub struct Reply<'a> {
    pub request: &'a RequestHead,
    pub status: &'a mut StatusCode,
    pub headers: &'a mut HeaderMap,
    pub body: &'a mut Bytes,
    pub flags: ResponseFlags,
}

impl LocalReplies {
    pub fn compile(value: &pb::LocalReplyConfig, faults: &mut Faults) -> Self {
        let mut mappers = Vec::with_capacity(value.mappers.len());
        for (index, mapper) in value.mappers.iter().enumerate() {
            let compile = |faults: &mut Faults| Mapper::compile(mapper, faults);
            mappers.extend(faults.within(format!("mappers[{index}]"), compile));
        }
        let format = value.body_format.as_ref().and_then(|format| {
            faults.within("body_format", |faults| BodyFormat::compile(format, faults))
        });
        Self { mappers, format }
    }

    /// Changes an answer; true if its body has a form of its own now.
    pub fn apply(&self, reply: Reply<'_>, input: &FormatInput<'_>) -> bool {
        let Reply { request, status, headers, body, flags } = reply;
        let mut format = self.format.as_ref();
        let code = u32::from(status.as_u16());
        if let Some(mapper) =
            self.mappers.iter().find(|mapper| mapper.filter.holds(request, code, flags))
        {
            mapper.headers.apply(headers, input);
            if let Some(changed) = &mapper.body {
                body.clone_from(changed);
            }
            *status = mapper.status.unwrap_or(*status);
            format = mapper.format.as_ref().or(format);
        }
        let Some(format) = format else { return false };
        let text = String::from_utf8_lossy(body).into_owned();
        let input = FormatInput { local_reply: &text, response_code: status.as_u16(), ..*input };
        *body = format.render(headers, &input).into();
        headers.insert(http::header::CONTENT_TYPE, format.content_type.clone());
        true
    }
}

impl Mapper {
    fn compile(value: &pb::ResponseMapper, faults: &mut Faults) -> Option<Self> {
        let Some(filter) = value.filter.as_ref() else {
            faults.reject("filter", "missing");
            return None;
        };
        let filter = faults.within("filter", |faults| ReplyFilter::compile(filter, faults))?;
        let body = match value.body.as_ref().map(values::data_source) {
            None => None,
            Some(Ok(body)) => Some(body.into()),
            Some(Err(reason)) => {
                faults.reject("body", reason);
                return None;
            }
        };
        let format = value.body_format_override.as_ref().and_then(|format| {
            faults.within("body_format_override", |faults| BodyFormat::compile(format, faults))
        });
        let status = value.status_code.as_ref().and_then(|code| u16::try_from(code.value).ok());
        let fields = ["headers_to_add", ""];
        Some(Self {
            filter,
            status: status.and_then(|code| StatusCode::from_u16(code).ok()),
            body,
            format,
            headers: HeaderEdits::compile(&value.headers_to_add, &[], fields, faults),
        })
    }
}

impl ReplyFilter {
    fn compile(value: &log::AccessLogFilter, faults: &mut Faults) -> Option<Self> {
        use log::access_log_filter::FilterSpecifier as Filter;
        let mut list = |list: &[log::AccessLogFilter]| -> Option<Vec<Self>> {
            list.iter().map(|filter| Self::compile(filter, faults)).collect()
        };
        Some(match value.filter_specifier.as_ref() {
            Some(Filter::AndFilter(all)) => Self::All(list(&all.filters)?),
            Some(Filter::OrFilter(any)) => Self::Any(list(&any.filters)?),
            Some(Filter::StatusCodeFilter(filter)) => {
                let comparison = filter.comparison.clone().unwrap_or_default();
                let value = comparison.value.as_ref().map_or(0, |value| value.default_value);
                Self::Status(comparison.op(), value)
            }
            Some(Filter::HeaderFilter(filter)) => {
                Self::Header(HeaderMatcher::compile(filter.header.as_ref()?, faults)?)
            }
            Some(Filter::ResponseFlagFilter(filter)) => Self::Flags(
                filter
                    .flags
                    .iter()
                    .filter_map(|name| ResponseFlags::from_short_name(name))
                    .collect(),
            ),
            Some(Filter::NotHealthCheckFilter(_)) => Self::Always,
            _ => {
                faults.reject("filter_specifier", "not supported");
                return None;
            }
        })
    }

    fn holds(&self, request: &RequestHead, status: u32, flags: ResponseFlags) -> bool {
        use log::comparison_filter::Op;
        match self {
            Self::All(list) => list.iter().all(|filter| filter.holds(request, status, flags)),
            Self::Any(list) => list.iter().any(|filter| filter.holds(request, status, flags)),
            Self::Status(Op::Eq, value) => status == *value,
            Self::Status(Op::Ge, value) => status >= *value,
            Self::Status(Op::Le, value) => status <= *value,
            Self::Status(Op::Ne, value) => status != *value,
            Self::Header(matcher) => matcher.matches(request),
            Self::Flags(wanted) if wanted.is_empty() => !flags.is_empty(),
            Self::Flags(wanted) => wanted.iter().any(|flag| flags.intersects(*flag)),
            Self::Always => true,
        }
    }
}

impl BodyFormat {
    fn compile(value: &SubstitutionFormatString, faults: &mut Faults) -> Option<Self> {
        faults.ignore_if(value.omit_empty_values, "omit_empty_values");
        faults.reject_if(!value.formatters.is_empty(), "formatters");
        let (body, default) = match value.format.as_ref() {
            Some(PbFormat::TextFormat(text)) => (Self::text(text, faults)?, "text/plain"),
            Some(PbFormat::TextFormatSource(source)) => match values::data_source(source) {
                Ok(text) => (Self::text(&String::from_utf8_lossy(&text), faults)?, "text/plain"),
                Err(reason) => {
                    faults.reject("text_format_source", reason);
                    return None;
                }
            },
            Some(PbFormat::JsonFormat(object)) => {
                let json = faults.within("json_format", |faults| Json::object(object, faults))?;
                (Body::Json(json), "application/json")
            }
            None => {
                faults.reject("format", "missing");
                return None;
            }
        };
        let kind = if value.content_type.is_empty() { default } else { &value.content_type };
        match HeaderValue::from_str(kind) {
            Ok(content_type) => Some(Self { content_type, body }),
            Err(_) => {
                faults.reject("content_type", "not a header value");
                None
            }
        }
    }

    fn text(text: &str, faults: &mut Faults) -> Option<Body> {
        TextFormat::parse(text)
            .map_err(|reason| faults.reject("text_format", reason))
            .map(Body::Text)
            .ok()
    }

    fn render(&self, headers: &HeaderMap, input: &FormatInput<'_>) -> Vec<u8> {
        match &self.body {
            Body::Text(text) => text.render(headers, input),
            Body::Json(json) => {
                let mut out = String::new();
                json.write(&mut out, headers, input);
                out.push('\n');
                out.into_bytes()
            }
        }
    }
}

impl Json {
    fn object(value: &Struct, faults: &mut Faults) -> Option<Self> {
        let mut fields: Vec<_> = value.fields.iter().collect();
        fields.sort_by_key(|(key, _)| key.as_str());
        let field = |(key, value): (&String, &Value)| {
            Some((quoted(key), faults.within(key.as_str(), |faults| Self::compile(value, faults))?))
        };
        fields.into_iter().map(field).collect::<Option<_>>().map(Self::Object)
    }

    fn compile(value: &Value, faults: &mut Faults) -> Option<Self> {
        Some(match value.kind.as_ref() {
            None | Some(Kind::NullValue(_)) => Self::Plain("null".to_owned()),
            Some(Kind::BoolValue(value)) => Self::Plain(value.to_string()),
            Some(Kind::NumberValue(value)) => Self::Plain(value.to_string()),
            Some(Kind::StringValue(text)) => {
                Self::Text(TextFormat::parse(text).map_err(|why| faults.reject("", why)).ok()?)
            }
            Some(Kind::StructValue(value)) => Self::object(value, faults)?,
            Some(Kind::ListValue(list)) => {
                let items = list.values.iter().map(|value| Self::compile(value, faults));
                Self::List(items.collect::<Option<_>>()?)
            }
        })
    }

    fn write(&self, out: &mut String, headers: &HeaderMap, input: &FormatInput<'_>) {
        match self {
            Self::Plain(text) => out.push_str(text),
            Self::Text(text) => {
                let value = text.render(headers, input);
                let value = String::from_utf8_lossy(&value);
                // A number stays one; so does what is not there.
                if text.is_number() {
                    out.push_str(&value);
                } else if text.is_operator() && value.is_empty() && !text.may_be_empty() {
                    out.push_str("null");
                } else {
                    out.push_str(&quoted(&value));
                }
            }
            Self::List(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    item.write(out, headers, input);
                }
                out.push(']');
            }
            Self::Object(fields) => {
                out.push('{');
                for (index, (key, value)) in fields.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    out.push_str(key);
                    out.push(':');
                    value.write(out, headers, input);
                }
                out.push('}');
            }
        }
    }
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            char if char < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(char))),
            char => out.push(char),
        }
    }
    out.push('"');
    out
}
