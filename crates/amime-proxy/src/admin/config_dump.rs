//! `/config_dump`: everything in force, as proto-JSON.
//!
//! The bodies are printed all at once by the [`Converter`](crate::json::Converter).

use std::time::SystemTime;

use ::http::StatusCode;
use amime_engine::runtime::{ResourceDump, RuntimeDump};
use amime_xds::TypeUrl;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::config::listener::v3::{Listener, filter};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use prost::{Message, Name};
use regex::RegexBuilder;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Context;
use super::http::{Answer, Query, json as json_answer, text};
use super::mask::Mask;
use super::redact::redact;
use crate::agent::{CERTIFICATE, ROOTS};
use crate::json::Work;

const ADMIN: &str = "type.googleapis.com/envoy.admin.v3.";

/// One kind of resource in the dump.
struct Section {
    type_url: TypeUrl,
    /// Message of the section.
    message: &'static str,
    /// Field with resources of the bootstrap.
    fixed: &'static str,
    /// Field with resources in force.
    active: &'static str,
    /// Field with resources that wait for others, if apart.
    warming: Option<&'static str>,
    /// Field of the entry that holds the resource.
    entry: &'static str,
}

const SECTIONS: [Section; 5] = [
    Section {
        type_url: TypeUrl::Cluster,
        message: "ClustersConfigDump",
        fixed: "static_clusters",
        active: "dynamic_active_clusters",
        warming: Some("dynamic_warming_clusters"),
        entry: "cluster",
    },
    Section {
        type_url: TypeUrl::Endpoint,
        message: "EndpointsConfigDump",
        fixed: "static_endpoint_configs",
        active: "dynamic_endpoint_configs",
        warming: None,
        entry: "endpoint_config",
    },
    Section {
        type_url: TypeUrl::Listener,
        message: "ListenersConfigDump",
        fixed: "static_listeners",
        active: "dynamic_listeners",
        warming: None,
        entry: "listener",
    },
    Section {
        type_url: TypeUrl::Route,
        message: "RoutesConfigDump",
        fixed: "static_route_configs",
        active: "dynamic_route_configs",
        warming: None,
        entry: "route_config",
    },
    Section {
        type_url: TypeUrl::Secret,
        message: "SecretsConfigDump",
        fixed: "static_secrets",
        active: "dynamic_active_secrets",
        warming: Some("dynamic_warming_secrets"),
        entry: "secret",
    },
];

/// Answers a request for the dump.
pub(super) async fn answer(context: &Context, query: &Query) -> Answer {
    let name = match query.param("name_regex").filter(|regex| !regex.is_empty()) {
        None => None,
        Some(regex) => match RegexBuilder::new(regex).size_limit(256 * 1024).build() {
            Ok(regex) => Some(regex),
            Err(error) => {
                let message = format!("Error while parsing name_regex from {regex}: {error}\n");
                return text(StatusCode::BAD_REQUEST, message);
            }
        },
    };
    let resource = query.param("resource").filter(|resource| !resource.is_empty());
    let with_endpoints = query.params.contains_key("include_eds")
        || resource.is_some_and(|resource| resource.ends_with("endpoint_configs"));
    let mut dump = context.runtime.dump();
    dump.resources.extend(own_secrets(context));
    let inline: Vec<_> = dump.resources.iter().flat_map(inline_routes).collect();
    dump.resources.extend(inline);
    dump.resources.retain(|one| {
        let shown = one.type_url != TypeUrl::Endpoint || with_endpoints;
        shown && name.as_ref().is_none_or(|regex| regex.is_match(&one.name))
    });
    let configs = sections(context, &dump, with_endpoints).await;
    let mut configs = match resource {
        None => configs,
        Some(field) => match pick(&configs, field) {
            Some(entries) => entries,
            None => {
                let message = format!("{field} not found in config dump");
                return text(StatusCode::NOT_FOUND, message);
            }
        },
    };
    if let Some(mask) = query.param("mask").filter(|mask| !mask.is_empty()) {
        let asked = !configs.is_empty();
        let mask = Mask::parse(mask);
        configs = configs.iter().filter_map(|config| mask.keep(config)).collect();
        if asked && configs.is_empty() {
            let message = "FieldMask: no field of the dump has this path\n";
            return text(StatusCode::BAD_REQUEST, message);
        }
    }
    let mut configs = Value::Array(configs);
    redact(&mut configs);
    json_answer(&json!({ "configs": configs }))
}

