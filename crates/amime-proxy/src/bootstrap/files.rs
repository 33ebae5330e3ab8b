//! Resources from files, followed as they are moved into place.
//!
//! A file holds a `DiscoveryResponse`. It is read whole, and what it says is
//! applied by the rules of state of the world: a listener or cluster that it
//! no longer has is gone. A file that cannot be read leaves what it said
//! before in force.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use amime_net::watch::{MoveWatch, Moved, WatchId};
use amime_xds::TypeUrl;
use amime_xds::client::{SotwClient, StreamState};
use amime_xds::json::ReadOptions;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use prost::Message;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::handler::{Scope, Shared, SourceHandler};
use super::sources::FileSource;
use crate::agent::DiscoveryHandler;
use crate::json::Converter;

/// A file larger than this is not one of ours.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// Why a file is not applied.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("cannot be read")]
    Read(#[source] io::Error),
    #[error("larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("{0}")]
    Parse(#[from] amime_xds::json::JsonError),
    #[error("is no encoded DiscoveryResponse")]
    Decode(#[from] prost::DecodeError),
}

/// One file with what it said last.
struct Followed {
    client: SotwClient,
    handler: SourceHandler,
    watch: Option<WatchId>,
}

/// Follows all files of a bootstrap.
pub(super) struct Files {
    shared: Arc<Shared>,
    handler: DiscoveryHandler,
    converter: Converter,
    watch: AsyncFd<MoveWatch>,
    followed: BTreeMap<(TypeUrl, FileSource), Followed>,
    /// Files with all clusters or all listeners, which nothing refers to.
    roots: Vec<(TypeUrl, FileSource)>,
}

impl Files {
    /// Reads `roots` and whatever they refer to; [`Files::follow`] goes on.
    pub(super) async fn start(
        roots: Vec<(TypeUrl, FileSource)>,
        shared: Arc<Shared>,
        handler: DiscoveryHandler,
        converter: Converter,
    ) -> io::Result<Self> {
        #[allow(deprecated, reason = "the new form is unsafe; the watch owns its descriptor")]
        let watch = AsyncFd::with_interest(MoveWatch::new()?, Interest::READABLE)?;
        let followed = BTreeMap::new();
        let mut files = Self { shared, handler, converter, watch, followed, roots };
        files.reconcile().await;
        Ok(files)
    }

    /// Applies changes for ever.
    pub(super) async fn follow(mut self) {
        let shared = self.shared.clone();
        loop {
            tokio::select! {
                () = shared.files.notified() => self.reconcile().await,
                moved = self.moved() => match moved {
                    Ok(moved) => self.on_moved(&moved).await,
                    Err(error) => {
                        tracing::error!(%error, "files are not watched any more");
                        return;
                    }
                }
            }
        }
    }

    async fn moved(&self) -> io::Result<Vec<Moved>> {
        self.watch.async_io(Interest::READABLE, MoveWatch::read).await
    }

    /// Follows what is referred to now, and nothing else.
    async fn reconcile(&mut self) {
        // Applying a file may make others necessary.
        loop {
            let named = self.shared.references().files();
            let wanted: Vec<_> = self.roots.iter().cloned().chain(named).collect();
            self.followed.retain(|key, _| wanted.contains(key));
            let mut news = false;
            for key in wanted {
                news |= self.look_at(key).await;
            }
            if !news {
                return;
            }
        }
    }

    /// Reads a file that is new here or of which more names are wanted.
    async fn look_at(&mut self, key: (TypeUrl, FileSource)) -> bool {
        match self.followed.get_mut(&key) {
            Some(followed) => {
                if followed.client.refresh(&followed.handler).is_empty() {
                    return false;
                }
            }
            None => {
                let followed = self.start_following(&key);
                self.followed.insert(key.clone(), followed);
            }
        }
        self.read(&key).await;
        true
    }

    fn start_following(&self, (type_url, file): &(TypeUrl, FileSource)) -> Followed {
        let is_root = self.roots.contains(&(*type_url, file.clone()));
        let scope = match is_root {
            true => Scope::All(*type_url),
            false => Scope::Named(*type_url, file.clone()),
        };
        let handler =
            SourceHandler { inner: self.handler.clone(), shared: self.shared.clone(), scope };
        let mut client = SotwClient::new(Node::default());
        client.on_connect(&handler);
        let directory = file.directory.clone().unwrap_or_else(|| parent(&file.path));
        let watch = self.watch.get_ref().add(&directory);
        if let Err(error) = &watch {
            tracing::warn!(directory = %directory.display(), %error, "directory is not watched");
        }
        Followed { client, handler, watch: watch.ok() }
    }

    async fn on_moved(&mut self, moved: &[Moved]) {
        let touched = |file: &FileSource, followed: &Followed| {
            moved.iter().any(|one| {
                let here = one.directory.is_none() || one.directory == followed.watch;
                let all = one.directory.is_none() || file.directory.is_some();
                here && (all || file.path.file_name() == Some(&one.name))
            })
        };
        let keys = self.followed.iter().filter(|((_, file), followed)| touched(file, followed));
        let mut keys: Vec<_> = keys.map(|(key, _)| key.clone()).collect();
        keys.sort_by_key(|(type_url, _)| type_url.push_rank());
        for key in keys {
            self.read(&key).await;
        }
        self.reconcile().await;
    }

    async fn read(&mut self, key: &(TypeUrl, FileSource)) {
        let (type_url, file) = key;
        let read = read(&file.path, &self.converter).await;
        let Some(followed) = self.followed.get_mut(key) else { return };
        let path = file.path.display();
        match read {
            Ok(mut response) => {
                // Older files name the type in their resources only.
                response.type_url = type_url.as_str().to_owned();
                let requests = followed.client.on_response(response, &mut followed.handler);
                let refused = requests.into_iter().find_map(|one| one.error_detail);
                match refused {
                    Some(error) => tracing::warn!(%path, error = error.message, "file refused"),
                    None => tracing::info!(%path, kind = %type_url, "file applied"),
                }
            }
            Err(error) => {
                followed.handler.inner.count_failure(*type_url);
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%path, %error, cause, "file not applied");
            }
        }
    }
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

async fn read(path: &Path, converter: &Converter) -> Result<DiscoveryResponse, FileError> {
    if std::fs::metadata(path).map_err(FileError::Read)?.len() > MAX_BYTES {
        return Err(FileError::TooLarge);
    }
    let bytes = std::fs::read(path).map_err(FileError::Read)?;
    if path.extension().is_some_and(|extension| extension == "pb") {
        return Ok(DiscoveryResponse::decode(bytes.as_slice())?);
    }
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let text = String::from_utf8_lossy(&bytes);
    Ok(converter.parse(&text, ReadOptions { is_json, ..ReadOptions::default() }).await?)
}
