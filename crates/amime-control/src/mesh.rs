//! Mesh-wide settings kept as an object: ConfigMap `istio` of the root
//! namespace, key `mesh`, as Istio's installation has it.
//!
//! Owns finding and reading it. The trust domain is the exception: the
//! authority opened with it at the start, so a change waits for a restart.

use std::sync::Arc;

use amime_api::mesh::{MeshConfig, decode_mesh_config};
use amime_api::{Kind, ObjectKey, Resource};

/// Name of the ConfigMap.
const NAME: &str = "istio";
/// Its namespace: where the control plane runs.
const NAMESPACE: &str = "istio-system";
/// Its key that holds the settings.
const DATA_KEY: &str = "mesh";

/// True for the key of the object that holds the settings.
pub(crate) fn is_mesh_object(key: &ObjectKey) -> bool {
    key.kind == Kind::ConfigMap && key.namespace == NAMESPACE && key.name == NAME
}

/// The settings that `resource` holds; `None` if it is another object or has
/// no settings, else they or every fault in them.
pub(crate) fn mesh_of(resource: &Resource) -> Option<Result<MeshConfig, Vec<String>>> {
    let Resource::ConfigMap(object) = resource else { return None };
    if !is_mesh_object(&resource.key()) {
        return None;
    }
    let text = object.spec.data.get(DATA_KEY)?;
    let origin = format!("ConfigMap {NAMESPACE}/{NAME}, data.{DATA_KEY}");
    let decoded = decode_mesh_config(&origin, text);
    Some(decoded.map_err(|errors| errors.iter().map(ToString::to_string).collect()))
}

/// The settings in force after `resource` (or after its removal): faulty ones
/// are reported and leave the `current` ones in force.
pub(crate) fn settings_after(
    resource: Option<&Resource>,
    current: &Arc<MeshConfig>,
    at_start: &Arc<MeshConfig>,
) -> Arc<MeshConfig> {
    match resource.and_then(mesh_of) {
        None => Arc::clone(at_start),
        Some(Err(errors)) => {
            for error in errors {
                tracing::warn!(error, "mesh settings refused; the former ones stay in force");
            }
            Arc::clone(current)
        }
        Some(Ok(mut mesh)) => {
            if mesh.trust_domain != at_start.trust_domain {
                tracing::warn!(
                    wanted = mesh.trust_domain,
                    in_force = at_start.trust_domain,
                    "the trust domain changes only with a restart of the control plane"
                );
                mesh.trust_domain.clone_from(&at_start.trust_domain);
            }
            Arc::new(mesh)
        }
    }
}

#[cfg(test)]
mod tests {
    use amime_api::decode::decode;

    use super::*;

    fn config_map(settings: &str) -> Resource {
        let text = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
             data:\n  mesh: |\n    {settings}\n"
        );
        decode("test.yaml", &text).resources.pop().expect("fixture decodes")
    }

    #[track_caller]
    fn check(settings: Option<&str>, want_log_file: &str) {
        let start = Arc::new(MeshConfig::default());
        let current = MeshConfig { access_log_file: "/current".into(), ..MeshConfig::default() };
        let resource = settings.map(config_map);
        let got = settings_after(resource.as_ref(), &Arc::new(current), &start);
        assert_eq!(got.access_log_file, want_log_file);
        assert_eq!(got.trust_domain, "cluster.local");
    }

    #[test]
    fn settings_of_the_object_come_into_force() {
        check(Some("accessLogFile: /dev/stdout"), "/dev/stdout");
    }

    #[test]
    fn faulty_settings_leave_the_current_ones() {
        check(Some("accesLogFile: /dev/stdout"), "/current");
    }

    #[test]
    fn without_the_object_the_start_settings_return() {
        check(None, "");
    }

    #[test]
    fn the_trust_domain_waits_for_a_restart() {
        check(Some("{trustDomain: other.example, accessLogFile: /x}"), "/x");
    }
}
