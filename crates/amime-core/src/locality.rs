//! Where a workload runs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Region, zone and sub-zone; empty parts are unknown. Prints as `region/zone/subzone`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Locality {
    /// Region, for example `us-east1`.
    pub region: String,
    /// Zone inside the region.
    pub zone: String,
    /// Sub-zone inside the zone.
    pub subzone: String,
}

impl Locality {
    /// Reads `region[/zone[/subzone]]`.
    pub fn parse(text: &str) -> Self {
        Self::split(text, '/')
    }

    /// Reads a label value: `/` is not allowed in labels, so `.` separates the parts there.
    pub fn from_label(value: &str) -> Self {
        let separator = if value.contains('/') { '/' } else { '.' };
        Self::split(value, separator)
    }

    /// True if nothing is known.
    pub fn is_empty(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty() && self.subzone.is_empty()
    }

    fn split(text: &str, separator: char) -> Self {
        let mut parts = text.splitn(3, separator).map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Self { region: next(), zone: next(), subzone: next() }
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.region)?;
        if !self.zone.is_empty() || !self.subzone.is_empty() {
            write!(f, "/{}", self.zone)?;
        }
        if !self.subzone.is_empty() {
            write!(f, "/{}", self.subzone)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_it_reads() {
        for text in ["", "r", "r/z", "r/z/s"] {
            assert_eq!(Locality::parse(text).to_string(), text);
        }
        assert_eq!(Locality::from_label("r.z.s"), Locality::parse("r/z/s"));
    }
}
