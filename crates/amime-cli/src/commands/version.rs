//! `version`: of this program and of the mesh it talks to.

use amime_core::build;
use amime_local::status::{MeshStatus, Role};
use clap::Args;
use serde_json::{Value, json};

use crate::args::{Globals, Output};
use crate::output::{self, Document};
use crate::session::Session;

/// Arguments of `version`.
#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    /// Print the numbers only
    #[arg(short, long)]
    short: bool,
    /// Whether to ask the mesh, if one runs
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true,
        default_missing_value = "true", action = clap::ArgAction::Set, hide_default_value = true)]
    remote: bool,
    /// Format: json or yaml
    #[arg(short, long)]
    output: Option<Output>,
}

/// Prints the versions.
pub(crate) async fn run(globals: &Globals, args: &VersionArgs) -> anyhow::Result<()> {
    // No mesh is a usual state, not a failure.
    let mesh = if args.remote { Session::of(globals)?.status().await.ok() } else { None };
    match args.output {
        Some(Output::Json) => output::print(Document::Json.render(&document(mesh.as_ref()))?)?,
        Some(Output::Yaml) => output::print(Document::Yaml.render(&document(mesh.as_ref()))?)?,
        _ if mesh.is_none() && args.short => output::line(format_args!("{}", build::VERSION))?,
        _ => output::print(text(mesh.as_ref()))?,
    }
    Ok(())
}

fn text(mesh: Option<&MeshStatus>) -> String {
    let client = format!("client version: {}\n", build::VERSION);
    let Some(mesh) = mesh else { return client };
    let version = &mesh.version;
    format!(
        "{client}control plane version: {version}\ndata plane version: {version} ({} proxies)\n",
        proxies(mesh)
    )
}

fn document(mesh: Option<&MeshStatus>) -> Value {
    let mut document = json!({ "clientVersion": { "version": build::VERSION } });
    if let Some(mesh) = mesh {
        document["meshVersion"] =
            json!([{ "Component": "pilot", "Info": { "version": mesh.version } }]);
        document["dataPlaneVersion"] =
            json!([{ "IstioVersion": mesh.version, "Count": proxies(mesh) }]);
    }
    document
}

fn proxies(mesh: &MeshStatus) -> usize {
    let containers = mesh.pods.iter().flat_map(|pod| &pod.containers);
    containers.filter(|c| matches!(c.role, Role::Sidecar | Role::Gateway)).count()
}

#[cfg(test)]
mod tests {
    use amime_local::status::{ContainerReport, PodReport};

    use super::*;

    #[test]
    fn the_mesh_is_told_when_there_is_one() {
        let container = |role| ContainerReport { role, ..ContainerReport::default() };
        let pod = PodReport {
            containers: vec![container(Role::Application), container(Role::Sidecar)],
            ..PodReport::default()
        };
        let mesh = MeshStatus { version: "9".to_owned(), pods: vec![pod], ..Default::default() };
        assert!(text(Some(&mesh)).ends_with("data plane version: 9 (1 proxies)\n"));
        assert_eq!(text(None).lines().count(), 1);
        assert!(document(None).get("meshVersion").is_none());
    }
}
