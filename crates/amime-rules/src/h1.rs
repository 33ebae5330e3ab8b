//! HTTP/1 settings of both sides.

use envoy_types::pb::envoy::config::core::v3::{self as core, Http1ProtocolOptions};
use envoy_types::pb::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;
use http::HeaderValue;

use super::faults::Faults;
use super::values::{is, unpack};

/// HTTP/1 settings.
#[derive(Clone, Debug, Default)]
pub struct Http1 {
    pub accept_http_10: bool,
    pub default_host: Option<HeaderValue>,
    pub spelling: Spelling,
    /// Trailers are passed on.
    pub trailers: bool,
    /// A length beside chunks is dropped instead of refused.
    pub allow_chunked_length: bool,
    /// Methods that nobody has heard of are passed on.
    pub custom_methods: bool,
}

/// How names of headers are spelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spelling {
    #[default]
    Lower,
    /// `Like-This`.
    Proper,
    /// As the sender did.
    Kept,
}

impl Http1 {
    pub fn compile(value: Option<&Http1ProtocolOptions>, faults: &mut Faults) -> Self {
        let Some(value) = value else { return Self::default() };
        let absolute = value.allow_absolute_url.as_ref();
        faults.ignore_if(absolute.is_some_and(|it| !it.value), "allow_absolute_url");
        faults.ignore_if(value.send_fully_qualified_url, "send_fully_qualified_url");
        faults.ignore_if(!value.ignore_http_11_upgrade.is_empty(), "ignore_http_11_upgrade");
        let host = HeaderValue::from_str(&value.default_host_for_http_10);
        Self {
            accept_http_10: value.accept_http_10,
            default_host: host.ok().filter(|host| !host.is_empty()),
            spelling: spelling(value, faults),
            trailers: value.enable_trailers,
            allow_chunked_length: value.allow_chunked_length,
            custom_methods: value.allow_custom_methods,
        }
    }
}

fn spelling(value: &Http1ProtocolOptions, faults: &mut Faults) -> Spelling {
    use core::http1_protocol_options::header_key_format::HeaderFormat;
    let format = value.header_key_format.as_ref().and_then(|format| format.header_format.as_ref());
    let config = match format {
        None => return Spelling::Lower,
        Some(HeaderFormat::ProperCaseWords(_)) => return Spelling::Proper,
        Some(HeaderFormat::StatefulFormatter(extension)) => extension.typed_config.as_ref(),
    };
    faults.within("header_key_format", |faults| match config {
        Some(any) if is::<PreserveCaseFormatterConfig>(any) => {
            let config: PreserveCaseFormatterConfig = unpack(any, faults).unwrap_or_default();
            faults.ignore_if(config.forward_reason_phrase, "forward_reason_phrase");
            let proper = config.formatter_type_on_envoy_headers != 0;
            faults.ignore_if(proper, "formatter_type_on_envoy_headers");
            Spelling::Kept
        }
        _ => {
            faults.ignore("stateful_formatter", "not supported");
            Spelling::Lower
        }
    })
}
