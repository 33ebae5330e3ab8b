//! Routing: which request goes where, and what happens to it on the way.

mod change;
mod fault;
mod matching;
mod protocol;
mod retry;
mod share;

use crate::Test;
use crate::client::Ask;
use crate::mesh::Mesh;

pub(crate) const TESTS: &[&[Test]] =
    &[matching::TESTS, change::TESTS, share::TESTS, retry::TESTS, fault::TESTS, protocol::TESTS];

/// A request for a host that only routes know, to a place where nobody
/// listens: what gets anywhere was led there.
#[track_caller]
fn to<'m>(mesh: &'m Mesh, host: &str, path: &str) -> Ask<'m> {
    let nowhere = mesh.nowhere();
    mesh.get("client", &format!("http://{nowhere}{path}")).host(host)
}

/// A gRPC call to a host that only routes know.
#[track_caller]
fn call<'m>(mesh: &'m Mesh, host: &str, path: &str) -> Ask<'m> {
    mesh.get("client", &format!("http://{host}:7070{path}")).grpc()
}

/// A service that has no pods, for routes to lead elsewhere.
fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  \
         selector: {{app: none}}\n  ports:\n  - {{name: http, port: 80}}\n  \
         - {{name: http-other, port: 8081}}\n  - {{name: grpc, port: 7070}}\n---\n"
    )
}
