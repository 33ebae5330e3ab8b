//! Runs the written cases: each bootstrap in both proxies at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::backend::{self, Backends};
use crate::case::{CaseFile, Exchange, read_yaml};
use crate::certs::Certs;
use crate::client::{self, Done, Logged, PROBE};
use crate::lists::Lists;
use crate::outcome::{Aspect, Names, Outcome};
use crate::product::{Product, Running};
use crate::report::{Compared, Report};
use crate::{Options, bootstrap, data_dir};

/// Bootstraps that run at the same time.
const AT_ONCE: usize = 3;
/// Longest wait for lines in the access log.
const LOG_PATIENCE: Duration = Duration::from_secs(2);
/// Longest wait for requests that come without the client waiting for them.
const UPSTREAM_PATIENCE: Duration = Duration::from_secs(2);
/// Name under which a bootstrap's own result stands among its cases.
const START: &str = "start";
/// Likewise for its statistics.
const STATS: &str = "stats";

/// What all runs share.
#[derive(Debug)]
struct World {
    backends: Backends,
    certs: Certs,
    dir: PathBuf,
    next_id: AtomicU32,
}

/// One folder of cases.
#[derive(Debug)]
struct Suite {
    name: String,
    bootstrap: Value,
    file: CaseFile,
}

/// Results by case.
type Outcomes = BTreeMap<String, Outcome>;

/// Runs the written cases through both proxies and compares.
///
/// # Errors
/// When a case cannot be read or sent, or Envoy refuses a bootstrap.
pub fn cases(envoy: &Product, ours: &Product, options: &Options) -> Result<Report> {
    envoy.check()?;
    amime_identity::install_default_provider();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(envoy.clone(), ours.clone(), options))
}

