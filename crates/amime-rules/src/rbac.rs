//! Role-based access control: policies as trees of conditions.
//!
//! Serves the HTTP and the network filter; a condition on HTTP attributes is
//! false where there is no request.

use std::net::IpAddr;
use std::sync::Arc;

use amime_telemetry::DynamicMetadata;
use envoy_types::pb::envoy::config::rbac::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use ipnet::IpNet;

use super::faults::Faults;
use super::matcher::{HeaderMatcher, StringMatcher};
use super::metadata_match::MetadataCondition;
use super::values;
use crate::connection::Connection;
use crate::head::RequestHead;

/// One set of rules with its action.
#[derive(Debug)]
pub struct Rules {
    deny_on_match: bool,
    log_only: bool,
    policies: Vec<(Arc<str>, Condition, Condition)>,
}

/// What rules say of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub allowed: bool,
    /// The policy that matched.
    pub policy: Option<Arc<str>>,
}

/// Enforced and shadow rules of a filter.
#[derive(Debug, Default)]
pub struct Rbac {
    pub rules: Option<Rules>,
    pub shadow: Option<Rules>,
}

/// What conditions look at.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub connection: &'a Connection,
    pub request: Option<&'a RequestHead>,
    /// The client's address after `x-forwarded-for`.
    pub remote: IpAddr,
    /// What filters before this one have noted.
    pub metadata: Option<&'a DynamicMetadata>,
    /// What the route's configuration says of it.
    pub route_metadata: Option<&'a DynamicMetadata>,
}

#[derive(Debug)]
enum Condition {
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
    Constant(bool),
    Header(HeaderMatcher),
    Path(StringMatcher),
    DestinationIp(IpNet),
    DestinationPorts(u16, u16),
    ServerName(StringMatcher),
    /// A verified peer, of this name if one is given.
    Authenticated(Option<StringMatcher>),
    DirectRemoteIp(IpNet),
    RemoteIp(IpNet),
    Metadata(MetadataCondition),
    RouteMetadata(MetadataCondition),
}

impl Rules {
    pub fn compile(value: &pb::Rbac, faults: &mut Faults) -> Self {
        let mut policies: Vec<_> = value.policies.iter().collect();
        // Names in order, so that the policy reported is always the same one.
        policies.sort_by_key(|(name, _)| name.as_str());
        let compile = |(name, policy): (&String, &pb::Policy)| {
            faults.enter(format!("policies[{name}]"));
            faults.reject_if(policy.condition.is_some(), "condition");
            faults.reject_if(policy.checked_condition.is_some(), "checked_condition");
            let permissions =
                policy.permissions.iter().map(|rule| permission(rule, faults)).collect();
            let principals = policy.principals.iter().map(|id| principal(id, faults)).collect();
            faults.leave();
            (name.as_str().into(), Condition::Any(permissions), Condition::Any(principals))
        };
        Self {
            deny_on_match: value.action() == pb::rbac::Action::Deny,
            log_only: value.action() == pb::rbac::Action::Log,
            policies: policies.into_iter().map(compile).collect(),
        }
    }

    pub fn check(&self, subject: Subject<'_>) -> Verdict {
        let hit = self.policies.iter().find(|(_, permissions, principals)| {
            permissions.holds(subject) && principals.holds(subject)
        });
        let allowed = self.log_only || hit.is_some() != self.deny_on_match;
        Verdict { allowed, policy: hit.map(|(name, ..)| name.clone()) }
    }
}

fn permission(value: &pb::Permission, faults: &mut Faults) -> Condition {
    use pb::permission::Rule;
    let all = |set: &pb::permission::Set, faults: &mut Faults| -> Vec<Condition> {
        set.rules.iter().map(|rule| permission(rule, faults)).collect()
    };
    match value.rule.as_ref() {
        Some(Rule::AndRules(set)) => Condition::All(all(set, faults)),
        Some(Rule::OrRules(set)) => Condition::Any(all(set, faults)),
        Some(Rule::NotRule(rule)) => Condition::Not(Box::new(permission(rule, faults))),
        Some(Rule::Any(any)) => Condition::Constant(*any),
        Some(Rule::Header(header)) => header_condition(header, faults),
        Some(Rule::UrlPath(path)) => path_condition(path, faults),
        Some(Rule::DestinationIp(range)) => net(range, faults, Condition::DestinationIp),
        Some(Rule::DestinationPort(port)) => {
            let port = u16::try_from(*port).unwrap_or(0);
            Condition::DestinationPorts(port, port)
        }
        Some(Rule::DestinationPortRange(range)) => {
            // The end is not included.
            let start = u16::try_from(range.start).unwrap_or(0);
            let end = u16::try_from(range.end.saturating_sub(1)).unwrap_or(u16::MAX);
            Condition::DestinationPorts(start, end)
        }
        Some(Rule::RequestedServerName(name)) => text(name, faults, Condition::ServerName),
        Some(Rule::Metadata(value)) => metadata(value, faults, Condition::Metadata),
        Some(Rule::SourcedMetadata(sourced)) => sourced_metadata(sourced, faults),
        Some(Rule::Matcher(_) | Rule::UriTemplate(_)) | None => unsupported("permission", faults),
    }
}

