//! `/config_dump`: everything in force, as proto-JSON.
//!
//! The bodies are printed all at once by the [`Converter`](crate::json::Converter).

use std::time::SystemTime;

use ::http::StatusCode;
use amime_engine::runtime::{ResourceDump, RuntimeDump};
use amime_xds::TypeUrl;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
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
    if query.param("mask").is_some_and(|mask| !mask.is_empty()) {
        return text(StatusCode::BAD_REQUEST, "mask is not supported; use resource\n");
    }
    let name = match query.param("name_regex").filter(|regex| !regex.is_empty()) {
        None => None,
        Some(regex) => match RegexBuilder::new(regex).size_limit(256 * 1024).build() {
            Ok(regex) => Some(regex),
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        },
    };
    let resource = query.param("resource").filter(|resource| !resource.is_empty());
    let with_endpoints = query.params.contains_key("include_eds")
        || resource.is_some_and(|resource| resource.ends_with("endpoint_configs"));
    let mut dump = context.runtime.dump();
    dump.resources.extend(own_secrets(context));
    dump.resources.retain(|one| {
        let shown = one.type_url != TypeUrl::Endpoint || with_endpoints;
        shown && name.as_ref().is_none_or(|regex| regex.is_match(&one.name))
    });
    let configs = sections(context, &dump, with_endpoints).await;
    let mut configs = match resource {
        None => Value::Array(configs),
        Some(field) => match pick(&configs, field) {
            Some(entries) => Value::Array(entries),
            None => {
                let message = format!("{field} not found in config dump\n");
                return text(StatusCode::NOT_FOUND, message);
            }
        },
    };
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
    })];
    let printed: Vec<_> = dump.resources.iter().zip(bodies).collect();
    for section in &SECTIONS {
        if section.type_url != TypeUrl::Endpoint || with_endpoints {
            configs.push(section.print(&printed));
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
        Some(Value::Array(entries)) => Some(entries.clone()),
        Some(other) => Some(vec![other.clone()]),
        // A field without entries is left out of its section.
        None if known => Some(vec![]),
        None => None,
    }
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
