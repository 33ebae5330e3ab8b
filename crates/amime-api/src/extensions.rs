//! Kinds of group `extensions.istio.io`: code that runs in the proxy.
//!
//! Spec: <https://istio.io/latest/docs/reference/config/proxy_extensions/>

use serde_json::Value;

use crate::meta::{PolicyTargetReference, WorkloadSelector};
use crate::telemetry::WorkloadMode;

messages! {
    /// WebAssembly module for the selected workloads.
    pub struct WasmPlugin {
        /// Workloads; none means all in scope.
        pub selector: Option<WorkloadSelector>,
        /// Old single form of `target_refs`.
        pub target_ref: Option<PolicyTargetReference>,
        /// Gateways or services instead of a selector.
        pub target_refs: Vec<PolicyTargetReference>,
        /// `oci://`, `http(s)://` or `file://`.
        pub url: String,
        /// Hex checksum of module or image.
        pub sha256: String,
        /// When to fetch.
        pub image_pull_policy: PullPolicy,
        /// Secret for the registry.
        pub image_pull_secret: String,
        /// Key that signed the module.
        pub verification_key: String,
        /// Configuration given to the module.
        pub plugin_config: Option<Value>,
        /// Root id inside the module.
        pub plugin_name: String,
        /// Place in the filter chain.
        pub phase: PluginPhase,
        /// Order inside the place, high first.
        pub priority: Option<i32>,
        /// What a broken module means.
        pub fail_strategy: FailStrategy,
        /// Virtual machine settings.
        pub vm_config: Option<VmConfig>,
        /// Traffic it sees.
        pub r#match: Vec<TrafficSelector>,
        /// HTTP or network filter.
        pub r#type: PluginType,
    }

    /// Virtual machine settings.
    pub struct VmConfig {
        /// Environment variables.
        pub env: Vec<EnvVar>,
    }

    /// Environment variable of a module.
    pub struct EnvVar {
        /// Name.
        pub name: String,
        /// Where the value comes from.
        pub value_from: EnvValueSource,
        /// The value, if inline.
        pub value: String,
    }

    /// Traffic an extension sees.
    pub struct TrafficSelector {
        /// Side of the connection.
        pub mode: WorkloadMode,
        /// Ports; none means all.
        pub ports: Vec<ExtensionPort>,
    }

    /// Port of a traffic selector.
    pub struct ExtensionPort {
        /// Number.
        pub number: u32,
    }

    /// Extension of the selected workloads: one of WebAssembly or Lua.
    pub struct TrafficExtension {
        /// Workloads; none means all in scope.
        pub selector: Option<WorkloadSelector>,
        /// Gateways or services instead of a selector.
        pub target_refs: Vec<PolicyTargetReference>,
        /// Place in the filter chain.
        pub phase: PluginPhase,
        /// Order inside the place, high first.
        pub priority: Option<i32>,
        /// Traffic it sees.
        pub r#match: Vec<TrafficSelector>,
        /// WebAssembly module.
        pub wasm: Option<WasmConfig>,
        /// Lua script.
        pub lua: Option<LuaConfig>,
    }

    /// WebAssembly module of an extension.
    pub struct WasmConfig {
        /// `oci://`, `http(s)://` or `file://`.
        pub url: String,
        /// Hex checksum of module or image.
        pub sha256: String,
        /// When to fetch.
        pub image_pull_policy: PullPolicy,
        /// Secret for the registry.
        pub image_pull_secret: String,
        /// Key that signed the module.
        pub verification_key: String,
        /// Configuration given to the module.
        pub plugin_config: Option<Value>,
        /// Root id inside the module.
        pub plugin_name: String,
        /// What a broken module means.
        pub fail_strategy: FailStrategy,
        /// Virtual machine settings.
        pub vm_config: Option<VmConfig>,
        /// HTTP or network filter.
        pub r#type: PluginType,
    }

    /// Lua script of an extension.
    pub struct LuaConfig {
        /// Source text.
        pub inline_code: String,
    }
}

values! {
    /// When a module is fetched.
    pub enum PullPolicy {
        /// By tag: `latest` always, others once.
        #[default]
        #[serde(rename = "UNSPECIFIED_POLICY")]
        Unspecified,
        /// Once.
        #[serde(rename = "IfNotPresent")]
        IfNotPresent,
        /// Each time.
        #[serde(rename = "Always")]
        Always,
    }

    /// Place in the filter chain.
    pub enum PluginPhase {
        /// Near the end, before the router.
        #[default]
        #[serde(rename = "UNSPECIFIED_PHASE")]
        Unspecified,
        /// Before authentication.
        Authn,
        /// Before authorization.
        Authz,
        /// Before statistics.
        Stats,
    }

    /// What a broken module means.
    pub enum FailStrategy {
        /// Requests fail.
        #[default]
        FailClose,
        /// Requests pass.
        FailOpen,
        /// The module restarts.
        FailReload,
    }

    /// Kind of filter.
    pub enum PluginType {
        /// HTTP.
        #[default]
        #[serde(rename = "UNSPECIFIED_PLUGIN_TYPE")]
        Unspecified,
        /// HTTP.
        Http,
        /// Network.
        Network,
    }

    /// Where an environment value comes from.
    pub enum EnvValueSource {
        /// The object itself.
        #[default]
        Inline,
        /// The proxy's environment.
        Host,
    }
}
