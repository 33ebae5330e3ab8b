//! Certificates that change while they serve.

use anyhow::ensure;

use super::{edge, secret};
use crate::Test;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] = &[
    ("certificates of secrets are renewed under load", renewal),
    ("a bad certificate leaves the one before in force", bad),
];

fn server(name: &str, port: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}}}\n\
         spec:\n  selector: {{istio: ingressgateway}}\n  servers:\n  \
         - port: {{number: {port}, name: https, protocol: HTTPS}}\n    hosts: [{name}.test]\n    \
         tls: {{mode: SIMPLE, credentialName: {name}}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\n\
         spec:\n  hosts: [{name}.test]\n  gateways: [{name}]\n  \
         http: [{{route: [{{destination: {{host: one, port: {{number: 80}}}}}}]}}]\n"
    )
}

fn renewal(mesh: &Mesh) {
    let pair = || mesh.authority.issue(&["renewed.test"]);
    let mut current = pair();
    mesh.apply(&(secret("renewed", &current, None) + &server("renewed", 7445)));
    let ask = || edge(mesh, "https", 7445, "renewed.test", "/");
    mesh.until(|| ask().try_send());
    let mut kept = ask().connect().expect("connects");
    mesh.under_load(&[ask(), ask().http2()], || {
        for _ in 0..3 {
            current = pair();
            mesh.apply(&secret("renewed", &current, None));
            mesh.until(|| {
                ensure!(ask().try_send()?.server == Some(current.leaf()), "not renewed yet");
                Ok(())
            });
        }
    });
    // A connection from before the first renewal goes on.
    assert_eq!(ask().over(&mut kept).expect("answered").status, 200);
}

fn bad(mesh: &Mesh) {
    let pair = mesh.authority.issue(&["bad-cert.test"]);
    mesh.apply(&(secret("bad-cert", &pair, None) + &server("bad-cert", 7446)));
    let ask = || edge(mesh, "https", 7446, "bad-cert.test", "/");
    mesh.until(|| ask().try_send());
    let mut broken = pair.clone();
    broken.key = mesh.authority.issue(&["bad-cert.test"]).key;
    let _ = mesh.apply_loosely(&secret("bad-cert", &broken, None));
    // Something that comes after it has arrived.
    let after = mesh.authority.issue(&["bad-cert.test"]);
    let _ = ask().send();
    assert_eq!(ask().send().server, Some(pair.leaf()), "the pair that fits serves");
    mesh.apply(&secret("bad-cert", &after, None));
    mesh.until(|| {
        ensure!(ask().try_send()?.server == Some(after.leaf()), "not renewed yet");
        Ok(())
    });
}
