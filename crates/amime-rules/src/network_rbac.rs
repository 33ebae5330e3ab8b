//! Authorization of connections.
//!
//! Owns which rules a connection has to pass and the names that verdicts are
//! counted by; the rules themselves are those of requests.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/listeners/network_filters/rbac_filter>

use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as pb;

use super::faults::Faults;
use super::rbac::Rules;
use super::values;

/// A compiled network filter `RBAC`.
#[derive(Debug)]
pub struct NetworkRbac {
    pub rules: Option<CountedRules>,
    pub shadow: Option<CountedRules>,
    /// How long a connection that is refused stays open.
    pub delay: Option<Duration>,
}

/// Rules, and what the names of their counters begin with.
#[derive(Debug)]
pub struct CountedRules {
    pub rules: Rules,
    pub prefix: String,
}

impl NetworkRbac {
    pub fn compile(value: &pb::Rbac, faults: &mut Faults) -> Self {
        faults.reject_if(value.matcher.is_some(), "matcher");
        faults.ignore_if(value.shadow_matcher.is_some(), "shadow_matcher");
        if value.enforcement_type() == pb::rbac::EnforcementType::Continuous {
            // What is known of a connection does not change.
            faults.ignore("enforcement_type", "connections are checked once");
        }
        let dot = if value.stat_prefix.ends_with('.') { "" } else { "." };
        let prefix = format!("{}{dot}rbac.", value.stat_prefix);
        let shadow_prefix = format!("{prefix}{}shadow_", value.shadow_rules_stat_prefix);
        let mut counted = |field: &str, rules: Option<&_>, prefix| {
            let rules = faults.within(field, |faults| Some(Rules::compile(rules?, faults)))?;
            Some(CountedRules { rules, prefix })
        };
        Self {
            rules: counted("rules", value.rules.as_ref(), prefix),
            shadow: counted("shadow_rules", value.shadow_rules.as_ref(), shadow_prefix),
            delay: values::timeout(value.delay_deny.as_ref(), None),
        }
    }
}
