//! Descriptors of the messages in `src/istio/`, which no `.proto` file has.
//!
//! Field numbers and names are the interface; a test compares them with the
//! Rust structs by a round trip through JSON.

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto,
    FileDescriptorProto, MessageOptions, OneofDescriptorProto,
};

const STRUCT: &str = ".google.protobuf.Struct";
const DURATION: &str = ".google.protobuf.Duration";

/// Adds fields that Envoy's messages have by now and `envoy-types` does not
/// know, so that configuration may name them. Decoded, they are dropped.
pub(crate) fn add_newer_fields(files: &mut [FileDescriptorProto]) {
    let file =
        files.iter_mut().find(|file| file.name() == "envoy/config/core/v3/health_check.proto");
    let messages = file.map(|file| &mut file.message_type).expect("Envoy has health checks");
    let check = messages.iter_mut().find(|message| message.name() == "HealthCheck");
    let check = check.expect("the file is named after it");
    // A newer `envoy-types` has the field: then this goes.
    assert!(check.field.iter().all(|field| field.number() != 27), "HealthCheck.name is known");
    check.field.push(string("name", 27));
}

/// One file a package.
pub(crate) fn files() -> Vec<FileDescriptorProto> {
    let typed_struct =
        || message("TypedStruct", vec![string("type_url", 1), one("value", 2, STRUCT)]);
    vec![
        file("xds.type.v3", vec![typed_struct()], vec![]),
        file("udpa.type.v1", vec![typed_struct()], vec![]),
        name_table(),
        stats(),
        peer_metadata(),
        alpn(),
        metadata_exchange(),
        certificates(),
    ]
}

fn name_table() -> FileDescriptorProto {
    let mut table = message("NameTable", vec![]);
    let info = ".istio.networking.nds.v1.NameTable.NameInfo";
    add_map(&mut table, "table", 1, "istio.networking.nds.v1.NameTable", Some(info));
    table.nested_type.push(message(
        "NameInfo",
        vec![
            strings("ips", 1),
            string("registry", 2),
            string("shortname", 3),
            string("namespace", 4),
        ],
    ));
    file("istio.networking.nds.v1", vec![table], vec![])
}

fn stats() -> FileDescriptorProto {
    let config = message(
        "PluginConfig",
        vec![
            boolean("disable_host_header_fallback", 6),
            one("tcp_reporting_duration", 7, DURATION),
            many("metrics", 8, ".stats.MetricConfig"),
            many("definitions", 9, ".stats.MetricDefinition"),
            enumerated("reporter", 10, ".stats.Reporter"),
            one("rotation_interval", 11, DURATION),
            one("graceful_deletion_interval", 12, DURATION),
        ],
    );
    let mut metric = message(
        "MetricConfig",
        vec![
            string("name", 2),
            strings("tags_to_remove", 3),
            string("match", 4),
            boolean("drop", 5),
        ],
    );
    add_map(&mut metric, "dimensions", 1, "stats.MetricConfig", None);
    let definition = message(
        "MetricDefinition",
        vec![string("name", 1), string("value", 2), enumerated("type", 3, ".stats.MetricType")],
    );
    let enums = vec![
        enumeration("MetricType", &["COUNTER", "GAUGE", "HISTOGRAM"]),
        enumeration("Reporter", &["UNSPECIFIED", "SERVER_GATEWAY"]),
    ];
    file("stats", vec![config, metric, definition], enums)
}

fn peer_metadata() -> FileDescriptorProto {
    const CONFIG: &str = ".io.istio.http.peer_metadata.Config";
    let nested = |name: &str| format!("{CONFIG}.{name}");
    let mut config = message(
        "Config",
        vec![
            many("downstream_discovery", 1, &nested("DiscoveryMethod")),
            many("upstream_discovery", 2, &nested("DiscoveryMethod")),
            many("downstream_propagation", 3, &nested("PropagationMethod")),
            many("upstream_propagation", 4, &nested("PropagationMethod")),
            boolean("shared_with_upstream", 5),
            strings("additional_labels", 6),
        ],
    );
    let methods = |methods: &[(&str, &str)]| {
        let fields = methods.iter().zip(1..).map(|((name, of), number)| FieldDescriptorProto {
            oneof_index: Some(0),
            ..one(name, number, &nested(of))
        });
        fields.collect::<Vec<_>>()
    };
    let discovery = [
        ("baggage", "Baggage"),
        ("workload_discovery", "WorkloadDiscovery"),
        ("istio_headers", "IstioHeaders"),
    ];
    config.nested_type = vec![
        message("Baggage", vec![]),
        message("WorkloadDiscovery", vec![]),
        message("IstioHeaders", vec![boolean("skip_external_clusters", 1)]),
        oneof(message("DiscoveryMethod", methods(&discovery))),
        oneof(message("PropagationMethod", methods(&discovery[2..]))),
    ];
    file("io.istio.http.peer_metadata", vec![config], vec![])
}