fn principal(value: &pb::Principal, faults: &mut Faults) -> Condition {
    use pb::principal::Identifier;
    let all = |set: &pb::principal::Set, faults: &mut Faults| -> Vec<Condition> {
        set.ids.iter().map(|id| principal(id, faults)).collect()
    };
    match value.identifier.as_ref() {
        Some(Identifier::AndIds(set)) => Condition::All(all(set, faults)),
        Some(Identifier::OrIds(set)) => Condition::Any(all(set, faults)),
        Some(Identifier::NotId(id)) => Condition::Not(Box::new(principal(id, faults))),
        Some(Identifier::Any(any)) => Condition::Constant(*any),
        Some(Identifier::Authenticated(peer)) => match &peer.principal_name {
            Some(name) => text(name, faults, |name| Condition::Authenticated(Some(name))),
            None => Condition::Authenticated(None),
        },
        Some(Identifier::SourceIp(range) | Identifier::DirectRemoteIp(range)) => {
            net(range, faults, Condition::DirectRemoteIp)
        }
        Some(Identifier::RemoteIp(range)) => net(range, faults, Condition::RemoteIp),
        Some(Identifier::Header(header)) => header_condition(header, faults),
        Some(Identifier::UrlPath(path)) => path_condition(path, faults),
        Some(Identifier::Metadata(value)) => metadata(value, faults, Condition::Metadata),
        Some(Identifier::SourcedMetadata(sourced)) => sourced_metadata(sourced, faults),
        Some(Identifier::FilterState(state)) => filter_state(state, faults),
        Some(Identifier::Custom(_)) | None => unsupported("principal", faults),
    }
}

/// Istio names the peer's identity by this filter state.
const PEER_PRINCIPAL: &str = "io.istio.peer_principal";

fn filter_state(state: &matcher::FilterStateMatcher, faults: &mut Faults) -> Condition {
    match state.matcher.as_ref() {
        Some(matcher::filter_state_matcher::Matcher::StringMatch(name))
            if state.key == PEER_PRINCIPAL =>
        {
            text(name, faults, |name| Condition::Authenticated(Some(name)))
        }
        _ => unsupported("filter_state", faults),
    }
}

fn metadata(
    value: &matcher::MetadataMatcher,
    faults: &mut Faults,
    wrap: impl FnOnce(MetadataCondition) -> Condition,
) -> Condition {
    let condition = faults.within("metadata", |faults| MetadataCondition::compile(value, faults));
    condition.map_or(Condition::Constant(false), wrap)
}

fn sourced_metadata(value: &pb::SourcedMetadata, faults: &mut Faults) -> Condition {
    let Some(matcher) = &value.metadata_matcher else {
        return unsupported("sourced_metadata", faults);
    };
    match value.metadata_source() {
        pb::MetadataSource::Dynamic => metadata(matcher, faults, Condition::Metadata),
        pb::MetadataSource::Route => metadata(matcher, faults, Condition::RouteMetadata),
    }
}

fn unsupported(field: &str, faults: &mut Faults) -> Condition {
    faults.reject(field, "not supported");
    Condition::Constant(false)
}

fn header_condition(
    header: &envoy_types::pb::envoy::config::route::v3::HeaderMatcher,
    faults: &mut Faults,
) -> Condition {
    HeaderMatcher::compile(header, faults).map_or(Condition::Constant(false), Condition::Header)
}

fn path_condition(path: &matcher::PathMatcher, faults: &mut Faults) -> Condition {
    match path.rule.as_ref() {
        Some(matcher::path_matcher::Rule::Path(path)) => text(path, faults, Condition::Path),
        None => unsupported("url_path", faults),
    }
}

fn text(
    value: &matcher::StringMatcher,
    faults: &mut Faults,
    wrap: impl FnOnce(StringMatcher) -> Condition,
) -> Condition {
    StringMatcher::compile(value, faults).map_or(Condition::Constant(false), wrap)
}

fn net(
    value: &envoy_types::pb::envoy::config::core::v3::CidrRange,
    faults: &mut Faults,
    wrap: impl FnOnce(IpNet) -> Condition,
) -> Condition {
    values::cidr(value, faults).map_or(Condition::Constant(false), wrap)
}

impl Condition {
    fn holds(&self, subject: Subject<'_>) -> bool {
        let connection = subject.connection;
        match self {
            Self::All(list) => list.iter().all(|condition| condition.holds(subject)),
            Self::Any(list) => list.iter().any(|condition| condition.holds(subject)),
            Self::Not(condition) => !condition.holds(subject),
            Self::Constant(value) => *value,
            Self::Header(matcher) => subject.request.is_some_and(|head| matcher.matches(head)),
            Self::Path(matcher) => {
                subject.request.is_some_and(|head| matcher.matches(head.path.path().as_bytes()))
            }
            Self::DestinationIp(net) => values::within(net, connection.local.ip()),
            Self::DestinationPorts(start, end) => {
                (*start..=*end).contains(&connection.local.port())
            }
            Self::ServerName(matcher) => {
                matcher.matches(connection.sni.as_deref().unwrap_or_default().as_bytes())
            }
            Self::Authenticated(name) => {
                let Some(tls) = connection.tls.as_ref().filter(|tls| tls.mutual()) else {
                    return false;
                };
                let Some(name) = name else { return true };
                name.matches(tls.principal().as_bytes())
            }
            Self::DirectRemoteIp(net) => values::within(net, connection.direct_remote.ip()),
            Self::RemoteIp(net) => values::within(net, subject.remote),
            Self::Metadata(condition) => condition.holds(subject.metadata),
            Self::RouteMetadata(condition) => condition.holds(subject.route_metadata),
        }
    }
}
