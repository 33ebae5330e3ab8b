//! What a request asks of the backend that it reaches.
//!
//! Orders stand in the `x-echo` field, between semicolons:
//!
//! | order | effect |
//! |---|---|
//! | `status=503` | answer with this status |
//! | `delay=200` | wait so many milliseconds before the answer |
//! | `header=name: value` | a field in the answer; may be repeated |
//! | `trailer=name: value` | a trailer after a chunked answer |
//! | `body=5000` | a body of so many bytes |
//! | `text=hello` | this body |
//! | `coding=gzip` | the body in this coding, and told so |
//! | `echo` | the request's start line and host as the body |
//! | `interim=103` | an informational answer first |
//! | `chunked` | no length in the answer's head |
//! | `reset`, `close` | end the connection instead of answering |
//! | `truncate` | end the connection in the middle of the body |
//! | `stall` | stop for good in the middle of the body |
//! | `raw=HTTP/1.1%20200…` | these bytes, percent-decoded, and nothing else |
//! | `refuse` | answer an upgrade like any request |
//! | `fail=2` | orders hold only for the first two attempts of a case |

use std::time::Duration;

/// Parsed orders.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    pub(crate) status: u16,
    pub(crate) delay: Duration,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) trailers: Vec<(String, String)>,
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) coding: Option<String>,
    pub(crate) interim: Option<u16>,
    pub(crate) chunked: bool,
    pub(crate) echo: bool,
    pub(crate) refuse: bool,
    pub(crate) end: End,
    /// Attempts after which the request is answered plainly.
    pub(crate) fail: Option<usize>,
}

/// How the answer ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Whole,
    Reset,
    Close,
    Truncate,
    Stall,
    Raw(Vec<u8>),
}

impl Default for Orders {
    fn default() -> Self {
        Self {
            status: 200,
            delay: Duration::ZERO,
            fields: vec![],
            trailers: vec![],
            body: None,
            coding: None,
            interim: None,
            chunked: false,
            echo: false,
            refuse: false,
            end: End::Whole,
            fail: None,
        }
    }
}

impl Orders {
    /// Reads the `x-echo` field; what makes no sense is an answer of 599, so
    /// that a slip in a case is seen.
    pub(crate) fn parse(text: &str) -> Self {
        let mut orders = Self::default();
        for order in text.split(';').map(str::trim).filter(|order| !order.is_empty()) {
            if orders.add(order).is_none() {
                let text = format!("unknown order {order}").into_bytes();
                return Self { status: 599, body: Some(text), ..Self::default() };
            }
        }
        orders
    }

    fn add(&mut self, order: &str) -> Option<()> {
        let (name, value) = order.split_once('=').unwrap_or((order, ""));
        let field = || {
            let (name, value) = value.split_once(':')?;
            Some((name.trim().to_owned(), value.trim().to_owned()))
        };
        match name {
            "status" => self.status = value.parse().ok()?,
            "delay" => self.delay = Duration::from_millis(value.parse().ok()?),
            "header" => self.fields.push(field()?),
            "trailer" => self.trailers.push(field()?),
            "body" => self.body = Some(vec![b'x'; value.parse().ok()?]),
            "text" => self.body = Some(value.as_bytes().to_vec()),
            "coding" => {
                self.fields.push(("content-encoding".into(), value.into()));
                self.coding = Some(value.to_owned());
            }
            "interim" => self.interim = Some(value.parse().ok()?),
            "chunked" => self.chunked = true,
            "echo" => self.echo = true,
            "refuse" => self.refuse = true,
            "reset" => self.end = End::Reset,
            "close" => self.end = End::Close,
            "truncate" => self.end = End::Truncate,
            "stall" => self.end = End::Stall,
            "raw" => self.end = End::Raw(percent_decode(value)?),
            "fail" => self.fail = Some(value.parse().ok()?),
            _ => return None,
        }
        Some(())
    }
}

fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_and_slips_are_seen() {
        let orders = Orders::parse("status=503; header=a: b; raw=x%20y; fail=2");
        assert_eq!((orders.status, orders.fail), (503, Some(2)));
        assert_eq!(orders.fields, [("a".to_owned(), "b".to_owned())]);
        assert_eq!(orders.end, End::Raw(b"x y".to_vec()));
        assert_eq!(Orders::parse("sttus=503").status, 599);
    }
}
