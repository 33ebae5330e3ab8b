//! Why a handshake failed, in the words and numbers that operators know from
//! BoringSSL, and which counter it belongs to.

use std::io;

use amime_identity::PeerRejected;
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

/// Counter of `ssl.*` that a failure goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// `fail_verify_no_cert`
    NoCertificate,
    /// `fail_verify_error`
    Verify,
    /// `fail_verify_san`
    San,
    /// `fail_verify_cert_hash`
    Pin,
    /// `connection_error`
    Protocol,
    /// None of them: the connection broke.
    Nowhere,
}

/// A failed handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFailure {
    /// `TLS_error:|...:TLS_error_end`; empty if the peer just went away.
    pub reason: String,
    /// Counter that it belongs to.
    pub counted: Counted,
}

/// So many bytes show whether a client speaks HTTP.
pub const SHOWS_HTTP: usize = 5;

/// What is said where our own certificate or the roots have not come yet.
pub const NOT_READY: &str = "TLS error: Secret is not supplied by SDS";

impl TlsFailure {
    /// A client that speaks HTTP where TLS is spoken, by its first bytes.
    pub fn of_http(first: &[u8]) -> Option<Self> {
        const METHODS: [&[u8]; 4] = [b"GET ", b"POST ", b"HEAD ", b"PUT "];
        if METHODS.iter().any(|method| first.starts_with(method)) {
            return Some(protocol(156, "HTTP_REQUEST"));
        }
        first.starts_with(b"CONNE").then(|| protocol(155, "HTTPS_PROXY_REQUEST"))
    }

    /// Reads the error of a handshake.
    pub fn of(error: &io::Error) -> Self {
        let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        let Some(cause) = cause else {
            return Self { reason: String::new(), counted: Counted::Nowhere };
        };
        match cause {
            Error::InvalidCertificate(error) => certificate(error),
            Error::NoCertificatesPresented => Self {
                reason: wrapped(192, "PEER_DID_NOT_RETURN_A_CERTIFICATE", Some(NO_CERTIFICATE)),
                counted: Counted::NoCertificate,
            },
            Error::AlertReceived(alert) => received(*alert),
            Error::PeerIncompatible(why) => incompatible(why),
            other => match numbered(other) {
                Some((number, name)) => protocol(number, name),
                None => Self {
                    reason: format!("TLS_error:|{other}:TLS_error_end"),
                    counted: Counted::Protocol,
                },
            },
        }
    }
}

const NO_CERTIFICATE: &str = "peer did not provide required client certificate";

/// BoringSSL packs the library, 16 for TLS, above the reason.
fn wrapped(number: u32, name: &str, detail: Option<&str>) -> String {
    let packed = (16 << 24) | number;
    let head = format!("TLS_error:|{packed}:SSL routines:OPENSSL_internal:{name}");
    match detail {
        Some(detail) => format!("{head}:{detail}:TLS_error_end"),
        None => format!("{head}:TLS_error_end"),
    }
}

fn protocol(number: u32, name: &str) -> TlsFailure {
    TlsFailure { reason: wrapped(number, name, None), counted: Counted::Protocol }
}

fn numbered(error: &Error) -> Option<(u32, &'static str)> {
    Some(match error {
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => (247, "WRONG_VERSION_NUMBER"),
        Error::InvalidMessage(_) => (137, "DECODE_ERROR"),
        Error::DecryptError => (139, "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"),
        Error::InappropriateMessage { .. } => (225, "UNEXPECTED_RECORD"),
        Error::InappropriateHandshakeMessage { .. } => (223, "UNEXPECTED_MESSAGE"),
        Error::PeerSentOversizedRecord => (134, "DATA_LENGTH_TOO_LONG"),
        _ => return None,
    })
}

fn incompatible(why: &PeerIncompatible) -> TlsFailure {
    let (number, name) = match why {
        PeerIncompatible::NoCipherSuitesInCommon => (184, "NO_SHARED_CIPHER"),
        PeerIncompatible::NoKxGroupsInCommon => (266, "NO_SHARED_GROUP"),
        PeerIncompatible::NoSignatureSchemesInCommon => (253, "NO_COMMON_SIGNATURE_ALGORITHMS"),
        PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
        | PeerIncompatible::SupportedVersionsExtensionRequired
        | PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled => (240, "UNSUPPORTED_PROTOCOL"),
        other => {
            return TlsFailure {
                reason: format!("TLS_error:|{other:?}:TLS_error_end"),
                counted: Counted::Protocol,
            };
        }
    };
    protocol(number, name)
}

fn certificate(error: &CertificateError) -> TlsFailure {
    let chain = |text: &str| {
        let text = format!("X509_verify_cert: certificate verification error at depth 0: {text}");
        (text, Counted::Verify)
    };
    let (detail, counted) = match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            chain("certificate has expired")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            chain("certificate is not yet valid")
        }
        CertificateError::UnknownIssuer => chain("unable to get local issuer certificate"),
        CertificateError::Revoked => chain("certificate revoked"),
        CertificateError::UnknownRevocationStatus => chain("unable to get certificate CRL"),
        CertificateError::BadSignature => chain("certificate signature failure"),
        CertificateError::InvalidPurpose => chain("unsupported certificate purpose"),
        CertificateError::Other(other) => match other.0.downcast_ref::<PeerRejected>() {
            Some(rejected) => match rejection(rejected) {
                Some(found) => found,
                None => {
                    return TlsFailure { reason: NOT_READY.to_owned(), counted: Counted::Verify };
                }
            },
            None => chain(&other.0.to_string()),
        },
        other => chain(&other.to_string()),
    };
    let detail = format!("verify cert failed: {detail}");
    TlsFailure { reason: wrapped(125, "CERTIFICATE_VERIFY_FAILED", Some(&detail)), counted }
}

