//! Rules about single objects: dispatch by kind, and what all kinds share.

use std::collections::BTreeSet;

use amime_api::{ObjectMeta, Resource};
use amime_core::NamespacedName;

use crate::problem::{At, Problem, Report};
use crate::{
    destination_rule, envoy_filter, extensions, gateway, platform, security, service_entry,
    sidecar, syntax, virtual_service,
};

/// Virtual services that others delegate to; only these may lack hosts.
#[derive(Clone, Debug, Default)]
pub struct Delegates(BTreeSet<NamespacedName>);

impl Delegates {
    /// Collects the references made by `resources`.
    pub fn of<'a>(resources: impl IntoIterator<Item = &'a Resource>) -> Self {
        let services = resources.into_iter().filter_map(|resource| match resource {
            Resource::VirtualService(object) => Some(object),
            _ => None,
        });
        let references = services.flat_map(|object| {
            let own = object.metadata.namespace.as_str();
            object.spec.http.iter().filter_map(move |route| {
                let delegate = route.delegate.as_ref()?;
                let namespace =
                    if delegate.namespace.is_empty() { own } else { &delegate.namespace };
                Some(NamespacedName::new(namespace, &delegate.name))
            })
        });
        Self(references.collect())
    }

    fn contains(&self, metadata: &ObjectMeta) -> bool {
        self.0.contains(&NamespacedName::new(&metadata.namespace, &metadata.name))
    }
}

/// Problems of one object on its own; any [`Severity::Error`](crate::Severity::Error) means that
/// it must be refused.
pub fn validate(resource: &Resource) -> Vec<Problem> {
    validate_with(resource, &Delegates::default())
}

/// Like [`validate`], for an object beside others: a virtual service that one of them delegates to
/// needs no hosts.
pub fn validate_with(resource: &Resource, delegates: &Delegates) -> Vec<Problem> {
    let mut report = Report::default();
    check_metadata(resource.metadata(), &mut report);
    let at = At::root("spec");
    match resource {
        Resource::VirtualService(object) => {
            let delegate = delegates.contains(&object.metadata);
            virtual_service::check(&object.spec, delegate, &at, &mut report);
        }
        Resource::DestinationRule(object) => {
            destination_rule::check(&object.spec, &at, &mut report);
        }
        Resource::Gateway(object) => gateway::check(&object.spec, &at, &mut report),
        Resource::ServiceEntry(object) => service_entry::check(&object.spec, &at, &mut report),
        Resource::WorkloadEntry(object) => {
            service_entry::check_workload(&object.spec, &at, &mut report);
        }
        Resource::WorkloadGroup(object) => {
            service_entry::check_group(&object.spec, &at, &mut report);
        }
        Resource::Sidecar(object) => sidecar::check(&object.spec, &at, &mut report),
        Resource::ProxyConfig(object) => extensions::check_proxy(&object.spec, &at, &mut report),
        Resource::EnvoyFilter(object) => envoy_filter::check(&object.spec, &at, &mut report),
        Resource::PeerAuthentication(object) => {
            security::check_peer(&object.spec, &at, &mut report);
        }
        Resource::RequestAuthentication(object) => {
            security::check_request(&object.spec, &at, &mut report);
        }
        Resource::AuthorizationPolicy(object) => {
            security::check_authorization(&object.spec, &at, &mut report);
        }
        Resource::Telemetry(object) => extensions::check_telemetry(&object.spec, &at, &mut report),
        Resource::WasmPlugin(object) => extensions::check_wasm(&object.spec, &at, &mut report),
        Resource::TrafficExtension(object) => {
            extensions::check_extension(&object.spec, &at, &mut report);
        }
        other => platform::check(other, &mut report),
    }
    report.into_problems()
}

fn check_metadata(metadata: &ObjectMeta, report: &mut Report) {
    let at = At::root("metadata");
    if !metadata.name.is_empty() {
        report.check(&at.field("name"), syntax::dns_subdomain(&metadata.name));
    }
    if !metadata.namespace.is_empty() {
        report.check(&at.field("namespace"), syntax::dns_label(&metadata.namespace));
    }
    for (key, value) in &metadata.labels {
        let at = at.field("labels").key(key);
        report.check(&at, syntax::label_key(key).and_then(|()| syntax::label_value(value)));
    }
}
