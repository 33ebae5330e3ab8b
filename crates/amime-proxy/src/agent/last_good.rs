//! The last good configuration on disk: a restart without a control plane
//! serves from it.
//!
//! Invariant: secrets are never written. The file is replaced whole, and a
//! damaged one or one of another node is as good as none.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use amime_xds::{PUSH_ORDER, Resource, TypeUrl};
use bytes::Bytes;
use prost::Message;
use xxhash_rust::xxh64::xxh64;

const FILE: &str = "last-good.pb";
const MAGIC: &[u8; 8] = b"amimecf1";
const MAX_BYTES: u64 = 256 * 1024 * 1024;

#[derive(Clone, PartialEq, Message)]
struct Content {
    #[prost(string, tag = "1")]
    node_id: String,
    #[prost(message, repeated, tag = "2")]
    entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    version: String,
    #[prost(bytes = "bytes", tag = "4")]
    body: Bytes,
}

/// The file of one proxy.
#[derive(Clone, Debug)]
pub(super) struct LastGood {
    path: PathBuf,
    node_id: String,
}

impl LastGood {
    pub(super) fn new(dir: &Path, node_id: &str) -> Self {
        Self { path: dir.join(FILE), node_id: node_id.to_owned() }
    }

    /// Replaces the file.
    pub(super) fn save(&self, resources: impl IntoIterator<Item = Resource>) -> io::Result<()> {
        let entries = resources.into_iter().filter(|one| one.type_url != TypeUrl::Secret);
        let entries = entries.map(|one| Entry {
            type_url: one.type_url.as_str().to_owned(),
            name: one.name,
            version: one.version.to_string(),
            body: one.body,
        });
        let content = Content { node_id: self.node_id.clone(), entries: entries.collect() };
        let body = content.encode_to_vec();
        let dir = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir)?;
        let temporary = self.path.with_extension("tmp");
        let mut file = fs::File::create(&temporary)?;
        file.write_all(MAGIC)?;
        file.write_all(&xxh64(&body, 0).to_le_bytes())?;
        file.write_all(&body)?;
        // Not synced: the sum tells if a power failure cut it short, and a slow
        // disk must not keep the file behind what is in force.
        fs::rename(&temporary, &self.path)
    }

    /// The resources of the file in the order in which to apply them; none if
    /// there is no usable file.
    pub(super) fn load(&self) -> Vec<Resource> {
        match self.read() {
            Ok(resources) => resources,
            Err(error) if error.kind() == io::ErrorKind::NotFound => vec![],
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "last good configuration unusable");
                vec![]
            }
        }
    }

    fn read(&self) -> io::Result<Vec<Resource>> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        if fs::metadata(&self.path)?.len() > MAX_BYTES {
            return Err(invalid("too large"));
        }
        let bytes = Bytes::from(fs::read(&self.path)?);
        let rest = bytes.strip_prefix(MAGIC.as_slice()).ok_or_else(|| invalid("foreign"))?;
        let (sum, body) = rest.split_first_chunk::<8>().ok_or_else(|| invalid("cut short"))?;
        if xxh64(body, 0) != u64::from_le_bytes(*sum) {
            return Err(invalid("damaged"));
        }
        let content = Content::decode(bytes.slice_ref(body)).map_err(|_| invalid("damaged"))?;
        if content.node_id != self.node_id {
            return Err(invalid("of another node"));
        }
        let mut resources: Vec<_> = content.entries.into_iter().filter_map(resource).collect();
        resources.sort_by_key(|one| one.type_url.push_rank());
        Ok(resources)
    }
}

fn resource(entry: Entry) -> Option<Resource> {
    let type_url = PUSH_ORDER.into_iter().find(|one| one.as_str() == entry.type_url)?;
    // The file would otherwise be kept in memory whole by each small body.
    let body = Bytes::copy_from_slice(&entry.body);
    Some(Resource { type_url, name: entry.name, version: entry.version.into(), body })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(type_url: TypeUrl, name: &str) -> Resource {
        Resource::from_body(type_url, name, Bytes::from_static(b"\x0a\x01x"))
    }

    #[test]
    fn resources_come_back_in_the_order_to_apply_them_without_secrets() {
        let dir = tempfile::tempdir().expect("directory");
        let file = LastGood::new(dir.path(), "node");
        let saved = [
            named(TypeUrl::Listener, "l"),
            named(TypeUrl::Secret, "s"),
            named(TypeUrl::Cluster, "c"),
        ];
        file.save(saved.clone()).expect("saved");
        assert_eq!(file.load(), [saved[2].clone(), saved[0].clone()]);
        assert!(LastGood::new(dir.path(), "other").load().is_empty());
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().expect("directory");
        let file = LastGood::new(dir.path(), "node");
        assert!(file.load().is_empty());
        file.save([named(TypeUrl::Cluster, "c")]).expect("saved");
        let path = dir.path().join(FILE);
        let mut bytes = fs::read(&path).expect("readable");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, &bytes).expect("written");
        assert!(file.load().is_empty());
        fs::write(&path, &bytes[..9]).expect("written");
        assert!(file.load().is_empty());
    }
}
