//! HTTP/3 on a downstream connection: requests off its streams, responses onto
//! them.
//!
//! Invariant: a request is given up with its connection. That a client has
//! reset a single stream shows when its body is read or the response written.
//!
//! Spec: <https://www.rfc-editor.org/rfc/rfc9114>

use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use amime_http1::ParseError;
use bytes::{Buf, Bytes};
use h3::error::Code;
use h3::server::{Connection as Streams, RequestResolver, RequestStream};
use h3_quinn::{BidiStream, RecvStream, SendStream};
use http::{HeaderMap, Request, Response, Version, header};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

use super::body::{DownstreamBody, ResponseBody};
use super::exchange::Codec;
use super::parsed::Parsed;
use super::serve::{HttpConnection, close_requested, handle};

/// What a client sends after a request's head.
pub(crate) struct ClientBody {
    stream: RequestStream<RecvStream, Bytes>,
    /// Read ahead, to tell whether there is a body at all.
    first: Option<Bytes>,
    trailers: Option<HeaderMap>,
    left: Option<u64>,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    Data,
    Trailers,
    Done,
}

impl ClientBody {
    /// Reads what is there: many requests end with their head.
    async fn new(stream: RequestStream<RecvStream, Bytes>, headers: &HeaderMap) -> Self {
        let length = headers.get(header::CONTENT_LENGTH);
        let left = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let mut body = Self { stream, first: None, trailers: None, left, state: State::Data };
        std::future::poll_fn(|cx| {
            match body.poll_data(cx) {
                Poll::Ready(Some(Ok(first))) => body.first = Some(first),
                Poll::Ready(Some(Err(_))) => body.state = State::Done,
                Poll::Ready(None) => {
                    if let Poll::Ready(trailers) = body.poll_trailers(cx) {
                        body.trailers = trailers.and_then(Result::ok);
                    }
                }
                Poll::Pending => {}
            }
            Poll::Ready(())
        })
        .await;
        body
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ParseError>>> {
        match ready!(self.stream.poll_recv_data(cx)) {
            Ok(Some(mut data)) => Poll::Ready(Some(Ok(data.copy_to_bytes(data.remaining())))),
            Ok(None) => {
                self.state = State::Trailers;
                Poll::Ready(None)
            }
            Err(_) => {
                self.state = State::Done;
                Poll::Ready(Some(Err(ParseError::Truncated)))
            }
        }
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ParseError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if self.state == State::Data
            && let Some(data) = ready!(self.poll_data(cx))
        {
            return Poll::Ready(Some(data.map(Frame::data)));
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if self.state == State::Trailers {
            let trailers = ready!(self.poll_trailers(cx));
            return Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)));
        }
        Poll::Ready(None)
    }

    fn poll_trailers(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<HeaderMap, ParseError>>> {
        let trailers = ready!(self.stream.poll_recv_trailers(cx));
        self.state = State::Done;
        Poll::Ready(trailers.map_err(|_| ParseError::Truncated).transpose())
    }

    /// True if nothing more comes; trailers may.
    pub(super) fn ended(&self) -> bool {
        self.first.is_none() && self.trailers.is_none() && self.state == State::Done
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.left.map(SizeHint::with_exact).unwrap_or_default()
    }
}

/// How long a client has to take in the last answers after a GOAWAY.
const LINGER: Duration = Duration::from_secs(5);

type Resolver = RequestResolver<h3_quinn::Connection, Bytes>;

/// Serves one connection until it closes.
pub(crate) async fn serve_http3(connection: Rc<HttpConnection>, quic: quinn::Connection) {
    let stats = connection.stats.clone();
    stats.downstream_cx_total.inc();
    stats.downstream_cx_active.inc();
    stats.downstream_cx_http3_total.inc();
    stats.downstream_cx_http3_active.inc();
    let mut builder = h3::server::builder();
    builder.max_field_section_size(u64::from(connection.config.max_headers_kb) * 1024);
    let transport = h3_quinn::Connection::new(quic.clone());
    if let Ok(streams) = builder.build::<_, Bytes>(transport).await {
        accept(&connection, streams, &quic).await;
    }
    stats.downstream_cx_http3_active.dec();
    stats.downstream_cx_active.dec();
    stats.downstream_cx_destroy.inc();
}

async fn accept(
    connection: &Rc<HttpConnection>,
    mut streams: Streams<h3_quinn::Connection, Bytes>,
    quic: &quinn::Connection,
) {
    let mut leaving = false;
    loop {
        tokio::select! {
            next = streams.accept() => match next {
                Ok(Some(resolver)) => {
                    tokio::task::spawn_local(request(connection.clone(), resolver, quic.clone()));
                }
                // All that came before the GOAWAY is answered; what is still on
                // its way to the client would be lost with the connection.
                Ok(None) => {
                    let _ = tokio::time::timeout(LINGER, quic.closed()).await;
                    return;
                }
                Err(_) => return,
            },
            () = close_requested(connection, true), if !leaving => {
                leaving = true;
                if streams.shutdown(0).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn request(connection: Rc<HttpConnection>, resolver: Resolver, quic: quinn::Connection) {
    // A malformed request was answered, and its stream closed, already.
    let Ok((mut request, stream)) = resolver.resolve_request().await else { return };
    *request.version_mut() = Version::HTTP_3;
    tokio::select! {
        biased;
        () = exchange(connection, request, stream) => {}
        _ = quic.closed() => {}
    }
}

async fn exchange(
    connection: Rc<HttpConnection>,
    request: Request<()>,
    stream: RequestStream<BidiStream<Bytes>, Bytes>,
) {
    let (send, receive) = stream.split();
    let body = ClientBody::new(receive, request.headers()).await;
    let (parsed, ()) = Parsed::of_http2(request, true);
    let body = match body.ended() {
        true => DownstreamBody::Empty,
        false => DownstreamBody::H3(Box::new(body)),
    };
    let response = handle(connection, parsed, (body, None), Codec::default()).await;
    let mut send = send;
    if respond(&mut send, response).await.is_err() {
        send.stop_stream(Code::H3_INTERNAL_ERROR);
    }
}

/// The response could not be sent to its end.
struct Broken;

async fn respond(
    send: &mut RequestStream<SendStream<Bytes>, Bytes>,
    response: Response<ResponseBody>,
) -> Result<(), Broken> {
    let (parts, mut body) = response.into_parts();
    send.send_response(Response::from_parts(parts, ())).await.map_err(|_| Broken)?;
    while let Some(frame) = body.frame().await {
        match frame.map_err(|_| Broken)?.into_data() {
            Ok(data) => send.send_data(data).await.map_err(|_| Broken)?,
            Err(frame) => {
                let Ok(trailers) = frame.into_trailers() else { continue };
                send.send_trailers(trailers).await.map_err(|_| Broken)?;
            }
        }
    }
    send.finish().await.map_err(|_| Broken)
}
