//! From the start to the stop of a mesh.

use std::net::TcpStream;
use std::process::Command;
use std::time::Instant;

use crate::harness::{Mesh, PATIENCE};

#[test]
fn a_mesh_starts_serves_obeys_and_stops() {
    let mut mesh = Mesh::start();

    let mut seen = std::collections::BTreeSet::new();
    let deadline = Instant::now() + PATIENCE;
    while seen.len() < 3 {
        seen.insert(mesh.reviews());
        assert!(Instant::now() < deadline, "only {seen:?} of three versions were seen");
    }

    proxies_are_told_apart(&mesh);

    // Both at once: routes must not move before their new clusters are warm.
    mesh.apply(&["destination-rules.yaml", "all-v1.yaml"]);
    mesh.settles(20, |version| version == "reviews-v1");
    mesh.apply(&["reviews-50-v3.yaml"]);
    mesh.settles(1, |version| version == "reviews-v3");

    let exec =
        mesh.run(&["exec", "ratings-v1", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    let (out, err) = (&exec.stdout[..], &exec.stderr[..]);
    assert_eq!((out, err, exec.status.code()), (&b"out\n"[..], &b"err\n"[..], Some(7)));

    let second = mesh.run(&["up", "--port", "0"]);
    assert_eq!(second.status.code(), Some(1));
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(error.contains("already running"), "{error}");

    assert_eq!(mesh.ok(&["down"]), "the mesh has stopped\n");
    assert!(mesh.up.wait().expect("up ends").success());
    assert!(TcpStream::connect(&mesh.address).is_err(), "the port is free again");
    assert_eq!(mesh.ok(&["down"]), "no mesh was running\n");
}

#[track_caller]
fn proxies_are_told_apart(mesh: &Mesh) {
    let status = mesh.ok(&["proxy-status"]);
    // Six sidecars and two gateways under the header.
    assert_eq!(status.lines().count(), 9, "{status}");
    let listeners = mesh.ok(&["proxy-config", "listener", "productpage-v1"]);
    assert!(listeners.starts_with("ADDRESSES"), "{listeners}");
    assert!(listeners.contains("Route: 9080"), "{listeners}");
    let clusters = mesh.ok(&["pc", "c", "productpage-v1", "--fqdn", "reviews"]);
    assert!(clusters.contains("reviews.default.svc.cluster.local"), "{clusters}");
    let endpoints = mesh.ok(&["pc", "ep", "productpage-v1"]);
    assert!(endpoints.contains("HEALTHY"), "{endpoints}");
    let secrets = mesh.ok(&["pc", "s", "productpage-v1"]);
    assert!(secrets.contains("Cert Chain") && secrets.contains("ROOTCA"), "{secrets}");
    let table = mesh.ok(&["status"]);
    assert!(table.contains("9 of 9 pods ready"), "{table}");
}

/// A user namespace in which no further one may be made, and a program in it
/// that has lost what root may do: a machine that forbids them.
const FORBIDDING: &str = "echo 0 > /proc/sys/user/max_user_namespaces \
    && exec setpriv --bounding-set=-all --inh-caps=-all \"$0\" up --port 0";

#[test]
fn a_machine_that_forbids_namespaces_is_told_what_to_change() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", FORBIDDING, env!("CARGO_BIN_EXE_amime")])
        .env("AMIME_STATE_DIR", dir.path())
        .output()
        .expect("util-linux is there");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("sysctl -w user.max_user_namespaces="), "{error}");
}
