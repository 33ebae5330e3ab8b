//! Path normalisation and rewriting.

use http::uri::PathAndQuery;
use regex::bytes::Regex;

use super::error::ProxyError;
use amime_config::hcm::{EscapedSlashes, PathNormalization};
use amime_config::route_action::PathRewrite;
use amime_rules::head::RequestHead;
use amime_rules::redirect::RedirectPath;
use amime_rules::route_match::PathMatch;

/// Normalises the request's path as configured.
pub(super) fn normalize(
    rules: &PathNormalization,
    head: &mut RequestHead,
) -> Result<(), ProxyError> {
    let target = head.path.as_str();
    if !target.starts_with('/') {
        return Err(ProxyError::NotRelativePath);
    }
    let path = head.path.path();
    let mut new: Option<String> = None;
    let escaped = rules.escaped_slashes != EscapedSlashes::Keep && has_escaped_slash(path);
    if escaped {
        new = Some(unescape_slashes(path));
    }
    let rejected = escaped && rules.escaped_slashes == EscapedSlashes::Reject;
    if rules.normalize && !rejected {
        let path = new.as_deref().unwrap_or(path);
        if needs_normalizing(path) {
            let normal =
                dot_segments(path).ok_or(ProxyError::Refused("path_normalization_failed"))?;
            new = Some(normal);
        }
    }
    if rules.merge_slashes && !rejected {
        let path = new.as_deref().unwrap_or(path);
        if path.contains("//") {
            new = Some(merge_slashes(path));
        }
    }
    if let Some(path) = new {
        replace_path(head, &path).map_err(|()| ProxyError::Refused("path_normalization_failed"))?;
    }
    match rules.escaped_slashes {
        EscapedSlashes::Reject if escaped => Err(ProxyError::Refused("path_normalization_failed")),
        // A gRPC client does not follow redirects.
        EscapedSlashes::Redirect if escaped && head.is_grpc() => {
            Err(ProxyError::Refused("path_normalization_failed"))
        }
        EscapedSlashes::Redirect if escaped => {
            Err(ProxyError::NormalizedRedirect(head.path.as_str().to_owned()))
        }
        _ => Ok(()),
    }
}

fn has_escaped_slash(path: &str) -> bool {
    path.as_bytes()
        .windows(3)
        .any(|part| part.eq_ignore_ascii_case(b"%2f") || part.eq_ignore_ascii_case(b"%5c"))
}

fn unescape_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 3).unwrap_or_default();
        if code.eq_ignore_ascii_case("2f") {
            out.push('/');
        } else if code.eq_ignore_ascii_case("5c") {
            out.push('\\');
        } else {
            out.push('%');
            rest = &rest[at + 1..];
            continue;
        }
        rest = &rest[at + 3..];
    }
    out.push_str(rest);
    out
}

fn needs_normalizing(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes.iter().any(|byte| matches!(byte, b'%' | b'\\'))
        || bytes.windows(2).any(|pair| pair == b"/.")
}

/// RFC 3986 normalisation: unreserved characters unescaped, backslashes
/// turned, dot segments resolved. `None` if the path is malformed.
fn dot_segments(path: &str) -> Option<String> {
    let decoded = unescape_unreserved(path)?;
    let mut out: Vec<&str> = Vec::new();
    let mut segments = decoded.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." if last => out.push(""),
            "." => {}
            ".." => {
                out.pop();
                if last {
                    out.push("");
                }
            }
            other => out.push(other),
        }
    }
    Some(format!("/{}", out.join("/")))
}

fn unescape_unreserved(path: &str) -> Option<String> {
    let mut out = Vec::with_capacity(path.len());
    let bytes = path.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => out.push(b'/'),
            b'%' => {
                let digit = |index: usize| char::from(*bytes.get(index)?).to_digit(16);
                match digit(at + 1).zip(digit(at + 2)) {
                    Some((0, 0)) => return None,
                    Some((high, low)) => {
                        let byte = u8::try_from(high * 16 + low).ok()?;
                        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                            out.push(byte);
                        } else {
                            out.extend(&bytes[at..at + 3]);
                        }
                        at += 2;
                    }
                    // Not an escape: left for the server to judge.
                    None => out.push(b'%'),
                }
            }
            byte => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).ok()
}

fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for char in path.chars() {
        if char != '/' || !out.ends_with('/') {
            out.push(char);
        }
    }
    // As in Envoy, a path of nothing but slashes ends in one more than the first.
    if out == "/" && path.len() > 1 {
        out.push('/');
    }
    out
}

/// Puts `path` before the query that the request has.
fn replace_path(head: &mut RequestHead, path: &str) -> Result<(), ()> {
    let target = match head.path.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    head.path = PathAndQuery::try_from(target).map_err(|_| ())?;
    Ok(())
}

/// Rewrites the path for the upstream; true if there is another one now, if
/// perhaps with the same text.
pub(super) fn rewrite(rewrite: &PathRewrite, matched: &PathMatch, head: &mut RequestHead) -> bool {
    let path = head.path.path();
    let new = match rewrite {
        PathRewrite::Keep => return false,
        PathRewrite::Prefix(prefix) => {
            let rest = matched.matched_len().and_then(|len| path.get(len..)).unwrap_or_default();
            format!("{prefix}{rest}")
        }
        PathRewrite::Regex(regex, text) => substitute(regex, text, path),
    };
    !new.is_empty() && replace_path(head, &new).is_ok()
}

/// Replaces what `regex` matches in `path`.
pub(super) fn substitute(regex: &Regex, text: &str, path: &str) -> String {
    let new = regex.replace_all(path.as_bytes(), text.as_bytes());
    String::from_utf8_lossy(&new).into_owned()
}

/// Path and query of a redirect's location.
pub(super) fn redirected(
    path: &RedirectPath,
    matched: &PathMatch,
    head: &RequestHead,
    strip_query: bool,
) -> String {
    let old = head.path.path();
    let mut new = match path {
        RedirectPath::Keep => old.to_owned(),
        RedirectPath::Replace(path) => path.clone(),
        RedirectPath::Prefix(prefix) => {
            let rest = matched.matched_len().and_then(|len| old.get(len..)).unwrap_or_default();
            format!("{prefix}{rest}")
        }
        RedirectPath::Regex(regex, text) => substitute(regex, text, old),
    };
    // A replacement may bring a query of its own.
    if let Some(query) = head.path.query().filter(|_| !strip_query && !new.contains('?')) {
        new.push('?');
        new.push_str(query);
    }
    new
}
