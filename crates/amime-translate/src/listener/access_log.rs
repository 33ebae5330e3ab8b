//! Access logs as the mesh settings ask for them.

use envoy_types::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use envoy_types::pb::envoy::config::accesslog::v3::{
    AccessLog, AccessLogFilter, ResponseFlagFilter, access_log,
};
use envoy_types::pb::envoy::config::core::v3::SubstitutionFormatString;
use envoy_types::pb::envoy::config::core::v3::substitution_format_string::Format;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::file_access_log::AccessLogFormat;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Any, Struct, Value};

use amime_api::mesh::{AccessLogEncoding, MeshConfig};

use crate::proto::{any, bool_json, inline_string, list_value, string_value, structure};

/// Istio's default format.
const TEXT_FORMAT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" ",
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% ",
    "\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% ",
    "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% ",
    "%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
);

/// Keys of Istio's JSON format and the operators behind them.
const JSON_FORMAT: [(&str, &str); 25] = [
    ("authority", "%REQ(:AUTHORITY)%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("duration", "%DURATION%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("route_name", "%ROUTE_NAME%"),
    ("start_time", "%START_TIME%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("upstream_request_attempt_count", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
];

/// Logs of connections and requests.
pub(crate) fn of_traffic(mesh: &MeshConfig) -> Vec<AccessLog> {
    file(mesh, None).into_iter().collect()
}

/// Logs of a listener: only connections that no filter chain took, which no
/// other log would show.
pub(crate) fn of_listener(mesh: &MeshConfig) -> Vec<AccessLog> {
    if mesh.disable_envoy_listener_log {
        return Vec::new();
    }
    let filter = AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter {
            flags: vec!["NR".to_owned()],
        })),
    };
    file(mesh, Some(filter)).into_iter().collect()
}

fn file(mesh: &MeshConfig, filter: Option<AccessLogFilter>) -> Option<AccessLog> {
    if mesh.access_log_file.is_empty() {
        return None;
    }
    let config = match mesh.access_log_encoding {
        AccessLogEncoding::Text => text(mesh),
        AccessLogEncoding::Json => json(mesh),
    };
    Some(AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        filter,
        config_type: Some(access_log::ConfigType::TypedConfig(config)),
    })
}

fn text(mesh: &MeshConfig) -> Any {
    let format = match mesh.access_log_format.as_str() {
        "" => TEXT_FORMAT.to_owned(),
        own if own.ends_with('\n') => own.to_owned(),
        own => format!("{own}\n"),
    };
    any(&FileAccessLog {
        path: mesh.access_log_file.clone(),
        access_log_format: Some(AccessLogFormat::LogFormat(SubstitutionFormatString {
            format: Some(Format::TextFormatSource(inline_string(format))),
            ..Default::default()
        })),
    })
}

fn json(mesh: &MeshConfig) -> Any {
    let own = serde_json::from_str::<serde_json::Value>(&mesh.access_log_format).ok();
    let own = own.as_ref().and_then(serde_json::Value::as_object).map(structure_of);
    let default = || {
        let entry = |(key, operator): &(&str, &str)| ((*key).to_owned(), string_value(*operator));
        structure(JSON_FORMAT.iter().map(entry).collect())
    };
    any(&FileAccessLog {
        path: mesh.access_log_file.clone(),
        access_log_format: Some(AccessLogFormat::LogFormat(SubstitutionFormatString {
            format: Some(Format::JsonFormat(own.unwrap_or_else(default))),
            ..Default::default()
        })),
    })
}

fn structure_of(object: &serde_json::Map<String, serde_json::Value>) -> Struct {
    structure(object.iter().map(|(key, value)| (key.clone(), value_of(value))).collect())
}

fn value_of(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match value {
        Json::Null => Value { kind: Some(Kind::NullValue(0)) },
        Json::Bool(value) => bool_json(*value),
        Json::Number(number) => {
            Value { kind: Some(Kind::NumberValue(number.as_f64().unwrap_or_default())) }
        }
        Json::String(text) => string_value(text.as_str()),
        Json::Array(items) => list_value(items.iter().map(value_of).collect()),
        Json::Object(object) => Value { kind: Some(Kind::StructValue(structure_of(object))) },
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn json_logs_have_istios_fields() {
        let mesh = MeshConfig {
            access_log_file: "/dev/stdout".into(),
            access_log_encoding: AccessLogEncoding::Json,
            ..Default::default()
        };
        let config = FileAccessLog::decode(json(&mesh).value.as_slice()).expect("its own bytes");
        let Some(AccessLogFormat::LogFormat(format)) = config.access_log_format else {
            panic!("a log format");
        };
        let Some(Format::JsonFormat(fields)) = format.format else { panic!("a JSON format") };
        assert_eq!(fields.fields.len(), JSON_FORMAT.len());
    }

    #[test]
    fn no_file_means_no_log() {
        assert!(of_traffic(&MeshConfig::default()).is_empty());
        assert!(of_listener(&MeshConfig::default()).is_empty());
    }
}
