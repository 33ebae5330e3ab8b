//! gRPC for browsers: requests become gRPC, trailers of responses a part of
//! the body.
//!
//! Spec: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md>

use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::body::DownstreamBody;
use super::error::{grpc_status, percent_encode};
use super::exchange::Exchange;
use super::filters::{OnResponse, Payload};
use super::held::HeldBody;
use super::names;
use super::stage::{Output, Stage, StageError};

/// What of an answer that is not gRPC goes into its message.
pub(super) const MAX_MESSAGE: usize = 16 * 1024;

/// Flag of the frame that holds the trailers.
const TRAILERS: u8 = 0x80;

/// Flag and length before each message.
const FRAME_HEAD: usize = 5;

/// Longest message that is collected to be encoded whole.
const MAX_FRAME: usize = 4 * 1024 * 1024;

/// A call of a browser's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WebCall {
    /// The answer is to be text.
    text: bool,
}

/// Makes a browser's request one of gRPC.
pub(super) fn begin(exchange: &Rc<Exchange>, body: &mut DownstreamBody) {
    let mut head = exchange.head.borrow_mut();
    let headers = &mut head.headers;
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return };
    let text = match kind.as_bytes() {
        b"application/grpc-web" | b"application/grpc-web+proto" => false,
        kind if is_text(kind) => true,
        _ => return,
    };
    let accept = headers.get(header::ACCEPT).is_some_and(|accept| is_text(accept.as_bytes()));
    // The length is that of text, and of no use to HTTP/2.
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers
        .entry(names::GRPC_ACCEPT_ENCODING)
        .or_insert_with(|| HeaderValue::from_static("identity"));
    if !body.is_end_stream() {
        let held = HeldBody::of(body, exchange);
        held.hide_length();
        if text {
            held.push(Box::new(TextRequest::default()));
        }
    }
    let call = WebCall { text: accept };
    exchange.on_response.borrow_mut().push(OnResponse::GrpcWeb(call));
}

fn is_text(kind: &[u8]) -> bool {
    kind == b"application/grpc-web-text" || kind == b"application/grpc-web-text+proto"
}

impl WebCall {
    /// True if the response's head has to wait for its body.
    pub(super) fn wants_whole(headers: &HeaderMap, status: StatusCode) -> bool {
        !is_answer(headers, status, false)
    }

    /// Makes a response one for a browser.
    pub(super) fn answer(
        self,
        headers: &mut HeaderMap,
        status: StatusCode,
        payload: &mut Payload<'_>,
    ) {
        let ended = matches!(payload, Payload::Nothing);
        let known = is_answer(headers, status, ended);
        headers.remove(header::CONTENT_LENGTH);
        let kind = match self.text {
            true => "application/grpc-web-text+proto",
            false => "application/grpc-web+proto",
        };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        match payload {
            Payload::Whole(body) if !known => {
                let text = String::from_utf8_lossy(&body[..body.len().min(MAX_MESSAGE)]);
                if let Ok(message) = HeaderValue::from_str(&percent_encode(&text)) {
                    headers.insert(names::GRPC_MESSAGE, message);
                }
                headers.insert(names::GRPC_STATUS, HeaderValue::from(grpc_status(status)));
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
                **body = Bytes::new();
            }
            payload => payload.change(Box::new(WebResponse::new(self.text))),
        }
    }
}

/// True if a response is one of gRPC, or of gRPC-Web already.
fn is_answer(headers: &HeaderMap, status: StatusCode, ended: bool) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let rest = kind.strip_prefix(b"application/grpc");
    let grpc = rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+')));
    if grpc && (status == StatusCode::OK || ended) {
        return !ended || headers.contains_key(names::GRPC_STATUS);
    }
    let plain = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    status == StatusCode::OK
        && (plain.eq_ignore_ascii_case(b"application/grpc-web")
            || plain.eq_ignore_ascii_case(b"application/grpc-web+proto"))
}

/// A request's text on its way to being bytes.
#[derive(Default)]
struct TextRequest {
    left: BytesMut,
}

impl TextRequest {
    fn decode(&mut self, out: &mut Output) -> Result<(), StageError> {
        let whole = self.left.len() / 4 * 4;
        if whole == 0 {
            return Ok(());
        }
        let text = self.left.split_to(whole);
        let bytes = STANDARD.decode(&text).ok().filter(|bytes| !bytes.is_empty());
        let bytes = bytes.ok_or_else(|| not_base64("grpc_base_64_decode_failed"))?;
        out.push(bytes.into());
        Ok(())
    }
}

fn not_base64(details: &'static str) -> StageError {
    StageError { details, body: "Bad gRPC-web request, invalid base64 data." }
}

