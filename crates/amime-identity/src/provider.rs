//! The one cryptography provider of the mesh: aws-lc-rs.
//!
//! Its preference order puts the X25519MLKEM768 hybrid first, so two of our own
//! proxies always agree on it; other peers fall back to the curve they know.
//! Cipher suites stand in Envoy's order: AES-128 is the cheaper one and as safe.

use std::sync::{Arc, OnceLock};

use rustls::SupportedCipherSuite;
use rustls::crypto::aws_lc_rs::{self, cipher_suite as suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};

/// The provider that every configuration of this crate is built with.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let ordered = || {
        let cipher_suites = SUITES.iter().map(|(.., suite)| *suite).collect();
        Arc::new(CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() })
    };
    PROVIDER.get_or_init(ordered).clone()
}

/// Makes aws-lc-rs the process default, for libraries that ask rustls for one.
///
/// Call it first thing in `main`. A second call changes nothing.
pub fn install_default_provider() {
    if CryptoProvider::get_default().is_none() {
        // A racing caller installs the same provider, so losing the race is fine.
        let _ = aws_lc_rs::default_provider().install_default();
    }
}

/// OpenSSL's name, the standard's name, and the suite.
const SUITES: [(&str, &str, SupportedCipherSuite); 9] = [
    ("TLS_AES_128_GCM_SHA256", "", suite::TLS13_AES_128_GCM_SHA256),
    ("TLS_AES_256_GCM_SHA384", "", suite::TLS13_AES_256_GCM_SHA384),
    ("TLS_CHACHA20_POLY1305_SHA256", "", suite::TLS13_CHACHA20_POLY1305_SHA256),
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "ECDHE-RSA-AES128-GCM-SHA256",
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "ECDHE-RSA-CHACHA20-POLY1305",
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "ECDHE-RSA-AES256-GCM-SHA384",
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ),
];

/// OpenSSL's spelling of a suite, as access logs and stats show it.
pub fn cipher_name(suite: rustls::CipherSuite) -> &'static str {
    SUITES.iter().find(|(.., known)| known.suite() == suite).map_or("unknown", |(name, ..)| name)
}

/// Suites of TLS 1.2 that other libraries speak and this one does not: without
/// forward secrecy, or with a block cipher in CBC mode.
const OLD_SUITES: [&str; 15] = [
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA256",
    "ECDHE-ECDSA-AES128-SHA256",
    "ECDHE-PSK-AES128-CBC-SHA",
    "ECDHE-PSK-AES256-CBC-SHA",
    "ECDHE-PSK-CHACHA20-POLY1305",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "PSK-AES128-CBC-SHA",
    "PSK-AES256-CBC-SHA",
];

/// Names that could not be given what they ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnusedNames {
    /// Known elsewhere and not offered here.
    pub unsupported: Vec<String>,
    /// Known nowhere.
    pub unknown: Vec<String>,
}

/// Keeps the TLS 1.2 suites of these OpenSSL names, in their order; those of
/// TLS 1.3 are not configurable and stay. Names may stand in groups of equal
/// preference, `[A|B]`.
pub fn with_cipher_suites(
    provider: &CryptoProvider,
    names: &[String],
) -> (CryptoProvider, UnusedNames) {
    let mut unused = UnusedNames::default();
    let mut chosen: Vec<SupportedCipherSuite> =
        provider.cipher_suites.iter().filter(|suite| suite.tls13().is_some()).copied().collect();
    let single = |name: &String| -> Vec<String> {
        let inner = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        inner.unwrap_or(name).split(['|', ':']).map(str::to_owned).collect()
    };
    for name in names.iter().flat_map(single) {
        let known =
            SUITES.iter().find(|(openssl, standard, _)| name == *openssl || name == *standard);
        match known {
            Some((.., suite)) if suite.tls13().is_some() => unused.unsupported.push(name),
            Some((.., suite)) if chosen.contains(suite) => {}
            Some((.., suite)) => chosen.push(*suite),
            None if OLD_SUITES.contains(&name.as_str()) => unused.unsupported.push(name),
            None => unused.unknown.push(name),
        }
    }
    (CryptoProvider { cipher_suites: chosen, ..provider.clone() }, unused)
}

/// Keeps the key-exchange groups of these names, in their order.
pub fn with_groups(provider: &CryptoProvider, names: &[String]) -> (CryptoProvider, UnusedNames) {
    let mut unused = UnusedNames::default();
    let mut kx_groups: Vec<&'static dyn SupportedKxGroup> = Vec::new();
    for name in names.iter().flat_map(|name| name.split(':')) {
        kx_groups.push(match name {
            "X25519" | "x25519" => kx_group::X25519,
            "P-256" | "prime256v1" => kx_group::SECP256R1,
            "P-384" | "secp384r1" => kx_group::SECP384R1,
            "X25519MLKEM768" => kx_group::X25519MLKEM768,
            "P-224"
            | "secp224r1"
            | "P-521"
            | "secp521r1"
            | "X25519Kyber768Draft00"
            | "MLKEM1024" => {
                unused.unsupported.push(name.to_owned());
                continue;
            }
            _ => {
                unused.unknown.push(name.to_owned());
                continue;
            }
        });
    }
    (CryptoProvider { kx_groups, ..provider.clone() }, unused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn cipher_suites_are_chosen_by_name_and_the_rest_is_named() {
        let list = names(&[
            "[ECDHE-RSA-AES256-GCM-SHA384|ECDHE-ECDSA-AES256-GCM-SHA384]",
            "AES128-SHA",
            "NOT-A-SUITE",
        ]);
        let (restricted, unused) = with_cipher_suites(&provider(), &list);
        let kept: Vec<&str> =
            restricted.cipher_suites.iter().map(|suite| cipher_name(suite.suite())).collect();
        assert_eq!(kept[3..], ["ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"]);
        assert_eq!(unused.unsupported, ["AES128-SHA"]);
        assert_eq!(unused.unknown, ["NOT-A-SUITE"]);
    }

    #[test]
    fn groups_are_chosen_by_name() {
        let (restricted, unused) =
            with_groups(&provider(), &names(&["P-384", "X25519MLKEM768", "P-521", "P-1"]));
        let kept: Vec<_> = restricted.kx_groups.iter().map(|group| group.name()).collect();
        assert_eq!(kept, [rustls::NamedGroup::secp384r1, rustls::NamedGroup::X25519MLKEM768]);
        assert_eq!(unused.unsupported, ["P-521"]);
        assert_eq!(unused.unknown, ["P-1"]);
    }
}
