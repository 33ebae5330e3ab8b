//! Compares our proxy with Envoy under the same bootstrap and load.
//!
//! Owns the scenarios (plain HTTP/1.1, an mTLS pair), the alternation of
//! rounds and the medians; starting proxies, offering load and printing
//! live in the modules. The proxy under test runs alone on CPU 0, load and
//! backend on CPU 1, so that one's cost never hides in the other's.

mod backend;
mod bootstrap;
mod certs;
mod load;
mod process;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;

use process::{Product, Running};
use report::{Report, Round};

/// Proxies' CPU, and the one shared by load generator and backend.
const PROXY_CPU: usize = 0;
const LOAD_CPU: usize = 1;

/// Compare the proxy with Envoy: requests per CPU-second, latency, memory.
#[derive(Debug, Parser)]
struct Args {
    /// Envoy's binary; default: `envoy` on PATH.
    #[arg(long, env = "AMIME_ENVOY", default_value = "envoy")]
    envoy: PathBuf,
    /// Our proxy's binary; default: `amime-proxy` beside this program.
    #[arg(long, env = "AMIME_PROXY")]
    proxy: Option<PathBuf>,
    /// Rounds of each scenario and product, alternating; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of saturating load in a round.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Keep-alive connections of the load generator.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Requests a second of the latency measurement.
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// Where the figures are written as JSON.
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    /// Only scenarios whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
}

/// One thing to measure: how many proxies in a row, and what is between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scenario {
    Plain,
    MtlsPair,
}

impl Scenario {
    const ALL: [Self; 2] = [Self::Plain, Self::MtlsPair];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "http/1.1 plain",
            Self::MtlsPair => "http/1.1 mTLS pair",
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let products = [
        Product { name: "envoy", binary: args.envoy.clone() },
        Product { name: "amime", binary: our_proxy(args.proxy.clone())? },
    ];
    for product in &products {
        product.check()?;
    }
    let dir = tempfile::tempdir().context("cannot create a temporary directory")?;
    let certs = certs::write(dir.path())?;
    process::pin_self(LOAD_CPU)?;
    let backend = backend::start()?;
    let mut report = Report::new(args.rounds, args.seconds, args.rate);
    for scenario in Scenario::ALL.into_iter().filter(|s| s.name().contains(&args.only)) {
        for round in 0..args.rounds {
            for product in &products {
                eprint!(
                    "\r{} · {} · round {}/{}   ",
                    scenario.name(),
                    product.name,
                    round + 1,
                    args.rounds
                );
                let config = bootstrap::Chain { backend, certs: &certs, dir: dir.path() };
                let measured = measure(&args, scenario, product, &config)
                    .with_context(|| format!("{} as {}", product.name, scenario.name()))?;
                report.add(scenario.name(), product.name, measured);
            }
        }
    }
    eprintln!();
    report.print();
    report.write_json(&args.json)
}

fn our_proxy(given: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path);
    }
    let beside = std::env::current_exe()?.with_file_name("amime-proxy");
    if !beside.exists() {
        bail!(
            "{} is not built; run `cargo build --release -p amime-proxy` first",
            beside.display()
        );
    }
    Ok(beside)
}

/// Starts fresh proxies, so that no round inherits another's warm state.
fn measure(
    args: &Args,
    scenario: Scenario,
    product: &Product,
    chain: &bootstrap::Chain<'_>,
) -> Result<Round> {
    let (configs, entry) = match scenario {
        Scenario::Plain => chain.plain()?,
        Scenario::MtlsPair => chain.mtls_pair()?,
    };
    let mut proxies = Vec::new();
    for config in &configs {
        proxies.push(product.start(config, PROXY_CPU)?);
    }
    load::wait_ready(entry, Duration::from_secs(20))?;
    let idle_kib = proxies.iter().map(Running::rss_kib).sum::<Result<u64>>()?;
    load::saturate(entry, args.connections, Duration::from_millis(500))?;
    let before = cpu_seconds(&proxies)?;
    let requests = load::saturate(entry, args.connections, Duration::from_secs_f64(args.seconds))?;
    let cpu = cpu_seconds(&proxies)? - before;
    let latency =
        load::at_rate(entry, args.connections, args.rate, Duration::from_secs_f64(args.seconds))?;
    let loaded_kib = proxies.iter().map(Running::rss_kib).sum::<Result<u64>>()?;
    Ok(Round {
        requests_per_cpu_second: requests as f64 / cpu,
        p50_us: latency.value_at_quantile(0.50),
        p99_us: latency.value_at_quantile(0.99),
        idle_rss_kib: idle_kib,
        loaded_rss_kib: loaded_kib,
    })
}

fn cpu_seconds(proxies: &[Running]) -> Result<f64> {
    proxies.iter().map(Running::cpu_seconds).sum()
}
