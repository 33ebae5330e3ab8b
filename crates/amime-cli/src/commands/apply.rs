//! `apply` and `delete`: objects into the mesh and out of it.

use std::path::PathBuf;

use amime_api::{Kind, decode};
use amime_control::api::ClientError;
use amime_control::store::{Action, Apply, SourceFile};
use anyhow::{bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::args::Globals;
use crate::files::{self, Manifest};
use crate::session::Session;
use crate::{output, target};

/// Arguments of `apply`.
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// File or folder with manifests, or `-` for standard input; repeatable
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
}

/// Arguments of `delete`.
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// `KIND NAME…` or `KIND/NAME…`
    #[arg(value_name = "KIND NAME")]
    targets: Vec<String>,
    /// Delete the objects that these files name
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR", conflicts_with = "targets")]
    files: Vec<PathBuf>,
    /// Delete every object of the kind in the namespace
    #[arg(long)]
    all: bool,
    /// Do not fail on objects that are not there
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false,
        default_missing_value = "true", action = clap::ArgAction::Set, hide_default_value = true)]
    ignore_not_found: bool,
}

/// Applies manifests, all or none.
pub(crate) async fn apply(globals: &Globals, args: ApplyArgs) -> anyhow::Result<()> {
    let session = Session::of(globals)?;
    let files = files::read(&args.files)?;
    let files = files.into_iter().map(|Manifest { name, text }| SourceFile { name, text });
    let request = Apply { files: files.collect(), namespace: globals.namespace().to_owned() };
    match session.api().apply(&request).await {
        Ok(applied) => {
            applied.warnings.iter().for_each(|warning| output::warning(warning));
            for result in &applied.results {
                output::line(format_args!("{} {}", result.object, word(result.action)))?;
            }
            ensure!(!applied.results.is_empty(), "no objects passed to apply");
            Ok(())
        }
        Err(ClientError::Rejected(rejected)) => {
            rejected.warnings.iter().for_each(|warning| output::warning(warning));
            bail!("{}", rejected.errors.join("\n"))
        }
        Err(error) => Err(session.explain(error)),
    }
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Created => "created",
        Action::Configured => "configured",
        Action::Unchanged => "unchanged",
    }
}

/// One object to delete.
struct Doomed {
    kind: Kind,
    namespace: String,
    name: String,
}

/// Deletes objects; goes on after one that is not there, and fails then.
pub(crate) async fn delete(globals: &Globals, args: DeleteArgs) -> anyhow::Result<()> {
    let session = Session::of(globals)?;
    let mut faults = Vec::new();
    for doomed in doomed(&session, globals, &args).await? {
        let Doomed { kind, namespace, name } = &doomed;
        let namespace = kind.is_namespaced().then_some(namespace.as_str());
        match session.api().delete(kind.plural(), namespace, name).await {
            Ok(_) => output::line(format_args!("{} \"{name}\" deleted", qualified(*kind)))?,
            Err(ClientError::Refused { status, .. }) if status == 404 => {
                if !args.ignore_not_found {
                    faults.push(format!("{} \"{name}\" not found", qualified(*kind)));
                }
            }
            Err(error) => return Err(session.explain(error)),
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

async fn doomed(
    session: &Session,
    globals: &Globals,
    args: &DeleteArgs,
) -> anyhow::Result<Vec<Doomed>> {
    if !args.files.is_empty() {
        return of_files(globals, &args.files);
    }
    let mut doomed = Vec::new();
    for selection in target::selections(&args.targets)? {
        let kind = selection.kind;
        let mut names = selection.names;
        if names.is_empty() {
            ensure!(args.all, "names are needed, or --all");
            let objects = session.list(kind.plural(), Some(globals.namespace())).await?;
            names.extend(objects.iter().map(name_of));
        }
        let namespace = globals.namespace();
        doomed.extend(names.into_iter().map(|name| Doomed {
            kind,
            namespace: namespace.to_owned(),
            name,
        }));
    }
    Ok(doomed)
}

fn of_files(globals: &Globals, paths: &[PathBuf]) -> anyhow::Result<Vec<Doomed>> {
    let mut doomed = Vec::new();
    for Manifest { name, text } in files::read(paths)? {
        let decoded = decode::decode(&name, &text);
        let faults: Vec<String> = decoded.errors.iter().map(ToString::to_string).collect();
        ensure!(faults.is_empty(), "{}", faults.join("\n"));
        doomed.extend(decoded.resources.iter().map(|resource| {
            let namespace = match resource.namespace() {
                "" => globals.namespace(),
                namespace => namespace,
            };
            Doomed {
                kind: resource.kind(),
                namespace: namespace.to_owned(),
                name: resource.name().to_owned(),
            }
        }));
    }
    // What was applied last goes first, so that no route outlives its target.
    doomed.reverse();
    Ok(doomed)
}

fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// `virtualservice.networking.istio.io`, and `service` for the core group.
pub(crate) fn qualified(kind: Kind) -> String {
    match kind.group() {
        "" => kind.singular(),
        group => format!("{}.{group}", kind.singular()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_qualified_by_their_group() {
        assert_eq!(qualified(Kind::Service), "service");
        assert_eq!(qualified(Kind::VirtualService), "virtualservice.networking.istio.io");
    }
}
