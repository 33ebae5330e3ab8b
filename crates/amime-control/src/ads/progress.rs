//! Up to which snapshot a proxy has answered.
//!
//! Owns where each type stands. Types are answered on their own, so a proxy
//! that changes overtake all the time, and that is never quite up to date,
//! still comes forward.

use std::collections::BTreeMap;

use amime_xds::TypeUrl;
use amime_xds::server::TypeStatus;

/// Where one proxy stands, by type.
#[derive(Debug, Default)]
pub(super) struct Progress(BTreeMap<TypeUrl, Standing>);

/// Versions of snapshots.
#[derive(Debug, Default)]
struct Standing {
    /// What the last response was made from, until it is answered.
    flying: Option<u64>,
    answered: u64,
}

impl Standing {
    fn land(&mut self) {
        if let Some(version) = self.flying.take() {
            self.answered = version;
        }
    }
}

impl Progress {
    /// Notes a response made from the snapshot `version`. Of each type one is
    /// under way at a time, so the one before has been answered.
    pub(super) fn sent(&mut self, type_url: TypeUrl, version: u64) {
        let standing = self.0.entry(type_url).or_default();
        standing.land();
        standing.flying = Some(version);
    }

    /// The last snapshot of which the proxy has answered everything, while
    /// `current` is in force; `waits` says whether there may be news of a type
    /// that could not be sent yet.
    pub(super) fn answered(
        &mut self,
        current: u64,
        status: &BTreeMap<TypeUrl, TypeStatus>,
        waits: impl Fn(TypeUrl) -> bool,
    ) -> u64 {
        let by_type = status.iter().map(|(&type_url, status)| {
            let standing = self.0.entry(type_url).or_default();
            if status.is_answered() {
                standing.land();
                if !waits(type_url) {
                    standing.answered = current;
                }
            }
            standing.answered
        });
        by_type.min().unwrap_or(current)
    }
}

#[cfg(test)]
mod tests {
    use amime_xds::server::Stamp;

    use super::*;

    fn status(of: &[(TypeUrl, bool)]) -> BTreeMap<TypeUrl, TypeStatus> {
        let stamp = Stamp { nonce: "1".to_owned(), version: "1".to_owned() };
        let one = |&(type_url, answered): &(TypeUrl, bool)| {
            let acked = answered.then(|| stamp.clone());
            (type_url, TypeStatus { sent: Some(stamp.clone()), acked, ..TypeStatus::default() })
        };
        of.iter().map(one).collect()
    }

    #[test]
    fn a_proxy_that_is_never_up_to_date_comes_forward() {
        let (clusters, routes) = (TypeUrl::Cluster, TypeUrl::Route);
        let mut progress = Progress::default();
        progress.sent(clusters, 1);
        progress.sent(routes, 1);
        let flying = status(&[(clusters, false), (routes, false)]);
        assert_eq!(progress.answered(1, &flying, |_| false), 0);
        // Before the routes of 1 are answered, the clusters of 2 are sent.
        progress.sent(clusters, 2);
        assert_eq!(progress.answered(2, &flying, |_| true), 0);
        progress.sent(routes, 3);
        assert_eq!(progress.answered(3, &flying, |_| true), 1);
        progress.sent(clusters, 4);
        assert_eq!(progress.answered(4, &flying, |_| true), 1);
        let landed = status(&[(clusters, false), (routes, true)]);
        assert_eq!(progress.answered(4, &landed, |_| true), 2);
    }

    #[test]
    fn what_is_not_concerned_is_up_to_date() {
        let mut progress = Progress::default();
        assert_eq!(progress.answered(7, &BTreeMap::new(), |_| false), 7);
        progress.sent(TypeUrl::Cluster, 7);
        let answered = status(&[(TypeUrl::Cluster, true), (TypeUrl::Listener, true)]);
        assert_eq!(progress.answered(9, &answered, |_| false), 9);
        // Listeners are held back.
        assert_eq!(progress.answered(10, &answered, |t| t == TypeUrl::Listener), 9);
    }
}