fn alpn() -> FileDescriptorProto {
    const PACKAGE: &str = "istio.envoy.config.filter.http.alpn.v2alpha1";
    let nested = |name: &str| format!(".{PACKAGE}.FilterConfig.{name}");
    let mut config =
        message("FilterConfig", vec![many("alpn_override", 1, &nested("AlpnOverride"))]);
    config.nested_type = vec![message(
        "AlpnOverride",
        vec![enumerated("upstream_protocol", 1, &nested("Protocol")), strings("alpn_override", 2)],
    )];
    config.enum_type = vec![enumeration("Protocol", &["HTTP10", "HTTP11", "HTTP2"])];
    file(PACKAGE, vec![config], vec![])
}

fn metadata_exchange() -> FileDescriptorProto {
    let fields = vec![
        string("protocol", 1),
        boolean("enable_discovery", 2),
        strings("additional_labels", 3),
    ];
    file("envoy.tcp.metadataexchange.config", vec![message("MetadataExchange", fields)], vec![])
}

fn certificates() -> FileDescriptorProto {
    let request = message(
        "IstioCertificateRequest",
        vec![
            string("csr", 1),
            field("validity_duration", 3, Label::Optional, Type::Int64, None),
            one("metadata", 4, STRUCT),
        ],
    );
    let response = message("IstioCertificateResponse", vec![strings("cert_chain", 1)]);
    file("istio.v1.auth", vec![request, response], vec![])
}

fn file(
    package: &str,
    messages: Vec<DescriptorProto>,
    enums: Vec<EnumDescriptorProto>,
) -> FileDescriptorProto {
    FileDescriptorProto {
        name: Some(format!("amime/{package}.proto")),
        package: Some(package.to_owned()),
        dependency: vec![
            "google/protobuf/struct.proto".to_owned(),
            "google/protobuf/duration.proto".to_owned(),
        ],
        message_type: messages,
        enum_type: enums,
        syntax: Some("proto3".to_owned()),
        ..Default::default()
    }
}

fn message(name: &str, field: Vec<FieldDescriptorProto>) -> DescriptorProto {
    DescriptorProto { name: Some(name.to_owned()), field, ..Default::default() }
}

fn oneof(mut message: DescriptorProto) -> DescriptorProto {
    message.oneof_decl =
        vec![OneofDescriptorProto { name: Some("method_specifier".to_owned()), options: None }];
    message
}

fn enumeration(name: &str, values: &[&str]) -> EnumDescriptorProto {
    let value = values.iter().zip(0..).map(|(name, number)| EnumValueDescriptorProto {
        name: Some((*name).to_owned()),
        number: Some(number),
        options: None,
    });
    EnumDescriptorProto {
        name: Some(name.to_owned()),
        value: value.collect(),
        ..Default::default()
    }
}

fn field(
    name: &str,
    number: i32,
    label: Label,
    kind: Type,
    type_name: Option<&str>,
) -> FieldDescriptorProto {
    FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        label: Some(label as i32),
        r#type: Some(kind as i32),
        type_name: type_name.map(str::to_owned),
        ..Default::default()
    }
}

fn string(name: &str, number: i32) -> FieldDescriptorProto {
    field(name, number, Label::Optional, Type::String, None)
}

fn strings(name: &str, number: i32) -> FieldDescriptorProto {
    field(name, number, Label::Repeated, Type::String, None)
}

fn boolean(name: &str, number: i32) -> FieldDescriptorProto {
    field(name, number, Label::Optional, Type::Bool, None)
}

fn one(name: &str, number: i32, of: &str) -> FieldDescriptorProto {
    field(name, number, Label::Optional, Type::Message, Some(of))
}

fn many(name: &str, number: i32, of: &str) -> FieldDescriptorProto {
    field(name, number, Label::Repeated, Type::Message, Some(of))
}

fn enumerated(name: &str, number: i32, of: &str) -> FieldDescriptorProto {
    field(name, number, Label::Optional, Type::Enum, Some(of))
}

/// Adds a map of string keys to strings or to messages of `value_type`;
/// `owner` is the full name of `message`.
fn add_map(
    message: &mut DescriptorProto,
    name: &str,
    number: i32,
    owner: &str,
    value_type: Option<&str>,
) {
    let value = if value_type.is_some() { Type::Message } else { Type::String };
    let capital = name[..1].to_uppercase();
    let entry = format!("{capital}{}Entry", &name[1..]);
    message.field.push(many(name, number, &format!(".{owner}.{entry}")));
    message.nested_type.push(DescriptorProto {
        name: Some(entry),
        field: vec![string("key", 1), field("value", 2, Label::Optional, value, value_type)],
        options: Some(MessageOptions { map_entry: Some(true), ..Default::default() }),
        ..Default::default()
    });
}