async fn run(envoy: Product, ours: Product, options: &Options) -> Result<Report> {
    let started = Instant::now();
    let lists = Lists::read(data_dir())?;
    let suites = read_suites(options)?;
    let temporary = tempfile::tempdir().context("cannot create a temporary directory")?;
    let dir = options.keep.clone().unwrap_or_else(|| temporary.path().to_owned());
    let certs_dir = dir.join("certs");
    std::fs::create_dir_all(&certs_dir)?;
    let certs = Certs::write(&certs_dir)?;
    let backends = Backends::start(&certs).await?;
    let world = Arc::new(World { backends, certs, dir, next_id: AtomicU32::new(1) });
    let mut report = Report { bootstraps: suites.len(), ..Report::default() };
    let mut faults = vec![];
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = JoinSet::new();
    for suite in suites {
        let (world, turns) = (world.clone(), turns.clone());
        let (envoy, ours) = (envoy.clone(), ours.clone());
        running.spawn(async move {
            let _turn = turns.acquire().await?;
            let name = suite.name.clone();
            both(&world, suite, &envoy, &ours).await.with_context(|| format!("bootstrap {name}"))
        });
    }
    while let Some(done) = running.join_next().await {
        match done? {
            Ok((name, envoy, ours)) => report.cases.extend(compare(&name, envoy, ours, &lists)),
            Err(error) => faults.push(format!("{error:#}")),
        }
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    report.cases.sort_by(|a, b| a.name.cmp(&b.name));
    if options.only.is_empty() && options.case.is_empty() {
        let known = |name: &str| report.cases.iter().any(|one| one.name == name);
        report.unknown = lists.names().filter(|name| !known(name)).map(str::to_owned).collect();
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

fn read_suites(options: &Options) -> Result<Vec<Suite>> {
    let folder = data_dir().join("cases");
    let mut suites = vec![];
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name.contains(&options.only) {
            suites.extend(read_suite(&path, name, options)?);
        }
    }
    if suites.is_empty() {
        bail!("no such cases in {}", folder.display());
    }
    suites.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(suites)
}

fn read_suite(path: &Path, name: String, options: &Options) -> Result<Option<Suite>> {
    let mut file: CaseFile = read_yaml(&path.join("cases.yaml"))?;
    let mut names: Vec<_> = file.cases.iter().map(|case| case.name.clone()).collect();
    names.sort_unstable();
    names.dedup();
    if names.len() != file.cases.len() || names.iter().any(String::is_empty) {
        bail!("{name}: cases need names of their own");
    }
    file.cases.retain(|case| case.name.contains(&options.case));
    let bootstrap = bootstrap::expand(read_yaml(&path.join("bootstrap.yaml"))?)
        .with_context(|| name.clone())?;
    Ok((!file.cases.is_empty()).then_some(Suite { name, bootstrap, file }))
}

async fn both(
    world: &Arc<World>,
    suite: Suite,
    envoy: &Product,
    ours: &Product,
) -> Result<(String, Outcomes, Outcomes)> {
    let (wanted, got) = tokio::join!(product(world, &suite, envoy), product(world, &suite, ours));
    let wanted = wanted?;
    if let Some(refusal) = wanted.get(START).filter(|start| start.of(Aspect::Start) != ["taken"]) {
        bail!("Envoy refuses it: {:?}", refusal.of(Aspect::Start));
    }
    Ok((suite.name, wanted, got?))
}

fn compare(suite: &str, envoy: Outcomes, mut ours: Outcomes, lists: &Lists) -> Vec<Compared> {
    let compared = envoy.into_iter().map(|(case, envoy)| {
        let name = format!("{suite}/{case}");
        let ours = ours.remove(&case).unwrap_or_default();
        let verdict = lists.judge(&name, &envoy.differing(&ours));
        Compared { name, envoy, ours, verdict }
    });
    compared.collect()
}

/// All cases of one bootstrap in one proxy.
async fn product(world: &Arc<World>, suite: &Suite, product: &Product) -> Result<Outcomes> {
    let dir = world.dir.join(&suite.name);
    tokio::fs::create_dir_all(&dir).await?;
    let log = dir.join(format!("{}.log", product.name));
    // A kept folder may have the log of an earlier run.
    let _ = tokio::fs::remove_file(&log).await;
    let mut config = suite.bootstrap.clone();
    let certs = world.certs.dir.display().to_string();
    bootstrap::place(&mut config, &world.backends, &certs, &log.display().to_string())?;
    let mut outcomes = Outcomes::new();
    let start = outcomes.entry(START.to_owned()).or_default();
    let mut running = match product.start(&dir, &config, &[]).await {
        Ok(running) => {
            start.add(Aspect::Start, "taken");
            running
        }
        Err(refusal) => {
            start.add(Aspect::Start, format!("{refusal:#}"));
            // What it cannot do is known now; the rest is worth comparing.
            match product.start(&dir, &config, &["--allow-unsupported"]).await {
                Ok(running) => running,
                Err(_) => return Ok(outcomes),
            }
        }
    };
    let names = names(world, &log, &running);
    let done = all(world, suite, &running).await?;
    let expected = done.values().flatten().flatten().map(|done| (done.client, done.logged));
    let mut lines = access_log(&log, expected.collect()).await;
    for (case, steps) in done {
        let mut outcome = Outcome::default();
        let exchange = suite.file.cases.iter().find(|one| one.name == case).context("a case")?;
        let parts = if exchange.steps.is_empty() {
            std::slice::from_ref(exchange)
        } else {
            &exchange.steps
        };
        for (index, (step, copies)) in parts.iter().zip(steps).enumerate() {
            let mut finished = vec![];
            for done in copies {
                finished.push(finish(world, step, done, &mut lines, &names).await);
            }
            let prefix = if parts.len() > 1 { format!("{}. ", index + 1) } else { String::new() };
            let merged = match finished.len() {
                1 => finished.swap_remove(0),
                _ => Outcome::merged(finished, step.distinct),
            };
            outcome.extend(merged, &prefix);
        }
        outcomes.insert(case, outcome);
    }
    if !suite.file.stats.is_empty() {
        let stats = outcomes.entry(STATS.to_owned()).or_default();
        let values = running.stats().await.unwrap_or_default();
        for name in &suite.file.stats {
            let value = values.get(name).map_or("absent", String::as_str);
            stats.add(Aspect::Stats, format!("{name}: {value}"));
        }
    }
    if !running.is_alive() {
        outcomes.entry(START.to_owned()).or_default().add(Aspect::Start, "ended by itself");
    }
    running.stop().await;
    Ok(outcomes)
}

fn names(world: &World, log: &Path, running: &Running) -> Names {
    let mut names = Names::default();
    // Each proxy has a log of its own, and Unix sockets beside it.
    names.text(log.display().to_string(), "<log>");
    names.text(world.dir.display().to_string(), "<dir>");
    // Sockets lie beside the log of their proxy.
    for product in ["envoy", "amime"] {
        names.text(format!("/{product}.log"), "/<log>");
    }
    // Envoy tells this machine's own address instead of a loopback client's.
    for address in machine_addresses() {
        names.text(address, "127.0.0.1");
    }
    for (name, port) in world.backends.ports() {
        names.port(port, &format!("<{name}>"));
    }
    for (name, port) in running.ports() {
        names.port(port, &format!("<{name}>"));
    }
    names
}

/// Addresses of this machine's interfaces.
fn machine_addresses() -> Vec<String> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let addresses = interfaces.filter_map(|interface| interface.address);
    let addresses = addresses.filter_map(|address| Some(address.as_sockaddr_in()?.ip()));
    addresses.filter(|ip| !ip.is_loopback()).map(|ip| ip.to_string()).collect()
}

/// Copies of steps of cases, as they were done.
type AllDone = BTreeMap<String, Vec<Vec<Done>>>;

async fn all(world: &Arc<World>, suite: &Suite, running: &Running) -> Result<AllDone> {
    let turns = Arc::new(Semaphore::new(if suite.file.sequential { 1 } else { usize::MAX >> 4 }));
    let mut cases = JoinSet::new();
    for case in &suite.file.cases {
        // Taken here, so that cases in sequence keep the order of the file.
        let turn = turns.clone().acquire_owned().await?;
        let (world, case) = (world.clone(), case.clone());
        let listeners = running.listeners.clone();
        cases.spawn(async move {
            let done = one_case(&world, &case, &listeners).await;
            drop(turn);
            anyhow::Ok((case.name.clone(), done.with_context(|| format!("case {}", case.name))?))
        });
    }
    let mut done = AllDone::new();
    while let Some(case) = cases.join_next().await {
        let (name, steps) = case??;
        done.insert(name, steps);
    }
    Ok(done)
}

async fn one_case(
    world: &Arc<World>,
    case: &Exchange,
    listeners: &BTreeMap<String, SocketAddr>,
) -> Result<Vec<Vec<Done>>> {
    if case.steps.is_empty() {
        return Ok(vec![copies(world, case, listeners).await?]);
    }
    let mut steps = vec![];
    for step in &case.steps {
        steps.push(copies(world, step, listeners).await?);
    }
    Ok(steps)
}

async fn copies(
    world: &Arc<World>,
    exchange: &Exchange,
    listeners: &BTreeMap<String, SocketAddr>,
) -> Result<Vec<Done>> {
    let name = exchange.to.as_deref().unwrap_or("http");
    // A proxy that does not have the listener has it nowhere else.
    let address = listeners.get(name).copied().unwrap_or(SocketAddr::from(([127, 0, 0, 1], 1)));
    tokio::time::sleep(Duration::from_millis(exchange.after_ms)).await;
    let one = || {
        let id = backend::id(world.next_id.fetch_add(1, Ordering::Relaxed));
        let (world, exchange) = (world.clone(), exchange.clone());
        async move { client::exchange(&exchange, id, address, &world.certs).await }
    };
    let mut done = vec![];
    for _ in 0..exchange.times.max(1) {
        let mut running = JoinSet::new();
        for index in 0..exchange.parallel.max(1) {
            let pause = Duration::from_millis(exchange.stagger_ms) * u32::try_from(index)?;
            let one = one();
            running.spawn(async move {
                tokio::time::sleep(pause).await;
                one.await
            });
        }
        while let Some(one) = running.join_next().await {
            done.push(one??);
        }
    }
    Ok(done)
}

/// Adds what only the proxy and the backends know, and replaces names.
async fn finish(
    world: &World,
    exchange: &Exchange,
    done: Done,
    log: &mut BTreeMap<SocketAddr, Vec<String>>,
    names: &Names,
) -> Outcome {
    let mut outcome = done.outcome;
    let upstream =
        world.backends.journal.take(&done.id, exchange.upstream, UPSTREAM_PATIENCE).await;
    // Mirrored requests come in any order.
    let mirrored = exchange.upstream > 1;
    let upstream = upstream.iter().enumerate();
    let mut requests: Vec<_> =
        upstream.map(|(index, lines)| request_lines(lines, index > 0 && !mirrored)).collect();
    if mirrored {
        requests.sort_unstable();
    }
    for line in requests.into_iter().flatten() {
        outcome.add(Aspect::Upstream, line);
    }
    for line in log.remove(&done.client).unwrap_or_default() {
        // Signatures within a TLS session that passes through vary in length.
        let passed = exchange.tls.is_some() && line.starts_with("- - ");
        let counts = line.find(" received=").filter(|_| passed);
        outcome.add(Aspect::Log, &line[..counts.unwrap_or(line.len())]);
    }
    outcome.lines.retain(|aspect, _| !exchange.ignore.contains(aspect));
    let mut names = names.clone();
    names.text(done.id, "<id>");
    names.port(done.client.port(), "<client>");
    for lines in outcome.lines.values_mut() {
        lines.iter_mut().for_each(|line| *line = names.apply(line));
    }
    outcome
}

/// A request as a backend saw it, without the case's id; `again` if it is not
/// the first attempt.
fn request_lines(lines: &[String], again: bool) -> Vec<String> {
    let lines = lines.iter().filter(|line| !line.starts_with("x-case: "));
    let lines = lines.map(|line| match line.split_once(": ") {
        // After the first attempt it is what the clock has left of the time.
        Some((name @ "x-envoy-expected-rq-timeout-ms", _)) if again => format!("{name}: *"),
        _ => line.clone(),
    });
    lines.collect()
}

/// Lines by the client's address, once all that are expected are there.
async fn access_log(
    path: &Path,
    expected: BTreeMap<SocketAddr, Logged>,
) -> BTreeMap<SocketAddr, Vec<String>> {
    let deadline = Instant::now() + LOG_PATIENCE;
    loop {
        let text = tokio::fs::read(path).await.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut lines = BTreeMap::<SocketAddr, Vec<String>>::new();
        let mut probes = BTreeSet::new();
        for line in text.lines() {
            let Some((address, line)) = line.split_once('|') else { continue };
            let Ok(address) = address.parse() else { continue };
            if line.contains(PROBE) {
                probes.insert(address);
            } else {
                lines.entry(address).or_default().push(line.to_owned());
            }
        }
        let complete = expected.iter().all(|(client, logged)| {
            lines.get(client).map_or(0, Vec::len) >= logged.responses
                && (!logged.probe || probes.contains(client))
        });
        if complete || Instant::now() > deadline {
            return lines;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
