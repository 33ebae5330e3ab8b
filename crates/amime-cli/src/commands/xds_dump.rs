//! `xds-dump`: the configuration of one proxy from files, without a mesh, by
//! the code that the discovery server runs.

use std::path::{Path, PathBuf};

use amime_translate::Dump;
use amime_translate::offline::{NamedText, translate};
use anyhow::{Context, ensure};
use clap::Args;
use prost::{Message, Name};
use serde_json::{Value, json};

use crate::files::{self, Manifest};
use crate::output;

/// File with mesh-wide settings among the configuration.
const MESH_FILE: &str = "mesh.yaml";

/// Arguments of `xds-dump`.
#[derive(Debug, Args)]
pub(crate) struct XdsDumpArgs {
    /// Folder with Istio and Kubernetes objects, and optionally `mesh.yaml`
    #[arg(long, value_name = "DIR")]
    config: PathBuf,
    /// JSON file that describes the proxy: type, ips, id, labels, metadata …
    #[arg(long, value_name = "FILE")]
    proxy: PathBuf,
    /// Fail when an object cannot be read, instead of leaving it out
    #[arg(long)]
    strict: bool,
}

/// Prints listeners, routes, clusters, endpoints and secrets as one object.
pub(crate) fn run(args: &XdsDumpArgs) -> anyhow::Result<()> {
    let name = args.proxy.display();
    let proxy =
        std::fs::read_to_string(&args.proxy).with_context(|| format!("cannot read {name}"))?;
    let manifests = files::read(std::slice::from_ref(&args.config))?;
    let (mesh, config): (Vec<&Manifest>, Vec<&Manifest>) =
        manifests.iter().partition(|manifest| is_mesh_file(manifest));
    let config: Vec<NamedText<'_>> = config.into_iter().map(named).collect();
    let translated = translate(&config, mesh.first().copied().map(named), &proxy)?;
    let skipped: Vec<String> = translated.skipped.iter().map(ToString::to_string).collect();
    ensure!(skipped.is_empty() || !args.strict, "{}", skipped.join("\n"));
    // The control plane leaves such objects out as well, and goes on.
    skipped.iter().for_each(|fault| output::warning(fault));
    output::print(output::json(&document(&translated.dump)?)?)?;
    Ok(())
}

fn is_mesh_file(manifest: &Manifest) -> bool {
    Path::new(&manifest.name).file_name().is_some_and(|file| file == MESH_FILE)
}

fn named(manifest: &Manifest) -> NamedText<'_> {
    NamedText { name: &manifest.name, text: &manifest.text }
}

fn document(dump: &Dump) -> anyhow::Result<Value> {
    Ok(json!({
        "listeners": all(&dump.listeners)?,
        "routes": all(&dump.routes)?,
        "clusters": all(&dump.clusters)?,
        "endpoints": all(&dump.endpoints)?,
        "secrets": all(&dump.secrets)?,
        "extensions": all(&dump.extensions)?,
    }))
}

fn all<M: Message + Name>(messages: &[M]) -> anyhow::Result<Vec<Value>> {
    messages.iter().map(|message| Ok(amime_xds::json::to_json(message)?)).collect()
}
