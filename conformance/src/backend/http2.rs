//! The backend's HTTP/2.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::orders::{End, Orders};
use super::{Ending, Server, id_of, record};
use crate::wire::{Reader, summary};

/// Serves streams until the connection ends.
pub(super) async fn serve<S: Ending + 'static>(reader: Reader<S>, server: Server) {
    let mut builder = Builder::new();
    builder.max_concurrent_streams(100).enable_connect_protocol();
    let Ok(mut connection) = builder.handshake::<_, Bytes>(Replayed(reader)).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let server = server.clone();
        tokio::spawn(async move {
            // A reset stream is what the case asked for.
            let _ = stream(request, respond, &server).await;
        });
    }
}

async fn stream(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    server: &Server,
) -> Result<(), h2::Error> {
    let (head, mut incoming) = request.into_parts();
    let fields = fields(&head.headers);
    let start = format!("{} {} HTTP/2", head.method, head.uri);
    let id = id_of(&start, &fields);
    if head.method == http::Method::CONNECT {
        server.journal.add(&id, record(server, &start, fields, ""));
        let mut send = respond.send_response(Response::new(()), false)?;
        while let Some(data) = incoming.data().await {
            let data = data?;
            let _ = incoming.flow_control().release_capacity(data.len());
            send.send_data(data, false)?;
        }
        return send.send_data(Bytes::new(), true);
    }
    let (mut text, whole) = read(&mut incoming).await;
    if !whole {
        text.push_str(" (incomplete)");
    }
    let echo = head.headers.get("x-echo").and_then(|value| value.to_str().ok());
    let mut orders = echo.map(Orders::parse).unwrap_or_default();
    let before = server.journal.add(&id, record(server, &start, fields, &text));
    if orders.fail.is_some_and(|fail| before >= fail) {
        orders = Orders::default();
    }
    tokio::time::sleep(orders.delay).await;
    let without_body = head.method == http::Method::HEAD || matches!(orders.status, 204 | 304);
    if without_body {
        orders.body = Some(vec![]);
    }
    answer(&mut respond, server, orders).await
}

async fn read(incoming: &mut RecvStream) -> (String, bool) {
    let mut body = vec![];
    while let Some(data) = incoming.data().await {
        let Ok(data) = data else { return (summary(&body), false) };
        let _ = incoming.flow_control().release_capacity(data.len());
        body.extend_from_slice(&data);
    }
    let mut text = summary(&body);
    if let Ok(Some(trailers)) = incoming.trailers().await {
        for (name, value) in self::fields(&trailers) {
            text.push_str(&format!(" trailer {name}: {value}"));
        }
    }
    (text, true)
}

async fn answer(
    respond: &mut SendResponse<Bytes>,
    server: &Server,
    orders: Orders,
) -> Result<(), h2::Error> {
    match orders.end {
        End::Reset => {
            respond.send_reset(Reason::INTERNAL_ERROR);
            return Ok(());
        }
        End::Close => {
            respond.send_reset(Reason::REFUSED_STREAM);
            return Ok(());
        }
        _ => {}
    }
    let mut response = Response::new(());
    *response.status_mut() = http::StatusCode::from_u16(orders.status).unwrap_or_default();
    *response.headers_mut() = header_map(&orders.fields);
    let default = format!("from {}\n", server.name).into_bytes();
    let body = Bytes::from(orders.body.unwrap_or(default));
    let ends = body.is_empty() && orders.trailers.is_empty() && orders.end == End::Whole;
    let mut send = respond.send_response(response, ends)?;
    if ends {
        return Ok(());
    }
    if orders.end != End::Whole {
        send.send_data(body.slice(..body.len() / 2), false)?;
        if orders.end == End::Truncate {
            send.send_reset(Reason::INTERNAL_ERROR);
            return Ok(());
        }
        return std::future::poll_fn(|context| send.poll_reset(context)).await.map(drop);
    }
    send.send_data(body, orders.trailers.is_empty())?;
    if !orders.trailers.is_empty() {
        send.send_trailers(header_map(&orders.trailers))?;
    }
    Ok(())
}

fn header_map(fields: &[(String, String)]) -> HeaderMap {
    let parsed = fields.iter().filter_map(|(name, value)| {
        Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
    });
    let mut map = HeaderMap::new();
    for (name, value) in parsed {
        map.append(name, value);
    }
    map
}

/// Names and values as text.
pub(crate) fn fields(map: &HeaderMap) -> Vec<(String, String)> {
    map.iter()
        .map(|(name, value)| {
            let value = value.as_bytes().iter().map(|&byte| char::from(byte)).collect();
            (name.as_str().to_owned(), value)
        })
        .collect()
}

/// A stream whose first bytes were read already.
struct Replayed<S>(Reader<S>);

impl<S: AsyncRead + Unpin> AsyncRead for Replayed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let reader = &mut self.0;
        if reader.buffer.is_empty() {
            return Pin::new(&mut reader.stream).poll_read(context, into);
        }
        let length = into.remaining().min(reader.buffer.len());
        into.put_slice(&reader.buffer[..length]);
        reader.buffer.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replayed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.stream).poll_shutdown(context)
    }
}
