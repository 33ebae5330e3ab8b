//! `status`: what runs, and what memory it takes.

use amime_local::status::{ContainerReport, MeshStatus, PodReport, Role};
use clap::Args;
use serde_json::to_value;

use crate::args::{Globals, Output};
use crate::output::{self, Document};
use crate::session::Session;
use crate::table::Table;

const PADDING: usize = 3;

/// Arguments of `status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Format: short, json or yaml
    #[arg(short, long)]
    output: Option<Output>,
}

/// Prints the processes and the sums.
pub(crate) async fn run(globals: &Globals, args: &StatusArgs) -> anyhow::Result<()> {
    let mesh = Session::of(globals)?.status().await?;
    match args.output {
        Some(Output::Json) => output::print(Document::Json.render(&to_value(&mesh)?)?)?,
        Some(Output::Yaml) => output::print(Document::Yaml.render(&to_value(&mesh)?)?)?,
        _ => output::print(text(&mesh))?,
    }
    Ok(())
}

fn text(mesh: &MeshStatus) -> String {
    let uptime = crate::age::human(std::time::Duration::from_secs(mesh.uptime_s));
    let head = format!("{}, up for {uptime}, state in {}\n", mesh.url, mesh.state_dir);
    let faults: String = mesh
        .pods
        .iter()
        .filter(|pod| !pod.ready)
        .map(|pod| format!("{}/{}: {} {}\n", pod.namespace, pod.name, pod.state, pod.message))
        .collect();
    let gap = if faults.is_empty() { "" } else { "\n" };
    format!("{head}\n{}\n{}{gap}{faults}", processes(mesh), sums(mesh))
}

/// A row for each process, the mesh's own first.
fn processes(mesh: &MeshStatus) -> Table {
    let header = ["COMPONENT", "NAMESPACE", "POD", "CONTAINER", "STATE", "RESTARTS", "RSS"];
    let mut table = Table::new(PADDING, header);
    let supervisor = megabytes(mesh.supervisor_rss_bytes);
    table.row(["supervisor", "", "", "", "Running", "0", supervisor.as_str()]);
    let mut rows: Vec<(&PodReport, &ContainerReport)> =
        mesh.pods.iter().flat_map(|pod| pod.containers.iter().map(move |c| (pod, c))).collect();
    rows.sort_by_key(|(pod, container)| (rank(container.role), &pod.namespace, &pod.name));
    for (pod, container) in rows {
        let waits = container.state == "Running" && !container.ready;
        table.row([
            name(container.role),
            &pod.namespace,
            &pod.name,
            &container.name,
            if waits { "Starting" } else { &container.state },
            &container.restarts.to_string(),
            &megabytes(container.rss_bytes),
        ]);
    }
    table
}

fn sums(mesh: &MeshStatus) -> Table {
    let totals = &mesh.totals;
    let mut table = Table::headless(PADDING);
    let pods = format!("{} of {} pods ready", totals.ready_pods, totals.pods);
    table.row(["mesh", &megabytes(totals.mesh_rss_bytes), &pods]);
    let meshed = format!("{} with a sidecar", totals.meshed_pods);
    table.row(["applications", &megabytes(totals.application_rss_bytes), &meshed]);
    table.row(["largest sidecar", &megabytes(totals.largest_sidecar_rss_bytes), ""]);
    table
}

fn rank(role: Role) -> u8 {
    match role {
        Role::ControlPlane => 0,
        Role::Gateway => 1,
        Role::Sidecar => 2,
        Role::Application => 3,
    }
}

fn name(role: Role) -> &'static str {
    match role {
        Role::ControlPlane => "control plane",
        Role::Gateway => "gateway",
        Role::Sidecar => "sidecar",
        Role::Application => "application",
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use amime_local::status::Totals;
    use expect_test::expect;

    use super::*;

    fn container(name: &str, role: Role, rss_bytes: u64) -> ContainerReport {
        ContainerReport {
            name: name.to_owned(),
            role,
            state: "Running".to_owned(),
            ready: true,
            restarts: 0,
            rss_bytes,
        }
    }

    fn pod(namespace: &str, name: &str, containers: Vec<ContainerReport>) -> PodReport {
        PodReport {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ready: true,
            containers,
            ..PodReport::default()
        }
    }

    #[test]
    fn the_mesh_comes_first_and_what_is_wrong_last() {
        let reviews = vec![
            container("reviews", Role::Application, 4_000_000),
            container("istio-proxy", Role::Sidecar, 9_500_000),
        ];
        let istiod = vec![container("discovery", Role::ControlPlane, 25_000_000)];
        let mut mesh = MeshStatus {
            url: "http://localhost:8080".to_owned(),
            state_dir: "state".to_owned(),
            uptime_s: 5,
            supervisor_rss_bytes: 12_000_000,
            pods: vec![
                pod("default", "reviews-v1", reviews),
                pod("istio-system", "istiod", istiod),
            ],
            totals: Totals {
                pods: 2,
                ready_pods: 1,
                meshed_pods: 1,
                mesh_rss_bytes: 46_500_000,
                largest_sidecar_rss_bytes: 9_500_000,
                application_rss_bytes: 4_000_000,
                ..Totals::default()
            },
            ..MeshStatus::default()
        };
        mesh.pods[0].ready = false;
        mesh.pods[0].containers[1].ready = false;
        mesh.pods[0].state = "Running".to_owned();
        mesh.pods[0].message = "container istio-proxy is not ready".to_owned();
        expect![[r#"
            http://localhost:8080, up for 5s, state in state

            COMPONENT       NAMESPACE      POD          CONTAINER     STATE      RESTARTS   RSS
            supervisor                                                Running    0          12.0 MB
            control plane   istio-system   istiod       discovery     Running    0          25.0 MB
            sidecar         default        reviews-v1   istio-proxy   Starting   0          9.5 MB
            application     default        reviews-v1   reviews       Running    0          4.0 MB

            mesh              46.5 MB   1 of 2 pods ready
            applications      4.0 MB    1 with a sidecar
            largest sidecar   9.5 MB    

            default/reviews-v1: Running container istio-proxy is not ready
        "#]]
        .assert_eq(&text(&mesh));
    }
}
