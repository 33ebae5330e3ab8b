//! Medians, ratios, the table and the JSON file.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// What one round measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Round {
    pub(crate) requests_per_cpu_second: f64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) idle_rss_kib: u64,
    pub(crate) loaded_rss_kib: u64,
}

#[derive(Debug, Serialize)]
struct Series {
    scenario: &'static str,
    product: &'static str,
    median: Option<Round>,
    rounds: Vec<Round>,
}

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    rounds: usize,
    seconds: f64,
    rate: u64,
    series: Vec<Series>,
}

impl Report {
    pub(crate) fn new(rounds: usize, seconds: f64, rate: u64) -> Self {
        Self { rounds, seconds, rate, series: Vec::new() }
    }

    pub(crate) fn add(&mut self, scenario: &'static str, product: &'static str, round: Round) {
        let at = self.series.iter().position(|s| s.scenario == scenario && s.product == product);
        let at = at.unwrap_or_else(|| {
            self.series.push(Series { scenario, product, median: None, rounds: Vec::new() });
            self.series.len() - 1
        });
        let series = &mut self.series[at];
        series.rounds.push(round);
        series.median = median(&series.rounds);
    }

    /// Prints medians, and each figure's ratio to Envoy's in the same run.
    pub(crate) fn print(&self) {
        println!(
            "{:<20} {:<7} {:>12} {:>7} {:>8} {:>8} {:>10} {:>10}",
            "SCENARIO", "PROXY", "REQ/CPU-S", "RATIO", "P50 µs", "P99 µs", "IDLE MB", "LOADED MB"
        );
        for series in &self.series {
            let Some(m) = series.median else { continue };
            let base =
                self.series.iter().find(|s| s.scenario == series.scenario && s.product == "envoy");
            let ratio = base
                .and_then(|b| b.median)
                .map(|b| m.requests_per_cpu_second / b.requests_per_cpu_second);
            println!(
                "{:<20} {:<7} {:>12.0} {:>7} {:>8} {:>8} {:>10.1} {:>10.1}",
                series.scenario,
                series.product,
                m.requests_per_cpu_second,
                ratio.map_or_else(|| "-".into(), |r| format!("{r:.2}x")),
                m.p50_us,
                m.p99_us,
                m.idle_rss_kib as f64 / 1024.0,
                m.loaded_rss_kib as f64 / 1024.0,
            );
        }
    }

    pub(crate) fn write_json(&self, path: &Path) -> Result<()> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The median of each figure on its own.
fn median(rounds: &[Round]) -> Option<Round> {
    let middle = |figure: fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    Some(Round {
        requests_per_cpu_second: middle(|r| r.requests_per_cpu_second)?,
        p50_us: middle(|r| r.p50_us as f64)? as u64,
        p99_us: middle(|r| r.p99_us as f64)? as u64,
        idle_rss_kib: middle(|r| r.idle_rss_kib as f64)? as u64,
        loaded_rss_kib: middle(|r| r.loaded_rss_kib as f64)? as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::{Report, Round};

    #[test]
    fn median_ignores_one_wild_round() {
        let mut report = Report::new(3, 1.0, 1);
        for figure in [10.0, 1000.0, 12.0] {
            let round = Round {
                requests_per_cpu_second: figure,
                p50_us: 1,
                p99_us: 2,
                idle_rss_kib: 3,
                loaded_rss_kib: 4,
            };
            report.add("plain", "envoy", round);
        }
        let median = report.series[0].median.expect("three rounds");
        assert!((median.requests_per_cpu_second - 12.0).abs() < f64::EPSILON);
    }
}
