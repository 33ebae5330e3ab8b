//! `ProxyConfig` objects: start-up settings of the selected proxies.
//!
//! Spec: <https://istio.io/latest/docs/reference/config/networking/proxy-config/>

use crate::meta::{StringMap, WorkloadSelector};

messages! {
    /// Settings applied when a proxy starts; later changes need a restart.
    pub struct ProxyConfig {
        /// Workloads; none means the namespace's default.
        pub selector: Option<WorkloadSelector>,
        /// Worker threads; zero means one per core.
        pub concurrency: Option<i32>,
        /// Further environment variables.
        pub environment_variables: StringMap,
        /// Image of the proxy.
        pub image: Option<ProxyImage>,
    }

    /// Image of the proxy.
    pub struct ProxyImage {
        /// `default`, `debug` or `distroless`.
        pub image_type: String,
    }
}
