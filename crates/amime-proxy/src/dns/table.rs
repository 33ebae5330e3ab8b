//! Names the mesh knows, with the short forms a pod may use.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use amime_xds::istio::nds::{NameInfo, NameTable};

/// Addresses of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) v4: Vec<Ipv4Addr>,
    pub(crate) v6: Vec<Ipv6Addr>,
}

/// Where the querying workload lives.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Domain of services, as `svc.cluster.local`.
    pub(crate) domain: String,
    /// Search domains; only the first one is expanded, as in Istio.
    pub(crate) search: Vec<String>,
}

/// A name table compiled for lookups.
#[derive(Debug, Default)]
pub(crate) struct LookupTable {
    /// Lower-case name without trailing dot → index into `addresses`.
    /// Wildcards keep their `*.`.
    names: HashMap<Box<str>, u32>,
    addresses: Vec<Addresses>,
    search: Option<String>,
}

/// What the table says about a name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found<'a> {
    pub(crate) addresses: &'a Addresses,
    /// The canonical name, when the queried one is its search expansion.
    pub(crate) canonical: Option<&'a str>,
}

impl LookupTable {
    pub(crate) fn build(table: &NameTable, scope: &Scope) -> Self {
        let mut built = Self {
            search: scope.search.first().map(|domain| normalise(domain)),
            ..Self::default()
        };
        for (host, info) in &table.table {
            let index = u32::try_from(built.addresses.len()).unwrap_or(u32::MAX);
            built.addresses.push(parse_addresses(info));
            for name in names_of(&normalise(host), info, scope) {
                // A full name beats another host's short form.
                let full = name == normalise(host);
                if full || !built.names.contains_key(name.as_str()) {
                    built.names.insert(name.into(), index);
                }
            }
        }
        built
    }

    /// Looks a name up; `name` is lower-case without trailing dot.
    pub(crate) fn lookup<'a>(&'a self, name: &'a str) -> Option<Found<'a>> {
        if let Some(addresses) = self.find(name) {
            return Some(Found { addresses, canonical: None });
        }
        let search = self.search.as_deref()?;
        let host = name.strip_suffix(search)?.strip_suffix('.')?;
        let addresses = self.find(host)?;
        Some(Found { addresses, canonical: Some(host) })
    }

    fn find(&self, name: &str) -> Option<&Addresses> {
        let index = self.names.get(name).or_else(|| self.find_wildcard(name))?;
        self.addresses.get(*index as usize)
    }

    /// The most specific `*.suffix` that covers the name.
    fn find_wildcard(&self, name: &str) -> Option<&u32> {
        let mut rest = name;
        let mut pattern = String::with_capacity(name.len() + 2);
        while let Some((_, parent)) = rest.split_once('.') {
            pattern.clear();
            pattern.push_str("*.");
            pattern.push_str(parent);
            if let Some(index) = self.names.get(pattern.as_str()) {
                return Some(index);
            }
            rest = parent;
        }
        None
    }

    /// How many names are known.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }
}

fn normalise(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn parse_addresses(info: &NameInfo) -> Addresses {
    let mut addresses = Addresses::default();
    for ip in info.ips.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()) {
        match ip {
            IpAddr::V4(ip) => addresses.v4.push(ip),
            IpAddr::V6(ip) => addresses.v6.push(ip),
        }
    }
    addresses
}

/// The host and the short forms by which a workload in `scope` may call it.
fn names_of(host: &str, info: &NameInfo, scope: &Scope) -> Vec<String> {
    let mut names = vec![host.to_owned()];
    let in_domain = !scope.domain.is_empty() && host.ends_with(&scope.domain);
    if !in_domain || info.shortname.is_empty() || info.namespace.is_empty() {
        return names;
    }
    let (short, namespace) = (normalise(&info.shortname), normalise(&info.namespace));
    if namespace == scope.namespace {
        names.push(short.clone());
    }
    let mut name = format!("{short}.{namespace}");
    names.push(name.clone());
    for part in scope.domain.split('.') {
        name.push('.');
        name.push_str(part);
        names.push(name.clone());
    }
    names
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::dns) fn bookinfo() -> LookupTable {
        let info = |ips: &[&str], short: &str, namespace: &str| NameInfo {
            ips: ips.iter().map(ToString::to_string).collect(),
            registry: if short.is_empty() { "External" } else { "Kubernetes" }.into(),
            shortname: short.into(),
            namespace: namespace.into(),
        };
        let table = NameTable {
            table: [
                ("reviews.default.svc.cluster.local", info(&["10.96.0.1"], "reviews", "default")),
                (
                    "ratings.other.svc.cluster.local",
                    info(&["10.96.0.2", "fd00::2"], "ratings", "other"),
                ),
                ("*.wild.example", info(&["240.240.0.1"], "", "")),
                ("Api.Example.COM", info(&["240.240.0.2"], "", "")),
            ]
            .into_iter()
            .map(|(host, info)| (host.to_owned(), info))
            .collect(),
        };
        let scope = Scope {
            namespace: "default".into(),
            domain: "svc.cluster.local".into(),
            search: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
        };
        LookupTable::build(&table, &scope)
    }

    #[track_caller]
    fn check(name: &str, want: Option<(&str, Option<&str>)>) {
        let table = bookinfo();
        let found = table.lookup(name);
        let found = found.map(|found| (found.addresses.v4[0].to_string(), found.canonical));
        assert_eq!(found.as_ref().map(|(ip, name)| (ip.as_str(), *name)), want, "{name}");
    }

    #[test]
    fn services_are_found_by_their_full_and_short_names() {
        check("reviews.default.svc.cluster.local", Some(("10.96.0.1", None)));
        check("reviews", Some(("10.96.0.1", None)));
        check("reviews.default", Some(("10.96.0.1", None)));
        check("reviews.default.svc", Some(("10.96.0.1", None)));
        check("ratings.other", Some(("10.96.0.2", None)));
        check("ratings", None);
        check("ratings.default", None);
    }

    #[test]
    fn search_expansions_point_at_the_name_as_typed() {
        check(
            "reviews.default.default.svc.cluster.local",
            Some(("10.96.0.1", Some("reviews.default"))),
        );
        check(
            "api.example.com.default.svc.cluster.local",
            Some(("240.240.0.2", Some("api.example.com"))),
        );
    }

    #[test]
    fn wildcards_cover_their_suffix_at_any_depth() {
        check("a.wild.example", Some(("240.240.0.1", None)));
        check("a.b.wild.example", Some(("240.240.0.1", None)));
        check("wild.example", None);
        check("unknown.example", None);
    }
}
