//! Virtual addresses of Services, given as an API server would.
//!
//! The address follows from the Service's name where it is free, so that the
//! same manifests give the same addresses on every machine.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};

use amime_api::{ObjectKey, Resource};
use ipnet::Ipv4Net;
use serde_json::{Map, Value};

/// Why a Service got no address.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// No free address is left.
    #[error("no free address is left in {range} for {service}")]
    Exhausted {
        /// The range.
        range: Ipv4Net,
        /// Who needs one.
        service: ObjectKey,
    },
    /// Another Service has it.
    #[error("{service}: spec.clusterIP {address} is already used by {owner}")]
    Taken {
        /// Who wants it.
        service: ObjectKey,
        /// What it wants.
        address: Ipv4Addr,
        /// Who has it.
        owner: ObjectKey,
    },
    /// Not an address.
    #[error("{service}: spec.clusterIP {text:?} is neither an IP address nor None")]
    Malformed {
        /// Who wants it.
        service: ObjectKey,
        /// What it wants.
        text: String,
    },
}

/// Which Service has which address.
#[derive(Clone, Debug)]
pub(crate) struct ServiceAddresses {
    range: Ipv4Net,
    owners: BTreeMap<Ipv4Addr, ObjectKey>,
}

impl ServiceAddresses {
    pub(crate) fn new(range: Ipv4Net) -> Self {
        Self { range, owners: BTreeMap::new() }
    }

    /// Notes the address of a Service that has one already.
    pub(crate) fn keep(&mut self, resource: &Resource) {
        if let Some(address) = address_of(resource) {
            self.owners.insert(address, resource.key());
        }
    }

    /// Frees the address of a Service that goes away.
    pub(crate) fn release(&mut self, resource: Option<&Resource>) {
        if let Some(address) = resource.and_then(address_of) {
            self.owners.remove(&address);
        }
    }

    /// Gives a Service that needs an address the one of `old`, or a free one.
    pub(crate) fn assign(
        &mut self,
        resource: &mut Resource,
        old: Option<&Resource>,
    ) -> Result<(), AddressError> {
        let key = resource.key();
        let Resource::Service(service) = resource else { return Ok(()) };
        if service.spec.r#type == "ExternalName" {
            self.release(old);
            return Ok(());
        }
        match service.spec.cluster_ip.as_str() {
            "None" => self.release(old),
            "" => {
                let free =
                    |address: &Ipv4Addr| self.owners.get(address).is_none_or(|owner| *owner == key);
                let address = match old.and_then(address_of).filter(free) {
                    Some(address) => address,
                    None => self.free_address(&key)?,
                };
                service.spec.cluster_ip = address.to_string();
                service.spec.cluster_ips = vec![address.to_string()];
                let spec = service.raw.entry("spec").or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(spec) = spec {
                    spec.insert("clusterIP".to_owned(), address.to_string().into());
                    spec.insert("clusterIPs".to_owned(), vec![address.to_string()].into());
                }
                self.owners.insert(address, key);
            }
            text => match text.parse() {
                Ok(IpAddr::V4(address)) => {
                    if let Some(owner) = self.owners.get(&address).filter(|owner| **owner != key) {
                        let owner = owner.clone();
                        return Err(AddressError::Taken { service: key, address, owner });
                    }
                    self.release(old);
                    self.owners.insert(address, key);
                }
                // Ours are all version 4, so one of version 6 cannot collide.
                Ok(IpAddr::V6(_)) => self.release(old),
                Err(_) => {
                    let text = text.to_owned();
                    return Err(AddressError::Malformed { service: key, text });
                }
            },
        }
        Ok(())
    }

    fn free_address(&self, service: &ObjectKey) -> Result<Ipv4Addr, AddressError> {
        // The first two and the last are the network, the API server and the
        // broadcast address by custom.
        let hosts = 1u64 << (32 - u32::from(self.range.prefix_len()));
        let usable = hosts.saturating_sub(3);
        let mut hasher = DefaultHasher::new();
        (&service.namespace, &service.name).hash(&mut hasher);
        let start = hasher.finish();
        (0..usable)
            .map(|step| 2 + (start.wrapping_add(step)) % usable)
            .map(|offset| {
                let offset = u32::try_from(offset).unwrap_or(u32::MAX);
                Ipv4Addr::from_bits(self.range.network().to_bits().wrapping_add(offset))
            })
            .find(|address| !self.owners.contains_key(address))
            .ok_or_else(|| AddressError::Exhausted { range: self.range, service: service.clone() })
    }
}

fn address_of(resource: &Resource) -> Option<Ipv4Addr> {
    match resource {
        Resource::Service(service) => service.spec.cluster_ip.parse().ok(),
        _ => None,
    }
}
