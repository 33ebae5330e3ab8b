//! Name of an object inside a namespace.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Namespace and name of one object; prints as `namespace/name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamespacedName {
    /// Namespace; empty for cluster-wide objects.
    pub namespace: String,
    /// Name inside the namespace.
    pub name: String,
}

impl NamespacedName {
    /// Builds a name from its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Reads `namespace/name`, or a bare `name` that belongs to `default_namespace`.
    pub fn parse_in(text: &str, default_namespace: &str) -> Self {
        match text.split_once('/') {
            Some((namespace, name)) => Self::new(namespace, name),
            None => Self::new(default_namespace, text),
        }
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for NamespacedName {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::parse_in(text, ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_takes_the_default_namespace() {
        assert_eq!(NamespacedName::parse_in("gw", "prod").to_string(), "prod/gw");
        assert_eq!(NamespacedName::parse_in("istio-system/gw", "prod").namespace, "istio-system");
    }
}
