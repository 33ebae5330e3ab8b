//! Throw-away certificates: files for the proxies, settings for our own ends.
//!
//! | name | subject alternative names |
//! |---|---|
//! | `a` | `a.test`, `*.wild.test`, `spiffe://test/a` |
//! | `b` | `b.test` |
//! | `client` | `spiffe://test/client` |
//! | `other` | `spiffe://test/other`, signed by a root that nobody trusts |
//! | `expired` | `a.test`, no longer valid |
//!
//! `ca.pem` is the root of all but `other`; every name has `NAME.pem` and
//! `NAME.key`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    SanType,
};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

type Issuer = CertifiedIssuer<'static, KeyPair>;

const LEAVES: [(&str, &[&str]); 5] = [
    ("a", &["a.test", "*.wild.test", "spiffe://test/a"]),
    ("b", &["b.test"]),
    ("client", &["spiffe://test/client"]),
    ("other", &["spiffe://test/other"]),
    ("expired", &["a.test"]),
];

/// Names by certificate, for results that show who answered.
static NAMES: Mutex<BTreeMap<Vec<u8>, &'static str>> = Mutex::new(BTreeMap::new());

/// The folder of certificates.
#[derive(Clone, Debug)]
pub(crate) struct Certs {
    pub(crate) dir: PathBuf,
}

impl Certs {
    /// Issues all certificates into `dir`.
    pub(crate) fn write(dir: &Path) -> Result<Self> {
        let (root, stranger) = (issuer("root")?, issuer("stranger")?);
        std::fs::write(dir.join("ca.pem"), root.pem())?;
        let mut names = BTreeMap::new();
        for (name, sans) in LEAVES {
            let key = KeyPair::generate()?;
            let mut leaf = CertificateParams::new(Vec::new())?;
            leaf.distinguished_name = named(name);
            leaf.subject_alt_names =
                sans.iter().map(|san| alternative(san)).collect::<Result<_>>()?;
            if name == "expired" {
                leaf.not_before = time::OffsetDateTime::UNIX_EPOCH;
                leaf.not_after = leaf.not_before + time::Duration::days(1);
            }
            let leaf = leaf.signed_by(&key, if name == "other" { &stranger } else { &root })?;
            names.insert(leaf.der().to_vec(), name);
            std::fs::write(dir.join(format!("{name}.pem")), leaf.pem())?;
            std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?;
        }
        // Suites may run side by side in one process, each with its own.
        NAMES.lock().unwrap_or_else(PoisonError::into_inner).extend(names);
        Ok(Self { dir: dir.to_owned() })
    }

    /// The name of one of our certificates.
    pub(crate) fn name_of(certificate: &[u8]) -> String {
        let names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        let name = names.get(certificate).map(|name| (*name).to_owned());
        name.unwrap_or_else(|| format!("unknown, {} bytes", certificate.len()))
    }

    /// Settings of a backend with the certificate `a`.
    pub(crate) fn backend(&self, require_client: bool) -> Result<rustls::ServerConfig> {
        let verifier = WebPkiClientVerifier::builder(Arc::new(self.roots()?));
        let verifier =
            if require_client { verifier } else { verifier.allow_unauthenticated() }.build()?;
        let (chain, key) = self.leaf("a")?;
        let mut config = rustls::ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// A chain and its key.
    pub(crate) fn leaf(
        &self,
        name: &str,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = CertificateDer::from_pem_file(self.dir.join(format!("{name}.pem")))
            .with_context(|| format!("certificate {name}"))?;
        let key = PrivateKeyDer::from_pem_file(self.dir.join(format!("{name}.key")))
            .with_context(|| format!("key {name}"))?;
        Ok((vec![chain], key))
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.dir.join("ca.pem"))?)?;
        Ok(roots)
    }
}

fn issuer(name: &str) -> Result<Issuer> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

fn alternative(san: &str) -> Result<SanType> {
    let text = Ia5String::try_from(san)?;
    Ok(if san.contains("://") { SanType::URI(text) } else { SanType::DnsName(text) })
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}
