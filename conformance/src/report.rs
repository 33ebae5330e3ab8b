//! Results of the written cases, printed as a table.

use std::collections::BTreeMap;
use std::fmt;

use crate::lists::{Lists, PENDING, Verdict};
use crate::outcome::{Aspect, Outcome};

/// One case, done by both proxies.
#[derive(Clone, Debug)]
pub(crate) struct Compared {
    /// `bootstrap/case`.
    pub(crate) name: String,
    pub(crate) envoy: Outcome,
    pub(crate) ours: Outcome,
    pub(crate) verdict: Verdict,
}

/// Results of all cases that ran.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub(crate) bootstraps: usize,
    pub(crate) cases: Vec<Compared>,
    /// Listed cases that do not exist.
    pub(crate) unknown: Vec<String>,
    /// Seconds that it took.
    pub(crate) seconds: f64,
    /// Print both sides of pending and intended differences as well.
    pub(crate) show_all: bool,
    /// Print Envoy's side of every case.
    pub(crate) show_envoy: bool,
}

impl Report {
    /// Whether every case agrees or differs as listed.
    pub fn passed(&self) -> bool {
        let fine = |one: &Compared| {
            matches!(
                one.verdict,
                Verdict::Same | Verdict::OnPurpose { .. } | Verdict::Pending { .. }
            )
        };
        self.cases.iter().all(fine) && self.unknown.is_empty()
    }

    /// Prints both sides of listed differences as well.
    #[must_use]
    pub fn with_all_differences(self) -> Self {
        Self { show_all: true, ..self }
    }

    /// Prints Envoy's side of every case.
    #[must_use]
    pub fn with_envoy(self) -> Self {
        Self { show_envoy: true, ..self }
    }

    /// Names of cases that differ unlisted, one a line.
    pub fn failures(&self) -> Vec<String> {
        let failed = self.cases.iter().filter(|one| one.verdict == Verdict::Differs);
        failed.map(|one| one.name.clone()).collect()
    }

    /// Takes cases that agree off `pending.yaml`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn shrink_pending(&self) -> anyhow::Result<()> {
        let outdated = Verdict::Outdated { list: PENDING };
        let agreeing = self.cases.iter().filter(|one| one.verdict == outdated);
        let agreeing: Vec<_> = agreeing.map(|one| one.name.as_str()).collect();
        Lists::shrink(crate::data_dir(), &agreeing)
    }

    fn count(&self, which: fn(&Verdict) -> bool) -> usize {
        self.cases.iter().filter(|one| which(&one.verdict)).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for one in &self.cases {
            match &one.verdict {
                Verdict::Same if self.show_envoy => writeln!(f, "agrees    {}", one.name)?,
                Verdict::Same => continue,
                Verdict::Differs => writeln!(f, "DIFFERS   {}", one.name)?,
                Verdict::Outdated { list } => {
                    writeln!(f, "OUTDATED  {} agrees with Envoy; take it off {list}", one.name)?;
                }
                Verdict::OnPurpose { reason } if self.show_all => {
                    writeln!(f, "on purpose {}: {reason}", one.name)?;
                }
                Verdict::Pending { missing } if self.show_all => {
                    writeln!(f, "pending   {}: {missing}", one.name)?;
                }
                Verdict::OnPurpose { .. } | Verdict::Pending { .. } => continue,
            }
            if self.show_envoy {
                for (aspect, lines) in &one.envoy.lines {
                    lines.iter().try_for_each(|line| writeln!(f, "  {aspect:<9} {line}"))?;
                }
            }
            write_differences(f, one)?;
        }
        for name in &self.unknown {
            writeln!(f, "UNKNOWN   {name} is listed and does not exist")?;
        }
        write_aspects(f, &self.cases)?;
        writeln!(
            f,
            "{} cases over {} bootstraps in {:.1} s: {} agree, {} differ on purpose, {} pending, {} differ, {} outdated",
            self.cases.len(),
            self.bootstraps,
            self.seconds,
            self.count(|v| *v == Verdict::Same),
            self.count(|v| matches!(v, Verdict::OnPurpose { .. })),
            self.count(|v| matches!(v, Verdict::Pending { .. })),
            self.count(|v| *v == Verdict::Differs),
            self.count(|v| matches!(v, Verdict::Outdated { .. })),
        )
    }
}

fn write_differences(f: &mut fmt::Formatter<'_>, one: &Compared) -> fmt::Result {
    for aspect in one.envoy.differing(&one.ours) {
        let (envoy, ours) = (one.envoy.of(aspect), one.ours.of(aspect));
        for line in envoy.iter().filter(|line| !ours.contains(line)) {
            writeln!(f, "  {aspect:<9} envoy  {line}")?;
        }
        for line in ours.iter().filter(|line| !envoy.contains(line)) {
            writeln!(f, "  {aspect:<9} ours   {line}")?;
        }
        let same = |a: &[String], b: &[String]| a.iter().all(|line| b.contains(line));
        if same(envoy, ours) && same(ours, envoy) {
            writeln!(
                f,
                "  {aspect:<9} the same lines in another order or number: {envoy:?} {ours:?}"
            )?;
        }
    }
    Ok(())
}

/// How many cases agree in each aspect that they have.
fn write_aspects(f: &mut fmt::Formatter<'_>, cases: &[Compared]) -> fmt::Result {
    let mut table = BTreeMap::<Aspect, (usize, usize)>::new();
    for one in cases {
        let differing = one.envoy.differing(&one.ours);
        let aspects = one.envoy.lines.keys().chain(differing.iter());
        let mut aspects: Vec<_> = aspects.copied().collect();
        aspects.sort_unstable();
        aspects.dedup();
        for aspect in aspects {
            let (same, all) = table.entry(aspect).or_default();
            *same += usize::from(!differing.contains(&aspect));
            *all += 1;
        }
    }
    for (aspect, (same, all)) in table {
        writeln!(f, "{aspect:<9} {same:>4} of {all} agree")?;
    }
    Ok(())
}
