//! Authorization of connections, before anything is done for them.
//!
//! Invariant: a connection that is refused reaches no upstream.

use std::sync::Arc;

use crate::listener::Connection;
use crate::worker::Worker;
use amime_config::listener::FilterChain;
use amime_rules::network_rbac::CountedRules;
use amime_rules::rbac::{Subject, Verdict};

/// The policy by which the chain's filters refuse the connection, `none` if
/// none lets it in.
pub(super) async fn denied(
    worker: &Worker,
    facts: &Connection,
    chain: &FilterChain,
) -> Option<Arc<str>> {
    for rbac in &chain.rbac {
        if let Some(shadow) = &rbac.shadow {
            check(worker, facts, shadow);
        }
        let Some(rules) = &rbac.rules else { continue };
        let verdict = check(worker, facts, rules);
        if !verdict.allowed {
            if let Some(delay) = rbac.delay {
                tokio::time::sleep(delay).await;
            }
            return Some(verdict.policy.unwrap_or_else(|| "none".into()));
        }
    }
    None
}

fn check(worker: &Worker, facts: &Connection, counted: &CountedRules) -> Verdict {
    let subject = Subject {
        connection: facts,
        request: None,
        remote: facts.remote.ip(),
        metadata: None,
        route_metadata: None,
    };
    let verdict = counted.rules.check(subject);
    let stats = worker.telemetry.verdicts(&counted.prefix);
    if verdict.allowed {
        stats.allowed.inc();
    } else {
        stats.denied.inc();
    }
    verdict
}
