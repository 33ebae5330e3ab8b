//! The configuration API: Istio's kinds, the Kubernetes kinds a mesh reads, and mesh settings.
//!
//! Owns the types, their decoding from YAML and JSON with exact positions, their printing, and
//! the table of fields that are accepted but not acted on. Leaves meaning to others: whether an
//! object makes sense is `amime-analysis`'s job, what it does is `amime-model`'s and
//! `amime-translate`'s.
//!
//! ```
//! use amime_api::{Resource, decode};
//!
//! let text = "
//! apiVersion: networking.istio.io/v1
//! kind: VirtualService
//! metadata: {name: reviews}
//! spec:
//!   hosts: [reviews]
//!   http: [{route: [{destination: {host: reviews, subset: v1}, wieght: 90}]}]
//! ";
//! let decoded = decode::decode("vs.yaml", text);
//! assert_eq!(
//!     decoded.errors[0].to_string(),
//!     "vs.yaml:7:62: VirtualService reviews: spec.http[0].route[0].wieght: unknown field, \
//!      expected one of destination, weight, headers; did you mean \"weight\"?"
//! );
//! ```

#[macro_use]
mod macros;

pub mod columns;
pub mod decode;
pub mod extensions;
pub mod gateway_api;
pub mod honoured;
pub mod k8s;
mod kind;
pub mod mesh;
pub mod meta;
pub mod networking;
pub mod resource;
pub mod security;
mod suggest;
pub mod telemetry;

pub use kind::{Kind, UnknownKind};
pub use meta::ObjectMeta;
pub use resource::{Object, ObjectKey, Resource, Source};
