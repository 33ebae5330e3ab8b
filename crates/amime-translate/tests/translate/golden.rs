//! Summaries of what typical objects are translated to.

use crate::support::{
    cluster, dump, dump_in_mesh, gateway, json_of, listeners_summary, routes, routes_summary,
    sidecar,
};
use expect_test::{Expect, expect};

const SERVICES: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIP: 10.1.0.1
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-admin, port: 90}, {name: other, port: 91}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: default, labels: {app: web, version: v1, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: web, containers: [{name: web}]}
status: {podIP: 10.0.0.1, phase: Running, conditions: [{type: Ready, status: 'True'}]}
---
";

fn with_services(more: &str) -> String {
    format!("{SERVICES}{more}")
}

#[track_caller]
fn check(got: &str, want: Expect) {
    want.assert_eq(got);
}

#[test]
fn listeners_of_a_sidecar() {
    let dump = dump(SERVICES, &sidecar("10.0.0.1", "web"));
    check(
        &listeners_summary(&dump),
        expect![[r#"
        0.0.0.0_80 [http_inspector]
          {"application_protocols":["http/1.1","h2c"],"transport_protocol":"raw_buffer"} http 80
          default {} tcp PassthroughCluster
        10.1.0.1_90 []
          {} tcp outbound|90||web.default.svc.cluster.local
        10.1.0.1_91 [http_inspector]
          {"application_protocols":["http/1.1","h2c"],"transport_protocol":"raw_buffer"} http web.default.svc.cluster.local:91
          default {} tcp outbound|91||web.default.svc.cluster.local
        virtualInbound [original_dst tls_inspector http_inspector]
          {"destination_port":15006} tcp BlackHoleCluster
          {"application_protocols":["istio-http/1.0","istio-http/1.1","istio-h2"],"transport_protocol":"tls"} tls http InboundPassthroughCluster
          {"application_protocols":["http/1.1","h2c"],"transport_protocol":"raw_buffer"} http InboundPassthroughCluster
          {"application_protocols":["istio-peer-exchange","istio"],"transport_protocol":"tls"} tls tcp InboundPassthroughCluster
          {"transport_protocol":"raw_buffer"} tcp InboundPassthroughCluster
          {"transport_protocol":"tls"} tcp InboundPassthroughCluster
          {"application_protocols":["istio","istio-peer-exchange","istio-http/1.0","istio-http/1.1","istio-h2"],"destination_port":90,"transport_protocol":"tls"} tls tcp inbound|90||
          {"destination_port":90,"transport_protocol":"tls"} tcp inbound|90||
          {"destination_port":90,"transport_protocol":"raw_buffer"} tcp inbound|90||
          {"application_protocols":["istio-http/1.0","istio-http/1.1","istio-h2"],"destination_port":91,"transport_protocol":"tls"} tls http inbound|91||
          {"application_protocols":["http/1.1","h2c"],"destination_port":91,"transport_protocol":"raw_buffer"} http inbound|91||
          {"application_protocols":["istio-peer-exchange","istio"],"destination_port":91,"transport_protocol":"tls"} tls tcp inbound|91||
          {"destination_port":91,"transport_protocol":"raw_buffer"} tcp inbound|91||
          {"destination_port":91,"transport_protocol":"tls"} tcp inbound|91||
          {"application_protocols":["istio","istio-peer-exchange","istio-http/1.0","istio-http/1.1","istio-h2"],"destination_port":8080,"transport_protocol":"tls"} tls http inbound|8080||
          {"destination_port":8080,"transport_protocol":"raw_buffer"} http inbound|8080||
        virtualOutbound []
          {"destination_port":15001} tcp BlackHoleCluster
          {} tcp PassthroughCluster
    "#]],
    );
}

#[test]
fn inbound_modes() {
    let policy = |mode: &str| {
        with_services(&format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: default, namespace: default}}\n\
             spec: {{mtls: {{mode: {mode}}}, portLevelMtls: {{}}}}\n"
        ))
    };
    let inbound = |mode: &str| {
        let mut dump = dump(&policy(mode), &sidecar("10.0.0.1", "web"));
        dump.listeners.retain(|listener| listener.name == "virtualInbound");
        listeners_summary(&dump)
    };
    check(
        &inbound("STRICT"),
        expect![[r#"
        virtualInbound [original_dst tls_inspector]
          {"destination_port":15006} tcp BlackHoleCluster
          {"application_protocols":["istio-http/1.0","istio-http/1.1","istio-h2"],"transport_protocol":"tls"} tls http InboundPassthroughCluster
          {"transport_protocol":"tls"} tls tcp InboundPassthroughCluster
          {"destination_port":90,"transport_protocol":"tls"} tls tcp inbound|90||
          {"application_protocols":["istio-http/1.0","istio-http/1.1","istio-h2"],"destination_port":91,"transport_protocol":"tls"} tls http inbound|91||
          {"destination_port":91,"transport_protocol":"tls"} tls tcp inbound|91||
          {"destination_port":8080,"transport_protocol":"tls"} tls http inbound|8080||
    "#]],
    );
    check(
        &inbound("DISABLE"),
        expect![[r#"
        virtualInbound [original_dst http_inspector]
          {"destination_port":15006} tcp BlackHoleCluster
          {"application_protocols":["http/1.1","h2c"],"transport_protocol":"raw_buffer"} http InboundPassthroughCluster
          {"transport_protocol":"raw_buffer"} tcp InboundPassthroughCluster
          {"destination_port":90,"transport_protocol":"raw_buffer"} tcp inbound|90||
          {"application_protocols":["http/1.1","h2c"],"destination_port":91,"transport_protocol":"raw_buffer"} http inbound|91||
          {"destination_port":91,"transport_protocol":"raw_buffer"} tcp inbound|91||
          {"destination_port":8080,"transport_protocol":"raw_buffer"} http inbound|8080||
    "#]],
    );
}

#[test]
fn a_virtual_service_with_everything() {
    let yaml = with_services(
        r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: default}
spec:
  hosts: [web]
  http:
  - match: [{uri: {prefix: /old}, headers: {end-user: {exact: jason}}}]
    rewrite: {uri: /new}
    timeout: 2s
    retries: {attempts: 3, perTryTimeout: 1s, retryOn: '5xx,503'}
    fault: {delay: {percentage: {value: 10}, fixedDelay: 5s}}
    headers: {request: {set: {x-env: test}}}
    mirror: {host: web, subset: v2}
    route: [{destination: {host: web, subset: v1}, weight: 90}, {destination: {host: web, subset: v2}, weight: 10}]
  - match: [{uri: {exact: /gone}}]
    redirect: {uri: /here, redirectCode: 302}
  - match: [{uri: {regex: '/fixed.*'}}]
    directResponse: {status: 418, body: {string: tea}}
  - route: [{destination: {host: web}}]
",
    );
    let dump = dump(&yaml, &sidecar("10.0.0.1", "web"));
    let routes = routes(&dump, "80");
    check(
        &routes_summary(&routes),
        expect![[r#"
        web.default.svc.cluster.local:80 [web.default.svc.cluster.local web.default.svc.cluster.local. web web.default.svc web.default 10.1.0.1]
          {"headers":[{"name":"end-user","string_match":{"exact":"jason"}}],"prefix":"/old"} -> outbound|80|v1|web.default.svc.cluster.local=90 outbound|80|v2|web.default.svc.cluster.local=10
          {"path":"/gone"} -> redirect {"path_redirect":"/here","response_code":"FOUND"}
          {"safe_regex":{"regex":"/fixed.*"}} -> direct_response {"body":{"inline_string":"tea"},"status":418}
          {"prefix":"/"} -> outbound|80||web.default.svc.cluster.local
        allow_any [*]
          {"prefix":"/"} -> PassthroughCluster
    "#]],
    );
    let first = &routes["virtual_hosts"][0]["routes"][0];
    check(
        &format!("{first:#}"),
        expect![[r#"
        {
          "decorator": {
            "operation": "web:80/old*"
          },
          "match": {
            "case_sensitive": true,
            "headers": [
              {
                "name": "end-user",
                "string_match": {
                  "exact": "jason"
                }
              }
            ],
            "prefix": "/old"
          },
          "metadata": {
            "filter_metadata": {
              "istio": {
                "config": "/apis/networking.istio.io/v1/namespaces/default/virtual-service/web",
                "rule": "http[0]"
              }
            }
          },
          "request_headers_to_add": [
            {
              "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
              "header": {
                "key": "x-env",
                "value": "test"
              }
            }
          ],
          "route": {
            "max_grpc_timeout": "2s",
            "prefix_rewrite": "/new",
            "request_mirror_policies": [
              {
                "cluster": "outbound|80|v2|web.default.svc.cluster.local",
                "disable_shadow_host_suffix_append": true,
                "runtime_fraction": {
                  "default_value": {
                    "numerator": 100
                  }
                },
                "trace_sampled": false
              }
            ],
            "retry_policy": {
              "host_selection_retry_max_attempts": "5",
              "num_retries": 3,
              "per_try_timeout": "1s",
              "retriable_status_codes": [
                503
              ],
              "retry_host_predicate": [
                {
                  "name": "envoy.retry_host_predicates.previous_hosts",
                  "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                  }
                }
              ],
              "retry_on": "5xx,retriable-status-codes"
            },
            "timeout": "2s",
            "weighted_clusters": {
              "clusters": [
                {
                  "name": "outbound|80|v1|web.default.svc.cluster.local",
                  "weight": 90
                },
                {
                  "name": "outbound|80|v2|web.default.svc.cluster.local",
                  "weight": 10
                }
              ]
            }
          },
          "typed_per_filter_config": {
            "envoy.filters.http.fault": {
              "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
              "delay": {
                "fixed_delay": "5s",
                "percentage": {
                  "denominator": "MILLION",
                  "numerator": 100000
                }
              }
            }
          }
        }"#]],
    );
}

#[test]
fn a_destination_rule_shapes_clusters() {
    let yaml = with_services(
        r"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: default}
spec:
  host: web
  trafficPolicy:
    loadBalancer: {simple: LEAST_REQUEST}
    connectionPool: {tcp: {maxConnections: 7, connectTimeout: 3s}, http: {http1MaxPendingRequests: 2}}
    outlierDetection: {consecutive5xxErrors: 4, interval: 5s}
  subsets:
  - name: v1
    labels: {version: v1}
    trafficPolicy: {tls: {mode: DISABLE}}
",
    );
    let dump = dump(&yaml, &sidecar("10.0.0.1", "web"));
    let whole = cluster(&dump, "outbound|80||web.default.svc.cluster.local");
    check(
        &format!("{whole:#}"),
        expect![[r#"
        {
          "alt_stat_name": "outbound|80||web.default.svc.cluster.local;",
          "circuit_breakers": {
            "thresholds": [
              {
                "max_connections": 7,
                "max_pending_requests": 2,
                "max_requests": 4294967295,
                "max_retries": 4294967295
              }
            ]
          },
          "common_lb_config": {
            "healthy_panic_threshold": {}
          },
          "connect_timeout": "3s",
          "eds_cluster_config": {
            "eds_config": {
              "ads": {},
              "initial_fetch_timeout": "0s",
              "resource_api_version": "V3"
            },
            "service_name": "outbound|80||web.default.svc.cluster.local"
          },
          "lb_policy": "LEAST_REQUEST",
          "metadata": {
            "filter_metadata": {
              "istio": {
                "config": "/apis/networking.istio.io/v1/namespaces/default/destination-rule/web",
                "services": [
                  {
                    "host": "web.default.svc.cluster.local",
                    "name": "web",
                    "namespace": "default"
                  }
                ]
              }
            }
          },
          "name": "outbound|80||web.default.svc.cluster.local",
          "outlier_detection": {
            "consecutive_5xx": 4,
            "enforcing_consecutive_5xx": 100,
            "enforcing_success_rate": 0,
            "interval": "5s"
          },
          "transport_socket_matches": [
            {
              "match": {
                "tlsMode": "istio"
              },
              "name": "tlsMode-istio",
              "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                  "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                  "common_tls_context": {
                    "alpn_protocols": [
                      "istio-peer-exchange",
                      "istio"
                    ],
                    "combined_validation_context": {
                      "default_validation_context": {
                        "match_subject_alt_names": [
                          {
                            "exact": "spiffe://cluster.local/ns/default/sa/web"
                          }
                        ]
                      },
                      "validation_context_sds_secret_config": {
                        "name": "ROOTCA",
                        "sds_config": {
                          "api_config_source": {
                            "api_type": "GRPC",
                            "grpc_services": [
                              {
                                "envoy_grpc": {
                                  "cluster_name": "sds-grpc"
                                }
                              }
                            ],
                            "set_node_on_first_message_only": true,
                            "transport_api_version": "V3"
                          },
                          "initial_fetch_timeout": "0s",
                          "resource_api_version": "V3"
                        }
                      }
                    },
                    "tls_certificate_sds_secret_configs": [
                      {
                        "name": "default",
                        "sds_config": {
                          "api_config_source": {
                            "api_type": "GRPC",
                            "grpc_services": [
                              {
                                "envoy_grpc": {
                                  "cluster_name": "sds-grpc"
                                }
                              }
                            ],
                            "set_node_on_first_message_only": true,
                            "transport_api_version": "V3"
                          },
                          "initial_fetch_timeout": "0s",
                          "resource_api_version": "V3"
                        }
                      }
                    ],
                    "tls_params": {
                      "tls_maximum_protocol_version": "TLSv1_3",
                      "tls_minimum_protocol_version": "TLSv1_2"
                    }
                  },
                  "sni": "outbound_.80_._.web.default.svc.cluster.local"
                }
              }
            },
            {
              "match": {},
              "name": "tlsMode-disabled",
              "transport_socket": {
                "name": "envoy.transport_sockets.raw_buffer",
                "typed_config": {
                  "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
                }
              }
            }
          ],
          "type": "EDS"
        }"#]],
    );
    let subset = cluster(&dump, "outbound|80|v1|web.default.svc.cluster.local");
    assert!(subset.get("transport_socket_matches").is_none(), "{subset:#}");
    let endpoints = dump.endpoints.iter().map(json_of);
    let own = endpoints.into_iter().find(|e| e["cluster_name"] == whole["name"]);
    check(
        &format!("{:#}", own.expect("endpoints")),
        expect![[r#"
        {
          "cluster_name": "outbound|80||web.default.svc.cluster.local",
          "endpoints": [
            {
              "lb_endpoints": [
                {
                  "endpoint": {
                    "address": {
                      "socket_address": {
                        "address": "10.0.0.1",
                        "port_value": 8080
                      }
                    }
                  },
                  "health_status": "HEALTHY",
                  "load_balancing_weight": 1,
                  "metadata": {
                    "filter_metadata": {
                      "envoy.transport_socket_match": {
                        "tlsMode": "istio"
                      },
                      "istio": {
                        "workload": "web-1;default;web;v1;Kubernetes"
                      }
                    }
                  }
                }
              ],
              "load_balancing_weight": 1,
              "locality": {},
              "metadata": {
                "filter_metadata": {
                  "istio": {
                    "config": "/api/v1/namespaces/default/service/web"
                  }
                }
              }
            }
          ]
        }"#]],
    );
}

const GATEWAY: &str = r"
apiVersion: v1
kind: Service
metadata: {name: ingress, namespace: istio-system}
spec:
  clusterIP: 10.1.0.9
  selector: {istio: ingressgateway}
  ports: [{name: http2, port: 80, targetPort: 8080}, {name: https, port: 443, targetPort: 8443}]
---
apiVersion: v1
kind: Secret
metadata: {name: cert, namespace: istio-system}
stringData: {tls.crt: CHAIN, tls.key: KEY, ca.crt: ROOTS}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gw, namespace: default}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: [web.example.com]
    tls: {httpsRedirect: true}
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: [web.example.com]
    tls: {mode: MUTUAL, credentialName: cert}
  - port: {number: 443, name: tls, protocol: TLS}
    hosts: [db.example.com]
    tls: {mode: PASSTHROUGH}
  - port: {number: 9000, name: tcp, protocol: TCP}
    hosts: ['*']
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: default}
spec:
  hosts: [web.example.com]
  gateways: [gw]
  http: [{route: [{destination: {host: web}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db, namespace: default}
spec:
  hosts: [db.example.com]
  gateways: [gw]
  tls: [{match: [{sniHosts: [db.example.com]}], route: [{destination: {host: web, port: {number: 90}}}]}]
  tcp: [{match: [{port: 9000}], route: [{destination: {host: web, port: {number: 91}}}]}]
";

#[test]
fn a_gateway() {
    let dump = dump(&with_services(GATEWAY), &gateway());
    check(
        &listeners_summary(&dump),
        expect![[r#"
        0.0.0.0_8080 []
          {} http http.8080
        0.0.0.0_8443 [tls_inspector]
          {"server_names":["web.example.com"]} tls http https.443.https.gw.default
          {"server_names":["db.example.com"]} tcp outbound|90||web.default.svc.cluster.local
        0.0.0.0_9000 []
          {} tcp outbound|91||web.default.svc.cluster.local
    "#]],
    );
    let plain = routes(&dump, "http.8080");
    assert_eq!(plain["virtual_hosts"][0]["require_tls"], "ALL");
    check(
        &routes_summary(&routes(&dump, "https.443.https.gw.default")),
        expect![[r#"
        web.example.com:443 [web.example.com]
          {"prefix":"/"} -> outbound|443||web.default.svc.cluster.local
    "#]],
    );
    let secrets: Vec<&str> = dump.secrets.iter().map(|secret| secret.name.as_str()).collect();
    assert_eq!(secrets, ["kubernetes://cert", "kubernetes://cert-cacert"]);
}

#[test]
fn external_services() {
    let yaml = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api, namespace: default}
spec:
  hosts: [api.example.com]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 443, name: tls, protocol: TLS}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: any, namespace: default}
spec:
  hosts: ['*.example.org']
  location: MESH_EXTERNAL
  resolution: NONE
  ports: [{number: 80, name: http, protocol: HTTP}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: fixed, namespace: default}
spec:
  hosts: [fixed.example.com]
  addresses: [240.0.0.1]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 5432, name: tcp, protocol: TCP}]
  endpoints: [{address: 192.168.0.1}, {address: 192.168.0.2, ports: {tcp: 6432}}]
";
    let mesh = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}";
    let dump = dump_in_mesh(yaml, mesh, &sidecar("10.0.0.7", "client"));
    check(
        &listeners_summary(&dump),
        expect![[r#"
        0.0.0.0_443 [tls_inspector]
          {"server_names":["api.example.com"]} tcp outbound|443||api.example.com
          default {} tcp BlackHoleCluster
        0.0.0.0_80 [http_inspector]
          {"application_protocols":["http/1.1","h2c"],"transport_protocol":"raw_buffer"} http 80
          default {} tcp BlackHoleCluster
        240.0.0.1_5432 []
          {} tcp outbound|5432||fixed.example.com
        virtualInbound [original_dst tls_inspector http_inspector]
          {"destination_port":15006} tcp BlackHoleCluster
          {"application_protocols":["istio-http/1.0","istio-http/1.1","istio-h2"],"transport_protocol":"tls"} tls http InboundPassthroughCluster
          {"application_protocols":["http/1.1","h2c"],"transport_protocol":"raw_buffer"} http InboundPassthroughCluster
          {"application_protocols":["istio-peer-exchange","istio"],"transport_protocol":"tls"} tls tcp InboundPassthroughCluster
          {"transport_protocol":"raw_buffer"} tcp InboundPassthroughCluster
          {"transport_protocol":"tls"} tcp InboundPassthroughCluster
        virtualOutbound []
          {"destination_port":15001} tcp BlackHoleCluster
          {} tcp BlackHoleCluster
    "#]],
    );
    check(
        &routes_summary(&routes(&dump, "80")),
        expect![[r#"
        *.example.org:80 [*.example.org *.example.org.]
          {"prefix":"/"} -> outbound|80||*.example.org
        block_all [*]
          {"prefix":"/"} -> direct_response {"status":502}
    "#]],
    );
    let kinds: Vec<String> = dump
        .clusters
        .iter()
        .map(json_of)
        .map(|c| format!("{} {}", c["name"].as_str().unwrap_or(""), c["type"]))
        .collect();
    check(
        &kinds.join("\n"),
        expect![[r#"
        BlackHoleCluster "STATIC"
        InboundPassthroughCluster "ORIGINAL_DST"
        PassthroughCluster "ORIGINAL_DST"
        outbound|443||api.example.com "STRICT_DNS"
        outbound|5432||fixed.example.com "EDS"
        outbound|80||*.example.org "ORIGINAL_DST""#]],
    );
}
