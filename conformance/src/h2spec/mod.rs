//! The rules of HTTP/2 that the public h2spec suite checks, with a runner of
//! our own.
//!
//! A rule counts as kept under h2spec's conditions: mostly that an error of the
//! right kind comes back or the connection ends.
//!
//! Spec: <https://github.com/summerwind/h2spec>

mod case;
mod frames;
mod talk;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::backend::Backends;
use crate::case::read_yaml;
use crate::certs::Certs;
use crate::product::Product;
use crate::{bootstrap, data_dir};
use case::Case;
use talk::Failure;

/// A rule and how both proxies did.
#[derive(Clone, Debug)]
struct Compared {
    name: String,
    envoy: Result<(), Failure>,
    ours: Result<(), Failure>,
}

/// Results of all rules.
#[derive(Clone, Debug)]
pub struct H2Report {
    rules: Vec<Compared>,
}

impl H2Report {
    /// Whether we keep as many rules as Envoy.
    pub fn passed(&self) -> bool {
        let (envoy, ours) = self.kept();
        ours >= envoy
    }

    /// Rules kept by Envoy and by us.
    pub fn kept(&self) -> (usize, usize) {
        let count = |side: fn(&Compared) -> bool| self.rules.iter().filter(|one| side(one)).count();
        (count(|one| one.envoy.is_ok()), count(|one| one.ours.is_ok()))
    }
}

impl fmt::Display for H2Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |kept: &Result<(), Failure>| if kept.is_ok() { "keeps" } else { "BREAKS" };
        for one in self.rules.iter().filter(|one| one.envoy.is_err() || one.ours.is_err()) {
            writeln!(
                f,
                "envoy {:<6}  ours {:<6}  {}",
                word(&one.envoy),
                word(&one.ours),
                one.name
            )?;
            for (side, kept) in [("envoy", &one.envoy), ("ours", &one.ours)] {
                if let Err(failure) = kept {
                    writeln!(f, "    {side}: {failure}")?;
                }
            }
        }
        let (envoy, ours) = self.kept();
        writeln!(f, "of {} rules Envoy keeps {envoy}, we keep {ours}", self.rules.len())
    }
}

/// Holds both proxies to the rules.
///
/// # Errors
/// When the rules cannot be read or a proxy does not start.
pub fn h2spec(envoy: &Product, ours: &Product, only: &str) -> Result<H2Report> {
    envoy.check()?;
    amime_identity::install_default_provider();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(envoy, ours, only))
}

async fn run(envoy: &Product, ours: &Product, only: &str) -> Result<H2Report> {
    let folder = data_dir().join("h2spec");
    let mut cases: Vec<Case> = read_yaml(&folder.join("cases.yaml"))?;
    cases.retain(|case| name(case).contains(only));
    let dir = tempfile::tempdir().context("cannot create a temporary directory")?;
    let backends = Backends::start(&Certs::write(dir.path())?).await?;
    let mut config = bootstrap::expand(read_yaml(&folder.join("bootstrap.yaml"))?)?;
    let log = dir.path().join("log").display().to_string();
    bootstrap::place(&mut config, &backends, "", &log)?;
    let cases = Arc::new(cases);
    let mut results = vec![];
    for product in [envoy, ours] {
        results.push(all(&cases, product, dir.path(), &config).await?);
    }
    let ours = results.pop().unwrap_or_default();
    let envoy = results.pop().unwrap_or_default();
    let rules = cases.iter().zip(envoy).zip(ours);
    let rules = rules.map(|((case, envoy), ours)| Compared { name: name(case), envoy, ours });
    Ok(H2Report { rules: rules.collect() })
}

fn name(case: &Case) -> String {
    format!("{}: {}", case.section, case.name)
}

async fn all(
    cases: &Arc<Vec<Case>>,
    product: &Product,
    dir: &Path,
    config: &serde_json::Value,
) -> Result<Vec<Result<(), Failure>>> {
    let running = product.start(dir, config, &[]).await?;
    let address = *running.listeners.get("http").context("no listener")?;
    let mut talks = JoinSet::new();
    for index in 0..cases.len() {
        let cases = cases.clone();
        talks.spawn(async move { (index, talk::run(&cases[index], address).await) });
    }
    let mut results = vec![Ok(()); cases.len()];
    while let Some(done) = talks.join_next().await {
        let (index, kept) = done?;
        results[index] = kept;
    }
    running.stop().await;
    Ok(results)
}
