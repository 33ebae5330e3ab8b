//! Virtual services that compete for a host of the mesh.

use std::collections::BTreeMap;

use amime_api::ObjectKey;
use amime_core::Hostname;
use amime_model::{MESH_GATEWAY, Snapshot, resolve_host};

use super::{Findings, virtual_services};
use crate::problem::{At, Code, Severity};

pub(super) fn check(snapshot: &Snapshot, findings: &mut Findings) {
    let default = &snapshot.mesh().default_virtual_service_export_to;
    // A host with the namespace that sees the rule, `*` for all.
    let mut owners: BTreeMap<Hostname, Vec<(String, &ObjectKey)>> = BTreeMap::new();
    for (key, object) in virtual_services(snapshot) {
        let spec = &object.spec;
        if !spec.gateways.is_empty() && !spec.gateways.iter().any(|name| name == MESH_GATEWAY) {
            continue;
        }
        let written = if spec.export_to.is_empty() { default } else { &spec.export_to };
        for host in &spec.hosts {
            let host = Hostname::new(resolve_host(host, &key.namespace));
            for seen_by in written {
                let seen_by = if seen_by == "." { &key.namespace } else { seen_by };
                owners.entry(host.clone()).or_default().push((seen_by.clone(), key));
            }
        }
    }
    for (host, owners) in owners {
        for (seen_by, key) in &owners {
            let others = owners.iter().filter(|(other, rival)| {
                rival != key && (other == seen_by || other == "*" || seen_by == "*")
            });
            let mut names: Vec<String> = others.map(|(_, rival)| rival.to_string()).collect();
            names.sort();
            names.dedup();
            if !names.is_empty() {
                let message = format!(
                    "also routes {:?} in the mesh, only the oldest takes effect: {}",
                    host.as_str(),
                    names.join(", ")
                );
                let finding = (Severity::Error, Code::CONFLICTING_HOSTS);
                findings.push(key, finding, &At::root("spec").field("hosts"), message);
            }
        }
    }
    findings.messages.dedup();
}
