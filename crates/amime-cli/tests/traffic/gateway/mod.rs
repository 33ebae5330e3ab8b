//! Gateways: what comes in from outside of the mesh.

mod forwarded;
mod host;
mod rotation;
mod tls;

use base64::Engine as _;

use crate::Test;
use crate::client::Ask;
use crate::mesh::Mesh;
use crate::tls::Pair;

pub(crate) const TESTS: &[&[Test]] = &[host::TESTS, tls::TESTS, rotation::TESTS, forwarded::TESTS];

/// Where the ingress gateway is reached; its service has more ports than
/// usual, see `place.yaml`.
const EDGE: &str = "edge.istio-system";

/// A request of someone without a sidecar to a port of the ingress gateway.
#[track_caller]
fn edge<'m>(mesh: &'m Mesh, scheme: &str, port: u16, host: &str, path: &str) -> Ask<'m> {
    mesh.get("visitor", &format!("{scheme}://{EDGE}:{port}{path}")).host(host)
}

/// A TLS secret for the ingress gateway.
fn secret(name: &str, pair: &Pair, roots: Option<&str>) -> String {
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let roots = roots.map(|roots| format!(", ca.crt: {}", encode(roots))).unwrap_or_default();
    format!(
        "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\n\
         metadata: {{name: {name}, namespace: istio-system}}\n\
         data: {{tls.crt: {}, tls.key: {}{roots}}}\n---\n",
        encode(&pair.cert),
        encode(&pair.key)
    )
}
