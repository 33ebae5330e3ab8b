//! Which names a verified peer may carry.

use amime_core::SpiffeId;
use regex::Regex;
use rustls_pki_types::CertificateDer;

use crate::details::{SubjectAltName, subject_alt_names};

/// What a peer's certificate must say beyond ending in a trusted root.
#[derive(Clone, Debug, Default)]
pub struct PeerIdentities {
    /// Accepted trust domains. Not empty: the peer must have exactly one URI
    /// SAN, a SPIFFE ID of one of these. Empty: any.
    pub trust_domains: Vec<String>,
    /// At least one SAN must match one of these. Empty: any.
    pub sans: Vec<SanMatcher>,
    /// Accepted SHA-256 sums of the whole certificate, and of its public key
    /// with its algorithm; one of either list must match. Both empty: any.
    pub certificate_hashes: Vec<[u8; 32]>,
    /// See `certificate_hashes`.
    pub key_hashes: Vec<[u8; 32]>,
}

impl PeerIdentities {
    /// Any certificate that ends in a trusted root.
    pub fn any() -> Self {
        Self::default()
    }

    /// Any workload of one trust domain.
    pub fn trust_domain(trust_domain: impl Into<String>) -> Self {
        Self { trust_domains: vec![trust_domain.into()], ..Self::default() }
    }

    /// Exactly these URI SANs, whatever their trust domain.
    pub fn exact_uris(uris: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let sans = uris.into_iter().map(|uri| SanMatcher::exact_uri(uri)).collect();
        Self { sans, ..Self::default() }
    }

    /// True if nothing is asked.
    pub fn is_any(&self) -> bool {
        self.trust_domains.is_empty() && self.sans.is_empty() && !self.pins()
    }

    pub(crate) fn pins(&self) -> bool {
        !self.certificate_hashes.is_empty() || !self.key_hashes.is_empty()
    }
}

/// Kind of subject alternative name that a matcher looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SanType {
    /// URIs, DNS names, IP and e-mail addresses alike.
    Any,
    /// URIs.
    Uri,
    /// DNS names; an exact pattern also matches through a certificate's wildcard.
    Dns,
    /// IP addresses in their text form.
    Ip,
    /// E-mail addresses.
    Email,
    /// Names of a type of their own, by its object identifier in dotted form.
    Other(String),
}

/// How the text of a name is compared.
#[derive(Clone, Debug)]
pub enum SanPattern {
    /// The whole name.
    Exact(String),
    /// Its start.
    Prefix(String),
    /// Its end.
    Suffix(String),
    /// Some part of it.
    Contains(String),
    /// The whole name by a regular expression.
    Regex(Regex),
    /// As the inner pattern, with both sides in lower case.
    IgnoreCase(Box<SanPattern>),
}

/// One accepted name or family of names.
#[derive(Clone, Debug)]
pub struct SanMatcher {
    /// Names looked at.
    pub san_type: SanType,
    /// How they are compared.
    pub pattern: SanPattern,
}

impl SanMatcher {
    /// One URI, such as a SPIFFE ID.
    pub fn exact_uri(uri: impl Into<String>) -> Self {
        Self { san_type: SanType::Uri, pattern: SanPattern::Exact(uri.into()) }
    }

    /// One name of any type, as Istio's `subjectAltNames` are meant.
    pub fn exact(name: impl Into<String>) -> Self {
        Self { san_type: SanType::Any, pattern: SanPattern::Exact(name.into()) }
    }

    /// True if `name` is accepted.
    pub fn matches(&self, name: &SubjectAltName) -> bool {
        let wanted = match (&self.san_type, name) {
            (SanType::Any, SubjectAltName::Other { .. }) => false,
            (SanType::Any, _)
            | (SanType::Uri, SubjectAltName::Uri(_))
            | (SanType::Dns, SubjectAltName::Dns(_))
            | (SanType::Ip, SubjectAltName::Ip(_))
            | (SanType::Email, SubjectAltName::Email(_)) => true,
            (SanType::Other(oid), SubjectAltName::Other { oid: have, .. }) => oid == have,
            _ => false,
        };
        if !wanted {
            return false;
        }
        match name {
            SubjectAltName::Dns(text) => self.pattern.matches(text, true),
            SubjectAltName::Ip(ip) => self.pattern.matches(&ip.to_string(), false),
            SubjectAltName::Uri(text)
            | SubjectAltName::Email(text)
            | SubjectAltName::Other { value: text, .. } => self.pattern.matches(text, false),
        }
    }
}

impl SanPattern {
    fn matches(&self, text: &str, dns: bool) -> bool {
        match self {
            Self::Exact(want) if dns => dns_matches(text, want),
            Self::Exact(want) => text == want,
            Self::Prefix(want) => text.starts_with(want.as_str()),
            Self::Suffix(want) => text.ends_with(want.as_str()),
            Self::Contains(want) => text.contains(want.as_str()),
            Self::Regex(regex) => regex
                .find(text)
                .is_some_and(|found| found.start() == 0 && found.end() == text.len()),
            Self::IgnoreCase(inner) => inner.matches(&text.to_lowercase(), dns),
        }
    }
}

/// The SPIFFE ID of a peer's chain: its leaf's only URI SAN, or nothing.
pub fn peer_spiffe_id(chain: &[CertificateDer<'_>]) -> Option<SpiffeId> {
    spiffe_id_of(&subject_alt_names(chain.first()?).ok()?)
}

/// Two URI SANs are no identity: a reader of the one would be fooled by the other.
pub(crate) fn spiffe_id_of(names: &[SubjectAltName]) -> Option<SpiffeId> {
    let mut uris = names.iter().filter_map(|name| match name {
        SubjectAltName::Uri(uri) => Some(uri),
        _ => None,
    });
    let only = uris.next()?;
    if uris.next().is_some() {
        return None;
    }
    only.parse().ok()
}

/// Compares a certificate's DNS name with a wanted one; a leading `*.` of the
/// certificate stands for one label.
fn dns_matches(presented: &str, want: &str) -> bool {
    if presented.eq_ignore_ascii_case(want) {
        return true;
    }
    let (Some(suffix), Some((label, rest))) = (presented.strip_prefix("*."), want.split_once('.'))
    else {
        return false;
    };
    !label.is_empty() && label != "*" && suffix.eq_ignore_ascii_case(rest)
}
