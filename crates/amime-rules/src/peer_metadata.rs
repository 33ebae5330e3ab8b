//! Which ways workload metadata travels in HTTP headers.
//!
//! Owns the reading of `io.istio.http.peer_metadata.Config`, which control
//! planes also send as a `TypedStruct`. Metadata found in other ways (workload
//! discovery, baggage) is not asked for: the endpoint's own is used instead.
//!
//! Invariant: headers of a direction that the filter does not name pass
//! untouched, so that an application never gets its own sidecar's identity.

use amime_xds::istio::peer_metadata::{
    Config, Discovery, DiscoveryMethod, Propagation, PropagationMethod,
};
use amime_xds::istio::typed_struct::TypedStruct;
use envoy_types::pb::google::protobuf::{Any, Struct, value::Kind};
use prost::Message;

use super::faults::Faults;
use super::values::type_name;

/// Directions in which `x-envoy-peer-metadata` is taken off or put on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerExchange {
    /// Read it from requests and take it off them.
    pub from_client: bool,
    /// Put ours on responses to clients that sent theirs.
    pub to_client: bool,
    /// Read it from responses and take it off them.
    pub from_upstream: bool,
    /// Put ours on requests.
    pub to_upstream: bool,
}

impl PeerExchange {
    /// Reads the filter's settings, as the message itself or in a `TypedStruct`.
    pub fn compile(any: &Any, faults: &mut Faults) -> Self {
        let read = if type_name(any).ends_with(".TypedStruct") {
            TypedStruct::decode(any.value.as_slice())
                .map(|outer| Self::of_struct(&outer.value.unwrap_or_default(), faults))
        } else {
            Config::decode(any.value.as_slice()).map(|config| Self::of_config(&config, faults))
        };
        read.unwrap_or_else(|error| {
            faults.reject("typed_config", error.to_string());
            Self::default()
        })
    }

    fn of_config(config: &Config, faults: &mut Faults) -> Self {
        let reads = |ways: &[DiscoveryMethod]| {
            ways.iter().any(|way| matches!(way.method_specifier, Some(Discovery::IstioHeaders(_))))
        };
        let mut tells = |ways: &[PropagationMethod], field: &str| {
            let mut tells = false;
            for way in ways {
                if let Some(Propagation::IstioHeaders(headers)) = &way.method_specifier {
                    tells = true;
                    skips_external(headers.skip_external_clusters, field, faults);
                }
            }
            tells
        };
        Self {
            from_client: reads(&config.downstream_discovery),
            to_client: tells(&config.downstream_propagation, "downstream_propagation"),
            from_upstream: reads(&config.upstream_discovery),
            to_upstream: tells(&config.upstream_propagation, "upstream_propagation"),
        }
    }

    fn of_struct(config: &Struct, faults: &mut Faults) -> Self {
        let mut has = |field: &str| {
            let Some(Kind::ListValue(ways)) = kind(config, field) else { return false };
            let mut found = false;
            for way in &ways.values {
                let Some(Kind::StructValue(way)) = &way.kind else { continue };
                let Some(Kind::StructValue(headers)) = kind(way, "istio_headers") else { continue };
                found = true;
                let skips = kind(headers, "skip_external_clusters");
                skips_external(skips == Some(&Kind::BoolValue(true)), field, faults);
            }
            found
        };
        Self {
            from_client: has("downstream_discovery"),
            to_client: has("downstream_propagation"),
            from_upstream: has("upstream_discovery"),
            to_upstream: has("upstream_propagation"),
        }
    }
}

fn skips_external(set: bool, field: &str, faults: &mut Faults) {
    faults.ignore_if(set, &format!("{field}.istio_headers.skip_external_clusters"));
}

fn kind<'a>(value: &'a Struct, field: &str) -> Option<&'a Kind> {
    value.fields.get(field)?.kind.as_ref()
}
