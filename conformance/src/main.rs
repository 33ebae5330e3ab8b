//! The conformance suites as a program.

use std::path::PathBuf;
use std::process::ExitCode;

use amime_conformance::{Options, Product, RandomOptions, cases, h2spec, random};
use amime_proxy::ProxyArgs;
use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// Hold Envoy and our proxy to the same requests.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Debug, Subcommand)]
enum Suite {
    /// Written cases: all that can be seen from outside is compared.
    Cases(Cases),
    /// Generated route tables: the same route must be chosen.
    Random(Random),
    /// The rules of HTTP/2 that each keeps.
    H2spec(H2spec),
    /// Our proxy, as the suites start it.
    #[command(hide = true)]
    Proxy(Box<ProxyArgs>),
}

#[derive(Args, Debug)]
struct Cases {
    #[command(flatten)]
    proxies: Proxies,
    /// Only bootstraps whose name contains this; `BOOTSTRAP/CASE` for one case.
    #[arg(long, default_value = "")]
    only: String,
    /// Print pending and intended differences as well.
    #[arg(long)]
    diff: bool,
    /// Print Envoy's side of every case.
    #[arg(long)]
    show: bool,
    /// Take pending cases that agree off the list.
    #[arg(long)]
    shrink: bool,
    /// Leave expanded bootstraps, access logs and errors in this folder.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Random {
    #[command(flatten)]
    proxies: Proxies,
    /// Decides all that is generated; default: any.
    #[arg(long)]
    seed: Option<u64>,
    /// Requests.
    #[arg(long, default_value_t = 20_000)]
    count: usize,
}

#[derive(Args, Debug)]
struct H2spec {
    #[command(flatten)]
    proxies: Proxies,
    /// Only rules whose section or name contains this.
    #[arg(long, default_value = "")]
    only: String,
}

#[derive(Args, Debug)]
struct Proxies {
    /// Envoy's binary; default: `envoy` on PATH.
    #[arg(long, env = "AMIME_ENVOY", default_value = "envoy")]
    envoy: PathBuf,
    /// Our proxy's binary; default: this program.
    #[arg(long, env = "AMIME_PROXY")]
    proxy: Option<PathBuf>,
}

impl Proxies {
    fn products(&self) -> Result<(Product, Product)> {
        let ours = match &self.proxy {
            Some(binary) => Product::ours(binary, &[]),
            None => Product::ours(&std::env::current_exe()?, &["proxy"]),
        };
        Ok((Product::envoy(&self.envoy), ours))
    }
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().suite {
        Suite::Cases(arguments) => run_cases(arguments),
        Suite::Random(arguments) => {
            let (envoy, ours) = arguments.proxies.products()?;
            let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
            println!("seed {seed}");
            let options = RandomOptions { seed, count: arguments.count };
            let report = random(&envoy, &ours, options)?;
            print!("{report}");
            Ok(exit_code(report.passed()))
        }
        Suite::H2spec(arguments) => {
            let (envoy, ours) = arguments.proxies.products()?;
            let report = h2spec(&envoy, &ours, &arguments.only)?;
            print!("{report}");
            Ok(exit_code(report.passed()))
        }
        Suite::Proxy(arguments) => {
            amime_proxy::run(*arguments)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run_cases(arguments: Cases) -> Result<ExitCode> {
    let (envoy, ours) = arguments.proxies.products()?;
    let (only, case) = arguments.only.split_once('/').unwrap_or((&arguments.only, ""));
    let options = Options { only: only.into(), case: case.into(), keep: arguments.keep };
    let mut report = cases(&envoy, &ours, &options)?;
    if arguments.shrink {
        report.shrink_pending()?;
    }
    if arguments.diff {
        report = report.with_all_differences();
    }
    if arguments.show {
        report = report.with_envoy();
    }
    print!("{report}");
    Ok(exit_code(report.passed()))
}

fn exit_code(passed: bool) -> ExitCode {
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
