//! The router: the network namespace of the supervisor, between all pods.
//!
//! Every pod hangs on a veth pair with a host route to it, so that what pods
//! say to each other passes here, where service addresses become addresses
//! of pods. Name resolution is `dns`'s.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use amime_net::link::{LinkError, Links, Route};
use amime_net::namespace::{Sandbox, in_netns};
use amime_net::nft::{
    Action, BaseChain, Batch, ChainType, Family, Hook, L4, Match, NftError, Rule,
};

use crate::address::{NAME_SERVER, ROUTER};
use crate::interception;

const POD_INTERFACE: &str = "eth0";

/// Why the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("could not program the packet filter")]
    Rules(#[from] NftError),
    #[error("could not switch on forwarding between pods")]
    Forwarding(#[source] io::Error),
    #[error("could not enter the network of a pod")]
    Enter(#[source] io::Error),
}

/// Prepares the namespace of the calling thread as the router.
pub(crate) fn set_up_router() -> Result<(), NetworkError> {
    let mut links = Links::open()?;
    links.set_up("lo")?;
    links.add_address("lo", NAME_SERVER, 32)?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").map_err(NetworkError::Forwarding)
}

/// Connects a pod to the router. Blocking; for a thread in the router's
/// namespace.
pub(crate) fn attach(pod: &Sandbox, address: Ipv4Addr) -> Result<(), NetworkError> {
    let host_end = host_end(address);
    let mut links = Links::open()?;
    links.add_veth(&host_end, POD_INTERFACE, pod.net())?;
    links.add_address(&host_end, ROUTER, 32)?;
    links.set_up(&host_end)?;
    in_netns(pod.net(), || {
        let mut links = Links::open()?;
        links.add_address(POD_INTERFACE, address, 32)?;
        links.set_up(POD_INTERFACE)?;
        links.add_route(&Route {
            destination: (Ipv4Addr::UNSPECIFIED, 0),
            interface: POD_INTERFACE,
            via: Some(ROUTER),
            source: None,
        })
    })
    .map_err(NetworkError::Enter)??;
    links.add_route(&Route {
        destination: (address, 32),
        interface: &host_end,
        via: None,
        source: Some(ROUTER),
    })?;
    Ok(())
}

/// Removes a pod's link. Its end in the pod goes with it.
pub(crate) fn detach(address: Ipv4Addr) -> Result<(), NetworkError> {
    Ok(Links::open()?.delete(&host_end(address))?)
}

/// Leads a pod's traffic through its sidecar.
pub(crate) fn intercept(pod: &Sandbox) -> Result<(), NetworkError> {
    in_netns(pod.net(), || interception::rules().commit()).map_err(NetworkError::Enter)??;
    Ok(())
}

/// Name of the router's end of a pod's link.
fn host_end(address: Ipv4Addr) -> String {
    let [_, _, c, d] = address.octets();
    format!("pod-{c}-{d}")
}

/// One port of a service address and the pods behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forward {
    /// Service, for the rule's comment.
    pub(crate) name: String,
    pub(crate) protocol: L4,
    pub(crate) service: SocketAddrV4,
    /// Ready pods; none: no rule, so that the caller learns at once that
    /// there is no way.
    pub(crate) targets: Vec<SocketAddrV4>,
}

/// Replaces the translation of service addresses in the namespace of the
/// calling thread. Connections that exist keep their pod.
pub(crate) fn translate_services(
    forwards: &[Forward],
    pods: &[Ipv4Addr],
) -> Result<(), NetworkError> {
    let mut batch = Batch::replace_table(Family::Ip, "amime-services");
    let chain = |name, hook, priority| BaseChain { name, kind: ChainType::Nat, hook, priority };
    batch.base_chain(chain("prerouting", Hook::Prerouting, -100));
    batch.base_chain(chain("output", Hook::Output, -100));
    for forward in forwards.iter().filter(|forward| !forward.targets.is_empty()) {
        let rule = Rule::new(
            forward.name.clone(),
            vec![
                Match::Destination(*forward.service.ip(), 32),
                Match::DestinationPort(forward.protocol, vec![forward.service.port()]),
            ],
            Action::Dnat(forward.targets.clone()),
        );
        batch.rule("prerouting", &rule);
        batch.rule("output", &rule);
    }
    batch.base_chain(chain("postrouting", Hook::Postrouting, 100));
    if !pods.is_empty() {
        // A pod that a service sends back to itself must see the answer come
        // from elsewhere, or it answers itself without translation.
        let own = pods.iter().map(|pod| (*pod, *pod)).collect();
        batch.rule(
            "postrouting",
            &Rule::new(
                "a pod calls itself through a service",
                vec![Match::SourceAndDestination(own)],
                Action::Masquerade,
            ),
        );
    }
    Ok(batch.commit()?)
}
