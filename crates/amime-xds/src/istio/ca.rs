//! `istio.v1.auth`: how a workload obtains its certificate.
//!
//! The stubs (feature `grpc`) are thin: authentication is the server's, retry
//! and rotation the agent's business.

use envoy_types::pb::google::protobuf::Struct;

use super::named;

#[cfg(feature = "grpc")]
mod grpc;

#[cfg(feature = "grpc")]
pub use grpc::{
    IstioCertificateService, IstioCertificateServiceClient, IstioCertificateServiceServer,
};

/// Request for a certificate over the CSR's public key.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateRequest {
    /// PEM of the PKCS#10 request.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Wanted life in seconds; the server caps it.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// Hints for the signer (`CertSigner`, `ImpersonatedIdentity`).
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

named!(IstioCertificateRequest, "istio.v1.auth", "IstioCertificateRequest");

/// The signed chain.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct IstioCertificateResponse {
    /// PEM, leaf first and root last.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

named!(IstioCertificateResponse, "istio.v1.auth", "IstioCertificateResponse");
