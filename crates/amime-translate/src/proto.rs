//! Small constructors for protobuf values.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    AggregatedConfigSource, ApiVersion, CidrRange, ConfigSource, DataSource, Metadata, Pipe,
    RuntimeFractionalPercent, SocketAddress, TransportSocket, TypedExtensionConfig,
    config_source::ConfigSourceSpecifier, data_source, transport_socket,
};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{
    Any, BoolValue, Duration, ListValue, Struct, UInt32Value, UInt64Value, Value,
};
use prost::Name;

pub(crate) use envoy_types::pb::envoy::config::core::v3::Address;

/// Wraps a message in an `Any`.
pub(crate) fn any<M: Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// A named extension with a typed configuration.
pub(crate) fn extension<M: Name>(name: &str, message: &M) -> TypedExtensionConfig {
    TypedExtensionConfig { name: name.to_owned(), typed_config: Some(any(message)) }
}

/// A transport socket with a typed configuration.
pub(crate) fn transport_socket<M: Name>(name: &str, message: &M) -> TransportSocket {
    TransportSocket {
        name: name.to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any(message))),
    }
}

pub(crate) fn u32_value(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub(crate) fn u64_value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

pub(crate) fn bool_value(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

/// A span of time; spans beyond what Envoy accepts are cut to it.
pub(crate) fn duration(span: std::time::Duration) -> Duration {
    const MAX_SECONDS: i64 = 9_223_372_035;
    let seconds = i64::try_from(span.as_secs()).unwrap_or(MAX_SECONDS).min(MAX_SECONDS);
    Duration { seconds, nanos: i32::try_from(span.subsec_nanos()).unwrap_or_default() }
}

pub(crate) fn zero_duration() -> Option<Duration> {
    Some(Duration { seconds: 0, nanos: 0 })
}

/// A TCP address, or the path of a Unix socket when `port` is 0.
pub(crate) fn address(host: &str, port: u32) -> Address {
    let address = if port == 0 {
        let path = host.strip_prefix("unix://").unwrap_or(host).to_owned();
        AddressKind::Pipe(Pipe { path, mode: 0 })
    } else {
        AddressKind::SocketAddress(socket_address(host, port))
    };
    Address { address: Some(address) }
}

/// A TCP socket address; port 0 means "any".
pub(crate) fn socket_address(host: &str, port: u32) -> SocketAddress {
    SocketAddress {
        address: host.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(port)),
        ..Default::default()
    }
}

/// The range of `1.2.3.0/24` or of a single address; `None` if it is neither.
pub(crate) fn cidr(text: &str) -> Option<CidrRange> {
    let net = parse_net(text)?;
    Some(CidrRange {
        // Istio keeps the address as written, host bits included.
        address_prefix: net.addr().to_string(),
        prefix_len: u32_value(u32::from(net.prefix_len())),
    })
}

/// Reads an address or a CIDR.
pub(crate) fn parse_net(text: &str) -> Option<ipnet::IpNet> {
    text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(ipnet::IpNet::from))
}

/// "Ask the same ADS stream", without a time limit on the first answer.
pub(crate) fn ads() -> ConfigSource {
    ConfigSource { initial_fetch_timeout: zero_duration(), ..ads_with_timeout() }
}

/// The same, with the proxy's default time limit, for what may never come.
pub(crate) fn ads_with_timeout() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..Default::default()
    }
}

pub(crate) fn inline_string(text: impl Into<String>) -> DataSource {
    DataSource {
        specifier: Some(data_source::Specifier::InlineString(text.into())),
        ..Default::default()
    }
}

pub(crate) fn inline_bytes(bytes: Vec<u8>) -> DataSource {
    DataSource { specifier: Some(data_source::Specifier::InlineBytes(bytes)), ..Default::default() }
}

pub(crate) fn exact(text: &str) -> StringMatcher {
    pattern(MatchPattern::Exact(text.to_owned()))
}

pub(crate) fn prefix(text: &str) -> StringMatcher {
    pattern(MatchPattern::Prefix(text.to_owned()))
}

pub(crate) fn safe_regex(text: &str) -> StringMatcher {
    pattern(MatchPattern::SafeRegex(regex(text)))
}

pub(crate) fn regex(text: &str) -> RegexMatcher {
    RegexMatcher { regex: text.to_owned(), ..Default::default() }
}

fn pattern(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ..Default::default() }
}

/// A whole percentage.
pub(crate) fn percent(whole: u32) -> FractionalPercent {
    FractionalPercent { numerator: whole, denominator: DenominatorType::Hundred.into() }
}

/// A percentage with Istio's precision of a ten-thousandth.
pub(crate) fn fine_percent(value: f64) -> FractionalPercent {
    // The cast saturates, so a negative or absurd value cannot wrap.
    let numerator = (value * 10_000.0) as u32;
    FractionalPercent { numerator, denominator: DenominatorType::Million.into() }
}

pub(crate) fn runtime_percent(percent: FractionalPercent) -> RuntimeFractionalPercent {
    RuntimeFractionalPercent { default_value: Some(percent), runtime_key: String::new() }
}

pub(crate) fn string_value(text: impl Into<String>) -> Value {
    Value { kind: Some(Kind::StringValue(text.into())) }
}

pub(crate) fn bool_json(value: bool) -> Value {
    Value { kind: Some(Kind::BoolValue(value)) }
}

pub(crate) fn struct_value(fields: BTreeMap<String, Value>) -> Value {
    Value { kind: Some(Kind::StructValue(structure(fields))) }
}

pub(crate) fn list_value(values: Vec<Value>) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values })) }
}

pub(crate) fn structure(fields: BTreeMap<String, Value>) -> Struct {
    Struct { fields: fields.into_iter().collect() }
}

/// Metadata with these namespaces; `None` when there are none.
pub(crate) fn metadata(namespaces: BTreeMap<String, BTreeMap<String, Value>>) -> Option<Metadata> {
    if namespaces.is_empty() {
        return None;
    }
    let structs = namespaces.into_iter().map(|(name, fields)| (name, structure(fields))).collect();
    Some(Metadata { filter_metadata: structs, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ranges_are_read() {
        assert_eq!(cidr("1.2.3.4").and_then(|c| c.prefix_len).map(|l| l.value), Some(32));
        assert_eq!(cidr("fd00::/8").map(|c| c.address_prefix), Some("fd00::".to_owned()));
        assert_eq!(cidr("nonsense"), None);
    }

    #[test]
    fn percentages_never_wrap() {
        assert_eq!(fine_percent(0.5).numerator, 5000);
        assert_eq!(fine_percent(-1.0).numerator, 0);
        assert_eq!(fine_percent(f64::NAN).numerator, 0);
    }
}
