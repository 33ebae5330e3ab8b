//! Secrets that stand in files, read again when these change.
//!
//! A file is known by its inode, size and time of change, so that one that was
//! put in place of another by renaming (as Kubernetes does with whole
//! directories) is noticed as well as one that was written to.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use amime_config::secrets::{SecretFile, files_of};
use amime_xds::json::from_yaml;
use amime_xds::{Resource, TypeUrl};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;

use super::State;
use crate::held::Held;

/// What tells one content of a file from the next; `None` if it is not there.
type Stamp = Option<(u64, u64, i64, i64)>;

/// The files as last seen.
#[derive(Default)]
pub(crate) struct SecretFiles {
    /// Files that configuration names.
    responses: HashMap<SecretFile, Vec<Stamp>>,
    /// Files that received secrets refer to, by the secret's name.
    parts: HashMap<String, Vec<(PathBuf, Stamp)>>,
}

impl State {
    /// Reads what is new or has changed. A file that cannot be used leaves the
    /// secret as it was.
    pub fn look_at_secret_files(&mut self) {
        self.look_at_responses();
        self.look_at_parts();
    }

    fn look_at_responses(&mut self) {
        let users = self.listeners.required().chain(self.clusters.required());
        let wanted: Vec<SecretFile> =
            users.flat_map(|required| &required.secret_files).cloned().collect();
        for file in wanted {
            let stamps = file.files().iter().map(|path| stamp(path)).collect();
            if self.secret_files.responses.get(&file) == Some(&stamps) {
                continue;
            }
            match read(&file) {
                Ok(secret) => self.take(&Resource::encode(file.key(), &secret)),
                Err(reason) => {
                    tracing::warn!(secret = file.key(), reason, "secret not read");
                }
            }
            self.secret_files.responses.insert(file, stamps);
        }
    }

    fn look_at_parts(&mut self) {
        let kind = TypeUrl::Secret.push_rank();
        let held = self.held.iter().filter(|((rank, _), held)| *rank == kind && !held.is_static);
        let mut changed = Vec::new();
        for ((_, name), held) in held {
            let Some(resource) = held.in_force() else { continue };
            let Ok(secret) = resource.decode::<Secret>() else { continue };
            let files: Vec<_> =
                files_of(&secret).into_iter().map(|path| (path.clone(), stamp(&path))).collect();
            if files.is_empty() {
                continue;
            }
            let known = self.secret_files.parts.insert(name.clone(), files.clone());
            if known.is_some_and(|known| known != files) {
                changed.push(resource.clone());
            }
        }
        changed.iter().for_each(|resource| self.take(resource));
    }

    fn take(&mut self, resource: &Resource) {
        let outcome = self.add_secret(resource);
        let key = (TypeUrl::Secret.push_rank(), resource.name.clone());
        let held = self.held.entry(key).or_insert_with(|| Held::new(false));
        match outcome {
            Ok(ignored) => held.accept(resource, ignored, false),
            Err(error) => held.refuse(resource, &error),
        }
    }
}

fn stamp(path: &Path) -> Stamp {
    let found = std::fs::metadata(path).ok()?;
    Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}

/// The secret of the file's name.
fn read(file: &SecretFile) -> Result<Secret, String> {
    let (path, name) = match file {
        SecretFile::Response { path, name } => (path, name),
        SecretFile::Named { name } => {
            return file.named_secret().ok_or_else(|| format!("`{name}` tells no files"));
        }
    };
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let response: DiscoveryResponse = from_yaml(&text).map_err(|error| error.to_string())?;
    for any in &response.resources {
        let secret: Secret = prost::Message::decode(any.value.as_slice())
            .map_err(|error| format!("resource is no secret: {error}"))?;
        if secret.name == *name {
            return Ok(secret);
        }
    }
    Err(format!("holds no secret named `{name}`"))
}
