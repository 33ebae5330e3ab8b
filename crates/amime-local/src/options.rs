//! What the user asked of `amime up`, and what the supervisor is told.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::image::ImageMapping;

/// Options of [`crate::up`].
#[derive(Clone, Debug)]
pub struct UpOptions {
    /// State directory; none: [`crate::default_state_dir`].
    pub state_dir: Option<PathBuf>,
    /// Address on the host that the ingress gateway answers on; loopback.
    pub host: IpAddr,
    /// TCP port on the host; 8080. 0 takes any free one.
    pub port: u16,
    /// Manifests to apply, read already, in order.
    pub files: Vec<ManifestFile>,
    /// Commands for images that are not built in; they win over those.
    pub images: Vec<ImageMapping>,
    /// Deploy the Bookinfo sample on the first start; true.
    pub demo: bool,
    /// The `amime` program; none: the running one.
    pub self_exe: Option<PathBuf>,
    /// Start control plane and gateways; true. Without them only un-meshed
    /// pods can become ready.
    pub mesh: bool,
    /// Log directives of the supervisor, such as `info,amime_local=debug`.
    pub log: String,
}

impl Default for UpOptions {
    fn default() -> Self {
        Self {
            state_dir: None,
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 8080,
            files: Vec::new(),
            images: Vec::new(),
            demo: true,
            self_exe: None,
            mesh: true,
            log: "info".to_owned(),
        }
    }
}

/// One manifest file and its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Name for messages.
    pub name: String,
    /// YAML or JSON, one or more documents.
    pub text: String,
}

/// Everything the supervisor needs, handed over in a sealed memory file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SupervisorConfig {
    pub(crate) state_dir: PathBuf,
    pub(crate) self_exe: PathBuf,
    pub(crate) files: Vec<ManifestFile>,
    pub(crate) images: Vec<ImageMapping>,
    pub(crate) demo: bool,
    pub(crate) mesh: bool,
    pub(crate) log: String,
    /// URL at which the host reaches the ingress gateway.
    pub(crate) url: String,
    /// Listening socket in the host's network.
    pub(crate) listener_fd: RawFd,
    /// Socket that progress goes to, one JSON object a line.
    pub(crate) progress_fd: RawFd,
    /// Holds the lock of the state directory as long as it is open.
    pub(crate) lock_fd: RawFd,
}
