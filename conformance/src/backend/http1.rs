//! The backend's HTTP/1.1.

use std::fmt::Write;

use tokio::io::AsyncWriteExt;

use super::orders::{End, Orders};
use super::{Ending, Server, id_of, record};
use crate::coding::{encode, meant};
use crate::wire::{Framing, Head, Reader, latin1};

/// Serves requests until the connection ends.
pub(super) async fn serve<S: Ending>(mut reader: Reader<S>, server: Server) {
    while let Ok(Some(head)) = reader.head().await {
        let upgrade = head.field("upgrade").map(str::to_owned);
        let connect = head.start.starts_with("CONNECT ");
        let orders = orders(&head);
        if !orders.refuse && (upgrade.is_some() || connect) {
            record_request(&server, &head, "");
            return tunnel(reader, upgrade).await;
        }
        if head.lists("expect", "100-continue") && write(&mut reader, CONTINUE).await.is_none() {
            return;
        }
        let body = reader.body(head.framing(Framing::None)).await;
        let mut text = meant(head.field("content-encoding"), &body.bytes);
        for (name, value) in &body.trailers {
            let _ = write!(text, " trailer {name}: {value}");
        }
        if !body.complete {
            text.push_str(" (incomplete)");
        }
        let before = record_request(&server, &head, &text);
        if !body.complete {
            return;
        }
        let orders =
            if orders.fail.is_some_and(|fail| before >= fail) { Orders::default() } else { orders };
        tokio::time::sleep(orders.delay).await;
        if answer(&mut reader, &server, &head, orders).await.is_none() {
            return;
        }
    }
}

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

fn orders(head: &Head) -> Orders {
    head.field("x-echo").map(Orders::parse).unwrap_or_default()
}

fn record_request(server: &Server, head: &Head, body: &str) -> usize {
    let id = id_of(&head.start, &head.fields);
    server.journal.add(&id, record(server, &head.start, head.fields.clone(), body))
}

/// None when the connection is to end.
async fn answer<S: Ending>(
    reader: &mut Reader<S>,
    server: &Server,
    head: &Head,
    orders: Orders,
) -> Option<()> {
    if let Some(status) = orders.interim {
        write(reader, format!("HTTP/1.1 {status} Interim\r\nx-interim: 1\r\n\r\n").as_bytes())
            .await?;
    }
    match &orders.end {
        End::Reset => {
            reader.stream.reset();
            return None;
        }
        End::Close => return None,
        End::Raw(bytes) => {
            write(reader, bytes).await?;
            // Whatever it was, nothing may follow on this connection.
            let _ = reader.stream.shutdown().await;
            while matches!(reader.fill().await, Ok(true)) {
                reader.buffer.clear();
            }
            return None;
        }
        End::Whole | End::Truncate | End::Stall => {}
    }
    let bytes = response(server, head, &orders);
    if matches!(orders.end, End::Whole) {
        return write(reader, &bytes).await;
    }
    write(reader, &bytes[..bytes.len() - 4]).await?;
    if orders.end == End::Stall {
        while matches!(reader.fill().await, Ok(true)) {
            reader.buffer.clear();
        }
    }
    None
}

fn response(server: &Server, head: &Head, orders: &Orders) -> Vec<u8> {
    let default = format!("from {}\n", server.name).into_bytes();
    let echo = || format!("{} {} {}", server.name, head.start, head.field("host").unwrap_or("-"));
    let body = match &orders.body {
        Some(body) => body.clone(),
        None if orders.echo => echo().into_bytes(),
        None => default,
    };
    let body = match &orders.coding {
        Some(coding) => encode(coding, &body),
        None => body,
    };
    let mut text = format!("HTTP/1.1 {} Status\r\n", orders.status);
    for (name, value) in &orders.fields {
        let _ = write!(text, "{name}: {value}\r\n");
    }
    let without_body = head.start.starts_with("HEAD ") || matches!(orders.status, 204 | 304);
    let chunked = orders.chunked || !orders.trailers.is_empty();
    if chunked {
        text.push_str("transfer-encoding: chunked\r\n\r\n");
    } else if orders.status == 204 {
        text.push_str("\r\n");
    } else {
        let _ = write!(text, "content-length: {}\r\n\r\n", body.len());
    }
    let mut bytes = latin1(&text);
    if without_body {
        return bytes;
    }
    if !chunked {
        bytes.extend_from_slice(&body);
        return bytes;
    }
    bytes.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
    bytes.extend_from_slice(&body);
    bytes.extend_from_slice(b"\r\n0\r\n");
    for (name, value) in &orders.trailers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// Accepts an upgrade or CONNECT and echoes until the peer ends.
async fn tunnel<S: Ending>(mut reader: Reader<S>, upgrade: Option<String>) {
    let head = match upgrade {
        Some(protocol) => format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n"
        ),
        None => "HTTP/1.1 200 OK\r\n\r\n".to_owned(),
    };
    if write(&mut reader, head.as_bytes()).await.is_none() {
        return;
    }
    loop {
        let bytes = reader.buffer.split();
        if !bytes.is_empty() && write(&mut reader, &bytes).await.is_none() {
            return;
        }
        if !matches!(reader.fill().await, Ok(true)) {
            // The peer may have gone altogether.
            let _ = reader.stream.shutdown().await;
            return;
        }
    }
}

async fn write<S: Ending>(reader: &mut Reader<S>, bytes: &[u8]) -> Option<()> {
    reader.stream.write_all(bytes).await.ok()?;
    reader.stream.flush().await.ok()
}
