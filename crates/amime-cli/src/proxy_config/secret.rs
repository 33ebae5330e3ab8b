//! The table of secrets: which certificates a proxy holds and until when.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;

use super::PADDING;
use super::dump::{ConfigDump, at, field, list, text};
use crate::table::Table;

/// One certificate of a secret.
#[derive(Debug, Default)]
pub(crate) struct Item {
    name: String,
    state: &'static str,
    /// `Cert Chain` or `CA`; empty when there is no certificate.
    kind: &'static str,
    valid: bool,
    serial: String,
    not_after: String,
    not_before: String,
    trust_domain: String,
    pem: String,
}

/// Secrets of the dump, warming ones first.
pub(crate) fn items(dump: &ConfigDump, now: i64) -> anyhow::Result<Vec<Item>> {
    let mut items = Vec::new();
    for (entries, state) in
        [("dynamic_warming_secrets", "WARMING"), ("dynamic_active_secrets", "ACTIVE")]
    {
        for section in dump.sections("SecretsConfigDump") {
            for entry in list(section, entries) {
                items.extend(items_of(entry, state, now));
            }
        }
    }
    Ok(items)
}

fn items_of(entry: &Value, state: &'static str, now: i64) -> Vec<Item> {
    let name = text(entry, "name");
    let secret = field(entry, "secret");
    let state = match text(entry, "version_info") {
        "uninitialized" => "UNINITIALIZED",
        _ => state,
    };
    let bundles = spiffe_bundles(secret);
    if !bundles.is_empty() {
        let item = |(domain, pem): (String, String)| item(name, state, &domain, pem, now);
        return bundles.into_iter().map(item).collect();
    }
    let chain = bytes(at(secret, &["tls_certificate", "certificate_chain"]));
    let root = || bytes(at(secret, &["validation_context", "trusted_ca"]));
    vec![item(name, state, "", chain.or_else(root).unwrap_or_default(), now)]
}

/// Trust domains of a validator for several, with their bundles.
fn spiffe_bundles(secret: &Value) -> Vec<(String, String)> {
    let path = ["validation_context", "custom_validator_config", "typed_config"];
    list(at(secret, &path), "trust_domains")
        .iter()
        .filter_map(|domain| {
            Some((text(domain, "name").to_owned(), bytes(field(domain, "trust_bundle"))?))
        })
        .collect()
}

/// Content of a data source, when it is inline.
fn bytes(source: &Value) -> Option<String> {
    let inline = field(source, "inline_string").as_str().map(str::to_owned);
    let decoded = || {
        let encoded = field(source, "inline_bytes").as_str()?;
        String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
    };
    inline.or_else(decoded).filter(|pem| !pem.is_empty())
}

fn item(name: &str, state: &'static str, domain: &str, pem: String, now: i64) -> Item {
    let mut item =
        Item { name: name.to_owned(), state, trust_domain: domain.to_owned(), ..Item::default() };
    if let Some(Ok(first)) = Pem::iter_from_buffer(pem.as_bytes()).next()
        && let Ok(certificate) = first.parse_x509()
    {
        fill(&mut item, &certificate, now);
    }
    item.pem = pem;
    item
}

fn fill(item: &mut Item, certificate: &X509Certificate<'_>, now: i64) {
    let validity = certificate.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    item.kind = if certificate.is_ca() { "CA" } else { "Cert Chain" };
    item.valid = from < now && now < until;
    item.serial = format!("{:0>32}", certificate.tbs_certificate.serial.to_str_radix(16));
    item.not_before = rfc3339(from);
    item.not_after = rfc3339(until);
    if item.trust_domain.is_empty() {
        item.trust_domain = trust_domain(certificate).unwrap_or_default();
    }
}

fn trust_domain(certificate: &X509Certificate<'_>) -> Option<String> {
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => {
            uri.strip_prefix("spiffe://")?.split('/').next().map(str::to_owned)
        }
        _ => None,
    })
}

fn rfc3339(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}

/// istioctl's table; the trust domain is shown when all are known.
pub(crate) fn table(items: &[Item], named: bool) -> Table {
    let header = [
        "RESOURCE NAME",
        "TYPE",
        "STATUS",
        "VALID CERT",
        "SERIAL NUMBER",
        "NOT AFTER",
        "NOT BEFORE",
    ];
    let domains = items.iter().all(|item| !item.trust_domain.is_empty());
    let mut table =
        Table::new(PADDING, header.into_iter().chain(domains.then_some("TRUST DOMAIN")));
    for item in items {
        let prefix = if named { "secret/" } else { "" };
        let row = [
            format!("{prefix}{}", item.name),
            item.kind.to_owned(),
            item.state.to_owned(),
            item.valid.to_string(),
            item.serial.clone(),
            item.not_after.clone(),
            item.not_before.clone(),
        ];
        table.row(row.into_iter().chain(domains.then(|| item.trust_domain.clone())));
    }
    table
}

/// The same as a document, with the certificates.
pub(crate) fn document(items: &[Item]) -> Value {
    items
        .iter()
        .map(|item| {
            json!({
                "resource_name": item.name,
                "cert": item.pem,
                "state": item.state,
                "cert_valid": item.valid,
                "serial_number": item.serial,
                "not_after": item.not_after,
                "not_before": item.not_before,
                "type": item.kind,
                "trust_domain": item.trust_domain,
            })
        })
        .collect()
}
