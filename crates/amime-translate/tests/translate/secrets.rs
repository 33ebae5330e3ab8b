//! Which secrets proxies get, and what is in them.

use std::sync::Arc;

use amime_api::decode::decode;
use amime_api::mesh::decode_mesh_config;
use amime_model::Snapshot;
use amime_translate::{Proxy, dump, generate};
use amime_xds::TypeUrl;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use expect_test::{Expect, expect};
use prost::Message;
use serde_json::Value;

use crate::support::{gateway, json_of, sidecar};

/// Secrets with `aQ==` ("i") and the like, in both forms.
const SECRETS: &str = r"
apiVersion: v1
kind: Secret
metadata: {name: tls, namespace: istio-system}
type: kubernetes.io/tls
data: {tls.crt: Yw==, tls.key: aw==, tls.ocsp-staple: bw==, ca.crt: cg==, ca.crl: bA==}
---
apiVersion: v1
kind: Secret
metadata: {name: generic, namespace: istio-system}
data: {cert: YzI=, key: azI=}
---
apiVersion: v1
kind: Secret
metadata: {name: generic-cacert, namespace: istio-system}
data: {cacert: cjI=}
---
apiVersion: v1
kind: Secret
metadata: {name: roots, namespace: istio-system}
data: {cacert: cjM=}
---
apiVersion: v1
kind: Secret
metadata: {name: foreign, namespace: shop}
data: {tls.crt: Yw==, tls.key: aw==}
---
apiVersion: v1
kind: Secret
metadata: {name: client, namespace: default}
data: {tls.crt: Yw==, tls.key: aw==, ca.crt: cg==}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: ca, namespace: shop}
data: {ca.crt: r4}
";

fn snapshot(yaml: &str, mesh: &str) -> Snapshot {
    let decoded = decode("test.yaml", &format!("{SECRETS}---{yaml}"));
    assert_eq!(decoded.errors, []);
    let mesh = decode_mesh_config("mesh.yaml", mesh).expect("mesh settings");
    Snapshot::build(decoded.resources.into_iter().map(Arc::new), Arc::new(mesh), 1)
}

/// What the proxy gets that asks for these names.
#[track_caller]
fn check(yaml: &str, proxy: &Value, names: &[&str], want: Expect) {
    let proxy = Proxy::from_json(&proxy.to_string()).expect("a proxy");
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let found = generate(&snapshot(yaml, "{}"), &proxy, TypeUrl::Secret, Some(&names));
    let lines = found.iter().map(|resource| {
        let secret = Secret::decode(resource.body.as_ref()).expect("a secret");
        format!("{}\n", json_of(&secret))
    });
    want.assert_eq(&lines.collect::<String>());
}

fn server(tls: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge, namespace: istio-system}}
spec:
  selector: {{istio: ingressgateway}}
  servers: [{{hosts: [a.example.com], port: {{number: 443, name: https, protocol: HTTPS}}, tls: {tls}}}]
"
    )
}

