//! What TLS contexts of both directions have in common: versions, suites, our
//! certificates, and what is asked of the peer's.

use std::sync::Arc;

use amime_identity::{
    LiveCert, PeerChecks, TlsOptions, TlsVersion, UnusedNames, with_cipher_suites, with_groups,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use rustls::crypto::CryptoProvider;

use super::Compiler;
use super::tls_validation::Validation;
use crate::secrets::compile_certificate;
use amime_rules::Faults;

/// What a common context says, resolved to live values.
pub(crate) struct Common {
    pub(crate) certificates: Vec<Arc<LiveCert>>,
    /// `None`: nothing is asked of the peer.
    pub(crate) checks: Option<PeerChecks>,
    pub(crate) options: TlsOptions,
    /// The certificate is the workload's own.
    pub(crate) workload: bool,
}

/// Compiles `value`; `max_version` is meant where it names none.
pub(crate) fn common(
    value: Option<&pb::CommonTlsContext>,
    max_version: TlsVersion,
    compiler: &mut Compiler<'_>,
) -> Option<Common> {
    let default = pb::CommonTlsContext::default();
    let value = value.unwrap_or(&default);
    let faults = &mut compiler.faults;
    faults.reject_if(value.custom_handshaker.is_some(), "custom_handshaker");
    faults.reject_if(
        value.custom_tls_certificate_selector.is_some(),
        "custom_tls_certificate_selector",
    );
    for (set, field) in [
        (value.tls_certificate_provider_instance.is_some(), "tls_certificate_provider_instance"),
        (
            value.tls_certificate_certificate_provider.is_some(),
            "tls_certificate_certificate_provider",
        ),
        (
            value.tls_certificate_certificate_provider_instance.is_some(),
            "tls_certificate_certificate_provider_instance",
        ),
    ] {
        faults.reject_if(set, field);
    }
    faults.ignore_if(value.key_log.is_some(), "key_log");
    let mut options = TlsOptions::with_alpn(&value.alpn_protocols);
    options.max_version = max_version;
    if let Some(params) = &value.tls_params {
        faults.within("tls_params", |faults| parameters(params, &mut options, faults));
    }
    let (certificates, workload) = certificates(value, compiler)?;
    let checks = validation(value, compiler).ok()?;
    Some(Common { certificates, checks, options, workload })
}

fn parameters(value: &pb::TlsParameters, options: &mut TlsOptions, faults: &mut Faults) {
    use pb::tls_parameters::TlsProtocol;
    match value.tls_minimum_protocol_version() {
        TlsProtocol::TlsAuto | TlsProtocol::TlSv12 => {}
        TlsProtocol::TlSv13 => options.min_version = TlsVersion::V1_3,
        TlsProtocol::TlSv11 | TlsProtocol::TlSv10 => {
            faults.ignore("tls_minimum_protocol_version", "TLS 1.2 is the oldest that is spoken");
        }
    }
    match value.tls_maximum_protocol_version() {
        TlsProtocol::TlsAuto => options.max_version = options.max_version.max(options.min_version),
        TlsProtocol::TlSv13 => options.max_version = TlsVersion::V1_3,
        TlsProtocol::TlSv12 => options.max_version = TlsVersion::V1_2,
        TlsProtocol::TlSv11 | TlsProtocol::TlSv10 => {
            faults.reject("tls_maximum_protocol_version", "TLS 1.2 is the oldest that is spoken");
        }
    }
    if !value.cipher_suites.is_empty() {
        let found = with_cipher_suites(&options.provider, &value.cipher_suites);
        let old = |provider: &CryptoProvider| {
            provider.cipher_suites.iter().any(|suite| suite.tls13().is_none())
        };
        take_named(found, "cipher_suites", old, options, faults);
    }
    if !value.ecdh_curves.is_empty() {
        let found = with_groups(&options.provider, &value.ecdh_curves);
        take_named(
            found,
            "ecdh_curves",
            |provider| !provider.kx_groups.is_empty(),
            options,
            faults,
        );
    }
    faults.ignore_if(!value.signature_algorithms.is_empty(), "signature_algorithms");
    faults.ignore_if(!value.compliance_policies.is_empty(), "compliance_policies");
}

/// Takes over a provider with what could be had of a list of names: one that
/// nobody knows refuses the context, one that only others speak is reported,
/// unless it leaves nothing.
fn take_named(
    (provider, unused): (CryptoProvider, UnusedNames),
    field: &str,
    enough: impl Fn(&CryptoProvider) -> bool,
    options: &mut TlsOptions,
    faults: &mut Faults,
) {
    for name in &unused.unknown {
        faults.reject(field, format!("`{name}` is unknown"));
    }
    for name in &unused.unsupported {
        faults.ignore(field, format!("`{name}` is not supported"));
    }
    if !enough(&provider) && unused.unknown.is_empty() {
        faults.reject(field, "none of them is supported");
    }
    options.provider = Arc::new(provider);
}

fn certificates(
    value: &pb::CommonTlsContext,
    compiler: &mut Compiler<'_>,
) -> Option<(Vec<Arc<LiveCert>>, bool)> {
    let mut certificates = Vec::new();
    // Certificates that stand in the context go before names of others.
    if !value.tls_certificates.is_empty() {
        for (index, inline) in value.tls_certificates.iter().enumerate() {
            let field = format!("tls_certificates[{index}]");
            let cert = compiler.faults.within(field, |faults| compile_certificate(inline, faults));
            certificates.extend(cert.map(LiveCert::new));
        }
        let whole = certificates.len() == value.tls_certificates.len();
        return whole.then_some((certificates, false));
    }
    let mut workload = false;
    for (index, sds) in value.tls_certificate_sds_secret_configs.iter().enumerate() {
        workload |= compiler.secrets.is_local(&sds.name);
        compiler.faults.enter(format!("tls_certificate_sds_secret_configs[{index}]"));
        let key = compiler.secret_key(sds);
        compiler.faults.leave();
        certificates.push(compiler.secrets.certificate(&key?));
    }
    Some((certificates, workload))
}

/// The faults say why.
struct Refused;

/// What is asked of the peer, if anything; an error leaves faults.
fn validation(
    value: &pb::CommonTlsContext,
    compiler: &mut Compiler<'_>,
) -> Result<Option<PeerChecks>, Refused> {
    use pb::common_tls_context::ValidationContextType as Type;
    let asked = match value.validation_context_type.as_ref() {
        None => None,
        Some(Type::ValidationContext(context)) => {
            compiler.faults.enter("validation_context");
            let validation = Validation::compile(context, &mut compiler.faults);
            if let Some(validation) = validation.as_ref().filter(|one| one.roots.is_none()) {
                validation.needs_roots(&mut compiler.faults);
            }
            compiler.faults.leave();
            Some(validation.ok_or(Refused)?.into_checks())
        }
        Some(Type::ValidationContextSdsSecretConfig(sds)) => {
            compiler.faults.enter("validation_context_sds_secret_config");
            let key = compiler.secret_key(sds);
            compiler.faults.leave();
            let roots = compiler.secrets.roots(&key.ok_or(Refused)?);
            Some(PeerChecks { roots: Some(roots), ..PeerChecks::default() })
        }
        Some(Type::CombinedValidationContext(combined)) => {
            compiler.faults.enter("combined_validation_context");
            let checks = combined_checks(combined, compiler);
            compiler.faults.leave();
            Some(checks.ok_or(Refused)?)
        }
        Some(Type::ValidationContextCertificateProvider(_)) => {
            compiler.faults.reject_if(true, "validation_context_certificate_provider");
            return Err(Refused);
        }
        Some(Type::ValidationContextCertificateProviderInstance(_)) => {
            compiler.faults.reject_if(true, "validation_context_certificate_provider_instance");
            return Err(Refused);
        }
    };
    Ok(asked)
}

fn combined_checks(
    value: &pb::common_tls_context::CombinedCertificateValidationContext,
    compiler: &mut Compiler<'_>,
) -> Option<PeerChecks> {
    let default = pb::CertificateValidationContext::default();
    let context = value.default_validation_context.as_ref().unwrap_or(&default);
    compiler.faults.enter("default_validation_context");
    let validation = Validation::compile(context, &mut compiler.faults);
    compiler.faults.leave();
    let mut checks = validation?.into_checks();
    if let Some(sds) = &value.validation_context_sds_secret_config {
        let own = "overridden by the secret";
        if checks.roots.is_some() {
            compiler.faults.ignore("default_validation_context.trusted_ca", own);
        }
        compiler.faults.enter("validation_context_sds_secret_config");
        let key = compiler.secret_key(sds);
        compiler.faults.leave();
        checks.roots = Some(compiler.secrets.roots(&key?));
    }
    Some(checks)
}
