//! Cases as they stand in `cases.yaml`, and the bytes they send.

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::outcome::Aspect;
use crate::wire::latin1;

/// A file of cases for one bootstrap.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CaseFile {
    /// Run one case after the other, for proxies with a memory.
    #[serde(default)]
    pub(crate) sequential: bool,
    /// Statistics that must have equal values at the end.
    #[serde(default)]
    pub(crate) stats: Vec<String>,
    pub(crate) cases: Vec<Exchange>,
}

/// One exchange with the proxy, or a sequence of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Exchange {
    /// Set on cases, not on steps.
    pub(crate) name: String,
    /// Done one after the other, instead of what is below.
    pub(crate) steps: Vec<Exchange>,
    /// Listener; default: the one called `http`, or else the only one.
    pub(crate) to: Option<String>,
    pub(crate) over: Over,
    pub(crate) tls: Option<Tls>,
    /// Sent first of all, as for the PROXY protocol.
    pub(crate) before: String,
    /// A path; short for `request: GET path`.
    pub(crate) get: Option<String>,
    /// Method and target.
    pub(crate) request: Option<String>,
    pub(crate) host: String,
    /// `name: value` each.
    pub(crate) headers: Vec<String>,
    pub(crate) body: String,
    /// A body of so many bytes.
    pub(crate) body_bytes: usize,
    /// The request as it is, escapes of double-quoted YAML for bytes.
    pub(crate) raw: Option<String>,
    /// Lines of a head; line ends, the blank line and the body are added.
    pub(crate) lines: Vec<String>,
    /// Responses that are awaited on the connection.
    pub(crate) responses: usize,
    /// Sent through the tunnel once it stands.
    pub(crate) tunnel: Option<String>,
    /// TCP: text after which our side ends its half.
    pub(crate) until: Option<String>,
    /// Longest wait for an answer, milliseconds; short where none is expected.
    pub(crate) wait_ms: u64,
    /// Whether a second request shows that the connection is still open.
    pub(crate) probe: bool,
    /// Requests that reach backends, if one more or less than usual.
    pub(crate) upstream: usize,
    /// Repetitions, one after the other or all at once.
    pub(crate) times: usize,
    pub(crate) parallel: usize,
    /// Pause between the starts of parallel repetitions, milliseconds.
    pub(crate) stagger_ms: u64,
    /// Of repetitions, compare which results there are and not how many.
    pub(crate) distinct: bool,
    /// Aspects that depend on the moment.
    pub(crate) ignore: Vec<Aspect>,
    /// Pause before it starts, milliseconds: for what only time changes.
    pub(crate) after_ms: u64,
}

impl Default for Exchange {
    fn default() -> Self {
        Self {
            name: String::new(),
            steps: vec![],
            to: None,
            over: Over::H1,
            tls: None,
            before: String::new(),
            get: None,
            request: None,
            host: "a.test".into(),
            headers: vec![],
            body: String::new(),
            body_bytes: 0,
            raw: None,
            lines: vec![],
            responses: 1,
            tunnel: None,
            until: None,
            wait_ms: 5000,
            probe: true,
            upstream: 0,
            times: 1,
            parallel: 1,
            stagger_ms: 0,
            distinct: false,
            ignore: vec![],
            after_ms: 0,
        }
    }
}

/// Protocol of our side of the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Over {
    #[default]
    H1,
    H2,
    Tcp,
}

/// Our side of a TLS handshake.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Tls {
    /// None: no server name is sent.
    pub(crate) sni: Option<String>,
    pub(crate) alpn: Vec<String>,
    /// Name of a client certificate.
    pub(crate) cert: Option<String>,
    /// `1.2` or `1.3`; default: both.
    pub(crate) version: Option<String>,
}

/// A request of the simple form.
#[derive(Clone, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) target: &'a str,
    pub(crate) fields: Vec<(&'a str, &'a str)>,
    pub(crate) body: Vec<u8>,
}

