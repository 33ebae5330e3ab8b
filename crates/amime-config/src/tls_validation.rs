//! What a TLS context asks of the peer's certificate.

use amime_identity::{
    LiveBundle, PeerChecks, PeerIdentities, SanMatcher, SanPattern, SanType, ServerNameCheck,
    TrustBundle,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;

use super::secrets::with_cause;
use amime_rules::Faults;
use amime_rules::values::{bool_or, data_source};

/// A compiled `CertificateValidationContext`.
#[derive(Debug, Default)]
pub(crate) struct Validation {
    pub(crate) roots: Option<TrustBundle>,
    pub(crate) identities: PeerIdentities,
    accept_untrusted: bool,
    allow_expired: bool,
    leaf_crl_only: bool,
    max_depth: Option<u32>,
}

impl Validation {
    pub(crate) fn compile(
        value: &pb::CertificateValidationContext,
        faults: &mut Faults,
    ) -> Option<Self> {
        use pb::certificate_validation_context::TrustChainVerification;
        faults.reject_if(value.custom_validator_config.is_some(), "custom_validator_config");
        faults.reject_if(
            value.ca_certificate_provider_instance.is_some(),
            "ca_certificate_provider_instance",
        );
        faults.reject_if(
            bool_or(value.require_signed_certificate_timestamp.as_ref(), false),
            "require_signed_certificate_timestamp",
        );
        let compiled = Self {
            roots: roots(value, faults).ok()?,
            identities: PeerIdentities {
                sans: sans(value, faults)?,
                certificate_hashes: value
                    .verify_certificate_hash
                    .iter()
                    .filter_map(|text| certificate_hash(text, faults))
                    .collect(),
                key_hashes: value
                    .verify_certificate_spki
                    .iter()
                    .filter_map(|text| key_hash(text, faults))
                    .collect(),
                ..PeerIdentities::any()
            },
            accept_untrusted: value.trust_chain_verification()
                == TrustChainVerification::AcceptUntrusted,
            allow_expired: value.allow_expired_certificate,
            leaf_crl_only: value.only_verify_leaf_cert_crl,
            max_depth: value.max_verify_depth.as_ref().map(|depth| depth.value),
        };
        Some(compiled)
    }

    /// Refuses what is safe only together with roots.
    pub(crate) fn needs_roots(&self, faults: &mut Faults) {
        if !self.identities.sans.is_empty() {
            faults.reject(
                "match_typed_subject_alt_names",
                "names mean nothing without a trusted CA that vouches for them",
            );
        }
        if self.allow_expired {
            faults.reject("allow_expired_certificate", "has no effect without a trusted CA");
        }
    }

    /// True if only the context itself, and no secret, may say so.
    pub(crate) fn has_modes(&self) -> bool {
        self.accept_untrusted
            || self.allow_expired
            || self.leaf_crl_only
            || self.max_depth.is_some()
    }

    pub(crate) fn into_checks(self) -> PeerChecks {
        PeerChecks {
            roots: self.roots.map(LiveBundle::new),
            identities: self.identities,
            server_name: ServerNameCheck::Never,
            accept_untrusted: self.accept_untrusted,
            allow_expired: self.allow_expired,
            leaf_crl_only: self.leaf_crl_only,
            max_depth: self.max_depth,
        }
    }

    /// As the value that an SDS name stands for.
    pub(crate) fn into_bundle(self) -> TrustBundle {
        self.roots.unwrap_or_default().with_identities(self.identities)
    }
}

/// The faults say why.
struct Refused;

/// The roots, if there are any; an error leaves faults.
fn roots(
    value: &pb::CertificateValidationContext,
    faults: &mut Faults,
) -> Result<Option<TrustBundle>, Refused> {
    let (field, bundle) = if let Some(source) = &value.trusted_ca {
        let bundle = data_source(source).and_then(|pem| {
            let bundle = TrustBundle::from_pem(&pem).map_err(|error| with_cause(&error))?;
            // Revocation lists may stand among the roots.
            match pem.windows(CRL_LABEL.len()).any(|window| window == CRL_LABEL) {
                true => bundle.with_revocation_lists(&pem).map_err(|error| with_cause(&error)),
                false => Ok(bundle),
            }
        });
        ("trusted_ca", bundle)
    } else if value.system_root_certs.is_some() {
        ("system_root_certs", TrustBundle::system().map_err(|error| error.to_string()))
    } else {
        return Ok(None);
    };
    let bundle = match bundle {
        Ok(bundle) => bundle,
        Err(reason) => {
            faults.reject(field, reason);
            return Err(Refused);
        }
    };
    let Some(source) = &value.crl else { return Ok(Some(bundle)) };
    let with_lists = data_source(source)
        .and_then(|pem| bundle.with_revocation_lists(&pem).map_err(|error| with_cause(&error)));
    match with_lists {
        Ok(bundle) => Ok(Some(bundle)),
        Err(reason) => {
            faults.reject("crl", reason);
            Err(Refused)
        }
    }
}

const CRL_LABEL: &[u8] = b"-----BEGIN X509 CRL-----";

/// 64 hexadecimal digits, perhaps with colons between the bytes.
fn certificate_hash(text: &str, faults: &mut Faults) -> Option<[u8; 32]> {
    let digits = text.replace(':', "");
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(byte).collect();
    let hash = bytes.and_then(|bytes| bytes.try_into().ok());
    if hash.is_none() {
        faults.reject("verify_certificate_hash", format!("`{text}` is no SHA-256 in hex"));
    }
    hash
}

fn key_hash(text: &str, faults: &mut Faults) -> Option<[u8; 32]> {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok();
    let hash = bytes.and_then(|bytes| bytes.try_into().ok());
    if hash.is_none() {
        faults.reject("verify_certificate_spki", format!("`{text}` is no SHA-256 in base64"));
    }
    hash
}

fn sans(value: &pb::CertificateValidationContext, faults: &mut Faults) -> Option<Vec<SanMatcher>> {
    use pb::subject_alt_name_matcher::SanType as Kind;
    let mut sans = Vec::new();
    for (index, typed) in value.match_typed_subject_alt_names.iter().enumerate() {
        faults.enter(format!("match_typed_subject_alt_names[{index}]"));
        let san_type = match typed.san_type() {
            Kind::Uri => Some(SanType::Uri),
            Kind::Dns => Some(SanType::Dns),
            Kind::IpAddress => Some(SanType::Ip),
            Kind::Email => Some(SanType::Email),
            Kind::OtherName if !typed.oid.is_empty() => Some(SanType::Other(typed.oid.clone())),
            Kind::OtherName => {
                faults.reject("oid", "missing");
                None
            }
            Kind::Unspecified => {
                faults.reject("san_type", "missing");
                None
            }
        };
        let pattern = pattern(typed.matcher.as_ref(), faults);
        faults.leave();
        sans.push(SanMatcher { san_type: san_type?, pattern: pattern? });
    }
    for (index, untyped) in value.match_subject_alt_names.iter().enumerate() {
        faults.enter(format!("match_subject_alt_names[{index}]"));
        let pattern = pattern(Some(untyped), faults);
        faults.leave();
        sans.push(SanMatcher { san_type: SanType::Any, pattern: pattern? });
    }
    Some(sans)
}

fn pattern(value: Option<&matcher::StringMatcher>, faults: &mut Faults) -> Option<SanPattern> {
    use matcher::string_matcher::MatchPattern;
    let fold = value.is_some_and(|value| value.ignore_case);
    let cased = |text: &String| if fold { text.to_lowercase() } else { text.clone() };
    let pattern = match value.and_then(|value| value.match_pattern.as_ref()) {
        Some(MatchPattern::Exact(text)) => SanPattern::Exact(cased(text)),
        Some(MatchPattern::Prefix(text)) => SanPattern::Prefix(cased(text)),
        Some(MatchPattern::Suffix(text)) => SanPattern::Suffix(cased(text)),
        Some(MatchPattern::Contains(text)) => SanPattern::Contains(cased(text)),
        // The case of an expression is its own business.
        Some(MatchPattern::SafeRegex(value)) => {
            return match regex::Regex::new(&format!(r"\A(?:{})\z", value.regex)) {
                Ok(regex) => Some(SanPattern::Regex(regex)),
                Err(error) => {
                    faults.reject("matcher.safe_regex", error.to_string());
                    None
                }
            };
        }
        Some(MatchPattern::Custom(_)) | None => {
            faults.reject("matcher", "pattern not supported");
            return None;
        }
    };
    Some(if fold { SanPattern::IgnoreCase(Box::new(pattern)) } else { pattern })
}