/// All sections in Envoy's order.
async fn sections(context: &Context, dump: &RuntimeDump, with_endpoints: bool) -> Vec<Value> {
    let mut work = Work::default();
    work.print(&Bootstrap::type_url(), context.bootstrap.encode_to_vec().into());
    for resource in &dump.resources {
        work.print(resource.type_url.as_str(), resource.body.clone());
    }
    let mut bodies = context.converter.print(&work).await.into_iter();
    let mut bootstrap = bodies.next().unwrap_or_default();
    if let Value::Object(fields) = &mut bootstrap {
        fields.remove("@type");
    }
    let mut configs = vec![json!({
        "@type": format!("{ADMIN}BootstrapConfigDump"),
        "bootstrap": bootstrap,
        "last_updated": timestamp(SystemTime::now() - context.telemetry.uptime()),
    })];
    let printed: Vec<_> = dump.resources.iter().zip(bodies).collect();
    for section in &SECTIONS {
        if section.type_url != TypeUrl::Endpoint || with_endpoints {
            configs.push(section.print(&printed));
        }
        if section.type_url == TypeUrl::Listener {
            configs.push(json!({ "@type": format!("{ADMIN}ScopedRoutesConfigDump") }));
        }
    }
    configs
}

/// The entries of one field, as `?resource=` asks for.
fn pick(configs: &[Value], field: &str) -> Option<Vec<Value>> {
    let known = SECTIONS.iter().any(|section| {
        [Some(section.fixed), Some(section.active), section.warming].contains(&Some(field))
    });
    let found = configs.iter().find_map(|config| config.get(field));
    match found {
        Some(Value::Array(entries)) => {
            let typed = |entry: &Value| {
                let mut entry = entry.clone();
                entry["@type"] = json!(entry_type(field));
                entry
            };
            Some(entries.iter().map(typed).collect())
        }
        Some(other) => Some(vec![other.clone()]),
        // A field without entries is left out of its section.
        None if known => Some(vec![]),
        None => None,
    }
}

/// Message of one entry of a field, as `ClustersConfigDump.StaticCluster`.
fn entry_type(field: &str) -> String {
    let fields =
        |one: &&Section| [Some(one.fixed), Some(one.active), one.warming].contains(&Some(field));
    let Some(section) = SECTIONS.iter().find(fields) else { return String::new() };
    let kind = match section.type_url {
        TypeUrl::Cluster => "Cluster",
        TypeUrl::Endpoint => "EndpointConfig",
        TypeUrl::Listener => "Listener",
        TypeUrl::Route => "RouteConfig",
        _ => "Secret",
    };
    let origin = if field == section.fixed { "Static" } else { "Dynamic" };
    format!("{ADMIN}{}.{origin}{kind}", section.message)
}

/// Route configurations that stand in a listener: Envoy shows them as static
/// ones.
fn inline_routes(resource: &ResourceDump) -> Vec<ResourceDump> {
    let listener = match resource.type_url {
        TypeUrl::Listener => Listener::decode(resource.body.clone()),
        _ => return vec![],
    };
    let Ok(listener) = listener else { return vec![] };
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    let configs = chains.flat_map(|chain| &chain.filters).filter_map(|it| it.config_type.as_ref());
    let mut found = vec![];
    for config in configs {
        let filter::ConfigType::TypedConfig(any) = config else { continue };
        if !any.type_url.ends_with(&HttpConnectionManager::full_name()) {
            continue;
        }
        let Ok(manager) = HttpConnectionManager::decode(any.value.as_slice()) else { continue };
        if let Some(RouteSpecifier::RouteConfig(routes)) = manager.route_specifier {
            let routes = amime_xds::Resource::encode(routes.name.clone(), &routes);
            found.push(ResourceDump {
                type_url: TypeUrl::Route,
                name: routes.name,
                version: routes.version,
                body: routes.body,
                is_static: true,
                ignored_fields: vec![],
                rejected: None,
                ..resource.clone()
            });
        }
    }
    found
}

