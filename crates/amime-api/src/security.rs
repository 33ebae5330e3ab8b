//! Kinds of group `security.istio.io`: mutual TLS, request tokens, authorization.
//!
//! Spec: <https://istio.io/latest/docs/reference/config/security/>

use std::collections::BTreeMap;

use amime_core::Duration;

use crate::meta::{PolicyTargetReference, WorkloadSelector};

messages! {
    /// Which TLS the selected workloads accept.
    pub struct PeerAuthentication {
        /// Workloads; none means all in the namespace, or in the mesh for the root namespace.
        pub selector: Option<WorkloadSelector>,
        /// Mode of all ports; none inherits.
        pub mtls: Option<MutualTls>,
        /// Mode by port of the workload; needs a selector.
        pub port_level_mtls: BTreeMap<u32, MutualTls>,
    }

    /// Mutual TLS setting.
    pub struct MutualTls {
        /// Mode.
        pub mode: MutualTlsMode,
    }

    /// Which tokens requests may carry.
    pub struct RequestAuthentication {
        /// Workloads; none means all in scope.
        pub selector: Option<WorkloadSelector>,
        /// Old single form of `target_refs`.
        pub target_ref: Option<PolicyTargetReference>,
        /// Gateways or services instead of a selector.
        pub target_refs: Vec<PolicyTargetReference>,
        /// Accepted issuers.
        pub jwt_rules: Vec<JwtRule>,
    }

    /// One issuer of tokens.
    pub struct JwtRule {
        /// Issuer claim.
        pub issuer: String,
        /// Audiences, any of which suffices.
        pub audiences: Vec<String>,
        /// Where the keys are.
        pub jwks_uri: String,
        /// The keys themselves.
        pub jwks: String,
        /// Headers with tokens; `Authorization: Bearer` by default.
        pub from_headers: Vec<JwtHeader>,
        /// Query parameters with tokens; `access_token` by default.
        pub from_params: Vec<String>,
        /// Cookies with tokens.
        pub from_cookies: Vec<String>,
        /// Header that receives the payload.
        pub output_payload_to_header: String,
        /// Keep the token in the forwarded request.
        pub forward_original_token: bool,
        /// Headers that receive claims.
        pub output_claim_to_headers: Vec<ClaimToHeader>,
        /// Limit of fetching keys; 5 s by default.
        pub timeout: Option<Duration>,
        /// Claims that hold space-separated lists.
        pub space_delimited_claims: Vec<String>,
        /// Whether a token must be there.
        pub presence: String,
    }

    /// Header that carries a token.
    pub struct JwtHeader {
        /// Name.
        pub name: String,
        /// Text before the token, such as `Bearer `.
        pub prefix: String,
    }

    /// Copy of a claim.
    pub struct ClaimToHeader {
        /// Header to set.
        pub header: String,
        /// Claim, nested by dots.
        pub claim: String,
    }

    /// Who may do what.
    pub struct AuthorizationPolicy {
        /// Workloads; none means all in scope.
        pub selector: Option<WorkloadSelector>,
        /// Old single form of `target_refs`.
        pub target_ref: Option<PolicyTargetReference>,
        /// Gateways or services instead of a selector.
        pub target_refs: Vec<PolicyTargetReference>,
        /// Rules, any of which suffices; no rule never matches.
        pub rules: Vec<Rule>,
        /// What a match means.
        pub action: AuthorizationAction,
        /// External authorizer of action `CUSTOM`.
        pub provider: Option<AuthorizationProvider>,
    }

    /// External authorizer.
    pub struct AuthorizationProvider {
        /// Name in the mesh configuration.
        pub name: String,
    }

    /// Conditions on source, operation and attributes, all of which must hold.
    pub struct Rule {
        /// Sources, any of which suffices.
        pub from: Vec<RuleFrom>,
        /// Operations, any of which suffices.
        pub to: Vec<RuleTo>,
        /// Attributes, all of which must hold.
        pub when: Vec<Condition>,
    }

    /// One source of a rule.
    pub struct RuleFrom {
        /// The source.
        pub source: Option<Source>,
    }

    /// One operation of a rule.
    pub struct RuleTo {
        /// The operation.
        pub operation: Option<Operation>,
    }

    /// Properties of the caller, all of which must hold.
    pub struct Source {
        /// Peer identities.
        pub principals: Vec<String>,
        /// Peer identities that must not match.
        pub not_principals: Vec<String>,
        /// Token identities `issuer/subject`.
        pub request_principals: Vec<String>,
        /// Token identities that must not match.
        pub not_request_principals: Vec<String>,
        /// Peer namespaces.
        pub namespaces: Vec<String>,
        /// Peer namespaces that must not match.
        pub not_namespaces: Vec<String>,
        /// Peer service accounts `[namespace/]name`.
        pub service_accounts: Vec<String>,
        /// Peer service accounts that must not match.
        pub not_service_accounts: Vec<String>,
        /// Peer addresses.
        pub ip_blocks: Vec<String>,
        /// Peer addresses that must not match.
        pub not_ip_blocks: Vec<String>,
        /// Original client addresses.
        pub remote_ip_blocks: Vec<String>,
        /// Original client addresses that must not match.
        pub not_remote_ip_blocks: Vec<String>,
        /// Peer trust domains.
        pub trust_domains: Vec<String>,
        /// Peer trust domains that must not match.
        pub not_trust_domains: Vec<String>,
    }

    /// Properties of the request, all of which must hold.
    pub struct Operation {
        /// Hosts.
        pub hosts: Vec<String>,
        /// Hosts that must not match.
        pub not_hosts: Vec<String>,
        /// Ports.
        pub ports: Vec<String>,
        /// Ports that must not match.
        pub not_ports: Vec<String>,
        /// Methods.
        pub methods: Vec<String>,
        /// Methods that must not match.
        pub not_methods: Vec<String>,
        /// Paths.
        pub paths: Vec<String>,
        /// Paths that must not match.
        pub not_paths: Vec<String>,
    }

    /// Condition on an attribute.
    pub struct Condition {
        /// Attribute, such as `request.headers[x]`.
        pub key: String,
        /// Values, any of which suffices.
        pub values: Vec<String>,
        /// Values that must not match.
        pub not_values: Vec<String>,
    }
}

values! {
    /// Mutual TLS mode.
    pub enum MutualTlsMode {
        /// Inherited; permissive if nothing is set anywhere.
        #[default]
        Unset,
        /// Plaintext only.
        Disable,
        /// Both.
        Permissive,
        /// Mutual TLS only.
        Strict,
    }

    /// What a matching authorization rule means.
    pub enum AuthorizationAction {
        /// Allow.
        #[default]
        Allow,
        /// Deny.
        Deny,
        /// Only mark.
        Audit,
        /// Ask the provider.
        Custom,
    }
}
