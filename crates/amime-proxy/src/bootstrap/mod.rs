//! Static configuration: an Envoy v3 bootstrap from a file or the command line.
//!
//! Owns reading, merging and checking, and where dynamic resources come from;
//! what the resources mean is the runtime's business.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_api>

mod ads;
mod check;
mod files;
mod handler;
mod restart;
mod run;
mod shell;
mod sources;
#[cfg(test)]
mod tests;

pub(crate) use check::place;
pub(crate) use restart::Restart;
pub use restart::RestartError;
pub(crate) use run::{BootstrapRun, run};

use std::path::{Path, PathBuf};

use amime_xds::json::{JsonError, ReadOptions};
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use prost::Message;

use crate::json::Converter;

/// Why a bootstrap is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The file cannot be read.
    #[error("bootstrap {} cannot be read", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The text is not a bootstrap.
    #[error("{origin}:{fault}")]
    Parse {
        /// File name or option.
        origin: String,
        /// Where and why; its text starts with the position.
        fault: JsonError,
    },
    /// A file format that is not read.
    #[error("bootstrap {}: text protobuf is not supported; use YAML or JSON", path.display())]
    Format {
        /// Its path.
        path: PathBuf,
    },
    /// The bytes are not a bootstrap.
    #[error("bootstrap {} is no encoded bootstrap", path.display())]
    Decode {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: prost::DecodeError,
    },
    /// Nothing to run.
    #[error("neither a configuration file nor --config-yaml is given")]
    Missing,
    /// Fields that cannot be honoured, all of them.
    #[error("{}", faults.join("\n  "))]
    Faults {
        /// `path: what is wrong with it`.
        faults: Vec<String>,
    },
}

/// What to read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Input<'a> {
    pub(crate) path: Option<&'a Path>,
    /// YAML that is merged over the file.
    pub(crate) overlay: Option<&'a str>,
    /// Skip fields that a bootstrap does not have.
    pub(crate) allow_unknown_fields: bool,
}

/// Reads a bootstrap.
pub(crate) async fn load(
    converter: &Converter,
    input: Input<'_>,
) -> Result<Bootstrap, BootstrapError> {
    let allow_unknown_fields = input.allow_unknown_fields;
    let mut bootstrap = match input.path {
        Some(path) => Some(load_file(converter, path, allow_unknown_fields).await?),
        None => None,
    };
    if let Some(text) = input.overlay {
        let options = ReadOptions { is_json: false, allow_unknown_fields };
        let origin = "--config-yaml".to_owned();
        let overlay: Bootstrap = converter
            .parse(text, options)
            .await
            .map_err(|fault| BootstrapError::Parse { origin, fault })?;
        let merged = bootstrap.get_or_insert_default();
        // Protobuf's own merge: single fields replace, lists append.
        merged.merge(overlay.encode_to_vec().as_slice()).expect("an encoded message decodes");
    }
    bootstrap.ok_or(BootstrapError::Missing)
}

/// The file's name says what is in it, as for Envoy.
async fn load_file(
    converter: &Converter,
    path: &Path,
    allow_unknown_fields: bool,
) -> Result<Bootstrap, BootstrapError> {
    let bytes = std::fs::read(path)
        .map_err(|source| BootstrapError::Read { path: path.to_owned(), source })?;
    let extension = path.extension().and_then(|extension| extension.to_str());
    let is_json = match extension {
        Some("pb") => {
            return Bootstrap::decode(bytes.as_slice())
                .map_err(|source| BootstrapError::Decode { path: path.to_owned(), source });
        }
        Some("pb_text") => return Err(BootstrapError::Format { path: path.to_owned() }),
        Some("json") => true,
        _ => false,
    };
    let text = String::from_utf8_lossy(&bytes);
    let parsed = converter.parse(&text, ReadOptions { is_json, allow_unknown_fields }).await;
    parsed.map_err(|fault| BootstrapError::Parse { origin: path.display().to_string(), fault })
}