impl Section {
    fn print(&self, printed: &[(&ResourceDump, Value)]) -> Value {
        let mut section = Map::new();
        section.insert("@type".into(), json!(format!("{ADMIN}{}", self.message)));
        for (resource, body) in printed.iter().filter(|(one, _)| one.type_url == self.type_url) {
            let field = match (resource.is_static, resource.warming, self.warming) {
                (true, ..) => self.fixed,
                (false, true, Some(warming)) => warming,
                _ => self.active,
            };
            let entries = section.entry(field).or_insert_with(|| json!([]));
            if let Value::Array(entries) = entries {
                entries.push(self.entry(resource, body));
            }
        }
        Value::Object(section)
    }

    fn entry(&self, resource: &ResourceDump, body: &Value) -> Value {
        let state = (!resource.body.is_empty()).then(|| self.state(resource, body));
        let error = resource.rejected.as_ref().map(|rejected| {
            json!({
                "last_update_attempt": timestamp(rejected.at),
                "details": rejected.error,
                "version_info": &*rejected.version,
            })
        });
        let mut entry = Map::new();
        match (self.type_url, resource.is_static) {
            // A dynamic listener's state stands under one more name.
            (TypeUrl::Listener, false) => {
                entry.insert("name".into(), json!(resource.name));
                let field = if resource.warming { "warming_state" } else { "active_state" };
                if let Some(state) = state {
                    entry.insert(field.into(), Value::Object(state));
                }
            }
            (TypeUrl::Secret, _) => {
                entry.insert("name".into(), json!(resource.name));
                entry.extend(state.unwrap_or_default());
            }
            _ => entry.extend(state.unwrap_or_default()),
        }
        if let Some(error) = error {
            entry.insert("error_state".into(), error);
        }
        Value::Object(entry)
    }

    fn state(&self, resource: &ResourceDump, body: &Value) -> Map<String, Value> {
        let mut state = Map::new();
        if !resource.is_static {
            state.insert("version_info".into(), json!(&*resource.version));
        }
        state.insert(self.entry.into(), body.clone());
        state.insert("last_updated".into(), json!(timestamp(resource.last_updated)));
        state
    }
}

/// RFC 3339.
pub(super) fn timestamp(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}

/// The workload's own certificate and roots, which came over no SDS.
fn own_secrets(context: &Context) -> Vec<ResourceDump> {
    let Some(identity) = &context.identity else { return vec![] };
    let inline = |text: String| DataSource {
        specifier: Some(Specifier::InlineBytes(text.into_bytes())),
        ..DataSource::default()
    };
    let mut secrets = vec![];
    if let Some(cert) = identity.cert.current() {
        let certificate = TlsCertificate {
            certificate_chain: Some(inline(cert.chain_pem())),
            private_key: Some(inline("[redacted]".into())),
            ..TlsCertificate::default()
        };
        let kind = secret::Type::TlsCertificate(certificate);
        secrets.push(own_secret(CERTIFICATE, kind, cert.not_before()));
    }
    let roots = identity.roots.current();
    if !roots.is_empty() {
        let context = CertificateValidationContext {
            trusted_ca: Some(inline(roots.to_pem())),
            ..CertificateValidationContext::default()
        };
        let since = identity.cert.current().map_or(SystemTime::UNIX_EPOCH, |c| c.not_before());
        secrets.push(own_secret(ROOTS, secret::Type::ValidationContext(context), since));
    }
    secrets
}

fn own_secret(name: &str, kind: secret::Type, since: SystemTime) -> ResourceDump {
    let secret = Secret { name: name.to_owned(), r#type: Some(kind) };
    let resource = amime_xds::Resource::encode(name, &secret);
    ResourceDump {
        type_url: TypeUrl::Secret,
        name: resource.name,
        version: resource.version,
        body: resource.body,
        last_updated: since,
        is_static: false,
        warming: false,
        ignored_fields: vec![],
        rejected: None,
    }
}
