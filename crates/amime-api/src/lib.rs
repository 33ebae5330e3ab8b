//! The configuration API: Istio's kinds, the Kubernetes kinds a mesh reads, and mesh settings.
//!
//! Owns the types, their decoding from YAML and JSON with exact positions, their printing, and
//! the table of fields that are accepted but not acted on. Leaves meaning to others: whether an
//! object makes sense is `amime-analysis`'s job, what it does is `amime-model`'s and
//! `amime-translate`'s.

#[macro_use]
mod macros;

pub mod extensions;
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
