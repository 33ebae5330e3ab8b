//! What came of a case, as lines of text by aspect.
//!
//! Invariant: two runs against one proxy give equal lines. Ports, ids, times
//! and generated ids are replaced by names.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Aspect {
    /// Whether the proxy takes the bootstrap.
    Start,
    Tls,
    Status,
    Headers,
    Body,
    /// What backends saw.
    Upstream,
    /// Whether the connection is open afterwards.
    Close,
    /// The access log.
    Log,
    Stats,
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Start => "start",
            Self::Tls => "tls",
            Self::Status => "status",
            Self::Headers => "headers",
            Self::Body => "body",
            Self::Upstream => "upstream",
            Self::Close => "close",
            Self::Log => "log",
            Self::Stats => "stats",
        })
    }
}

/// Lines by aspect.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Outcome {
    pub(crate) lines: BTreeMap<Aspect, Vec<String>>,
}

impl Outcome {
    pub(crate) fn add(&mut self, aspect: Aspect, line: impl Into<String>) {
        self.lines.entry(aspect).or_default().push(line.into());
    }

    /// Lines of an aspect.
    pub(crate) fn of(&self, aspect: Aspect) -> &[String] {
        self.lines.get(&aspect).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn extend(&mut self, other: Self, prefix: &str) {
        for (aspect, lines) in other.lines {
            let lines = lines.into_iter().map(|line| format!("{prefix}{line}"));
            self.lines.entry(aspect).or_default().extend(lines);
        }
    }

    /// Many outcomes of one exchange: each kind once, with its number.
    pub(crate) fn merged(outcomes: Vec<Self>, distinct: bool) -> Self {
        let mut kinds = BTreeMap::<Self, usize>::new();
        for outcome in outcomes {
            *kinds.entry(outcome).or_default() += 1;
        }
        let mut merged = Self::default();
        for (kind, count) in kinds {
            let prefix = if distinct { "some: ".to_owned() } else { format!("{count} times: ") };
            merged.extend(kind, &prefix);
        }
        merged
    }

    /// Aspects in which two outcomes differ.
    pub(crate) fn differing(&self, other: &Self) -> Vec<Aspect> {
        let mut aspects: Vec<_> = self.lines.keys().chain(other.lines.keys()).copied().collect();
        aspects.sort_unstable();
        aspects.dedup();
        aspects.retain(|aspect| self.of(*aspect) != other.of(*aspect));
        aspects
    }
}

/// Replaces what differs between any two runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    /// Texts and their names; longer texts first.
    texts: Vec<(String, String)>,
    ports: Vec<(String, String)>,
}

impl Names {
    pub(crate) fn text(&mut self, text: impl Into<String>, name: &str) {
        self.texts.push((text.into(), name.to_owned()));
    }

    pub(crate) fn port(&mut self, port: u16, name: &str) {
        self.ports.push((port.to_string(), name.to_owned()));
    }

    /// The line without what differs between runs.
    pub(crate) fn apply(&self, line: &str) -> String {
        let mut line = line.to_owned();
        for (text, name) in &self.texts {
            line = line.replace(text, name);
        }
        for (port, name) in &self.ports {
            line = replace_number(&line, port, name);
        }
        tls_error(stars(&line))
    }
}

/// Replaces a number that stands alone.
fn replace_number(line: &str, number: &str, name: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find(number) {
        let (before, after) = (&rest[..at], &rest[at + number.len()..]);
        let alone = !before.ends_with(|c: char| c.is_ascii_alphanumeric())
            && !after.starts_with(|c: char| c.is_ascii_alphanumeric());
        out.push_str(before);
        out.push_str(if alone { name } else { number });
        rest = after;
    }
    out + rest
}

/// Cuts out the TLS library's own words for an error.
fn tls_error(line: String) -> String {
    const START: &str = "TLS_error:";
    let parts = line.split_once(START).and_then(|(before, rest)| {
        let (_, after) = rest.split_once("TLS_error_end")?;
        Some(format!("{before}{START}{after}"))
    });
    parts.unwrap_or(line)
}

/// Replaces values that a clock or a random generator made.
fn stars(line: &str) -> String {
    let Some((name, value)) = line.split_once(": ") else { return line.to_owned() };
    let bare = name.rsplit(' ').next().unwrap_or(name).to_ascii_lowercase();
    let is_uuid = value.len() == 36 && value.bytes().filter(|byte| *byte == b'-').count() == 4;
    match bare.as_str() {
        "date" | "x-envoy-upstream-service-time" => format!("{name}: *"),
        // The whole time is a round number; a first attempt that did not
        // reach a backend has taken a little of it.
        "x-envoy-expected-rq-timeout-ms" => match value.parse::<u64>() {
            Ok(left) => format!("{name}: {}", left.next_multiple_of(100)),
            Err(_) => line.to_owned(),
        },
        "x-request-id" if is_uuid => format!("{name}: <uuid>"),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_replaced_only_as_whole_numbers() {
        let mut names = Names::default();
        names.port(1234, "<a>");
        assert_eq!(names.apply("127.0.0.1:1234 x1234 12345 1234"), "127.0.0.1:<a> x1234 12345 <a>");
        assert_eq!(names.apply("date: now"), "date: *");
        assert_eq!(
            names.apply("x-envoy-expected-rq-timeout-ms: 14998"),
            "x-envoy-expected-rq-timeout-ms: 15000"
        );
    }

    #[test]
    fn equal_outcomes_are_counted() {
        let one = |line: &str| {
            let mut outcome = Outcome::default();
            outcome.add(Aspect::Status, line);
            outcome
        };
        let merged = Outcome::merged(vec![one("b"), one("a"), one("b")], false);
        assert_eq!(merged.of(Aspect::Status), ["1 times: a", "2 times: b"]);
        assert_eq!(merged.differing(&one("a")), [Aspect::Status]);
    }
}
