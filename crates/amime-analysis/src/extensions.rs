//! Rules of telemetry, extensions and proxy settings.

use amime_api::extensions::{
    EnvValueSource, TrafficExtension, TrafficSelector, VmConfig, WasmPlugin,
};
use amime_api::networking::ProxyConfig;
use amime_api::telemetry::{TagOperation, Telemetry};

use crate::problem::{At, Report};
use crate::{shared, syntax};

/// Environment variables a module may have.
const MAX_ENV: usize = 256;

pub(crate) fn check_proxy(spec: &ProxyConfig, at: &At, report: &mut Report) {
    shared::policy_scope(spec.selector.as_ref(), &[], at, report);
    if spec.concurrency.is_some_and(|workers| workers < 0) {
        report.error(&at.field("concurrency"), "must not be negative");
    }
}

pub(crate) fn check_telemetry(spec: &Telemetry, at: &At, report: &mut Report) {
    shared::policy_scope(spec.selector.as_ref(), &spec.target_refs, at, report);
    for (at, tracing) in at.each("tracing", &spec.tracing) {
        if tracing.providers.len() > 1 {
            report.warning(&at.field("providers"), "only the first provider is used");
        }
        if let Some(share) = tracing.random_sampling_percentage {
            report.check(&at.field("randomSamplingPercentage"), syntax::percent(share));
        }
        for (name, tag) in &tracing.custom_tags {
            let at = at.field("customTags").key(name);
            if name.is_empty() {
                report.error(&at, "a name is required");
            }
            let named = [("environment", &tag.environment), ("header", &tag.header)];
            for (field, source) in named {
                if source.as_ref().is_some_and(|source| source.name.is_empty()) {
                    report.error(&at.field(field).field("name"), "a name is required");
                }
            }
        }
    }
    for (at, metrics) in at.each("metrics", &spec.metrics) {
        for (at, change) in at.each("overrides", &metrics.overrides) {
            for (name, tag) in &change.tag_overrides {
                let at = at.field("tagOverrides").key(name).field("value");
                match (tag.operation, tag.value.is_empty()) {
                    (TagOperation::Upsert, true) => {
                        report.error(&at, "operation UPSERT needs a value")
                    }
                    (TagOperation::Remove, false) => {
                        report.error(&at, "operation REMOVE takes no value")
                    }
                    _ => {}
                }
            }
        }
    }
}

pub(crate) fn check_wasm(spec: &WasmPlugin, at: &At, report: &mut Report) {
    shared::policy_scope(spec.selector.as_ref(), &spec.target_refs, at, report);
    check_module(&spec.url, &spec.sha256, spec.vm_config.as_ref(), at, report);
    check_ports(&spec.r#match, at, report);
}

pub(crate) fn check_extension(spec: &TrafficExtension, at: &At, report: &mut Report) {
    shared::policy_scope(spec.selector.as_ref(), &spec.target_refs, at, report);
    check_ports(&spec.r#match, at, report);
    match (&spec.wasm, &spec.lua) {
        (None, None) => report.error(at, "one of wasm and lua is required"),
        (Some(wasm), _) => {
            check_module(
                &wasm.url,
                &wasm.sha256,
                wasm.vm_config.as_ref(),
                &at.field("wasm"),
                report,
            );
        }
        (None, Some(lua)) => {
            if lua.inline_code.is_empty() {
                report.error(&at.field("lua").field("inlineCode"), "a script is required");
            }
        }
    }
}

fn check_module(url: &str, sha256: &str, vm: Option<&VmConfig>, at: &At, report: &mut Report) {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    match scheme {
        _ if url.is_empty() => report.error(&at.field("url"), "a URL is required"),
        None | Some("oci" | "http" | "https" | "file") => {}
        Some(other) => {
            report.error(
                &at.field("url"),
                format!("scheme {other:?} is none of oci, http, https, file"),
            );
        }
    }
    if !sha256.is_empty() && (sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        report.error(&at.field("sha256"), "is not 64 hexadecimal digits");
    }
    let Some(vm) = vm else { return };
    let at = at.field("vmConfig");
    if vm.env.len() > MAX_ENV {
        report.error(&at.field("env"), format!("{MAX_ENV} variables at most"));
    }
    for (index, (at, variable)) in at.each("env", &vm.env).enumerate() {
        if variable.name.is_empty() {
            report.error(&at.field("name"), "a name is required");
        }
        if vm.env[..index].iter().any(|earlier| earlier.name == variable.name) {
            report.error(&at.field("name"), format!("{:?} is given twice", variable.name));
        }
        if variable.value_from == EnvValueSource::Host && !variable.value.is_empty() {
            report.error(&at.field("value"), "cannot be given together with valueFrom HOST");
        }
    }
}

fn check_ports(selectors: &[TrafficSelector], at: &At, report: &mut Report) {
    for (at, selector) in at.each("match", selectors) {
        for (at, port) in at.each("ports", &selector.ports) {
            report.check(&at.field("number"), syntax::port(port.number));
        }
    }
}
