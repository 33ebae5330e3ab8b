//! What validation and analysis report.

use std::fmt;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Works, but hardly as meant.
    Warning,
    /// Cannot work; the object is refused.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "Info",
            Self::Warning => "Warning",
            Self::Error => "Error",
        })
    }
}

/// Code of a message in Istio's catalogue.
///
/// Catalogue: <https://istio.io/latest/docs/reference/config/analysis/>
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(pub &'static str);

impl Code {
    /// A deprecated field.
    pub const DEPRECATED: Self = Self("IST0002");
    /// Something referenced does not exist.
    pub const REFERENCED_NOT_FOUND: Self = Self("IST0101");
    /// The object is invalid.
    pub const INVALID: Self = Self("IST0106");
    /// Several virtual services for one host of the mesh.
    pub const CONFLICTING_HOSTS: Self = Self("IST0109");
    /// A rule no request can reach.
    pub const UNREACHABLE_RULE: Self = Self("IST0130");
    /// A match that an earlier rule takes already.
    pub const INEFFECTIVE_MATCH: Self = Self("IST0131");
    /// The object is valid but questionable.
    pub const QUESTIONABLE: Self = Self("IST0133");
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// One finding about one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// Which message.
    pub code: Code,
    /// Field, such as `spec.http[0].route[1].weight`; empty for the object as a whole.
    pub path: String,
    /// What is wrong, as a fragment.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}] ", self.severity, self.code)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Path of a field under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct At(String);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl At {
    pub(crate) fn root(name: &str) -> Self {
        Self(name.to_owned())
    }

    pub(crate) fn field(&self, name: &str) -> Self {
        Self(format!("{}.{name}", self.0))
    }

    pub(crate) fn key(&self, name: &str) -> Self {
        Self(format!("{}[{name:?}]", self.0))
    }

    pub(crate) fn nth(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// Each item of a list with its path.
    pub(crate) fn each<'a, T>(
        &self,
        name: &str,
        items: &'a [T],
    ) -> impl Iterator<Item = (Self, &'a T)> + use<'a, T> {
        let list = self.field(name);
        items.iter().enumerate().map(move |(index, item)| (list.nth(index), item))
    }
}

/// Problems of one object, in the order found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    problems: Vec<Problem>,
}

impl Report {
    pub(crate) fn error(&mut self, at: &At, message: impl Into<String>) {
        self.push(Severity::Error, Code::INVALID, at, message.into());
    }

    pub(crate) fn warning(&mut self, at: &At, message: impl Into<String>) {
        self.push(Severity::Warning, Code::QUESTIONABLE, at, message.into());
    }

    pub(crate) fn deprecated(&mut self, at: &At, instead: &str) {
        let message = format!("deprecated, use {instead} instead");
        self.push(Severity::Warning, Code::DEPRECATED, at, message);
    }

    pub(crate) fn push(&mut self, severity: Severity, code: Code, at: &At, message: String) {
        self.problems.push(Problem { severity, code, path: at.0.clone(), message });
    }

    /// An error if `check` gives one.
    pub(crate) fn check(&mut self, at: &At, check: Result<(), String>) {
        if let Err(message) = check {
            self.error(at, message);
        }
    }

    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }
}