/// `None` where the roots have not come yet.
fn rejection(rejected: &PeerRejected) -> Option<(String, Counted)> {
    Some(match rejected {
        PeerRejected::NoRoots => return None,
        PeerRejected::SubjectAltName { names } | PeerRejected::NoSpiffeId { names } => {
            (format!("SAN matcher, certificate SANs are [{names}]"), Counted::San)
        }
        PeerRejected::TrustDomain { found, accepted } => {
            (format!("SAN matcher, trust domain {found} is not one of [{accepted}]"), Counted::San)
        }
        PeerRejected::ServerName { expected, names } => (
            format!("verify SAN list, expected SANs: [{expected}], certificate SANs: [{names}]"),
            Counted::San,
        ),
        PeerRejected::Pin => ("cert hash and spki".to_owned(), Counted::Pin),
        PeerRejected::Depth => (
            "X509_verify_cert: certificate verification error at depth 0: \
             certificate chain too long"
                .to_owned(),
            Counted::Verify,
        ),
    })
}

/// An alert from the peer; BoringSSL's reasons for them begin at 1000.
fn received(alert: AlertDescription) -> TlsFailure {
    let name = match alert {
        AlertDescription::UnexpectedMessage => "SSLV3_ALERT_UNEXPECTED_MESSAGE",
        AlertDescription::BadRecordMac => "SSLV3_ALERT_BAD_RECORD_MAC",
        AlertDescription::HandshakeFailure => "SSLV3_ALERT_HANDSHAKE_FAILURE",
        AlertDescription::BadCertificate => "SSLV3_ALERT_BAD_CERTIFICATE",
        AlertDescription::UnsupportedCertificate => "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        AlertDescription::CertificateRevoked => "SSLV3_ALERT_CERTIFICATE_REVOKED",
        AlertDescription::CertificateExpired => "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        AlertDescription::CertificateUnknown => "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        AlertDescription::IllegalParameter => "SSLV3_ALERT_ILLEGAL_PARAMETER",
        AlertDescription::UnknownCA => "TLSV1_ALERT_UNKNOWN_CA",
        AlertDescription::AccessDenied => "TLSV1_ALERT_ACCESS_DENIED",
        AlertDescription::DecodeError => "TLSV1_ALERT_DECODE_ERROR",
        AlertDescription::DecryptError => "TLSV1_ALERT_DECRYPT_ERROR",
        AlertDescription::ProtocolVersion => "TLSV1_ALERT_PROTOCOL_VERSION",
        AlertDescription::InsufficientSecurity => "TLSV1_ALERT_INSUFFICIENT_SECURITY",
        AlertDescription::InternalError => "TLSV1_ALERT_INTERNAL_ERROR",
        AlertDescription::UserCanceled => "TLSV1_ALERT_USER_CANCELLED",
        AlertDescription::UnrecognisedName => "TLSV1_ALERT_UNRECOGNIZED_NAME",
        AlertDescription::CertificateRequired => "TLSV1_ALERT_CERTIFICATE_REQUIRED",
        AlertDescription::NoApplicationProtocol => "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
        _ => "SSLV3_ALERT",
    };
    protocol(1000 + u32::from(u8::from(alert)), name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: Error, reason: &str, counted: Counted) {
        let failure = TlsFailure::of(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!((failure.reason.as_str(), failure.counted), (reason, counted));
    }

    // The texts are those of Envoy 1.40 in the same situations.
    #[test]
    fn failures_read_as_operators_know_them() {
        check(
            Error::AlertReceived(AlertDescription::HandshakeFailure),
            "TLS_error:|268436496:SSL routines:OPENSSL_internal:\
             SSLV3_ALERT_HANDSHAKE_FAILURE:TLS_error_end",
            Counted::Protocol,
        );
        check(
            Error::InvalidMessage(InvalidMessage::InvalidContentType),
            "TLS_error:|268435703:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER:TLS_error_end",
            Counted::Protocol,
        );
        check(
            Error::NoCertificatesPresented,
            "TLS_error:|268435648:SSL routines:OPENSSL_internal:\
             PEER_DID_NOT_RETURN_A_CERTIFICATE:\
             peer did not provide required client certificate:TLS_error_end",
            Counted::NoCertificate,
        );
        check(
            Error::InvalidCertificate(CertificateError::UnknownIssuer),
            "TLS_error:|268435581:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:\
             verify cert failed: X509_verify_cert: certificate verification error at depth 0: \
             unable to get local issuer certificate:TLS_error_end",
            Counted::Verify,
        );
        check(
            PeerRejected::SubjectAltName { names: "good.test".to_owned() }.into(),
            "TLS_error:|268435581:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:\
             verify cert failed: SAN matcher, certificate SANs are [good.test]:TLS_error_end",
            Counted::San,
        );
        let gone = TlsFailure::of(&io::ErrorKind::UnexpectedEof.into());
        assert_eq!((gone.reason.as_str(), gone.counted), ("", Counted::Nowhere));
    }

    #[test]
    fn http_is_told_from_what_is_no_protocol() {
        let reason = |first| TlsFailure::of_http(first).map(|failure| failure.reason);
        assert_eq!(
            reason(b"GET / HTTP/1.1").as_deref(),
            Some("TLS_error:|268435612:SSL routines:OPENSSL_internal:HTTP_REQUEST:TLS_error_end")
        );
        let connect = reason(b"CONNECT a:1 HTTP/1.1").expect("HTTP");
        assert!(connect.contains("HTTPS_PROXY_REQUEST"), "{connect}");
        assert_eq!(reason(b"HTTP/1.1 400"), None);
    }
}
