//! The control plane goes away, proxies die, and requests go on.

use crate::harness::Mesh;

/// Kills every sidecar of the mesh from inside one of its pods.
const KILL_SIDECARS: &str = "for p in /proc/[0-9]*; do \
    tr '\\0' ' ' < $p/cmdline | grep -q '[p]roxy sidecar' && kill -9 ${p#/proc/}; done; true";
const CONTROL_PLANE: &[&str] = &["get", "pods", "-n", "istio-system", "-l", "app=istiod"];

fn scale(mesh: &Mesh, replicas: &str) {
    let deployment = "deployment/istiod";
    mesh.ok(&["scale", deployment, "-n", "istio-system", "--replicas", replicas]);
}

#[test]
fn a_mesh_serves_without_its_control_plane() {
    let mesh = Mesh::start();
    mesh.under_load(|| {
        scale(&mesh, "0");
        mesh.wait_for(CONTROL_PLANE, |pods| !pods.contains("istiod-"));
    });

    // Nobody is there to configure or certify them: they go on with what they had.
    mesh.ok(&["exec", "ratings-v1", "--", "sh", "-c", KILL_SIDECARS]);
    let restarted = |pods: &str| {
        let rows = pods.lines().skip(1);
        let of = |row: &str, column: usize| row.split_whitespace().nth(column).map(str::to_owned);
        rows.clone().count() == 6
            && rows.clone().all(|row| of(row, 1).as_deref() == Some("2/2"))
            && rows.clone().all(|row| of(row, 3).as_deref() == Some("1"))
    };
    mesh.wait_for(&["get", "pods"], restarted);
    mesh.under_load(|| {});

    mesh.under_load(|| {
        scale(&mesh, "1");
        let synced = |status: &str| status.lines().count() == 9;
        mesh.wait_for(CONTROL_PLANE, |pods| pods.contains("1/1"));
        mesh.wait_for(&["proxy-status"], synced);
        mesh.apply(&["destination-rules.yaml", "all-v1.yaml"]);
    });
    mesh.settles(20, |version| version == "reviews-v1");
}