impl Stage for TextRequest {
    fn data(&mut self, data: Bytes, out: &mut Output) -> Result<(), StageError> {
        self.left.extend_from_slice(&data);
        self.decode(out)
    }

    fn end(&mut self, trailers: Option<HeaderMap>, out: &mut Output) -> Result<(), StageError> {
        if !self.left.is_empty() {
            return Err(not_base64("grpc_base_64_decode_failed_bad_size"));
        }
        out.trailers = trailers;
        Ok(())
    }
}

/// A response on its way to a browser.
struct WebResponse {
    text: bool,
    /// Of a frame that has not come whole, for text.
    left: BytesMut,
    /// What came is no gRPC: nothing of it is passed on.
    broken: bool,
}

impl WebResponse {
    fn new(text: bool) -> Self {
        Self { text, left: BytesMut::new(), broken: false }
    }

    /// The next whole frame.
    fn frame(&mut self) -> Option<BytesMut> {
        let head = self.left.get(..FRAME_HEAD)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if head[0] > 1 || length > MAX_FRAME {
            self.broken = true;
            return None;
        }
        (self.left.len() >= FRAME_HEAD + length).then(|| self.left.split_to(FRAME_HEAD + length))
    }
}

impl Stage for WebResponse {
    fn data(&mut self, data: Bytes, out: &mut Output) -> Result<(), StageError> {
        if !self.text {
            out.push(data);
            return Ok(());
        }
        if !self.broken {
            self.left.extend_from_slice(&data);
        }
        while !self.broken
            && let Some(frame) = self.frame()
        {
            out.push(STANDARD.encode(&frame).into());
        }
        Ok(())
    }

    fn end(&mut self, trailers: Option<HeaderMap>, out: &mut Output) -> Result<(), StageError> {
        let Some(trailers) = trailers else { return Ok(()) };
        let mut frame = BytesMut::new();
        frame.put_u8(TRAILERS);
        frame.put_u32(0);
        for (name, value) in &trailers {
            frame.extend_from_slice(name.as_str().as_bytes());
            frame.put_u8(b':');
            frame.extend_from_slice(value.as_bytes());
            frame.extend_from_slice(b"\r\n");
        }
        let length = u32::try_from(frame.len() - FRAME_HEAD).unwrap_or(u32::MAX);
        (&mut frame[1..FRAME_HEAD]).put_u32(length);
        out.push(match self.text {
            true => STANDARD.encode(&frame).into(),
            false => frame.copy_to_bytes(frame.len()),
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::stage::Stages;
    use super::*;
    use http_body::Frame;

    fn all(stages: &mut Stages) -> Vec<u8> {
        let mut all = vec![];
        while let Some(frame) = stages.pop() {
            all.extend_from_slice(frame.data_ref().expect("no trailers"));
        }
        all
    }

    #[test]
    fn text_is_decoded_wherever_it_was_cut() {
        for cut in 0..=12 {
            let mut stages = Stages::new(vec![Box::new(TextRequest::default())]);
            let (one, two) = b"AAAAAAJoaQ==".split_at(cut);
            for part in [one, two] {
                let part = Frame::data(Bytes::copy_from_slice(part));
                stages.take(Some(part)).expect("base64");
            }
            stages.take(None).expect("whole");
            assert_eq!(all(&mut stages), b"\0\0\0\0\x02hi");
        }
    }

    #[test]
    fn text_that_is_none_is_refused() {
        let refused = |text: &'static str| {
            let stages = &mut Stages::new(vec![Box::new(TextRequest::default())]);
            stages.whole(text.into()).expect_err("no base64").details
        };
        assert_eq!(refused("!!!"), "grpc_base_64_decode_failed_bad_size");
        assert_eq!(refused("!!!!"), "grpc_base_64_decode_failed");
    }

    #[test]
    fn trailers_are_the_last_frame_of_the_body() {
        let mut stages = Stages::new(vec![Box::new(WebResponse::new(false))]);
        stages.take(Some(Frame::data("\0\0\0\0\x02hi".into()))).expect("never fails");
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(0));
        stages.take(Some(Frame::trailers(trailers))).expect("never fails");
        assert_eq!(all(&mut stages), b"\0\0\0\0\x02hi\x80\0\0\0\x0fgrpc-status:0\r\n");
    }

    #[test]
    fn a_length_that_nobody_sends_is_not_waited_for() {
        let mut stages = Stages::new(vec![Box::new(WebResponse::new(true))]);
        stages.take(Some(Frame::data("\0\u{7f}\0\0\0hi".into()))).expect("never fails");
        stages.take(Some(Frame::data("\0\0\0\0\x02hi".into()))).expect("never fails");
        assert_eq!(all(&mut stages), b"");
    }
}
