//! Identity that outlives a restart, in memory that the parent keeps open.
//!
//! The parent process passes a memfd; each issued identity is written into it
//! and a restarted proxy reads it back, so that it serves while the CA is
//! away. It never touches a disk.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use amime_identity::{PrivateKey, TrustBundle, WorkloadCert};

const MAGIC: &[u8; 8] = b"amimeid1";
/// Nothing legitimate is near.
const MAX_BYTES: u64 = 1024 * 1024;

/// The place where an identity waits for the next process.
#[derive(Debug)]
pub(crate) struct Handover {
    fd: OwnedFd,
}

impl Handover {
    /// Takes over the descriptor that the parent left open.
    pub(crate) fn inherit(raw: i32) -> io::Result<Self> {
        Ok(Self { fd: amime_net::socket::inherited_fd(raw)? })
    }

    /// Replaces the identity that is kept.
    pub(crate) fn store(&self, cert: &WorkloadCert, roots: &TrustBundle) -> io::Result<()> {
        let key = cert.key().to_pem();
        let mut content = zeroed_on_drop(MAGIC.to_vec());
        for section in [key.as_bytes(), cert.chain_pem().as_bytes(), roots.to_pem().as_bytes()] {
            let len = u32::try_from(section.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
            content.0.write_all(&len.to_le_bytes())?;
            content.0.write_all(section)?;
        }
        let file = File::from(self.fd.try_clone()?);
        file.set_len(0)?;
        file.write_all_at(&content.0, 0)
    }

    /// The identity that is kept; `None` if there is none or it is damaged.
    pub(crate) fn load(&self) -> Option<(WorkloadCert, TrustBundle)> {
        let content = zeroed_on_drop(amime_net::socket::read_memfd(&self.fd, MAX_BYTES).ok()?);
        let mut rest = content.0.strip_prefix(MAGIC.as_slice())?;
        let mut section = || {
            let (len, after) = rest.split_first_chunk::<4>()?;
            let (section, after) = after.split_at_checked(u32::from_le_bytes(*len) as usize)?;
            rest = after;
            Some(section)
        };
        let (key, chain, roots) = (section()?, section()?, section()?);
        let key = PrivateKey::from_pem(key).ok()?;
        Some((WorkloadCert::from_pem(chain, key).ok()?, TrustBundle::from_pem(roots).ok()?))
    }
}

/// Bytes with a key in them.
struct Secret(Vec<u8>);

fn zeroed_on_drop(bytes: Vec<u8>) -> Secret {
    Secret(bytes)
}

impl Drop for Secret {
    fn drop(&mut self) {
        // The optimiser may not drop writes that a later read could see.
        self.0.fill(0);
        std::hint::black_box(&self.0);
    }
}
