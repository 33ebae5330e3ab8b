//! DNS host names with Istio's wildcard rules.
//!
//! Invariant: the text is lower-case, so equality and hashing are case-insensitive.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A host name, exact (`reviews.default.svc.cluster.local`) or with a leading wildcard (`*.com`).
///
/// Ordering is by specificity, the most specific first: exact names before wildcards, longer
/// names before shorter, then alphabetically.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Hostname(String);

impl Hostname {
    /// Wraps `name`, lower-cased.
    pub fn new(name: impl Into<String>) -> Self {
        let mut name = name.into();
        name.make_ascii_lowercase();
        Self(name)
    }

    /// The lower-cased text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True if the name starts with `*`.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with('*')
    }

    /// True if some concrete name is covered by both; symmetric.
    pub fn matches(&self, other: &Self) -> bool {
        self.subset_of(other) || other.subset_of(self)
    }

    /// True if every name that `self` covers is covered by `other` too.
    ///
    /// `*.foo.com` covers `a.foo.com` and `a.b.foo.com` but not `foo.com`.
    pub fn subset_of(&self, other: &Self) -> bool {
        match other.0.strip_prefix('*') {
            Some(suffix) => self.0.trim_start_matches('*').ends_with(suffix) && self.covers(other),
            None => self.0 == other.0,
        }
    }

    // A wildcard is never inside a longer wildcard, whatever its suffix.
    fn covers(&self, other: &Self) -> bool {
        !self.is_wildcard() || self.0.len() >= other.0.len()
    }
}

impl Ord for Hostname {
    fn cmp(&self, other: &Self) -> Ordering {
        self.is_wildcard()
            .cmp(&other.is_wildcard())
            .then_with(|| other.0.len().cmp(&self.0.len()))
            .then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Hostname {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<'de> Deserialize<'de> for Hostname {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Hostname {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Hostname {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl From<String> for Hostname {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(a: &str, b: &str, matches: bool, a_in_b: bool, b_in_a: bool) {
        let (a, b) = (Hostname::new(a), Hostname::new(b));
        assert_eq!(a.matches(&b), matches, "{a} matches {b}");
        assert_eq!(b.matches(&a), matches, "{b} matches {a}");
        assert_eq!(a.subset_of(&b), a_in_b, "{a} subset of {b}");
        assert_eq!(b.subset_of(&a), b_in_a, "{b} subset of {a}");
    }

    #[test]
    fn wildcards_cover_names_below_their_suffix() {
        check("foo.com", "foo.com", true, true, true);
        check("Foo.com", "foo.COM", true, true, true);
        check("a.foo.com", "*.foo.com", true, true, false);
        check("foo.com", "*.foo.com", false, false, false);
        check("*.foo.com", "*.com", true, true, false);
        check("*.foo.com", "*.bar.com", false, false, false);
        check("*", "*.com", true, false, true);
        check("*", "foo.com", true, false, true);
        check("foo.com", "bar.com", false, false, false);
        check("*foo.com", "xfoo.com", true, false, true);
    }

    #[test]
    fn the_most_specific_name_sorts_first() {
        let mut names =
            ["*", "*.com", "b.com", "a.com", "*.foo.com", "www.foo.com"].map(Hostname::new);
        names.sort();
        let text: Vec<_> = names.iter().map(Hostname::as_str).collect();
        assert_eq!(text, ["www.foo.com", "a.com", "b.com", "*.foo.com", "*.com", "*"]);
    }
}
