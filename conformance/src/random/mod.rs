//! Generated route tables: both proxies must choose the same route and send
//! the request on, or answer it, in the same way.
//!
//! A run starts both proxies once for many tables, each with a listener of its
//! own, and asks each table many requests. What differs is made smaller, with
//! candidates side by side in one start, until nothing more can go.

mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::backend::Backends;
use crate::bootstrap;
use crate::certs::Certs;
use crate::product::Product;
use crate::wire::{Framing, Reader};
use table::Request;

/// Tables of one start.
const TABLES: usize = 40;
/// Requests for each table.
const REQUESTS: usize = 100;
/// Differences after which a run has shown enough.
const ENOUGH: usize = 3;
/// Starts spent on making one difference smaller.
const SHRINK_STARTS: usize = 40;
/// Candidates of one start.
const CANDIDATES: usize = 60;
const PATIENCE: Duration = Duration::from_secs(10);

/// How much is compared.
#[derive(Clone, Copy, Debug)]
pub struct RandomOptions {
    /// Decides all that is generated.
    pub seed: u64,
    /// Requests, rounded up to whole starts.
    pub count: usize,
}

/// A table with a request that the proxies treat differently.
#[derive(Clone, Debug)]
struct Difference {
    table: Value,
    request: Request,
    envoy: String,
    ours: String,
}

/// Results of a run.
#[derive(Clone, Debug)]
pub struct RandomReport {
    seed: u64,
    requests: usize,
    seconds: f64,
    /// How often each kind of answer came from Envoy.
    statuses: BTreeMap<String, usize>,
    differences: Vec<Difference>,
}

impl RandomReport {
    /// Whether both agree on everything.
    pub fn passed(&self) -> bool {
        self.differences.is_empty()
    }
}

impl fmt::Display for RandomReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for one in &self.differences {
            writeln!(f, "DIFFERS with this table:")?;
            writeln!(f, "{}", serde_saphyr::to_string(&one.table).map_err(|_| fmt::Error)?)?;
            writeln!(f, "{}", String::from_utf8_lossy(&one.request.bytes()).trim_end())?;
            writeln!(f, "  envoy  {}", one.envoy)?;
            writeln!(f, "  ours   {}", one.ours)?;
        }
        let statuses: Vec<_> =
            self.statuses.iter().map(|(status, count)| format!("{count} of {status}")).collect();
        writeln!(f, "Envoy's answers: {}", statuses.join(", "))?;
        writeln!(
            f,
            "seed {}: {} requests in {:.1} s, {} a minute: {}",
            self.seed,
            self.requests,
            self.seconds,
            (self.requests as f64 / self.seconds * 60.0).round(),
            if self.passed() { "all agree" } else { "some differ" },
        )
    }
}

/// Compares generated tables.
///
/// # Errors
/// When a proxy does not start with one.
pub fn random(envoy: &Product, ours: &Product, options: RandomOptions) -> Result<RandomReport> {
    envoy.check()?;
    amime_identity::install_default_provider();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(envoy, ours, options))
}

/// What all starts share.
struct World<'a> {
    envoy: &'a Product,
    ours: &'a Product,
    backends: Backends,
    dir: &'a Path,
}

