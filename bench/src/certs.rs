//! Throw-away mesh certificates for the mTLS scenario.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    SanType,
};

/// PEM files of one mesh identity and its root.
#[derive(Debug)]
pub(crate) struct Certs {
    pub(crate) root: PathBuf,
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

/// The identity that both proxies carry and expect.
pub(crate) const SPIFFE_ID: &str = "spiffe://cluster.local/ns/bench/sa/bench";

/// Issues a P-256 certificate for [`SPIFFE_ID`] into `dir`.
pub(crate) fn write(dir: &Path) -> Result<Certs> {
    let mut root = CertificateParams::new(Vec::new())?;
    // A root and leaf of one name would look self-signed to a verifier.
    root.distinguished_name = named("bench root");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(Vec::new())?;
    leaf.distinguished_name = named("bench");
    leaf.subject_alt_names.push(SanType::URI(Ia5String::try_from(SPIFFE_ID)?));
    let leaf = leaf.signed_by(&key, &root)?;
    let certs = Certs {
        root: dir.join("root.pem"),
        chain: dir.join("chain.pem"),
        key: dir.join("key.pem"),
    };
    std::fs::write(&certs.root, root.pem())?;
    std::fs::write(&certs.chain, leaf.pem())?;
    std::fs::write(&certs.key, key.serialize_pem())?;
    Ok(certs)
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}
