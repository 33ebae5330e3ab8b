//! ECDS: configurations that filters refer to by name.

use amime_api::networking::{ApplyTo, PatchOperation};
use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;

use super::Patches;

/// The configurations with these names, or all; of two with one name the last.
pub(crate) fn extension_configs(
    patches: &Patches,
    names: Option<&[String]>,
) -> Vec<TypedExtensionConfig> {
    let added = patches.0.iter().filter(|patch| {
        patch.kind == ApplyTo::ExtensionConfig && patch.operation == PatchOperation::Add
    });
    let mut configs: Vec<TypedExtensionConfig> = Vec::new();
    for config in added.filter_map(super::Patch::message::<TypedExtensionConfig>) {
        if names.is_none_or(|names| names.contains(&config.name)) {
            configs.retain(|own| own.name != config.name);
            configs.push(config);
        }
    }
    configs.sort_by(|a, b| a.name.cmp(&b.name));
    configs
}
