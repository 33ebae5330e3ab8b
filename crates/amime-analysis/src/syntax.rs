//! Syntax of names, hosts, labels, ports, patterns and the like.
//!
//! Each check returns the message for the field it was given.

use std::net::IpAddr;

use amime_core::Duration;
use regex::Regex;

type Check = Result<(), String>;

/// Longest pattern, as upstream.
const MAX_PATTERN: usize = 1024;

fn require(holds: bool, message: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(message()) }
}

/// RFC 1123 label: lower-case letters, digits and `-`, 63 at most.
pub(crate) fn dns_label(text: &str) -> Check {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let fine = (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    require(fine, || {
        format!("{text:?} is not a name of at most 63 lower-case letters, digits and inner dashes")
    })
}

/// RFC 1123 subdomain: labels with dots, 253 at most.
pub(crate) fn dns_subdomain(text: &str) -> Check {
    let fine = text.len() <= 253 && text.split('.').all(|label| dns_label(label).is_ok());
    require(fine, || {
        format!("{text:?} is not a name of lower-case letters, digits, dashes and dots")
    })
}

/// Fully qualified or short host name, any case, `_` allowed.
pub(crate) fn host_name(text: &str) -> Check {
    let trimmed = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && edge(label.chars().next())
            && edge(label.chars().last())
    };
    require(!text.is_empty(), || "a host name is required".to_owned())?;
    require(trimmed.len() <= 255 && trimmed.split('.').all(label), || {
        format!("{text:?} is not a host name")
    })
}

/// Host name, `*`, or `*.suffix`.
pub(crate) fn wildcard_host(text: &str) -> Check {
    match text.strip_prefix('*') {
        Some("") => Ok(()),
        Some(rest) => match rest.strip_prefix('.') {
            Some(rest) if !rest.is_empty() => host_name(rest),
            _ => {
                Err(format!("{text:?} is not a host name: a wildcard covers whole leading labels"))
            }
        },
        None => host_name(text),
    }
}

/// Port number.
pub(crate) fn port(number: u32) -> Check {
    require((1..=65535).contains(&number), || format!("port {number} is not in 1 to 65535"))
}

/// RE2 pattern.
pub(crate) fn pattern(text: &str) -> Check {
    require(text.len() <= MAX_PATTERN, || {
        format!("a pattern may have {MAX_PATTERN} characters, this has {}", text.len())
    })?;
    match Regex::new(text) {
        Ok(_) => Ok(()),
        Err(error) => {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
            Err(format!("{text:?} is not a valid pattern: {reason}"))
        }
    }
}

/// Label key, with an optional DNS prefix.
pub(crate) fn label_key(key: &str) -> Check {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(p, n)| (Some(p), n));
    let fine = prefix.is_none_or(|p| dns_subdomain(&p.to_ascii_lowercase()).is_ok())
        && !name.is_empty()
        && label_text(name);
    require(fine, || format!("{key:?} is not a label name"))
}

/// Label value.
pub(crate) fn label_value(value: &str) -> Check {
    require(value.is_empty() || label_text(value), || {
        format!("{value:?} is not a label value of at most 63 letters, digits, '-', '_' and '.'")
    })
}

fn label_text(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && edge(text.chars().next())
        && edge(text.chars().last())
}

/// IP address or CIDR range.
pub(crate) fn subnet(text: &str) -> Check {
    let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
    let fine = match (address.parse::<IpAddr>(), length) {
        (Ok(_), None) => true,
        (Ok(IpAddr::V4(_)), Some(length)) => length.parse::<u8>().is_ok_and(|l| l <= 32),
        (Ok(IpAddr::V6(_)), Some(length)) => length.parse::<u8>().is_ok_and(|l| l <= 128),
        _ => false,
    };
    require(fine, || format!("{text:?} is neither an IP address nor a CIDR range"))
}

/// IP address.
pub(crate) fn ip(text: &str) -> Check {
    require(text.parse::<IpAddr>().is_ok(), || format!("{text:?} is not an IP address"))
}

/// Share in percent.
pub(crate) fn percent(value: f64) -> Check {
    require((0.0..=100.0).contains(&value), || format!("{value} is not in 0 to 100"))
}

/// Span of at least a millisecond and without fractions of one.
pub(crate) fn duration(value: Duration) -> Check {
    require(value.as_millis() >= 1, || format!("{value} is shorter than 1ms"))?;
    require(value.subsec_nanos().is_multiple_of(1_000_000), || {
        format!("{value} has a fraction of a millisecond")
    })
}

