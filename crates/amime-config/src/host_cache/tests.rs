//! What a cache keeps, and what it lets peers do to it.

use std::net::Ipv4Addr;

use super::*;

fn cache(change: impl FnOnce(&mut CacheSettings)) -> HostCache {
    let mut settings = CacheSettings { max_hosts: 2, ..CacheSettings::default() };
    change(&mut settings);
    HostCache::new(settings, Arc::default(), Arc::default())
}

fn at(last: u8) -> Looked {
    Looked::Up(vec![Ipv4Addr::new(10, 0, 0, last).into()], Some(Duration::from_secs(30)))
}

/// Polls once: a future that is not ready waits for a lookup.
fn poll<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

fn answer_all(cache: &HostCache, now: Instant, looked: &Looked) -> Vec<String> {
    let due = cache.take_due(now);
    due.iter().for_each(|host| cache.answer(host, looked.clone(), now));
    due.iter().map(|host| host.name.clone()).collect()
}

#[test]
fn authorities_are_split_into_name_and_port() {
    let cases = [
        ("a.test", ("a.test", None)),
        ("a.test:81", ("a.test", Some(81))),
        ("a.test:99999", ("a.test:99999", None)),
        ("[::1]:81", ("::1", Some(81))),
        ("[::1]", ("::1", None)),
        ("::1", ("::1", None)),
    ];
    for (authority, want) in cases {
        assert_eq!(split(authority), want, "{authority}");
    }
    assert_eq!(key("a.test", 443), "a.test:443");
    assert_eq!(key("a.test:81", 443), "a.test:81");
}

#[test]
fn a_host_is_looked_up_once_for_all_who_wait() {
    let cache = cache(|_| {});
    assert!(poll(cache.find("a.test:80", 80)).is_none());
    assert!(poll(cache.find("a.test:80", 80)).is_none());
    assert_eq!(answer_all(&cache, Instant::now(), &at(1)), ["a.test"]);
    let host = poll(cache.find("a.test:80", 80)).expect("known").expect("resolved");
    let want: Arc<[SocketAddr]> = Arc::new([SocketAddr::from(([10, 0, 0, 1], 80))]);
    assert_eq!(*host.watch().borrow(), Found::At(want));
    assert_eq!(cache.take_due(Instant::now()).len(), 0);
}

#[test]
fn no_more_hosts_are_kept_than_allowed() {
    let cache = cache(|_| {});
    for name in ["a.test:80", "b.test:80"] {
        assert!(poll(cache.find(name, 80)).is_none());
    }
    let third = poll(cache.find("c.test:80", 80)).expect("no wait");
    assert_eq!(third.expect_err("no room"), HostFailure::Overflow);
    assert_eq!(cache.stats.host_overflow.value(), 1);
}

#[test]
fn no_more_requests_wait_than_allowed() {
    let cache = cache(|settings| settings.max_pending = 1);
    let mut first = std::pin::pin!(cache.find("a.test:80", 80));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(first.as_mut().poll(&mut context).is_pending());
    let second = poll(cache.find("a.test:80", 80)).expect("no wait");
    assert_eq!(second.expect_err("one waits already"), HostFailure::PendingOverflow);
    answer_all(&cache, Instant::now(), &at(1));
    assert!(first.as_mut().poll(&mut context).is_ready());
    assert!(poll(cache.find_with_room("a.test:80", 80)).expect("known").is_ok());
}

#[test]
fn failures_are_kept_until_the_next_lookup() {
    let cache = cache(|_| {});
    assert!(poll(cache.find("a.test:80", 80)).is_none());
    let now = Instant::now();
    answer_all(&cache, now, &Looked::Failed("broken"));
    let failed = poll(cache.find("a.test:80", 80)).expect("known").expect_err("not resolved");
    assert_eq!(failed, HostFailure::Unresolved { reason: "broken".into(), waited: false });
    let later = now + Duration::from_secs(61);
    assert_eq!(answer_all(&cache, later, &at(1)), ["a.test"]);
    assert!(poll(cache.find("a.test:80", 80)).expect("known").is_ok());
}

#[test]
fn addresses_outlive_a_failed_lookup() {
    let cache = cache(|_| {});
    assert!(poll(cache.find("a.test:80", 80)).is_none());
    let now = Instant::now();
    answer_all(&cache, now, &at(1));
    answer_all(&cache, now + Duration::from_secs(31), &Looked::Empty("none"));
    assert!(poll(cache.find("a.test:80", 80)).expect("known").is_ok());
}

#[test]
fn a_host_that_nobody_uses_is_forgotten() {
    let cache = cache(|settings| settings.host_ttl = Duration::ZERO);
    assert!(poll(cache.find("a.test:80", 80)).is_none());
    let now = Instant::now();
    answer_all(&cache, now, &at(1));
    let host = poll(cache.find("a.test:80", 80)).expect("known").expect("resolved");
    // As if its last use were long ago.
    host.used_ms.store(0, Ordering::Relaxed);
    assert!(cache.take_due(now + Duration::from_secs(31)).is_empty());
    assert_eq!(*host.watch().borrow(), Found::Gone);
    assert!(poll(cache.find("a.test:80", 80)).is_none());
}

#[test]
fn a_failed_host_that_is_not_refreshed_is_looked_up_when_asked_for() {
    let cache = cache(|settings| settings.refresh_failed = false);
    assert!(poll(cache.find("a.test:80", 80)).is_none());
    let now = Instant::now();
    answer_all(&cache, now, &Looked::Failed("broken"));
    assert!(cache.take_due(now + Duration::from_secs(61)).is_empty());
    assert!(poll(cache.find("a.test:80", 80)).is_none());
    assert_eq!(answer_all(&cache, Instant::now(), &at(1)), ["a.test"]);
}
