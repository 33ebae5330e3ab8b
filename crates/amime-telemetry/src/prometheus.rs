//! Prometheus text format, as Envoy writes it.

use std::fmt::Write;

use super::stats::{BOUNDS, HistogramValue};

/// Appends `name="value"` to a label list, with a comma if it is not the first.
pub(crate) fn push_label(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    out.push_str(name);
    out.push_str("=\"");
    for character in value.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
    out.push('"');
}

/// Appends the `# TYPE` line of a metric family.
pub(crate) fn family(out: &mut String, name: &str, kind: &str) {
    // A write to a `String` cannot fail, here and below.
    let _ = writeln!(out, "# TYPE {name} {kind}");
}

/// Appends one sample.
pub(crate) fn sample(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{name}{{{labels}}} {value}");
}

/// Appends a histogram's cumulative buckets, sum and count.
pub(crate) fn histogram(out: &mut String, name: &str, labels: &str, value: &HistogramValue) {
    let comma = if labels.is_empty() { "" } else { "," };
    let mut cumulative = 0;
    for (bound, count) in BOUNDS.iter().zip(&value.buckets) {
        cumulative += count;
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {cumulative}");
    }
    let count = value.count();
    let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
    let _ = writeln!(out, "{name}_sum{{{labels}}} {}", value.sum);
    let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
}
