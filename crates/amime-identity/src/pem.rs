//! PEM in and out, over rustls-pki-types.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{self, PemObject};
use zeroize::Zeroizing;

/// Every certificate of a PEM text, in its order; other sections are skipped.
pub(crate) fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    CertificateDer::pem_slice_iter(text).collect()
}

/// Appends one PEM section, lines of 64 characters.
pub(crate) fn write_section(out: &mut String, label: &str, der: &[u8]) {
    let encoded = Zeroizing::new(STANDARD.encode(der));
    let _ = writeln!(out, "-----BEGIN {label}-----");
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    let _ = writeln!(out, "-----END {label}-----");
}

/// PEM of certificates, in their order.
pub fn chain_to_pem(chain: &[CertificateDer<'_>]) -> String {
    let mut out = String::new();
    for cert in chain {
        write_section(&mut out, "CERTIFICATE", cert);
    }
    out
}