#[test]
fn both_forms_of_secrets_are_read() {
    check(
        &server("{mode: MUTUAL, credentialName: tls}"),
        &gateway(),
        &[
            "kubernetes://tls",
            "kubernetes://tls-cacert",
            "kubernetes://istio-system/generic",
            "kubernetes://generic-cacert",
        ],
        expect![[r#"
            {"name":"kubernetes://generic-cacert","validation_context":{"trusted_ca":{"inline_bytes":"cjI="}}}
            {"name":"kubernetes://istio-system/generic","tls_certificate":{"certificate_chain":{"inline_bytes":"YzI="},"private_key":{"inline_bytes":"azI="}}}
            {"name":"kubernetes://tls","tls_certificate":{"certificate_chain":{"inline_bytes":"Yw=="},"ocsp_staple":{"inline_bytes":"bw=="},"private_key":{"inline_bytes":"aw=="}}}
            {"name":"kubernetes://tls-cacert","validation_context":{"crl":{"inline_bytes":"bA=="},"trusted_ca":{"inline_bytes":"cg=="}}}
        "#]],
    );
}

#[test]
fn roots_may_have_a_name_of_their_own() {
    check(
        &server("{mode: MUTUAL, credentialName: tls, caCertCredentialName: roots}"),
        &gateway(),
        &["kubernetes://roots"],
        expect![[r#"
            {"name":"kubernetes://roots","validation_context":{"trusted_ca":{"inline_bytes":"cjM="}}}
        "#]],
    );
    check(
        &server("{mode: MUTUAL, credentialName: tls, caCertCredentialName: 'configmap://shop/ca'}"),
        &gateway(),
        &["configmap://shop/ca", "configmap://shop/ca-cacert", "configmap://ca"],
        expect![[r#"
            {"name":"configmap://shop/ca","validation_context":{"trusted_ca":{"inline_bytes":"cjQ="}}}
            {"name":"configmap://shop/ca-cacert","validation_context":{"trusted_ca":{"inline_bytes":"cjQ="}}}
        "#]],
    );
}

const GRANT: &str = r"
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: certificates, namespace: shop}
spec:
  from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: istio-system}]
  to: [{group: '', kind: Secret, name: foreign}]
";

#[test]
fn secrets_of_other_namespaces_need_a_grant() {
    let names = ["kubernetes://shop/foreign", "kubernetes-gateway://shop/foreign"];
    let open = server("{mode: SIMPLE, credentialName: 'kubernetes-gateway://shop/foreign'}");
    check(&open, &gateway(), &names, expect![[""]]);
    check(
        &format!("{open}{GRANT}"),
        &gateway(),
        &names,
        expect![[r#"
        {"name":"kubernetes-gateway://shop/foreign","tls_certificate":{"certificate_chain":{"inline_bytes":"Yw=="},"private_key":{"inline_bytes":"aw=="}}}
    "#]],
    );
    // A grant is for what a gateway refers to, not for everything.
    let closed = server("{mode: SIMPLE, credentialName: tls}");
    check(&format!("{closed}{GRANT}"), &gateway(), &names, expect![[""]]);
}

fn rule(selector: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec: {{clusterIP: 10.1.0.1, ports: [{{name: http, port: 80}}]}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web, namespace: default}}
spec: {{host: web, {selector}trafficPolicy: {{tls: {{mode: MUTUAL, credentialName: client}}}}}}
"
    )
}

#[test]
fn sidecars_get_secrets_that_a_rule_for_selected_workloads_names() {
    let names = ["kubernetes://client", "kubernetes://client-cacert", "kubernetes://other"];
    let selected = rule("workloadSelector: {matchLabels: {app: a}}, ");
    check(
        &selected,
        &sidecar("10.0.0.1", "a"),
        &names,
        expect![[r#"
        {"name":"kubernetes://client","tls_certificate":{"certificate_chain":{"inline_bytes":"Yw=="},"private_key":{"inline_bytes":"aw=="}}}
        {"name":"kubernetes://client-cacert","validation_context":{"trusted_ca":{"inline_bytes":"cg=="}}}
    "#]],
    );
    check(&selected, &sidecar("10.0.0.2", "b"), &names, expect![[""]]);
    check(&rule(""), &sidecar("10.0.0.1", "a"), &names, expect![[""]]);
}

#[test]
fn a_dump_has_the_secrets_that_are_referred_to() {
    let names = |yaml: &str, proxy: &Value| -> Vec<String> {
        let proxy = Proxy::from_json(&proxy.to_string()).expect("a proxy");
        dump(&snapshot(yaml, "{}"), &proxy).secrets.into_iter().map(|s| s.name).collect()
    };
    let yaml = format!(
        "{}---{}",
        server("{mode: OPTIONAL_MUTUAL, credentialNames: [tls, generic]}"),
        rule("workloadSelector: {matchLabels: {app: a}}, ")
    );
    assert_eq!(
        names(&yaml, &gateway()),
        ["kubernetes://generic", "kubernetes://tls", "kubernetes://tls-cacert"]
    );
    assert_eq!(
        names(&yaml, &sidecar("10.0.0.1", "a")),
        ["kubernetes://client", "kubernetes://client-cacert"]
    );
}

const PROVIDER: &str = r"
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vault, namespace: istio-system}
spec:
  hosts: [vault.example.com]
  resolution: STATIC
  endpoints: [{address: 10.0.0.100}]
  ports: [{number: 8443, name: grpc, protocol: GRPC}]
";

#[test]
fn an_external_credential_comes_from_the_provider_of_the_mesh() {
    let mesh = "extensionProviders: [{name: vault, sds: {name: vault, service: vault.example.com, port: 8443}}]";
    let yaml = server("{mode: SIMPLE, credentialName: 'sds://certificate'}") + PROVIDER;
    let proxy = Proxy::from_json(&gateway().to_string()).expect("a proxy");
    let dump = dump(&snapshot(&yaml, mesh), &proxy);
    let listener = json_of(&dump.listeners[0]);
    let path = "/filter_chains/0/transport_socket/typed_config/common_tls_context/tls_certificate_sds_secret_configs/0";
    let secret = listener.pointer(path).unwrap_or_else(|| panic!("{listener}"));
    assert_eq!(secret["name"], "certificate");
    let service = &secret["sds_config"]["api_config_source"]["grpc_services"][0]["envoy_grpc"];
    assert_eq!(service["cluster_name"], "outbound|8443||vault.example.com");
    assert_eq!(service["authority"], "vault.example.com");
    assert!(dump.secrets.is_empty(), "the control plane does not have it");
}
