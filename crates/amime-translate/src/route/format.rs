//! Header values, in which `%` means something to Envoy.
//!
//! A value that Envoy cannot read as a format makes it refuse the whole route
//! configuration, so what is no operator is quoted.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage#command-operators>

/// Operators without an argument.
const PLAIN: [&str; 59] = [
    "BYTES_RECEIVED",
    "BYTES_SENT",
    "CONNECTION_ID",
    "CONNECTION_TERMINATION_DETAILS",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_DIRECT_REMOTE_PORT",
    "DOWNSTREAM_LOCAL_ADDRESS",
    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_PORT",
    "DOWNSTREAM_LOCAL_SUBJECT",
    "DOWNSTREAM_LOCAL_URI_SAN",
    "DOWNSTREAM_PEER_CERT",
    "DOWNSTREAM_PEER_CERT_V_END",
    "DOWNSTREAM_PEER_CERT_V_START",
    "DOWNSTREAM_PEER_FINGERPRINT_1",
    "DOWNSTREAM_PEER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_ISSUER",
    "DOWNSTREAM_PEER_SERIAL",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_PEER_URI_SAN",
    "DOWNSTREAM_REMOTE_ADDRESS",
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_REMOTE_PORT",
    "DOWNSTREAM_TLS_CIPHER",
    "DOWNSTREAM_TLS_SESSION_ID",
    "DOWNSTREAM_TLS_VERSION",
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    "DURATION",
    "FILTER_CHAIN_NAME",
    "HOSTNAME",
    "PROTOCOL",
    "REQUESTED_SERVER_NAME",
    "RESPONSE_CODE",
    "RESPONSE_CODE_DETAILS",
    "RESPONSE_FLAGS",
    "RESPONSE_FLAGS_LONG",
    "ROUTE_NAME",
    "START_TIME",
    "STREAM_ID",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_CLUSTER_RAW",
    "UPSTREAM_HOST",
    "UPSTREAM_LOCAL_ADDRESS",
    "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_LOCAL_PORT",
    "UPSTREAM_PEER_ISSUER",
    "UPSTREAM_PEER_SUBJECT",
    "UPSTREAM_PEER_URI_SAN",
    "UPSTREAM_PROTOCOL",
    "UPSTREAM_REMOTE_ADDRESS",
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_REMOTE_PORT",
    "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    "UPSTREAM_TLS_CIPHER",
    "UPSTREAM_TLS_SESSION_ID",
    "UPSTREAM_TLS_VERSION",
    "UPSTREAM_TRANSPORT_FAILURE_REASON",
    "VIRTUAL_CLUSTER_NAME",
];
/// Longest value that Envoy takes.
const MAX_VALUE_BYTES: usize = 16 * 1024;

/// The value as Envoy reads it; `None` for one that it never takes.
pub(super) fn header_value(text: &str) -> Option<String> {
    let mut value = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        value.push_str(&rest[..at]);
        let here = &rest[at..];
        let length = if here.starts_with("%%") { Some(2) } else { operator(here) };
        match length {
            Some(length) => value.push_str(&here[..length]),
            None => value.push_str("%%"),
        }
        rest = &here[length.unwrap_or(1)..];
    }
    value.push_str(rest);
    (is_sendable(&value) && value.len() <= MAX_VALUE_BYTES).then_some(value)
}

/// False for what would end a header.
pub(super) fn is_sendable(text: &str) -> bool {
    !text.contains(['\0', '\r', '\n'])
}

/// Length of the operator that `text` starts with: `%NAME(ARGUMENT):LENGTH%`.
fn operator(text: &str) -> Option<usize> {
    let body = text.strip_prefix('%')?;
    let in_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let (name, after) = body.split_at(body.find(|c| !in_name(c))?);
    let (argument, after) = match after.strip_prefix('(') {
        Some(inner) => {
            let (argument, after) = inner.split_once(')')?;
            (Some(argument), after)
        }
        None => (None, after),
    };
    let (limited, after) = match after.strip_prefix(':') {
        Some(length) => {
            let digits = length.find(|c: char| !c.is_ascii_digit()).filter(|digits| *digits > 0)?;
            // It is a count of bytes, which has to fit a machine word.
            length[..digits].parse::<u32>().ok()?;
            (true, &length[digits..])
        }
        None => (false, after),
    };
    let after = after.strip_prefix('%')?;
    let known = match argument {
        None => PLAIN.contains(&name) && !limited,
        Some(argument) => takes(name, argument, limited),
    };
    known.then(|| text.len() - after.len())
}

/// True if the operator takes this argument, and a limit of its length.
fn takes(name: &str, argument: &str, limited: bool) -> bool {
    match name {
        "REQ" | "RESP" => {
            let names: Vec<&str> = argument.split('?').collect();
            names.len() <= 2 && names.iter().all(|name| is_header_name(name))
        }
        "FILTER_STATE" => {
            let (key, kind) = argument.split_once(':').unwrap_or((argument, "PLAIN"));
            !key.is_empty() && matches!(kind, "PLAIN" | "TYPED")
        }
        // A pattern could ask for a line break.
        "START_TIME" => !argument.is_empty() && !argument.contains('n') && !limited,
        "CLUSTER_METADATA" | "DYNAMIC_METADATA" | "ENVIRONMENT" | "UPSTREAM_METADATA" => {
            !argument.is_empty()
        }
        _ => false,
    }
}

fn is_header_name(text: &str) -> bool {
    let bare = text.strip_prefix(':').unwrap_or(text);
    let token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !bare.is_empty() && bare.chars().all(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: Option<&str>) {
        assert_eq!(header_value(text).as_deref(), want);
    }

    #[test]
    fn what_is_no_operator_is_quoted() {
        check("plain", Some("plain"));
        check("%b", Some("%%b"));
        check("100%", Some("100%%"));
        check("%20% more", Some("%%20%% more"));
        check("50%% off", Some("50%% off"));
        check("%NOBODY_KNOWS%", Some("%%NOBODY_KNOWS%%"));
        check("%REQ()% %REQ%", Some("%%REQ()%% %%REQ%%"));
        for text in
            ["REQ(A?B?C)", "REQ(a:b)", "PROTOCOL:3", "START_TIME(n)", "FILTER_STATE(:PLAIN)"]
        {
            check(&format!("%{text}%"), Some(&format!("%%{text}%%")));
        }
        check("é%é", Some("é%%é"));
    }

    #[test]
    fn operators_stay() {
        for text in [
            "%PROTOCOL%",
            "%REQ(X-A?:PATH):10%",
            "a%DOWNSTREAM_REMOTE_ADDRESS%b",
            "%START_TIME(%s)%",
        ] {
            check(text, Some(text));
        }
    }

    #[test]
    fn nothing_splits_a_message() {
        check("a\r\nx: y", None);
        check(&"%".repeat(9000), Some(&"%".repeat(9000)));
        check(&"%a".repeat(8192), None);
    }
}