impl Exchange {
    /// Method, target, fields and body; an error for raw requests.
    pub(crate) fn request(&self) -> Result<Request<'_>> {
        let (method, target) = match (&self.get, &self.request) {
            (Some(path), None) => ("GET", path.as_str()),
            (None, Some(line)) => line.split_once(' ').context("request has no target")?,
            _ => bail!("one of get, request, raw and lines is needed"),
        };
        let fields = self.headers.iter().map(|line| {
            let (name, value) =
                line.split_once(':').with_context(|| format!("no colon: {line}"))?;
            Ok((name, value.trim()))
        });
        Ok(Request { method, target, fields: fields.collect::<Result<_>>()?, body: self.body() })
    }

    fn body(&self) -> Vec<u8> {
        if self.body_bytes > 0 { vec![b'y'; self.body_bytes] } else { latin1(&self.body) }
    }

    /// What is sent over HTTP/1.1 or TCP, `{{id}}` replaced.
    pub(crate) fn bytes(&self, id: &str) -> Result<Vec<u8>> {
        let mut bytes = latin1(&self.before);
        if let Some(raw) = &self.raw {
            bytes.extend(latin1(&fill(raw, id)));
            return Ok(bytes);
        }
        if !self.lines.is_empty() {
            bytes.extend(latin1(&fill(&self.lines.join("\r\n"), id)));
            bytes.extend(b"\r\n\r\n");
            bytes.extend(self.body());
            return Ok(bytes);
        }
        let request = self.request()?;
        let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.target);
        if !self.host.is_empty() {
            head.push_str(&format!("host: {}\r\n", self.host));
        }
        head.push_str(&format!("x-case: {id}\r\n"));
        for (name, value) in &request.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let framed = |name: &str| {
            matches!(name.to_ascii_lowercase().as_str(), "content-length" | "transfer-encoding")
        };
        if !request.body.is_empty() && !request.fields.iter().any(|(name, _)| framed(name)) {
            head.push_str(&format!("content-length: {}\r\n", request.body.len()));
        }
        bytes.extend(latin1(&fill(&head, id)));
        bytes.extend(b"\r\n");
        bytes.extend(request.body);
        Ok(bytes)
    }

    /// Method of the first request, for responses that have no body.
    pub(crate) fn method(&self) -> &str {
        let line = [&self.raw, &self.request].into_iter().flatten().next().map(String::as_str);
        let line = line.or(self.lines.first().map(String::as_str)).unwrap_or_default();
        line.split(' ').next().unwrap_or_default()
    }
}

/// Replaces `{{id}}`, a number in such braces by so many bytes, and a number
/// with `*` and a text by so many of that text.
pub(crate) fn fill(text: &str, id: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        out.push_str(before);
        let (count, what) = name.split_once('*').unwrap_or((name, "v"));
        match count.parse() {
            Ok(count) => out.push_str(&what.repeat(count)),
            Err(_) => out.push_str(id),
        }
        rest = after;
    }
    out + rest
}

/// Reads a YAML file.
pub(crate) fn read_yaml<T: serde::de::DeserializeOwned>(path: &std::path::Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    // `on` is text here, as in Envoy.
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(&text, options).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_braces_is_replaced() {
        assert_eq!(fill("a{{id}}b{{3}}c{{2*x\0}}d", "case"), "acasebvvvcx\0x\0d");
    }

    #[test]
    fn a_simple_request_has_host_case_and_length() {
        let exchange = Exchange {
            request: Some("POST /x".into()),
            headers: vec!["a: {{id}}".into()],
            body: "hi".into(),
            ..Exchange::default()
        };
        let bytes = exchange.bytes("case-00000001").expect("a request");
        let want = "POST /x HTTP/1.1\r\nhost: a.test\r\nx-case: case-00000001\r\na: case-00000001\r\ncontent-length: 2\r\n\r\nhi";
        assert_eq!(String::from_utf8_lossy(&bytes), want);
        assert_eq!(exchange.method(), "POST");
    }
}
