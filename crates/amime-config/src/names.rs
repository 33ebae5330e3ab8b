//! Cluster and route-configuration names as small integers.
//!
//! Route tables and listeners refer to clusters that may not have arrived or
//! may have gone; an index that never changes its meaning lets a request find
//! the present one without hashing a name. Names are never forgotten: a name
//! costs some tens of bytes, reusing its index would need a count of users.

use std::collections::HashMap;
use std::sync::Arc;

/// Index of a cluster name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub u32);

/// Index of a route configuration name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteConfigId(pub u32);

/// The names seen so far.
#[derive(Default)]
pub struct Names {
    clusters: Table,
    routes: Table,
}

#[derive(Default)]
struct Table {
    index: HashMap<Arc<str>, u32>,
    names: Vec<Arc<str>>,
}

impl Table {
    fn intern(&mut self, name: &str) -> u32 {
        if let Some(id) = self.index.get(name) {
            return *id;
        }
        let id = u32::try_from(self.names.len()).expect("fewer than 2^32 names fit in memory");
        let name: Arc<str> = name.into();
        self.names.push(name.clone());
        self.index.insert(name, id);
        id
    }
}

impl Names {
    pub fn cluster(&mut self, name: &str) -> ClusterId {
        ClusterId(self.clusters.intern(name))
    }

    pub fn route_config(&mut self, name: &str) -> RouteConfigId {
        RouteConfigId(self.routes.intern(name))
    }

    /// How many cluster names there are: the length of tables by id.
    pub fn cluster_count(&self) -> usize {
        self.clusters.names.len()
    }

    pub fn route_config_count(&self) -> usize {
        self.routes.names.len()
    }
}