/// Like [`duration`], or zero, which switches a limit off.
pub(crate) fn duration_or_zero(value: Duration) -> Check {
    if value == Duration::ZERO { Ok(()) } else { duration(value) }
}

/// HTTP header name; pseudo headers may be allowed by the caller.
pub(crate) fn header_name(text: &str) -> Check {
    require(!text.is_empty(), || "a header name is required".to_owned())?;
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    require(text.bytes().all(token), || format!("{text:?} is not a header name"))
}

/// Name of a condition on a header: a header, a pseudo header, or a claim of a
/// request's token.
pub(crate) fn header_condition(text: &str) -> Check {
    const PSEUDO: [&str; 5] = [":method", ":scheme", ":authority", ":path", ":status"];
    if is_claim(text) || PSEUDO.contains(&text) { Ok(()) } else { header_name(text) }
}

/// True for `@request.auth.claims.a.b` and `@request.auth.claims[a][b]`.
pub(crate) fn is_claim(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("@request.auth.claims") else { return false };
    let dotted =
        rest.strip_prefix('.').is_some_and(|claims| claims.split('.').all(|c| !c.is_empty()));
    let inner = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    dotted || inner.is_some_and(|claims| claims.split("][").all(|claim| !claim.is_empty()))
}

/// Value of a header that the proxy sets: `%%` is a percent sign, `%NAME(…)%` is
/// filled in, and nothing else may follow a percent sign.
pub(crate) fn header_value(text: &str) -> Check {
    require(!text.bytes().any(|b| (b < 0x20 && b != b'\t') || b == 0x7f), || {
        format!("{text:?} has control characters")
    })?;
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('%') {
        if let Some(literal) = after.strip_prefix('%') {
            rest = literal;
            continue;
        }
        let operator = after
            .split_once('%')
            .filter(|(name, _)| name.chars().next().is_some_and(|c| c.is_ascii_uppercase()));
        let Some((_, further)) = operator else {
            return Err(format!("{text:?} has a % that is neither doubled nor part of %NAME%"));
        };
        rest = further;
    }
    Ok(())
}

/// Path of a Unix socket, after `unix://`; `@` starts an abstract name.
pub(crate) fn socket_path(text: &str) -> Check {
    let fine = text.starts_with('@') || (text.starts_with('/') && !text.ends_with('/'));
    require(fine, || format!("{text:?} is not an absolute path of a file"))
}

/// HTTP method.
pub(crate) fn method(text: &str) -> Check {
    const METHODS: [&str; 9] =
        ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"];
    require(METHODS.contains(&text), || format!("{text:?} is not an HTTP method"))
}

/// Protocol name of a port.
pub(crate) fn protocol(text: &str) -> Check {
    let lower = text.to_ascii_lowercase();
    let known = lower.parse::<amime_core::Protocol>().is_ok_and(|p| !p.is_auto());
    require(known || lower == "hbone", || {
        format!(
            "unknown protocol {text:?}, expected one of HTTP, HTTPS, GRPC, GRPC-WEB, HTTP2, MONGO, \
             MYSQL, REDIS, TCP, TLS, UDP"
        )
    })
}

/// `name` or `namespace/name`.
pub(crate) fn object_reference(text: &str) -> Check {
    let (namespace, name) = text.split_once('/').map_or((None, text), |(ns, n)| (Some(ns), n));
    let fine = namespace.is_none_or(|ns| dns_label(ns).is_ok()) && dns_subdomain(name).is_ok();
    require(fine, || format!("{text:?} is not of the form name or namespace/name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_may_be_wildcards_of_whole_labels() {
        for good in ["*", "*.com", "reviews", "a.b-c.d", "Foo.COM", "x.", "1.2.3.4"] {
            assert_eq!(wildcard_host(good), Ok(()), "{good}");
        }
        for bad in ["", "*com", "a.*.com", "**", "*.", "a..b", "-a", "a b", "a/b", "a_b"] {
            assert!(wildcard_host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn subnets_are_addresses_or_ranges() {
        for good in ["1.2.3.4", "10.0.0.0/8", "::1", "2001:db8::/32"] {
            assert_eq!(subnet(good), Ok(()), "{good}");
        }
        for bad in ["", "1.2.3", "10.0.0.0/33", "::1/129", "a/8", "10.0.0.0/"] {
            assert!(subnet(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_follow_kubernetes() {
        assert!(label_key("app.kubernetes.io/name").is_ok() && label_value("v1.2_x").is_ok());
        assert!(
            label_key("a/b/c").is_err() && label_key("").is_err() && label_value("-a").is_err()
        );
    }
}
