//! A real Envoy as the judge of what the control plane sends.
//!
//! Each test owns a network namespace with the control plane, small backends
//! on the pods' addresses, a redirect of the services' addresses as a sidecar
//! has it, and one Envoy. Envoy must accept everything and route as the
//! configuration says.
//!
//! Needs root and an Envoy: `AMIME_ENVOY`, else `envoy` on the PATH, else
//! `target/venv-envoy/bin/envoy`.

mod envoy;
mod http;
mod mesh;
mod sds;

use envoy::Variant;
use http::{Call, Reply};
use mesh::{GATEWAY, Mesh, PRODUCTPAGE, in_namespace};

const REVIEWS: Call<'_> =
    Call { addr: "10.96.0.13:9080", host: "reviews:9080", path: "/", header: None };
const RATINGS: Call<'_> =
    Call { addr: "10.96.0.12:9080", host: "ratings:9080", path: "/ratings/0", header: None };
const INGRESS: Call<'_> =
    Call { addr: "127.0.0.1:8080", host: "anything.example", path: "/productpage", header: None };
const JASON: Option<(&str, &str)> = Some(("end-user", "jason"));

#[test]
fn a_sidecar_routes_bookinfo_over_delta() {
    in_namespace(|| sidecar(Variant::Delta));
}

#[test]
fn a_sidecar_routes_bookinfo_over_state_of_the_world() {
    in_namespace(|| sidecar(Variant::Sotw));
}

#[test]
fn a_gateway_routes_bookinfo_over_delta() {
    in_namespace(|| gateway(Variant::Delta));
}

#[test]
fn a_gateway_routes_bookinfo_over_state_of_the_world() {
    in_namespace(|| gateway(Variant::Sotw));
}

async fn sidecar(variant: Variant) {
    let mesh = Mesh::start(&PRODUCTPAGE, variant).await;
    mesh.accepted_everything().await;
    all_versions_answer(&mesh).await;

    let load = mesh.load(REVIEWS);
    mesh.apply("destination-rule-all.yaml").await;
    mesh.apply("virtual-service-all-v1.yaml").await;
    assert_eq!(mesh.count(REVIEWS, "reviews-v1", 20).await, 20);

    mesh.apply("virtual-service-reviews-80-20.yaml").await;
    // Five standard deviations of 500 draws with p = 0.2.
    let second = mesh.count(REVIEWS, "reviews-v2", 500).await;
    assert!((55..=145).contains(&second), "{second} of 500 went to v2, 100 were expected");

    mesh.apply("virtual-service-reviews-test-v2.yaml").await;
    assert_eq!(mesh.count(Call { header: JASON, ..REVIEWS }, "reviews-v2", 20).await, 20);
    assert_eq!(mesh.count(REVIEWS, "reviews-v1", 20).await, 20);

    mesh.apply("virtual-service-ratings-test-abort.yaml").await;
    let aborted = mesh.get(Call { header: JASON, ..RATINGS }).await;
    assert_eq!(aborted, Reply { status: 500, body: "fault filter abort".to_owned() });
    load.none_failed().await;
    let other = mesh.get(RATINGS).await;
    assert_eq!(other, Reply { status: 200, body: "ratings-v1".to_owned() });
    mesh.accepted_everything().await;
}

async fn all_versions_answer(mesh: &Mesh) {
    for version in ["reviews-v1", "reviews-v2", "reviews-v3"] {
        let hits = mesh.count(REVIEWS, version, 90).await;
        assert!(hits >= 10, "{version} answered {hits} of 90 requests");
    }
    let by_full_name = Call { host: "reviews.default.svc.cluster.local:9080", ..REVIEWS };
    assert_eq!(mesh.get(by_full_name).await.status, 200);
}

async fn gateway(variant: Variant) {
    let mesh = Mesh::start(&GATEWAY, variant).await;
    mesh.apply("bookinfo-gateway.yaml").await;
    mesh.accepted_everything().await;
    let page = mesh.get(INGRESS).await;
    assert_eq!(page, Reply { status: 200, body: "productpage-v1".to_owned() });
    let nothing = mesh.get(Call { path: "/nothing", ..INGRESS }).await;
    assert_eq!(nothing.status, 404);
}
