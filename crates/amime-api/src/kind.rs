//! The kinds: names, groups, versions, scope.
//!
//! What `get` prints of each kind is in [`crate::columns`].

use std::fmt;
use std::str::FromStr;

const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";
const ALL_ISTIO: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const SECURITY_VERSIONS: &[&str] = &["v1", "v1beta1"];
const WORKLOADS: &[(&str, &[&str])] =
    &[("apps", &["v1", "v1beta2", "v1beta1"]), ("extensions", &["v1beta1"])];
const CORE: &[(&str, &[&str])] = &[("", &["v1"])];
const ISTIO: &[(&str, &[&str])] = &[(NETWORKING, ALL_ISTIO)];
const POLICY: &[(&str, &[&str])] = &[(SECURITY, SECURITY_VERSIONS)];
const EXTENSIONS: &[(&str, &[&str])] = &[("extensions.istio.io", &["v1alpha1"])];

/// Facts about one kind.
struct Facts {
    kind: Kind,
    name: &'static str,
    plural: &'static str,
    short_names: &'static [&'static str],
    /// Groups with their versions, the preferred first.
    apis: &'static [(&'static str, &'static [&'static str])],
    namespaced: bool,
}

macro_rules! kinds {
    ($($kind:ident $plural:literal [$($short:literal)*] $apis:expr, $namespaced:literal;)*) => {
        /// A kind of object.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $(#[doc = concat!("`", stringify!($kind), "`.")] $kind,)*
        }

        impl Kind {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            fn facts(self) -> &'static Facts {
                match self {
                    $(Self::$kind => &Facts {
                        kind: Self::$kind,
                        name: stringify!($kind),
                        plural: $plural,
                        short_names: &[$($short),*],
                        apis: $apis,
                        namespaced: $namespaced,
                    },)*
                }
            }
        }
    };
}

kinds! {
    Namespace "namespaces" ["ns"] CORE, false;
    Node "nodes" ["no"] CORE, false;
    Service "services" ["svc"] CORE, true;
    Endpoints "endpoints" ["ep"] CORE, true;
    EndpointSlice "endpointslices" [] &[("discovery.k8s.io", &["v1", "v1beta1"])], true;
    Pod "pods" ["po"] CORE, true;
    Deployment "deployments" ["deploy"] WORKLOADS, true;
    StatefulSet "statefulsets" ["sts"] WORKLOADS, true;
    ReplicaSet "replicasets" ["rs"] WORKLOADS, true;
    DaemonSet "daemonsets" ["ds"] WORKLOADS, true;
    Job "jobs" [] &[("batch", &["v1"])], true;
    ServiceAccount "serviceaccounts" ["sa"] CORE, true;
    Secret "secrets" [] CORE, true;
    ConfigMap "configmaps" ["cm"] CORE, true;
    Ingress "ingresses" ["ing"]
        &[("networking.k8s.io", &["v1", "v1beta1"]), ("extensions", &["v1beta1"])], true;
    VirtualService "virtualservices" ["vs"] ISTIO, true;
    DestinationRule "destinationrules" ["dr"] ISTIO, true;
    Gateway "gateways" ["gw"] ISTIO, true;
    ServiceEntry "serviceentries" ["se"] ISTIO, true;
    WorkloadEntry "workloadentries" ["we"] ISTIO, true;
    WorkloadGroup "workloadgroups" ["wg"] ISTIO, true;
    Sidecar "sidecars" [] ISTIO, true;
    ProxyConfig "proxyconfigs" [] &[(NETWORKING, &["v1beta1"])], true;
    EnvoyFilter "envoyfilters" [] &[(NETWORKING, &["v1alpha3"])], true;
    PeerAuthentication "peerauthentications" ["pa"] POLICY, true;
    RequestAuthentication "requestauthentications" ["ra"] POLICY, true;
    AuthorizationPolicy "authorizationpolicies" ["ap"] POLICY, true;
    Telemetry "telemetries" ["telemetry"]
        &[("telemetry.istio.io", &["v1", "v1alpha1"])], true;
    WasmPlugin "wasmplugins" [] EXTENSIONS, true;
    TrafficExtension "trafficextensions" [] EXTENSIONS, true;
    HTTPRoute "httproutes" [] &[(crate::gateway_api::GROUP, &["v1", "v1beta1"])], true;
    ReferenceGrant "referencegrants" ["refgrant"]
        &[(crate::gateway_api::GROUP, &["v1", "v1beta1", "v1alpha2"])], true;
}

