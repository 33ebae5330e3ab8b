//! Known differences: those on purpose, and those that are still to go.
//!
//! Invariant: a list never outlives its reason. An entry whose case agrees
//! with Envoy fails the run.

use std::path::Path;

use anyhow::{Result, ensure};
use serde::Deserialize;

use crate::case::read_yaml;
use crate::outcome::Aspect;

/// The list of cases that are to agree one day.
pub(crate) const PENDING: &str = "pending.yaml";

/// A case that differs on purpose.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Difference {
    /// `bootstrap/case`.
    pub(crate) case: String,
    pub(crate) aspects: Vec<Aspect>,
    pub(crate) reason: String,
}

/// A case that is to agree one day.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pending {
    /// `bootstrap/case`.
    pub(crate) case: String,
    /// What is missing.
    pub(crate) missing: String,
}

/// Both lists.
#[derive(Clone, Debug)]
pub(crate) struct Lists {
    pub(crate) differences: Vec<Difference>,
    pub(crate) pending: Vec<Pending>,
}

/// What a case's difference means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Same,
    OnPurpose {
        reason: String,
    },
    Pending {
        missing: String,
    },
    /// It differs and nothing says so.
    Differs,
    /// A list says that it differs, and it does not.
    Outdated {
        list: &'static str,
    },
}

impl Lists {
    /// Reads `differences.yaml` and `pending.yaml`.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let lists = Self {
            differences: read_yaml(&dir.join("differences.yaml"))?,
            pending: read_yaml(&dir.join(PENDING))?,
        };
        let mut names: Vec<_> = lists.names().collect();
        names.sort_unstable();
        let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
        ensure!(twice.is_none(), "listed twice: {}", twice.map_or("", |pair| pair[0]));
        Ok(lists)
    }

    /// Cases that are listed.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let differences = self.differences.iter().map(|one| one.case.as_str());
        differences.chain(self.pending.iter().map(|one| one.case.as_str()))
    }

    /// Takes cases off `pending.yaml`, whose entries have a line each.
    pub(crate) fn shrink(dir: &Path, agreeing: &[&str]) -> Result<()> {
        let path = dir.join(PENDING);
        let text = std::fs::read_to_string(&path)?;
        let listed = |line: &str| {
            let name = line.strip_prefix("- {case: \"")?.split('"').next()?;
            agreeing.contains(&name).then_some(())
        };
        let kept: Vec<_> = text.lines().filter(|line| listed(line).is_none()).collect();
        Ok(std::fs::write(&path, kept.join("\n") + "\n")?)
    }

    /// Judges the aspects in which a case differs.
    pub(crate) fn judge(&self, case: &str, differing: &[Aspect]) -> Verdict {
        if let Some(known) = self.differences.iter().find(|one| one.case == case) {
            let mut aspects = known.aspects.clone();
            aspects.sort_unstable();
            return match differing {
                [] => Verdict::Outdated { list: "differences.yaml" },
                _ if aspects == differing => Verdict::OnPurpose { reason: known.reason.clone() },
                _ => Verdict::Differs,
            };
        }
        match self.pending.iter().find(|one| one.case == case) {
            Some(_) if differing.is_empty() => Verdict::Outdated { list: PENDING },
            Some(known) => Verdict::Pending { missing: known.missing.clone() },
            None if differing.is_empty() => Verdict::Same,
            None => Verdict::Differs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(case: &str, differing: &[Aspect], want: fn(&Verdict) -> bool) {
        let lists = Lists {
            differences: vec![Difference {
                case: "x/known".into(),
                aspects: vec![Aspect::Body, Aspect::Status],
                reason: "ours is better".into(),
            }],
            pending: vec![Pending { case: "x/pending".into(), missing: "all".into() }],
        };
        let verdict = lists.judge(case, differing);
        assert!(want(&verdict), "{verdict:?}");
    }

    #[test]
    fn listed_cases_must_differ_as_listed() {
        check("x/known", &[Aspect::Status, Aspect::Body], |v| {
            matches!(v, Verdict::OnPurpose { .. })
        });
        check("x/known", &[Aspect::Status], |v| *v == Verdict::Differs);
        check("x/known", &[], |v| matches!(v, Verdict::Outdated { .. }));
        check("x/pending", &[Aspect::Log], |v| matches!(v, Verdict::Pending { .. }));
        check("x/pending", &[], |v| matches!(v, Verdict::Outdated { .. }));
        check("x/other", &[], |v| *v == Verdict::Same);
        check("x/other", &[Aspect::Log], |v| *v == Verdict::Differs);
    }
}
