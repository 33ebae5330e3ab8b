//! The rules that lead a meshed pod's traffic through its sidecar.
//!
//! The same ports and exceptions as Istio's `istio-iptables`, as nat rules of
//! one table in the pod's network namespace.

use std::net::Ipv4Addr;

use amime_net::nft::{
    Action, BaseChain, Batch, ChainType, Family, Hook, L4, Match, Rule, UNTRACKED,
};

/// Mark of the sidecar's own packets.
pub(crate) const MARK: u32 = 1337;
const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;
const DNS_PORT: u16 = 15053;
/// Ports of the sidecar itself, reachable from other pods: HBONE, metrics,
/// health, agent metrics, admin.
const OWN_PORTS: [u16; 5] = [15000, 15008, 15020, 15021, 15090];
/// Source of connections from the sidecar to its application.
const INBOUND_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// All rules of a meshed pod.
pub(crate) fn rules() -> Batch {
    let mut batch = Batch::replace_table(Family::Inet, "amime");
    let raw = |name, hook| BaseChain { name, kind: ChainType::Filter, hook, priority: UNTRACKED };
    for (name, hook, rule) in
        [("asked", Hook::Output, own_questions()), ("answered", Hook::Prerouting, answers())]
    {
        batch.base_chain(raw(name, hook));
        batch.rule(name, &rule);
    }
    let chain = |name, hook| BaseChain { name, kind: ChainType::Nat, hook, priority: -100 };
    batch.base_chain(chain("output", Hook::Output));
    for rule in outbound() {
        batch.rule("output", &rule);
    }
    batch.base_chain(chain("prerouting", Hook::Prerouting));
    for rule in inbound() {
        batch.rule("prerouting", &rule);
    }
    batch
}

/// What the sidecar asks a name server must leave no trace: for half a minute,
/// a question of the application from the same port would follow it, past the
/// sidecar.
fn own_questions() -> Rule {
    let asks = Match::DestinationPort(L4::Udp, vec![53]);
    Rule::new("the sidecar's own questions", vec![Match::Mark(MARK), asks], Action::Untrack)
}

/// Answers are no beginning of anything either.
fn answers() -> Rule {
    Rule::new("answers of name servers", vec![Match::SourcePort(L4::Udp, 53)], Action::Untrack)
}

fn outbound() -> Vec<Rule> {
    let loopback = || Match::OutputInterface("lo".to_owned());
    vec![
        Rule::new(
            "sidecar to its application",
            vec![loopback(), Match::Source(INBOUND_SOURCE, 32)],
            Action::Return,
        ),
        Rule::new(
            "application to itself through a service",
            vec![
                loopback(),
                Match::Mark(MARK),
                Match::NotDestination(Ipv4Addr::LOCALHOST, 8),
                Match::Protocol(L4::Tcp),
            ],
            Action::Redirect(INBOUND_PORT),
        ),
        Rule::new("the sidecar itself", vec![Match::Mark(MARK)], Action::Return),
        Rule::new(
            "within the pod",
            vec![Match::Destination(Ipv4Addr::LOCALHOST, 8)],
            Action::Return,
        ),
        Rule::new(
            "names",
            vec![Match::DestinationPort(L4::Udp, vec![53])],
            Action::Redirect(DNS_PORT),
        ),
        Rule::new(
            "names over tcp",
            vec![Match::DestinationPort(L4::Tcp, vec![53])],
            Action::Redirect(DNS_PORT),
        ),
        Rule::new("outbound", vec![Match::Protocol(L4::Tcp)], Action::Redirect(OUTBOUND_PORT)),
    ]
}

fn inbound() -> Vec<Rule> {
    vec![
        Rule::new(
            "ports of the sidecar",
            vec![Match::DestinationPort(L4::Tcp, OWN_PORTS.to_vec())],
            Action::Return,
        ),
        Rule::new("inbound", vec![Match::Protocol(L4::Tcp)], Action::Redirect(INBOUND_PORT)),
    ]
}