/// A text that names no kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no kind {name:?}{}", self.hint())]
pub struct UnknownKind {
    /// The text that was read.
    pub name: String,
}

impl UnknownKind {
    fn hint(&self) -> String {
        let names = Kind::ALL.iter().flat_map(|kind| {
            let facts = kind.facts();
            [facts.name, facts.plural].into_iter().chain(facts.short_names.iter().copied())
        });
        crate::suggest::hint(&self.name, names)
    }
}

impl Kind {
    /// Name as in `kind:`.
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// Lower-case plural, as in URLs.
    pub fn plural(self) -> &'static str {
        self.facts().plural
    }

    /// Lower-case singular.
    pub fn singular(self) -> String {
        self.name().to_ascii_lowercase()
    }

    /// Abbreviations.
    pub fn short_names(self) -> &'static [&'static str] {
        self.facts().short_names
    }

    /// Preferred API group; empty for core kinds.
    pub fn group(self) -> &'static str {
        self.facts().apis.first().map_or("", |(group, _)| group)
    }

    /// All API groups with their versions, the preferred first.
    pub fn apis(self) -> &'static [(&'static str, &'static [&'static str])] {
        self.facts().apis
    }

    /// Preferred `apiVersion`.
    pub fn api_version(self) -> String {
        let (group, versions) = self.facts().apis.first().copied().unwrap_or(("", &["v1"]));
        join(group, versions.first().copied().unwrap_or("v1"))
    }

    /// All values of `apiVersion` that are read.
    pub fn api_versions(self) -> Vec<String> {
        let apis = self.facts().apis.iter();
        apis.flat_map(|(group, versions)| versions.iter().map(|v| join(group, v))).collect()
    }

    /// False for cluster-wide kinds.
    pub fn is_namespaced(self) -> bool {
        self.facts().namespaced
    }

    /// True for kinds of the mesh's own API, false for those of the platform.
    pub fn is_mesh_config(self) -> bool {
        self.group().ends_with(".istio.io") || self.group() == crate::gateway_api::GROUP
    }

    /// The kind with this `apiVersion` and `kind`.
    pub fn find(api_version: &str, name: &str) -> Option<Self> {
        let kind = *Self::ALL.iter().find(|kind| kind.name() == name)?;
        kind.api_versions().iter().any(|known| known == api_version).then_some(kind)
    }

    /// The kind with this name in any spelling: name, plural or abbreviation, any case, with or
    /// without the group (`virtualservices.networking.istio.io`).
    pub fn parse(text: &str) -> Result<Self, UnknownKind> {
        let lower = text.to_ascii_lowercase();
        let (name, group) = lower.split_once('.').unwrap_or((&lower, ""));
        let found = Self::ALL.iter().map(|kind| kind.facts()).find(|facts| {
            let named = facts.plural == name
                || facts.name.eq_ignore_ascii_case(name)
                || facts.short_names.contains(&name);
            named && (group.is_empty() || facts.apis.iter().any(|(known, _)| *known == group))
        });
        found.map(|facts| facts.kind).ok_or_else(|| UnknownKind { name: text.to_owned() })
    }
}

fn join(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings_name_the_kind() {
        for kind in Kind::ALL {
            let facts = kind.facts();
            for text in [facts.name, facts.plural].iter().chain(facts.short_names) {
                assert_eq!(Kind::parse(text), Ok(*kind), "{text}");
            }
            assert_eq!(Kind::find(&kind.api_version(), facts.name), Some(*kind));
        }
        assert_eq!(Kind::parse("VirtualServices.networking.istio.io"), Ok(Kind::VirtualService));
    }

    #[test]
    fn an_unknown_name_gets_a_hint() {
        let error = Kind::parse("virtualservce").expect_err("misspelt");
        assert_eq!(
            error.to_string(),
            "there is no kind \"virtualservce\"; did you mean \"VirtualService\"?"
        );
    }
}
