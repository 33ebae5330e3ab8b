//! HTTP/2 towards the proxy, one stream on a connection of its own.

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Request, Uri};
use tokio::time::timeout;

use super::{Done, Stream, patience};
use crate::case::{Exchange, fill};
use crate::coding::meant;
use crate::outcome::{Aspect, Outcome};
use crate::wire::summary;

pub(super) async fn talk<S: Stream>(exchange: &Exchange, stream: S, done: &mut Done) -> Result<()> {
    let id = done.id.clone();
    let outcome = &mut done.outcome;
    let mut answered = false;
    let talked =
        timeout(patience(exchange), one(exchange, &id, stream, outcome, &mut answered)).await;
    match talked {
        Ok(Ok(())) => {}
        Ok(Err(error)) => match error.downcast::<h2::Error>() {
            Ok(error) => outcome.add(Aspect::Status, describe(&error)),
            Err(error) => return Err(error),
        },
        Err(_) => outcome.add(Aspect::Close, "open, without an answer"),
    }
    done.logged.responses = usize::from(answered);
    Ok(())
}

fn describe(error: &h2::Error) -> String {
    let what = match (error.is_go_away(), error.is_reset(), error.reason()) {
        (true, _, _) => "connection ended",
        (_, true, _) => "stream reset",
        (_, _, None) => return "connection closed".into(),
        _ => "failed",
    };
    format!("{what}: {}", error.reason().map_or_else(String::new, |reason| format!("{reason:?}")))
}

async fn one<S: Stream>(
    exchange: &Exchange,
    id: &str,
    stream: S,
    outcome: &mut Outcome,
    answered: &mut bool,
) -> Result<()> {
    let (sender, connection) = h2::client::handshake(stream).await?;
    // Its error shows on the stream as well.
    tokio::spawn(async move { drop(connection.await) });
    let mut sender = sender.ready().await?;
    let (request, body) = request(exchange, id)?;
    let has_body = !body.is_empty();
    let (response, mut send) =
        sender.send_request(request, !has_body && exchange.tunnel.is_none())?;
    if has_body {
        // Refused early, the answer says so.
        let _ = send.send_data(body, exchange.tunnel.is_none());
    }
    let response = response.await?;
    *answered = true;
    outcome.add(Aspect::Status, format!("HTTP/2 {}", response.status().as_str()));
    note_fields(outcome, Aspect::Headers, response.headers(), "");
    let coding = response.headers().get("content-encoding").cloned();
    let mut incoming = response.into_body();
    if let Some(text) = &exchange.tunnel {
        send.send_data(Bytes::from(text.clone()), true)?;
    }
    let mut body = vec![];
    while let Some(data) = incoming.data().await {
        match data {
            Ok(data) => {
                let _ = incoming.flow_control().release_capacity(data.len());
                body.extend_from_slice(&data);
            }
            Err(error) => {
                outcome.add(Aspect::Body, format!("{}, then {}", summary(&body), describe(&error)));
                return Ok(());
            }
        }
    }
    if !body.is_empty() {
        let coding = coding.as_ref().and_then(|coding| coding.to_str().ok());
        outcome.add(Aspect::Body, meant(coding, &body));
    }
    if let Some(trailers) = incoming.trailers().await? {
        note_fields(outcome, Aspect::Body, &trailers, "trailer ");
    }
    Ok(())
}

fn request(exchange: &Exchange, id: &str) -> Result<(Request<()>, Bytes)> {
    let simple = exchange.request()?;
    let scheme = if exchange.tls.is_some() { "https" } else { "http" };
    let uri = if simple.method == "CONNECT" {
        simple.target.parse::<Uri>()?
    } else {
        let mut builder = Uri::builder().path_and_query(fill(simple.target, id));
        if !exchange.host.is_empty() {
            builder = builder.authority(exchange.host.as_str()).scheme(scheme);
        }
        builder.build().with_context(|| format!("target {}", simple.target))?
    };
    let mut request = Request::builder().method(simple.method).uri(uri).header("x-case", id);
    for (name, value) in simple.fields {
        request = request.header(name, fill(value, id));
    }
    Ok((request.version(http::Version::HTTP_2).body(())?, Bytes::from(simple.body)))
}

fn note_fields(outcome: &mut Outcome, aspect: Aspect, map: &HeaderMap, prefix: &str) {
    let mut fields: Vec<_> = map.iter().collect();
    fields.sort_by_key(|(name, _)| name.as_str());
    for (name, value) in fields {
        let value: String = value.as_bytes().iter().map(|&byte| char::from(byte)).collect();
        outcome.add(aspect, format!("{prefix}{name}: {value}"));
    }
}
