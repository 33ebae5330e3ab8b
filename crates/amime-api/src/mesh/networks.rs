//! `MeshNetworks`: which endpoints are in which network, and the gateways between them.

use std::collections::BTreeMap;

messages! {
    /// All networks by name.
    pub struct MeshNetworks {
        /// The networks.
        pub networks: BTreeMap<String, Network>,
    }

    /// One network.
    pub struct Network {
        /// What is in it.
        pub endpoints: Vec<NetworkEndpoints>,
        /// How to get in.
        pub gateways: Vec<IstioNetworkGateway>,
    }

    /// Endpoints of a network, one of the two.
    pub struct NetworkEndpoints {
        /// CIDR range.
        pub from_cidr: Option<String>,
        /// Cluster.
        pub from_registry: Option<String>,
    }

    /// Gateway into a network, by service or by address.
    pub struct IstioNetworkGateway {
        /// Service of the gateway.
        pub registry_service_name: Option<String>,
        /// Address of the gateway.
        pub address: Option<String>,
        /// Port.
        pub port: u32,
        /// Locality.
        pub locality: String,
    }
}
