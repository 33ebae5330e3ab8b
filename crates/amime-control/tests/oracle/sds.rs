//! The workload's certificate and the root, as a proxy's agent serves them.

use std::collections::HashMap;
use std::path::Path;
use std::pin::Pin;
use std::time::SystemTime;

use amime_ca::{CallerIdentity, CertificateAuthority, Credential};
use amime_core::SpiffeId;
use amime_identity::new_key_and_csr;
use amime_xds::Resource;
use envoy_types::pb::envoy::config::core::v3::DataSource;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(crate) struct Secrets {
    by_name: HashMap<String, Resource>,
}

impl Secrets {
    pub(crate) fn issue(dir: &Path, identity: &SpiffeId) -> SecretDiscoveryServiceServer<Self> {
        let now = SystemTime::now();
        let ca = CertificateAuthority::self_signed(dir, "cluster.local", now).expect("a new CA");
        let request = new_key_and_csr(identity).expect("a new key");
        let caller = CallerIdentity {
            spiffe_id: identity.clone(),
            credential: Credential::ClientCertificate,
        };
        let chain = ca.sign(&request.csr_pem, &caller, None, now).expect("signed");
        let certificate = TlsCertificate {
            certificate_chain: inline(chain.concat()),
            private_key: inline(request.key.to_pem().to_string()),
            ..Default::default()
        };
        let root = CertificateValidationContext {
            trusted_ca: inline(ca.roots().to_pem()),
            ..Default::default()
        };
        let secrets = [
            ("default", Type::TlsCertificate(certificate)),
            ("ROOTCA", Type::ValidationContext(root)),
        ];
        let by_name = secrets.map(|(name, content)| {
            let secret = Secret { name: name.to_owned(), r#type: Some(content) };
            (name.to_owned(), Resource::encode(name, &secret))
        });
        SecretDiscoveryServiceServer::new(Self { by_name: by_name.into() })
    }
}

fn inline(text: String) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineString(text)), ..Default::default() })
}

#[tonic::async_trait]
impl SecretDiscoveryService for Secrets {
    type StreamSecretsStream = Answers<DiscoveryResponse>;
    type DeltaSecretsStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let by_name = self.by_name.clone();
        // Only first requests are answered: the secrets never change.
        let answers = request.into_inner().filter_map(move |request| {
            let request = match request {
                Ok(request) if request.response_nonce.is_empty() => request,
                Ok(_) => return None,
                Err(status) => return Some(Err(status)),
            };
            let found = request.resource_names.iter().filter_map(|name| by_name.get(name));
            Some(Ok(DiscoveryResponse {
                version_info: "1".to_owned(),
                nonce: "1".to_owned(),
                resources: found.map(Resource::to_any).collect(),
                type_url: request.type_url,
                ..Default::default()
            }))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn delta_secrets(
        &self,
        _request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("the state of the world is enough"))
    }

    async fn fetch_secrets(
        &self,
        _request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("streams only"))
    }
}