async fn run(envoy: &Product, ours: &Product, options: RandomOptions) -> Result<RandomReport> {
    let dir = tempfile::tempdir().context("cannot create a temporary directory")?;
    let backends = Backends::start(&Certs::write(dir.path())?).await?;
    let world = World { envoy, ours, backends, dir: dir.path() };
    let mut rng = Rng::with_seed(options.seed);
    let started = Instant::now();
    let mut report = RandomReport {
        seed: options.seed,
        requests: 0,
        seconds: 0.0,
        statuses: BTreeMap::new(),
        differences: vec![],
    };
    while report.requests < options.count && report.differences.len() < ENOUGH {
        let asked: Vec<_> = (0..TABLES)
            .map(|_| {
                let table = table::table(&mut rng);
                let requests = (0..REQUESTS).map(|_| table::request(&mut rng, &table)).collect();
                (table, requests)
            })
            .collect();
        let answers = world.ask(&asked).await?;
        report.requests += TABLES * REQUESTS;
        for answer in answers.iter().flatten() {
            let status = answer.0.split(' ').next().unwrap_or_default();
            *report.statuses.entry(status.to_owned()).or_default() += 1;
        }
        for found in differences(&asked, answers).into_iter().take(ENOUGH) {
            report.differences.push(world.shrink(found).await?);
        }
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// A table and what it is asked.
type Asked = (Value, Vec<Request>);
/// Envoy's answer and ours.
type Pair = (String, String);

/// The first difference of each table.
fn differences(asked: &[Asked], answers: Vec<Vec<Pair>>) -> Vec<Difference> {
    let mut found = vec![];
    for ((table, requests), answers) in asked.iter().zip(answers) {
        let mut pairs = requests.iter().zip(answers);
        if let Some((request, (envoy, ours))) = pairs.find(|(_, (envoy, ours))| envoy != ours) {
            found.push(Difference { table: table.clone(), request: request.clone(), envoy, ours });
        }
    }
    found
}

impl World<'_> {
    /// Answers of both proxies, in the order of tables and requests.
    async fn ask(&self, asked: &[Asked]) -> Result<Vec<Vec<Pair>>> {
        let mut listeners = Map::new();
        for (index, (table, _)) in asked.iter().enumerate() {
            let mut hcm = table.clone();
            // Nobody reads it, and it is most of what a proxy would do here.
            hcm["access_log"] = json!([]);
            listeners.insert(format!("t{index}"), json!({"hcm": hcm}));
        }
        let short = json!({"listeners": listeners, "clusters": {"a": null, "b": null}});
        let mut config = bootstrap::expand(short)?;
        bootstrap::place(&mut config, &self.backends, "", "/dev/null")?;
        let (envoy, ours) = tokio::join!(
            self.ask_one(self.envoy, &config, asked),
            self.ask_one(self.ours, &config, asked)
        );
        let pairs = envoy?.into_iter().zip(ours?);
        Ok(pairs.map(|(envoy, ours)| envoy.into_iter().zip(ours).collect()).collect())
    }

    async fn ask_one(
        &self,
        product: &Product,
        config: &Value,
        asked: &[Asked],
    ) -> Result<Vec<Vec<String>>> {
        let running = product.start(self.dir, config, &[]).await?;
        let mut asking = JoinSet::new();
        for (index, (_, requests)) in asked.iter().enumerate() {
            let name = format!("t{index}");
            let address = *running.listeners.get(&name).context("no listener")?;
            let requests = requests.clone();
            asking.spawn(async move { (index, conversation(address, &requests).await) });
        }
        let mut answers = vec![vec![]; asked.len()];
        while let Some(done) = asking.join_next().await {
            let (index, one) = done?;
            answers[index] = one;
        }
        running.stop().await;
        Ok(answers)
    }

    /// The smallest table and request that still show a difference.
    async fn shrink(&self, mut found: Difference) -> Result<Difference> {
        for _ in 0..SHRINK_STARTS {
            let mut smaller: Vec<Asked> = table::smaller(&found.table)
                .into_iter()
                .map(|table| (table, vec![found.request.clone()]))
                .collect();
            let requests = found.request.smaller();
            smaller.extend(requests.into_iter().map(|one| (found.table.clone(), vec![one])));
            smaller.truncate(CANDIDATES);
            let answers = self.ask(&smaller).await?;
            match differences(&smaller, answers).into_iter().next() {
                Some(smaller) => found = smaller,
                None => break,
            }
        }
        Ok(found)
    }
}

/// Answers to requests on one connection, or on as many as it takes.
async fn conversation(address: SocketAddr, requests: &[Request]) -> Vec<String> {
    let mut connection = None;
    let mut answers = vec![];
    for request in requests {
        let answered = timeout(PATIENCE, answer(address, &mut connection, request)).await;
        answers.push(match answered {
            Ok(Some(answer)) => answer,
            Ok(None) => "closed".to_owned(),
            Err(_) => "silence".to_owned(),
        });
        if !matches!(answers.last(), Some(answer) if answer.starts_with(['2', '3', '4', '5'])) {
            connection = None;
        }
    }
    answers
}

async fn answer(
    address: SocketAddr,
    connection: &mut Option<Reader<TcpStream>>,
    request: &Request,
) -> Option<String> {
    let mut reader = match connection.take() {
        Some(reader) => reader,
        None => Reader::new(TcpStream::connect(address).await.ok()?),
    };
    reader.stream.write_all(&request.bytes()).await.ok()?;
    let head = reader.head().await.ok()??;
    let body = reader.body(head.framing(Framing::UntilClose)).await;
    let field = |name| head.field(name).unwrap_or("-");
    let answer = format!(
        "{} route={} location={} body={}",
        head.status(),
        field("x-route"),
        field("location"),
        String::from_utf8_lossy(&body.bytes),
    );
    if !head.lists("connection", "close") {
        *connection = Some(reader);
    }
    Some(answer)
}
