//! Operators that print what a TLS session's certificates say.
//!
//! Nothing of a certificate is kept as text for them: it is read when a line
//! is written.

use std::time::SystemTime;

use amime_identity::{CertificateDetails, Fingerprint, NameKind, ShownCertificate};

use super::format::Subject;
use super::operator::put;
use super::start_time::TimeFormat;
use crate::record::TlsRecord;

/// A compiled operator.
#[derive(Clone, Debug)]
pub(super) struct CertificateField {
    /// The session with the upstream, not that with the client.
    upstream: bool,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Peer(PeerText),
    /// Names of the certificate that we show.
    Local(NameKind),
    LocalSubject,
    ValidFrom(TimeFormat),
    ValidUntil(TimeFormat),
}

/// Text of the peer's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerText {
    /// Alternative names of one kind.
    Names(NameKind),
    /// Who it is for.
    Subject,
    /// Who signed it.
    Issuer,
    /// Its number.
    Serial,
    /// Its hash.
    Fingerprint(Fingerprint),
    /// PEM, encoded as part of a URL.
    Pem,
    /// The hashes of all that the peer has shown.
    ChainFingerprints(Fingerprint),
    /// The numbers of all that the peer has shown.
    ChainSerials,
}

impl PeerText {
    /// The text meant by what follows `…_PEER_` in an operator's name.
    pub fn named(end: &str) -> Option<Self> {
        Some(match end {
            "SUBJECT" => Self::Subject,
            "ISSUER" => Self::Issuer,
            "SERIAL" => Self::Serial,
            "FINGERPRINT_1" => Self::Fingerprint(Fingerprint::Sha1),
            "FINGERPRINT_256" => Self::Fingerprint(Fingerprint::Sha256),
            "CERT" => Self::Pem,
            "CHAIN_FINGERPRINTS_1" => Self::ChainFingerprints(Fingerprint::Sha1),
            "CHAIN_FINGERPRINTS_256" => Self::ChainFingerprints(Fingerprint::Sha256),
            "CHAIN_SERIALS" => Self::ChainSerials,
            other => Self::Names(kind(other.strip_suffix("_SAN")?)?),
        })
    }

    /// Whether more than the leaf is printed.
    pub fn of_chain(self) -> bool {
        matches!(self, Self::ChainFingerprints(_) | Self::ChainSerials)
    }

    /// The text; empty if there is none.
    pub fn of(self, shown: &ShownCertificate) -> String {
        let details = || shown.details();
        match self {
            Self::Names(kind) => {
                details().map(|details| details.joined_names(kind)).unwrap_or_default()
            }
            Self::Subject => details().map(|details| details.subject.clone()).unwrap_or_default(),
            Self::Issuer => details().map(|details| details.issuer.clone()).unwrap_or_default(),
            Self::Serial => shown.serial().unwrap_or_default(),
            Self::Fingerprint(Fingerprint::Sha256) => shown.sha256().to_owned(),
            Self::Fingerprint(hash) => shown.fingerprint(hash),
            Self::Pem => shown.encoded_pem().to_owned(),
            Self::ChainFingerprints(hash) => shown.fingerprints(hash),
            Self::ChainSerials => shown.serials(),
        }
    }
}

fn kind(name: &str) -> Option<NameKind> {
    Some(match name {
        "URI" => NameKind::Uri,
        "DNS" => NameKind::Dns,
        "IP" => NameKind::Ip,
        "EMAIL" => NameKind::Email,
        "OTHERNAME" => NameKind::Other,
        _ => return None,
    })
}

impl CertificateField {
    /// The operator called `name`; `None` if it is not one of these.
    pub(super) fn parse(name: &str, argument: Option<&str>) -> Option<Result<Self, &'static str>> {
        let (upstream, name) = match name.strip_prefix("UPSTREAM_") {
            Some(name) => (true, name),
            None => (false, name.strip_prefix("DOWNSTREAM_")?),
        };
        let time = |what: fn(TimeFormat) -> What| {
            let format = argument.filter(|it| !it.is_empty()).unwrap_or(TimeFormat::DEFAULT);
            TimeFormat::parse(format).map(|format| Self { upstream, what: what(format) })
        };
        let what = match name {
            "PEER_CERT_V_START" => return Some(time(What::ValidFrom)),
            "PEER_CERT_V_END" => return Some(time(What::ValidUntil)),
            "LOCAL_SUBJECT" => What::LocalSubject,
            _ => match (name.strip_prefix("PEER_"), name.strip_prefix("LOCAL_")) {
                (Some(end), _) => What::Peer(PeerText::named(end)?),
                (_, Some(end)) => What::Local(kind(end.strip_suffix("_SAN")?)?),
                (None, None) => return None,
            },
        };
        Some(match argument {
            None => Ok(Self { upstream, what }),
            Some(_) => Err("takes no argument"),
        })
    }

    /// Whether certificates beyond the client's own are printed.
    pub(super) fn prints_chain(&self) -> bool {
        matches!(self.what, What::Peer(text) if text.of_chain()) && !self.upstream
    }

    pub(super) fn write(&self, subject: &Subject<'_>, out: &mut Vec<u8>) -> bool {
        let tls = if self.upstream { subject.upstream.tls } else { subject.downstream.tls };
        tls.is_some_and(|tls| self.what.write(&tls, out))
    }
}

impl What {
    fn write(&self, tls: &TlsRecord<'_>, out: &mut Vec<u8>) -> bool {
        let moment = |of: fn(&CertificateDetails) -> SystemTime| {
            tls.peer.and_then(ShownCertificate::details).map(of)
        };
        let mut time = |format: &TimeFormat, moment: Option<SystemTime>| {
            if let Some(moment) = moment {
                format.write(moment, out);
            }
            moment.is_some()
        };
        match self {
            Self::ValidFrom(format) => time(format, moment(|details| details.not_before)),
            Self::ValidUntil(format) => time(format, moment(|details| details.not_after)),
            Self::Peer(PeerText::Names(NameKind::Uri)) if tls.peer.is_none() => {
                tls.peer_uri_san.is_some_and(|uri| put(out, uri))
            }
            Self::Local(NameKind::Uri) if tls.local.is_none() => {
                tls.local_uri_san.is_some_and(|uri| put(out, uri))
            }
            Self::Peer(PeerText::Names(kind)) => {
                let details = tls.peer.and_then(ShownCertificate::details);
                details.is_some_and(|details| put_names(details, *kind, out))
            }
            Self::Peer(text) => tls.peer.is_some_and(|shown| put(out, &text.of(shown))),
            Self::Local(kind) => tls.local.is_some_and(|local| put_names(local, *kind, out)),
            Self::LocalSubject => tls.local.is_some_and(|local| put(out, &local.subject)),
        }
    }
}

/// Appends all names of one kind, with commas between.
fn put_names(details: &CertificateDetails, kind: NameKind, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    for name in details.names(kind) {
        if out.len() > start {
            out.push(b',');
        }
        put(out, &name);
    }
    out.len() > start
}
