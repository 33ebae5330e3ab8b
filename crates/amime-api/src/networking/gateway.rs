//! `Gateway`: ports, hosts and TLS of a proxy at the mesh's edge.
//!
//! Spec: <https://istio.io/latest/docs/reference/config/networking/gateway/>

use crate::meta::StringMap;

messages! {
    /// Servers that the selected gateway workloads open.
    pub struct Gateway {
        /// What to open.
        pub servers: Vec<Server>,
        /// Labels of the gateway workloads.
        pub selector: StringMap,
    }

    /// One port with its hosts.
    pub struct Server {
        /// Port.
        pub port: Option<Port>,
        /// Address or Unix socket to listen on; all addresses by default.
        pub bind: String,
        /// Hosts `[namespace/]name` served here.
        pub hosts: Vec<String>,
        /// TLS, or the redirect to it.
        pub tls: Option<ServerTlsSettings>,
        /// Never implemented by Istio.
        pub default_endpoint: String,
        /// Name, unique among all servers of a gateway.
        pub name: String,
    }

    /// Port of a gateway server.
    pub struct Port {
        /// Number, 1 to 65535.
        pub number: u32,
        /// `HTTP`, `HTTPS`, `GRPC`, `GRPC-WEB`, `HTTP2`, `MONGO`, `TCP`, `TLS`.
        pub protocol: String,
        /// Name.
        pub name: String,
        /// Old field, ignored by Istio on gateways.
        pub target_port: u32,
    }

    /// TLS of a server.
    pub struct ServerTlsSettings {
        /// Redirect all requests to HTTPS.
        pub https_redirect: bool,
        /// What kind of TLS.
        pub mode: ServerTlsMode,
        /// File of the server's certificate chain.
        pub server_certificate: String,
        /// File of the server's key.
        pub private_key: String,
        /// File of the roots that sign clients.
        pub ca_certificates: String,
        /// File of a revocation list.
        pub ca_crl: String,
        /// Secret with key, certificate and roots.
        pub credential_name: String,
        /// Up to two such secrets, of different key types.
        pub credential_names: Vec<String>,
        /// Secret with the roots that sign clients.
        pub ca_cert_credential_name: String,
        /// Certificates by file, of different key types.
        pub tls_certificates: Vec<TlsCertificate>,
        /// Names, one of which the client must have.
        pub subject_alt_names: Vec<String>,
        /// Base64 SHA-256 of allowed client keys.
        pub verify_certificate_spki: Vec<String>,
        /// Hex SHA-256 of allowed client certificates.
        pub verify_certificate_hash: Vec<String>,
        /// Oldest TLS version.
        pub min_protocol_version: TlsProtocol,
        /// Newest TLS version.
        pub max_protocol_version: TlsProtocol,
        /// Cipher suites by OpenSSL name.
        pub cipher_suites: Vec<String>,
        /// Curves for key exchange.
        pub ecdh_curves: Vec<String>,
        /// Do not verify clients.
        pub insecure_skip_verify: Option<bool>,
    }

    /// Certificate of a server, by file.
    pub struct TlsCertificate {
        /// File of the chain.
        pub server_certificate: String,
        /// File of the key.
        pub private_key: String,
        /// File of roots.
        pub ca_certificates: String,
    }
}

values! {
    /// Kind of TLS on a server.
    pub enum ServerTlsMode {
        /// Route by SNI, keep the TLS.
        #[default]
        Passthrough,
        /// Server certificate only.
        Simple,
        /// Server and client certificate.
        Mutual,
        /// Route by an SNI that names service and port.
        AutoPassthrough,
        /// Workload certificates on both sides.
        IstioMutual,
        /// Client certificate if it has one.
        OptionalMutual,
    }

    /// TLS versions.
    pub enum TlsProtocol {
        /// The proxy's default, 1.2 to 1.3.
        #[default]
        TlsAuto,
        /// 1.0.
        #[serde(rename = "TLSV1_0")]
        Tlsv10,
        /// 1.1.
        #[serde(rename = "TLSV1_1")]
        Tlsv11,
        /// 1.2.
        #[serde(rename = "TLSV1_2")]
        Tlsv12,
        /// 1.3.
        #[serde(rename = "TLSV1_3")]
        Tlsv13,
    }
}
