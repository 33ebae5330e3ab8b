//! What this build calls itself.

/// Version of the workspace, as printed by `version` commands and reported to the control plane.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Version of Istio whose configuration and xDS conventions this build follows.
///
/// Proxies report it as `ISTIO_VERSION`, because other control planes parse that field.
pub const ISTIO_VERSION: &str = "1.31.0";
