//! What a certificate says about itself, for checks and for `proxy-config secret`.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::asn1_rs::Any;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use crate::name;

/// A certificate could not be read.
#[derive(Debug, thiserror::Error)]
#[error("not a valid X.509 certificate: {reason}")]
pub struct DetailsError {
    reason: String,
}

/// One subject alternative name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubjectAltName {
    /// A URI, such as a SPIFFE ID.
    Uri(String),
    /// A DNS name, perhaps with a leading wildcard label.
    Dns(String),
    /// An IP address.
    Ip(IpAddr),
    /// An e-mail address.
    Email(String),
    /// A name of a type of its own whose value is a string.
    Other {
        /// Object identifier of the type, dotted.
        oid: String,
        /// The name.
        value: String,
    },
}

impl std::fmt::Display for SubjectAltName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uri(text) | Self::Dns(text) | Self::Email(text) => f.write_str(text),
            Self::Ip(ip) => ip.fmt(f),
            Self::Other { oid, value } => write!(f, "{oid}:{value}"),
        }
    }
}

/// The readable fields of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateDetails {
    /// Serial number, lower-case hex without separators or leading zeros.
    pub serial: String,
    /// Distinguished name of the holder, RFC 2253; often empty for workloads.
    pub subject: String,
    /// Distinguished name of the signer, RFC 2253.
    pub issuer: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// URIs, DNS names, addresses; other kinds are left out.
    pub subject_alt_names: Vec<SubjectAltName>,
    /// True if it may sign other certificates.
    pub is_ca: bool,
}

impl CertificateDetails {
    /// Reads a DER certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, DetailsError> {
        let parsed = parse(certificate)?;
        Ok(Self {
            serial: format!("{:x}", parsed.tbs_certificate.serial),
            subject: name::text(parsed.subject()),
            issuer: name::text(parsed.issuer()),
            not_before: system_time(parsed.validity().not_before),
            not_after: system_time(parsed.validity().not_after),
            subject_alt_names: names_of(&parsed)?,
            is_ca: parsed.is_ca(),
        })
    }

    /// Reads the first certificate of a PEM text.
    pub fn of_pem(text: &[u8]) -> Result<Self, DetailsError> {
        let chain = crate::pem::certificates(text)
            .map_err(|error| DetailsError { reason: format!("{error:?}") })?;
        let first =
            chain.first().ok_or_else(|| DetailsError { reason: "no PEM section".to_owned() })?;
        Self::of(first)
    }

    /// True within the validity, both ends included.
    pub fn valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// The subject alternative names of a certificate; none if it has no such
/// extension, an error if it is malformed or present twice.
pub fn subject_alt_names(
    certificate: &CertificateDer<'_>,
) -> Result<Vec<SubjectAltName>, DetailsError> {
    names_of(&parse(certificate)?)
}

/// The subject's common name.
pub(crate) fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let parsed = parse(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// The subject's public key with its algorithm, DER.
pub(crate) fn public_key_info(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, DetailsError> {
    Ok(parse(certificate)?.public_key().raw.to_vec())
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, DetailsError> {
    let (rest, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| DetailsError { reason: error.to_string() })?;
    if !rest.is_empty() {
        return Err(DetailsError { reason: "bytes follow the certificate".to_owned() });
    }
    Ok(parsed)
}

fn names_of(parsed: &X509Certificate<'_>) -> Result<Vec<SubjectAltName>, DetailsError> {
    let extension = parsed
        .subject_alternative_name()
        .map_err(|error| DetailsError { reason: error.to_string() })?;
    let Some(extension) = extension else { return Ok(Vec::new()) };
    Ok(extension.value.general_names.iter().filter_map(name_of).collect())
}

fn name_of(name: &GeneralName<'_>) -> Option<SubjectAltName> {
    match name {
        GeneralName::URI(uri) => Some(SubjectAltName::Uri((*uri).to_owned())),
        GeneralName::DNSName(dns) => Some(SubjectAltName::Dns((*dns).to_owned())),
        GeneralName::RFC822Name(email) => Some(SubjectAltName::Email((*email).to_owned())),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let v6 = <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
            v4.or(v6).ok().map(SubjectAltName::Ip)
        }
        GeneralName::OtherName(oid, tagged) => {
            let (_, tagged) = Any::from_der(tagged).ok()?;
            let (_, text) = Any::from_der(tagged.data).ok()?;
            let value = std::str::from_utf8(text.data).ok()?.to_owned();
            Some(SubjectAltName::Other { oid: oid.to_id_string(), value })
        }
        _ => None,
    }
}

fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = time.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
}
