//! What a resource waits for before it is put in force.
//!
//! Invariant: a need that was met once or whose time has run out is not
//! looked at again, so a secret or table that goes later stops nothing.

use std::time::Instant;

use amime_config::FetchTimeout;

/// Something that has to be there first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// The first assignment of this name.
    Endpoints(String),
    /// A route configuration.
    Routes(String),
    Secret(String),
    /// The first answer for every name to resolve.
    Addresses,
}

/// Needs not yet met, each with the time at which it is given up.
#[derive(Debug, Default)]
pub(crate) struct Awaited(Vec<(Need, Option<Instant>)>);

impl Awaited {
    pub(crate) fn add(&mut self, need: Need, timeout: FetchTimeout, now: Instant) {
        self.0.push((need, timeout.map(|timeout| now + timeout)));
    }

    /// Forgets what is there or overdue; true once nothing is left.
    pub(crate) fn settle(&mut self, now: Instant, met: impl Fn(&Need) -> bool) -> bool {
        self.0.retain(|(need, until)| !met(need) && until.is_none_or(|until| until > now));
        self.0.is_empty()
    }

    /// When the next need is given up.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.0.iter().filter_map(|(_, until)| *until).min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_need_ends_when_it_is_met_or_its_time_has_run_out() {
        let now = Instant::now();
        let mut awaited = Awaited::default();
        awaited.add(Need::Routes("r".into()), Some(Duration::from_secs(15)), now);
        awaited.add(Need::Secret("s".into()), None, now);
        assert_eq!(awaited.deadline(), Some(now + Duration::from_secs(15)));
        assert!(!awaited.settle(now + Duration::from_secs(14), |_| false));
        assert!(!awaited.settle(now + Duration::from_secs(15), |_| false));
        assert_eq!(awaited.deadline(), None, "a timeout of zero waits for ever");
        assert!(awaited.settle(now, |need| *need == Need::Secret("s".into())));
    }
}
