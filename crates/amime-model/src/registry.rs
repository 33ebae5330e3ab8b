//! All services, by host, namespace and who may see them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use amime_core::Hostname;

use crate::allocation::allocate;
use crate::service::{Registry, Resolution, Service};

/// Services of all registries.
#[derive(Debug, Default)]
pub struct ServiceIndex {
    by_host: HashMap<Hostname, BTreeMap<String, Arc<Service>>>,
    public: Vec<Arc<Service>>,
    exported: BTreeMap<String, Vec<Arc<Service>>>,
    all: Vec<Arc<Service>>,
    default_export_to: Vec<String>,
}

impl ServiceIndex {
    pub(crate) fn build(mut services: Vec<Service>, default_export_to: &[String]) -> Self {
        services.sort_by(|a, b| {
            let key = |s: &Service| (s.created.clone(), s.name.clone(), s.namespace.clone());
            key(a).cmp(&key(b))
        });
        resolve_aliases(&mut services);
        allocate(&mut services);
        let default_export_to = match default_export_to {
            [] => vec!["*".to_owned()],
            list => list.to_vec(),
        };
        let mut index = Self { default_export_to, ..Self::default() };
        for service in services.into_iter().map(Arc::new) {
            index.insert(service);
        }
        index
    }

    fn insert(&mut self, service: Arc<Service>) {
        let namespaces = self.by_host.entry(service.hostname.clone()).or_default();
        // The oldest stands, but nobody squats on a Kubernetes service's name.
        let replaces = namespaces.get(&service.namespace).is_none_or(|existing| {
            existing.registry == Registry::External && service.registry == Registry::Kubernetes
        });
        if replaces {
            namespaces.insert(service.namespace.clone(), service.clone());
        }
        self.all.push(service.clone());
        let visible = self.export_to(&service);
        if visible.contains("*") {
            self.public.push(service);
        } else if !visible.contains("~") {
            for namespace in visible {
                self.exported.entry(namespace).or_default().push(service.clone());
            }
        }
    }

    fn export_to(&self, service: &Service) -> BTreeSet<String> {
        let spell = |entry: &String| match entry.as_str() {
            "." => service.namespace.clone(),
            _ => entry.clone(),
        };
        match service.export_to.is_empty() {
            true => self.default_export_to.iter().map(spell).collect(),
            false => service.export_to.iter().map(spell).collect(),
        }
    }

    /// Every service, the oldest first.
    pub fn all(&self) -> &[Arc<Service>] {
        &self.all
    }

    /// The service of this name in each namespace that has one.
    pub fn by_host(&self, hostname: &Hostname) -> Option<&BTreeMap<String, Arc<Service>>> {
        self.by_host.get(hostname)
    }

    /// The service of this name in this namespace.
    pub fn get(&self, namespace: &str, hostname: &Hostname) -> Option<&Arc<Service>> {
        self.by_host.get(hostname)?.get(namespace)
    }

    /// Services that clients in `namespace` may see: those exported to it by
    /// name, then public ones, each by age.
    pub fn visible_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.exported.get(namespace).into_iter().flatten().chain(&self.public)
    }

    /// True if clients in `namespace` may see `service`.
    pub fn is_visible(&self, service: &Service, namespace: &str) -> bool {
        let visible = self.export_to(service);
        visible.contains("*") || visible.contains(namespace)
    }
}

/// Tells each service which aliases lead to it, through aliases of aliases.
fn resolve_aliases(services: &mut [Service]) {
    let direct: HashMap<Hostname, Hostname> = services
        .iter()
        .filter(|service| service.resolution == Resolution::Alias)
        .filter_map(|service| Some((service.hostname.clone(), service.alias_of.clone()?)))
        .collect();
    if direct.is_empty() {
        return;
    }
    let mut aliases: HashMap<Hostname, Vec<(String, Hostname)>> = HashMap::new();
    for service in services.iter().filter(|s| direct.contains_key(&s.hostname)) {
        if let Some(concrete) = concrete_host(&direct, &service.hostname) {
            let alias = (service.namespace.clone(), service.hostname.clone());
            aliases.entry(concrete).or_default().push(alias);
        }
    }
    for service in services {
        if let Some(own) = aliases.get(&service.hostname) {
            service.aliases.clone_from(own);
            service.aliases.sort_by(|a, b| (&a.0, a.1.as_str()).cmp(&(&b.0, b.1.as_str())));
        }
    }
}

/// The end of a chain of aliases; `None` if it is a ring.
fn concrete_host(direct: &HashMap<Hostname, Hostname>, alias: &Hostname) -> Option<Hostname> {
    let mut seen = BTreeSet::from([alias.as_str()]);
    let mut host = direct.get(alias)?;
    while let Some(next) = direct.get(host) {
        if !seen.insert(host.as_str()) {
            return None;
        }
        host = next;
    }
    Some(host.clone())
}
