//! Which secrets a proxy may have, and which it asks for.
//!
//! Invariant: a secret of another namespace goes to a gateway only if a
//! ReferenceGrant there says so. A gateway has its own namespace's secrets; a
//! sidecar those that a rule for selected workloads, or its Sidecar, names.

use std::collections::BTreeSet;

use amime_api::networking::{
    ClientTlsMode, ClientTlsSettings, DestinationRule, ServerTlsMode, ServerTlsSettings,
    TrafficPolicy,
};

use crate::context::{Context, Direction};
use crate::proxy::ProxyKind;
use crate::sds::{
    CA_SUFFIX, CONFIG_MAP, KUBERNETES, KUBERNETES_GATEWAY, is_platform_secret, resource_name,
};

/// Where a credential is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// A secret of the proxy's namespace.
    Secret,
    /// A secret that a gateway's configuration names with its namespace.
    GatewaySecret,
    /// A config map, which holds roots only.
    ConfigMap,
}

/// Name of a secret resource, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credential<'n> {
    pub(crate) store: Store,
    pub(crate) namespace: &'n str,
    pub(crate) name: &'n str,
    resource: &'n str,
}

impl<'n> Credential<'n> {
    /// Reads `SCHEME://[NAMESPACE/]NAME`; only secrets may go without a
    /// namespace, which is `own` then.
    pub(crate) fn parse(resource: &'n str, own: &'n str) -> Option<Self> {
        let schemes = [
            (KUBERNETES, Store::Secret),
            (KUBERNETES_GATEWAY, Store::GatewaySecret),
            (CONFIG_MAP, Store::ConfigMap),
        ];
        let (path, store) = schemes
            .iter()
            .find_map(|(scheme, store)| Some((resource.strip_prefix(scheme)?, *store)))?;
        let (namespace, name) = match path.split_once('/') {
            Some(parts) => parts,
            None if store == Store::Secret => (own, path),
            None => return None,
        };
        let usable = !namespace.is_empty() && !name.is_empty();
        usable.then_some(Self { store, namespace, name, resource })
    }
}

/// True if the proxy may have it.
pub(crate) fn is_allowed(context: &Context<'_>, credential: &Credential<'_>) -> bool {
    let own = credential.namespace == context.proxy.namespace;
    match (credential.store, context.proxy.kind) {
        // Roots are no secret, and it is clients who read those of servers.
        (Store::ConfigMap, _) => true,
        (Store::Secret, ProxyKind::Router) => own,
        (Store::Secret, ProxyKind::Sidecar) => own && names(context).contains(credential.resource),
        (Store::GatewaySecret, ProxyKind::Sidecar) => false,
        (Store::GatewaySecret, ProxyKind::Router) => {
            let Credential { namespace, name, .. } = credential;
            let granted =
                || context.snapshot.grants_secret(&context.proxy.namespace, namespace, name);
            referring(context, credential)
                .any(|gateway| (own && gateway == context.proxy.namespace) || granted())
        }
    }
}

/// Namespaces of the gateways that refer to it.
fn referring<'c>(
    context: &'c Context<'_>,
    credential: &'c Credential<'_>,
) -> impl Iterator<Item = &'c str> {
    let servers = context.gateway().all_servers().filter(|server| {
        let mut names = BTreeSet::new();
        if let Some(tls) = &server.spec.tls {
            add_server(context, tls, &mut names);
        }
        names.contains(credential.resource)
    });
    servers.map(|server| server.name.namespace.as_str())
}

/// True if it holds the roots that peers are checked against.
pub(crate) fn is_authority(context: &Context<'_>, credential: &Credential<'_>) -> bool {
    let named = |tls: &ServerTlsSettings| {
        let name = tls.ca_cert_credential_name.as_str();
        !name.is_empty() && resource_name(name) == credential.resource
    };
    credential.name.ends_with(CA_SUFFIX) || server_settings(context).into_iter().any(named)
}

/// TLS settings of all servers that the proxy runs.
fn server_settings<'c>(context: &'c Context<'_>) -> Vec<&'c ServerTlsSettings> {
    match context.proxy.kind {
        ProxyKind::Router => {
            context.gateway().all_servers().filter_map(|server| server.spec.tls.as_ref()).collect()
        }
        ProxyKind::Sidecar => {
            context.scope.ingress().iter().filter_map(|ingress| ingress.tls.as_ref()).collect()
        }
    }
}

/// Names of the secret resources that the proxy's configuration refers to.
pub(crate) fn names(context: &Context<'_>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for tls in server_settings(context) {
        add_server(context, tls, &mut names);
    }
    for service in &context.scope.services {
        let rule = context.destination_rule(&service.hostname, Direction::Outbound);
        if let Some(rule) = rule.map(|rule| rule.spec()) {
            add_rule(context, rule, &mut names);
        }
    }
    names
}

fn add_server(context: &Context<'_>, tls: &ServerTlsSettings, names: &mut BTreeSet<String>) {
    let checks = matches!(tls.mode, ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual);
    let mut add = |name: &str| {
        if is_platform_secret(context, name) {
            names.insert(resource_name(name));
        }
    };
    let own: Vec<&String> = match tls.credential_names.as_slice() {
        [] => vec![&tls.credential_name],
        many => many.iter().collect(),
    };
    own.iter().for_each(|name| add(name));
    match (own.first(), tls.ca_cert_credential_name.as_str()) {
        _ if !checks => {}
        (Some(first), "") if !first.is_empty() => add(&format!("{first}{CA_SUFFIX}")),
        (_, named) => add(named),
    }
}

fn add_rule(context: &Context<'_>, rule: &DestinationRule, names: &mut BTreeSet<String>) {
    let selected = rule.workload_selector.is_some() || context.proxy.kind == ProxyKind::Router;
    let subsets = rule.subsets.iter().map(|subset| subset.traffic_policy.as_ref());
    let policies = std::iter::once(rule.traffic_policy.as_ref()).chain(subsets).flatten();
    for tls in policies.flat_map(settings_of) {
        let name = tls.credential_name.as_str();
        let usable = selected || name.starts_with(CONFIG_MAP);
        let client = matches!(tls.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual);
        if !usable || !client || !is_platform_secret(context, name) {
            continue;
        }
        if tls.mode == ClientTlsMode::Mutual {
            names.insert(resource_name(name));
        }
        if tls.insecure_skip_verify != Some(true) {
            names.insert(resource_name(&format!("{name}{CA_SUFFIX}")));
        }
    }
}

fn settings_of(policy: &TrafficPolicy) -> impl Iterator<Item = &ClientTlsSettings> {
    let ports = policy.port_level_settings.iter().map(|setting| setting.tls.as_ref());
    std::iter::once(policy.tls.as_ref()).chain(ports).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_secrets_may_leave_their_namespace_open() {
        let parse = |name: &'static str| {
            Credential::parse(name, "own").map(|c| (c.store, c.namespace, c.name))
        };
        assert_eq!(parse("kubernetes://a"), Some((Store::Secret, "own", "a")));
        assert_eq!(parse("kubernetes://b/a"), Some((Store::Secret, "b", "a")));
        assert_eq!(parse("kubernetes-gateway://b/a"), Some((Store::GatewaySecret, "b", "a")));
        for name in ["configmap://a", "kubernetes-gateway://a", "kubernetes:///a", "default"] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
