//! The bootstrap a proxy was started with.

use anyhow::Context;
use serde_json::Value;

use super::dump::{ConfigDump, at, field};

/// The bootstrap section's content.
pub(crate) fn find(dump: &ConfigDump) -> anyhow::Result<&Value> {
    let section = dump.sections("BootstrapConfigDump").next();
    section
        .map(|section| field(section, "bootstrap"))
        .filter(|bootstrap| bootstrap.is_object())
        .context("no bootstrap found")
}

/// The versions that a bootstrap tells, in istioctl's words.
pub(crate) fn versions(dump: &ConfigDump) -> anyhow::Result<String> {
    let node = field(find(dump)?, "node");
    let metadata = |name: &str| at(node, &["metadata", name]).as_str().unwrap_or("").to_owned();
    let envoy = match at(node, &["user_agent_build_version", "version"]) {
        version if version.is_object() => {
            let part = |name: &str| version.get(name).and_then(Value::as_u64).unwrap_or(0);
            let metadata = at(node, &["user_agent_build_version", "metadata"]);
            let word = |name: &str| metadata.get(name).and_then(Value::as_str);
            let version = [
                part("major_number").to_string(),
                part("minor_number").to_string(),
                part("patch").to_string(),
            ];
            let words =
                ["revision.status", "build.type", "ssl.version"].into_iter().filter_map(word);
            std::iter::once(version.join(".")).chain(words.map(str::to_owned)).collect::<Vec<_>>()
        }
        _ => Vec::new(),
    };
    Ok(format!(
        "Istio Version:       {}\nIstio Proxy Version: {}\nEnvoy Version:       {}\n",
        metadata("ISTIO_VERSION"),
        metadata("ISTIO_PROXY_SHA"),
        envoy.join("/"),
    ))
}
