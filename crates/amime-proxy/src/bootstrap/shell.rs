//! Fields of a bootstrap outside its static resources: which of them have an
//! effect here.

use amime_rules::Faults;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use prost::{Message, Name};
use serde_json::Value;

use crate::json::{Converter, Work};

/// Fields that are acted on, with all that is below them. `[]` stands for the
/// items of a list.
const HONOURED: [&str; 15] = [
    "node",
    "cluster_manager.local_cluster_name",
    "static_resources",
    "overload_manager",
    "layered_runtime",
    "admin.address",
    "admin.access_log",
    "admin.access_log_path",
    "dynamic_resources.lds_config",
    "dynamic_resources.cds_config",
    "dynamic_resources.ads_config.api_type",
    "dynamic_resources.ads_config.transport_api_version",
    "dynamic_resources.ads_config.set_node_on_first_message_only",
    "dynamic_resources.ads_config.grpc_services[].envoy_grpc.cluster_name",
    "dynamic_resources.ads_config.grpc_services[].google_grpc",
];

/// Records every field that is set and has no effect here.
pub(super) async fn report(converter: &Converter, bootstrap: &Bootstrap, faults: &mut Faults) {
    // The static resources are the bulk of it and are looked at elsewhere.
    let shell = Bootstrap { static_resources: None, ..bootstrap.clone() };
    let mut work = Work::default();
    work.print(&Bootstrap::type_url(), shell.encode_to_vec().into());
    let printed = converter.print(&work).await.pop().unwrap_or_default();
    walk(&printed, "", "", faults);
}

/// `path` names the value, `pattern` is the path without positions.
fn walk(value: &Value, path: &str, pattern: &str, faults: &mut Faults) {
    if HONOURED.contains(&pattern) {
        return;
    }
    let below = |separator| {
        let prefix = format!("{pattern}{separator}");
        pattern.is_empty() || HONOURED.iter().any(|field| field.starts_with(&prefix))
    };
    match value {
        Value::Object(fields) if below(".") => {
            for (name, value) in fields.iter().filter(|(name, _)| *name != "@type") {
                walk(value, &join(path, name), &join(pattern, name), faults);
            }
        }
        Value::Array(items) if below("[]") => {
            for (index, value) in items.iter().enumerate() {
                walk(value, &format!("{path}[{index}]"), &format!("{pattern}[]"), faults);
            }
        }
        _ => faults.ignore(path, "not supported"),
    }
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}
