//! `proxy-status`: asks every istiod which proxies it serves.

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::Value;
use time::OffsetDateTime;

use crate::args::{Globals, Output};
use crate::output::{self, Document};
use crate::proxy_status::{self, Answer};
use crate::session::Session;
use crate::target::Pod;

/// Port of istiod's monitoring and debug pages.
const MONITORING_PORT: u16 = 15014;
const SYNCZ: &str = "/debug/syncz";

/// Arguments of `proxy-status`.
#[derive(Debug, Args)]
pub(crate) struct ProxyStatusArgs {
    /// Only this proxy, as `[TYPE/]NAME[.NAMESPACE]`
    pod: Option<String>,
    /// Show the state of every type; `-v 1` is understood too
    #[arg(short, long, num_args = 0..=1, default_value_t = 0, default_missing_value = "1",
        hide_default_value = true, value_name = "LEVEL")]
    verbosity: u8,
    /// Format: short, json or yaml
    #[arg(short, long)]
    output: Option<Output>,
}

/// Prints where proxies stand.
pub(crate) async fn run(globals: &Globals, args: ProxyStatusArgs) -> anyhow::Result<()> {
    let session = Session::of(globals)?;
    let mut answers = answers(&session, globals).await?;
    if let Some(text) = &args.pod {
        let Pod { namespace, name } = session.pod(globals.namespace(), text).await?;
        let proxy = format!("{name}.{namespace}");
        for answer in &mut answers {
            answer.statuses.retain(|status| status["proxy"] == proxy.as_str());
        }
        let connected = answers.iter().any(|answer| !answer.statuses.is_empty());
        ensure!(connected, "proxy {proxy} is not connected to a control plane");
    }
    let namespace = globals.namespace.as_deref().filter(|_| args.pod.is_none());
    let all = || answers.iter().flat_map(|answer| answer.statuses.clone()).collect::<Value>();
    match args.output {
        Some(Output::Json) => output::print(Document::Json.render(&all())?)?,
        Some(Output::Yaml) => output::print(Document::Yaml.render(&all())?)?,
        Some(Output::Name) => bail!("output format \"name\" not supported"),
        _ if args.verbosity > 0 || args.pod.is_some() => {
            output::print(proxy_status::verbose(&answers, namespace, OffsetDateTime::now_utc()))?;
        }
        _ => output::print(proxy_status::short(&answers, namespace))?,
    }
    for error in proxy_status::errors(&answers, namespace) {
        output::warning(&error);
    }
    Ok(())
}

/// What every istiod says.
async fn answers(session: &Session, globals: &Globals) -> anyhow::Result<Vec<Answer>> {
    let mut answers = Vec::new();
    for pod in session.control_planes(&globals.istio_namespace).await? {
        let text = session.http_get(&pod, MONITORING_PORT, SYNCZ).await?;
        let statuses: Value = serde_json::from_str(&text)
            .with_context(|| format!("{SYNCZ} of {} is not JSON", pod.name))?;
        let statuses = statuses.as_array().cloned().unwrap_or_default();
        answers.push(Answer { istiod: pod.name, statuses });
    }
    ensure!(!answers.is_empty(), "no control plane is ready in {}", globals.istio_namespace);
    Ok(answers)
}
