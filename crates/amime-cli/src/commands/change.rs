//! `label` and `scale`: small changes to objects that are there.

use std::collections::BTreeMap;

use amime_api::Kind;
use amime_control::api::LabelRequest;
use anyhow::{Context, bail, ensure};
use clap::Args;

use super::apply::qualified;
use crate::args::Globals;
use crate::output;
use crate::session::Session;
use crate::target;

/// Arguments of `label`.
#[derive(Debug, Args)]
pub(crate) struct LabelArgs {
    /// Kind of the object, such as namespace
    kind: String,
    /// Name of the object
    name: String,
    /// `KEY=VALUE` to set, `KEY-` to remove
    #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
    labels: Vec<String>,
    /// Change labels that have another value
    #[arg(long)]
    overwrite: bool,
}

/// Sets and removes labels.
pub(crate) async fn label(globals: &Globals, args: LabelArgs) -> anyhow::Result<()> {
    let session = Session::of(globals)?;
    let kind = Kind::parse(&args.kind)?;
    let labels = args
        .labels
        .iter()
        .map(|text| parse_label(text))
        .collect::<anyhow::Result<BTreeMap<_, _>>>()?;
    let object = session
        .find(kind.plural(), globals.namespace(), &args.name)
        .await?
        .with_context(|| format!("{} \"{}\" not found", qualified(kind), args.name))?;
    for (key, value) in &labels {
        let current = object["metadata"]["labels"][key].as_str();
        if let (Some(current), Some(value)) = (current, value)
            && current != value
            && !args.overwrite
        {
            bail!("'{key}' already has a value ({current}), and --overwrite is false");
        }
    }
    let removes = labels.values().all(Option::is_none);
    let request = LabelRequest {
        kind: kind.plural().to_owned(),
        namespace: globals.namespace().to_owned(),
        name: args.name.clone(),
        labels,
    };
    let labelled = session.api().label(&request).await.map_err(|e| session.explain(e))?;
    let done = match (labelled.changed, removes) {
        (false, _) => "not labeled",
        (true, true) => "unlabeled",
        (true, false) => "labeled",
    };
    output::line(format_args!("{}/{} {done}", qualified(kind), args.name))?;
    Ok(())
}

fn parse_label(text: &str) -> anyhow::Result<(String, Option<String>)> {
    if let Some((key, value)) = text.split_once('=') {
        ensure!(!key.is_empty(), "{text:?} has no key before the =");
        return Ok((key.to_owned(), Some(value.to_owned())));
    }
    match text.strip_suffix('-') {
        Some(key) if !key.is_empty() => Ok((key.to_owned(), None)),
        _ => bail!("{text:?} is neither KEY=VALUE nor KEY-"),
    }
}

/// Arguments of `scale`.
#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    /// `KIND NAME` or `KIND/NAME`
    #[arg(required = true, value_name = "KIND NAME")]
    targets: Vec<String>,
    /// How many pods to run
    #[arg(long, value_name = "N")]
    replicas: u32,
}

/// Changes the number of pods of a workload.
pub(crate) async fn scale(globals: &Globals, args: ScaleArgs) -> anyhow::Result<()> {
    let session = Session::of(globals)?;
    for selection in target::selections(&args.targets)? {
        let kind = selection.kind;
        let scales = matches!(kind, Kind::Deployment | Kind::StatefulSet);
        ensure!(scales, "{} has no number of pods", kind.plural());
        ensure!(!selection.names.is_empty(), "the name of a {} is needed", kind.singular());
        for name in selection.names {
            session.scale(&name, globals.namespace(), args.replicas).await?;
            output::line(format_args!("{}/{name} scaled", qualified(kind)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_or_removed() {
        let pair = |text| parse_label(text).ok();
        assert_eq!(pair("a=b"), Some(("a".to_owned(), Some("b".to_owned()))));
        assert_eq!(pair("a="), Some(("a".to_owned(), Some(String::new()))));
        assert_eq!(pair("istio-injection-"), Some(("istio-injection".to_owned(), None)));
        assert_eq!(pair("=b"), None);
        assert_eq!(pair("a"), None);
    }
}
