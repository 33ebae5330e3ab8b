//! Translation of files, without a control plane.

use std::sync::Arc;

use amime_api::Resource;
use amime_api::decode::{DecodeError, decode};
use amime_api::mesh::{MeshConfig, decode_mesh_config};
use amime_model::Snapshot;

use crate::{Dump, Proxy, ProxyError};

/// A text and the name to report it by.
#[derive(Clone, Copy, Debug)]
pub struct NamedText<'t> {
    /// Name in messages, a path mostly.
    pub name: &'t str,
    /// Content.
    pub text: &'t str,
}

/// What an offline translation gives.
#[derive(Debug)]
pub struct Translated {
    /// What the proxy would be told.
    pub dump: Dump,
    /// Objects that could not be read, and are left out.
    pub skipped: Vec<DecodeError>,
}

/// Inputs that cannot be translated at all.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The proxy description.
    #[error("cannot read the proxy description")]
    Proxy(#[from] ProxyError),
    /// The mesh settings.
    #[error("cannot read the mesh settings: {}", messages(.0))]
    Mesh(Vec<DecodeError>),
}

fn messages(errors: &[DecodeError]) -> String {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// What the proxy described by `proxy` (JSON) would be told of the objects in
/// `files`, under the mesh settings of `mesh`.
///
/// # Errors
/// When the proxy description or the mesh settings cannot be read.
pub fn translate(
    files: &[NamedText<'_>],
    mesh: Option<NamedText<'_>>,
    proxy: &str,
) -> Result<Translated, OfflineError> {
    let proxy = Proxy::from_json(proxy)?;
    let mesh = match mesh {
        Some(NamedText { name, text }) => {
            decode_mesh_config(name, text).map_err(OfflineError::Mesh)?
        }
        None => MeshConfig::default(),
    };
    let mut resources = Vec::new();
    let mut skipped = Vec::new();
    for NamedText { name, text } in files {
        let decoded = decode(name, text);
        resources.extend(decoded.resources.into_iter().map(placed));
        skipped.extend(decoded.errors);
    }
    let snapshot = Snapshot::build(resources, Arc::new(mesh), 1);
    Ok(Translated { dump: crate::dump(&snapshot, &proxy), skipped })
}

/// Age of rules that do not name theirs: they are about to be applied, beside a
/// platform that is there already.
const NOT_YET_CREATED: &str = "9999-12-31T23:59:59Z";

/// Objects that name no namespace are in the default one, as when applied.
fn placed(mut resource: Resource) -> Arc<Resource> {
    if resource.kind().is_mesh_config() {
        let created = &mut resource.metadata_mut().creation_timestamp;
        created.get_or_insert_with(|| NOT_YET_CREATED.to_owned());
    }
    if resource.kind().is_namespaced() && resource.namespace().is_empty() {
        "default".clone_into(&mut resource.metadata_mut().namespace);
    }
    Arc::new(resource)
}
