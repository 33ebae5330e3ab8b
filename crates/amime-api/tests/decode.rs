//! What decoding accepts and how it says no.

use amime_api::decode::decode;
use amime_api::{Kind, Resource};
use expect_test::{Expect, expect};

#[track_caller]
fn check_errors(text: &str, want: Expect) {
    let decoded = decode("f.yaml", text);
    let lines: Vec<String> = decoded.errors.iter().map(ToString::to_string).collect();
    want.assert_eq(&lines.join("\n"));
}

#[track_caller]
fn one(text: &str) -> Resource {
    let mut decoded = decode("f.yaml", text);
    assert_eq!(decoded.errors, [], "decodes without errors");
    assert_eq!(decoded.resources.len(), 1);
    decoded.resources.remove(0)
}

#[test]
fn every_fault_of_a_document_is_reported_with_its_place() {
    check_errors(
        r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
  namespace: default
  labels: {version: 1}
spec:
  hosts: [reviews]
  htpp: []
  http:
  - match:
    - uri: {exact: /a, prefix: /b}
      headers: {end-user: {exact: 7}}
    route:
    - destination: {host: reviews, subset: v1}
      wieght: 90
    timeout: 9:12
    retries: {attempts: many}
    fault:
      delay: {fixedDelay: -1s}
  - route: {destination: {host: reviews}}
"#,
        expect![[r#"
            f.yaml:7:21: VirtualService reviews.default: metadata.labels.version: expected a string, found the number 1; put it in quotes
            f.yaml:10:3: VirtualService reviews.default: spec.htpp: unknown field, expected one of hosts, gateways, http, tls, tcp, exportTo; did you mean "http"?
            f.yaml:13:24: VirtualService reviews.default: spec.http[0].match[0].uri.prefix: cannot be given together with "exact"
            f.yaml:14:35: VirtualService reviews.default: spec.http[0].match[0].headers.end-user.exact: expected a string, found the number 7; put it in quotes
            f.yaml:17:7: VirtualService reviews.default: spec.http[0].route[0].wieght: unknown field, expected one of destination, weight, headers; did you mean "weight"?
            f.yaml:18:14: VirtualService reviews.default: spec.http[0].timeout: "9:12" is not a duration such as "10s", "0.5s", "250ms" or "1h30m"
            f.yaml:19:25: VirtualService reviews.default: spec.http[0].retries.attempts: expected a whole number, found the string "many"
            f.yaml:21:27: VirtualService reviews.default: spec.http[0].fault.delay.fixedDelay: duration "-1s" is negative
            f.yaml:22:12: VirtualService reviews.default: spec.http[1].route: expected a list, found a mapping"#]],
    );
}

#[test]
fn unknown_kinds_say_what_is_known() {
    check_errors(
        "
apiVersion: networking.istio.io/v2
kind: VirtualService
metadata: {name: a}
---
apiVersion: networking.istio.io/v1
kind: VirtualServce
metadata: {name: a}
---
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRole
metadata: {name: a}
---
apiVersion: authentication.istio.io/v1alpha1
kind: MeshPolicy
metadata: {name: default}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: a}
---
kind: Service
metadata: {name: a}
---
just text
---
apiVersion: v1
kind: Service
spec: {}
",
        expect![[r#"
            f.yaml:3:7: VirtualService a: kind: unknown kind VirtualService of networking.istio.io/v2; VirtualService is known as networking.istio.io/v1, networking.istio.io/v1beta1, networking.istio.io/v1alpha3
            f.yaml:7:7: VirtualServce a: kind: unknown kind VirtualServce of networking.istio.io/v1; did you mean "VirtualService"?
            f.yaml:11:7: ServiceRole a: kind: unknown kind ServiceRole of rbac.istio.io/v1alpha1: it no longer exists, use AuthorizationPolicy instead
            f.yaml:15:7: MeshPolicy default: kind: unknown kind MeshPolicy of authentication.istio.io/v1alpha1: it no longer exists, use PeerAuthentication in the root namespace instead
            f.yaml:19:7: Gateway a: kind: unknown kind Gateway of gateway.networking.k8s.io/v1; Gateway is known as networking.istio.io/v1, networking.istio.io/v1beta1, networking.istio.io/v1alpha3
            f.yaml:22:1: Service a: apiVersion: missing; every object has one
            f.yaml:25:1: expected an object with apiVersion and kind, found the string "just text"
            f.yaml:27:1: Service: metadata: missing; every object has a name"#]],
    );
}

#[test]
fn doubled_keys_and_broken_yaml_do_not_hide_other_faults() {
    check_errors(
        "
apiVersion: v1
kind: Service
metadata: {name: a}
spec:
  prots: []
  selector: {app: a}
  selector: {app: b}
---
apiVersion: v1
kind: Service
 metadata: {name: b}
---
apiVersion: v1
kind: Service
metadata: {name: c}
spec: {clusterIP: 7}
",
        expect![[r#"
            f.yaml:8:3: duplicate key "selector"
            f.yaml:6:3: Service a: spec.prots: unknown field, expected one of ports, selector, type, clusterIP, clusterIPs, externalIPs, externalName, loadBalancerIP, publishNotReadyAddresses, sessionAffinity, externalTrafficPolicy, internalTrafficPolicy, trafficDistribution, ipFamilies, ipFamilyPolicy; did you mean "ports"?
            f.yaml:12:10: mapping values are not allowed in this context
            f.yaml:17:19: Service c: spec.clusterIP: expected a string, found the number 7; put it in quotes"#]],
    );
}

#[test]
fn proto_json_spellings_are_accepted() {
    let resource = one("
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: a}
spec:
  hosts: [a]
  export_to: ['.']
  http:
  - match: [{ignore_uri_case: true, query_params: {q: {exact: x}}, headers: {h: {}}}]
    fault: {delay: {percent: 10, fixed_delay: 7s}, abort: {httpStatus: 500}}
    route: [{destination: {host: a, port: {number: 80.0}}, weight: 100}]
    timeout: 0.5s
    retries: {attempts: 3, perTryTimeout: 2s, retryRemoteLocalities: null}
");
    let Resource::VirtualService(object) = resource else { panic!("a virtual service") };
    let route = &object.spec.http[0];
    assert_eq!(object.spec.export_to, ["."]);
    assert!(route.r#match[0].ignore_uri_case);
    assert_eq!(route.timeout.map(|t| t.as_millis()), Some(500));
    let delay = route.fault.as_ref().and_then(|f| f.delay.as_ref()).expect("a delay");
    assert_eq!((delay.percent, delay.fixed_delay.map(|d| d.as_secs())), (Some(10), Some(7)));
    assert_eq!(object.source.line, 2);
}

#[test]
fn enums_are_read_by_name_and_number() {
    let text = |mode: &str| {
        format!(
            "{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: a}}, \
             spec: {{mtls: {{mode: {mode}}}, portLevelMtls: {{8080: {{mode: DISABLE}}}}}}}}"
        )
    };
    let Resource::PeerAuthentication(object) = one(&text("3")) else { panic!("its kind") };
    assert_eq!(object.spec.mtls.map(|m| m.mode), Some(amime_api::security::MutualTlsMode::Strict));
    assert!(object.spec.port_level_mtls.contains_key(&8080));
    check_errors(
        &text("STRCT"),
        expect![[
            r#"f.yaml:1:103: PeerAuthentication a: spec.mtls.mode: expected one of UNSET, DISABLE, PERMISSIVE, STRICT, found the string "STRCT"; did you mean "STRICT"?"#
        ]],
    );
}

#[test]
fn lists_are_flattened_and_json_is_read() {
    let text = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}, "data": {"k": "v\/w"}}]}"#;
    let decoded = decode("f.json", text);
    assert_eq!(decoded.errors, []);
    let kinds: Vec<Kind> = decoded.resources.iter().map(Resource::kind).collect();
    assert_eq!(kinds, [Kind::Namespace, Kind::ConfigMap]);
}

#[test]
fn what_is_printed_reads_back_the_same() {
    let resource = one("
apiVersion: apps/v1
kind: Deployment
metadata: {name: a, labels: {app: a}}
spec:
  strategy: {type: Recreate}
  template:
    metadata: {labels: {app: a}}
    spec:
      affinity: {podAntiAffinity: {x: [1, 2.5, 'yes', true, null]}}
      containers: [{name: a, image: a:1, resources: {limits: {cpu: 0.5, memory: 1Gi}}}]
status: {replicas: 1}
");
    let again = one(&resource.to_yaml());
    assert_eq!(again.to_json(), resource.to_json());
    assert_eq!(again.raw()["spec"]["strategy"]["type"], "Recreate");
    let Resource::Deployment(object) = again else { panic!("a deployment") };
    let selector = object.spec.selector.expect("defaulted from the template");
    assert_eq!(selector.match_labels["app"], "a");
}

#[test]
fn hostile_texts_end_in_a_quick_error() {
    let aliases = {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..12 {
            let items = vec![format!("*a{}", i - 1); 10].join(", ");
            text += &format!("a{i}: &a{i} [{items}]\n");
        }
        text
    };
    let texts = [
        "[".repeat(1 << 20),
        "{a: ".repeat(1 << 20),
        "- ".repeat(1 << 20),
        aliases,
        "\u{0}\u{1}\u{7f}".repeat(1 << 20),
        "x".repeat(10 << 20),
        "a: b: c\n---\n".repeat(100_000),
        "&a ".repeat(1 << 18),
        (0..10_000).map(|i| format!("{:i$}k:\n", "", i = i.min(500))).collect(),
    ];
    for text in texts {
        let start = std::time::Instant::now();
        let decoded = decode("bad", &text);
        let sample: String = text.chars().take(20).collect();
        assert!(!decoded.errors.is_empty(), "{sample}");
        assert!(decoded.errors.len() <= 100, "{sample}");
        assert!(decoded.errors.iter().all(|e| e.to_string().len() < 2000), "{sample}");
        assert!(start.elapsed().as_secs() < 5, "{sample}: {:?}", start.elapsed());
    }
}

#[test]
fn a_mesh_configuration_starts_from_the_defaults() {
    let mesh = amime_api::mesh::decode_mesh_config(
        "mesh.yaml",
        "accessLogFile: /dev/stdout\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n",
    )
    .expect("decodes");
    assert_eq!(mesh.access_log_file, "/dev/stdout");
    assert_eq!(mesh.root_namespace, "istio-system");
    assert_eq!(mesh.default_config.status_port, 15020);
    let errors = amime_api::mesh::decode_mesh_config("mesh.yaml", "trustDomian: a\nx: 1")
        .expect_err("misspelt");
    assert!(errors[0].to_string().starts_with("mesh.yaml:1:1: MeshConfig: trustDomian: unknown"));
    assert_eq!(errors.len(), 2);
    assert_eq!(amime_api::mesh::decode_mesh_config("", ""), Ok(Default::default()));
}

#[test]
fn limits_of_connections_are_those_that_proxies_accept() {
    let decode = |field: &str| {
        let text = format!("defaultConfig: {{connectionSettings: {{{field}}}}}");
        let decoded = amime_api::mesh::decode_mesh_config("m", &text);
        decoded.map_err(|errors| errors[0].to_string())
    };
    assert!(decode("http2InitialStreamWindowSize: 65535, httpIdleTimeout: 1h").is_ok());
    for (field, fault) in [
        ("http2InitialStreamWindowSize: 65534", "65534 is less than 65535"),
        ("httpMaxConcurrentStreams: 0", "0 is less than 1"),
        ("listenerPerConnectionBufferLimitBytes: -1", "-1"),
        ("httpIdleTime: 1s", "unknown field"),
    ] {
        let error = decode(field).expect_err(field);
        assert!(error.contains(fault), "{field}: {error}");
    }
}

#[test]
fn words_that_yaml_takes_for_booleans_are_explained() {
    check_errors(
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {answer: yes}}",
        expect![
            "f.yaml:1:71: ConfigMap a: data.answer: expected a string, found the boolean true; put it in quotes (y, n, yes, no, on and off are booleans too)"
        ],
    );
}

#[test]
fn limits_are_named_in_words() {
    check_errors(&"[".repeat(100), expect!["f.yaml:1:65: nested deeper than 64 levels"]);
}

mod any_text {
    use super::decode;
    use proptest::prelude::*;

    /// Text that looks like manifests often enough to get past the parser.
    fn manifest_like() -> impl Strategy<Value = String> {
        let words = prop::sample::select(vec![
            "apiVersion",
            "networking.istio.io/v1",
            "kind",
            "VirtualService",
            "Service",
            "v1",
            "metadata",
            "name",
            "a",
            "spec",
            "http",
            "match",
            "route",
            "destination",
            "host",
            "weight",
            "ports",
            "List",
            "items",
            ": ",
            ": ",
            ": ",
            "\n",
            "\n  ",
            "\n- ",
            "\n    - ",
            "---\n",
            "{",
            "}",
            "[",
            "]",
            ", ",
            "&x ",
            "*x",
            "!!str ",
            "'",
            "\"",
            "|\n",
            "1",
            "-1.5",
            "null",
            "~",
            "<<",
            "#",
        ]);
        prop::collection::vec(words, 0..80).prop_map(|words| words.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn never_panics(text in ".{0,300}") {
            decode("f", &text);
        }

        #[test]
        fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            decode("f", &String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn manifest_like_text_never_panics(text in manifest_like()) {
            let decoded = decode("f", &text);
            for resource in decoded.resources {
                let again = decode("f", &resource.to_yaml());
                prop_assert_eq!(again.errors, vec![]);
            }
        }
    }
}
