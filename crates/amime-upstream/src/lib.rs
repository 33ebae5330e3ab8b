//! Clusters at run time, up to an open connection: which endpoint takes a
//! request, whether it is healthy, and how to reach it.
//!
//! Owns load balancing, active health checks, the feeding of outlier
//! detection, and opening connections with TLS and PROXY headers. It leaves to
//! `amime-engine` what travels over connections and the pools that keep them:
//! a pool is the parameter of [`Host`] and [`ClusterRuntime`].
//!
//! Each worker has a runtime of its own; what must be common to all (ejection,
//! limits, counters) is in `amime_config::endpoint_state` and costs no lock.
//!
//! ```no_run
//! # async fn dial(cluster: &amime_config::cluster::ClusterConfig, target: amime_upstream::connect::Target<'_>) {
//! let (stream, facts) = amime_upstream::connect::connect(cluster, target).await.expect("it answers");
//! # let _ = (stream, facts.local);
//! # }
//! ```
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/upstream>

pub mod cluster;
pub mod connect;
mod dynamic;
mod executor;
pub mod health;
pub mod lb;
pub mod load_report;
mod proxy_header;
pub mod tls;

pub use amime_config::endpoint_state::{EndpointShard, Outcome, Resource};
pub use cluster::{ClusterRuntime, ClusterSpec, Host, Pool};
pub use executor::LocalExecutor;
pub use lb::{LbInput, LocalCluster, Place, RetryInput, SharedLb};
pub use proxy_header::Ends;
