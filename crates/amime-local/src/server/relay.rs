//! `ANY /v1/http/{ns}/{pod}/{port}/{path}`: a request to the loopback of a
//! pod, such as its proxy's admin port.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{CONNECTION, HOST, HeaderValue};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use hyper_util::rt::TokioIo;

use super::{Refused, find_pod};
use crate::cluster::Cluster;
use crate::kubelet::{Pod, pod_socket};

pub(super) async fn relay_root(
    cluster: State<Arc<Cluster>>,
    Path((namespace, pod, port)): Path<(String, String, u16)>,
    request: Request,
) -> Result<Response, Refused> {
    send(cluster, (namespace, pod, port, String::new()), request).await
}

pub(super) async fn relay(
    cluster: State<Arc<Cluster>>,
    Path(target): Path<(String, String, u16, String)>,
    request: Request,
) -> Result<Response, Refused> {
    send(cluster, target, request).await
}

async fn send(
    State(cluster): State<Arc<Cluster>>,
    (namespace, name, port, _): (String, String, u16, String),
    mut request: Request,
) -> Result<Response, Refused> {
    let pod = find_pod(&cluster, &namespace, &name)?;
    *request.uri_mut() = rest_of(request.uri());
    request.headers_mut().remove(CONNECTION);
    ask(&pod, port, request).await.map_err(|error| {
        let message = format!("port {port} of pod {name} does not answer: {error}");
        Refused(StatusCode::BAD_GATEWAY, message)
    })
}

/// Sends a request to a port of the pod's loopback, on a connection of its own.
pub(crate) async fn ask(
    pod: &Pod,
    port: u16,
    mut request: Request,
) -> Result<Response, Box<dyn std::error::Error + Send + Sync>> {
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = pod_socket(pod)?.connect(target).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await?;
    // Ends with the answer's body.
    tokio::spawn(connection);
    request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
    Ok(sender.send_request(request).await?.map(Body::new))
}

/// The request's path and query behind `/v1/http/{ns}/{pod}/{port}`, as it
/// was given, with all escapes.
fn rest_of(uri: &Uri) -> Uri {
    const OWN_SEGMENTS: usize = 5;
    let whole = uri.path_and_query().map_or("/", |whole| whole.as_str());
    let at = whole.match_indices(['/', '?']).nth(OWN_SEGMENTS).map(|(at, _)| at);
    let rest = at.map_or("", |at| &whole[at..]);
    let rest = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
    rest.parse().unwrap_or_else(|_| Uri::from_static("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_the_path_stays_as_it_was() {
        let rest = |text: &str| rest_of(&text.parse().expect("uri")).to_string();
        assert_eq!(rest("/v1/http/ns/pod/15000/config_dump?a=b%20c"), "/config_dump?a=b%20c");
        assert_eq!(rest("/v1/http/ns/pod/15000/a/b%2Fc/"), "/a/b%2Fc/");
        assert_eq!(rest("/v1/http/ns/pod/15000"), "/");
        assert_eq!(rest("/v1/http/ns/pod/15000?x"), "/?x");
    }
}
