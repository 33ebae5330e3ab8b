//! `dashboard`: pages inside the mesh, brought to this machine.

use std::net::Ipv4Addr;

use anyhow::Context;
use clap::{Args, Subcommand};
use tokio::net::TcpListener;

use crate::args::Globals;
use crate::output;
use crate::session::Session;

/// Port of a proxy's admin pages.
const ADMIN_PORT: u16 = 15000;
/// Port of istiod's debug pages.
const DEBUG_PORT: u16 = 15014;

/// Arguments of `dashboard`.
#[derive(Debug, Args)]
pub(crate) struct DashboardArgs {
    #[command(subcommand)]
    page: Page,
    /// Port on this machine; any free one unless given
    #[arg(short, long, global = true, default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// Whether to open a browser
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_value_t = true,
        default_missing_value = "true", action = clap::ArgAction::Set, hide_default_value = true)]
    browser: bool,
}

/// The pages.
#[derive(Debug, Subcommand)]
enum Page {
    /// Admin pages of a proxy
    #[command(visible_alias = "proxy")]
    Envoy {
        /// Pod, as `[TYPE/]NAME[.NAMESPACE]`
        pod: String,
    },
    /// Debug pages of the control plane
    IstiodDebug,
}

/// Forwards the page until interrupted.
pub(crate) async fn run(globals: &Globals, args: DashboardArgs) -> anyhow::Result<()> {
    let session = Session::of(globals)?;
    let (pod, port, path, probe) = match &args.page {
        Page::Envoy { pod } => {
            (session.pod(globals.namespace(), pod).await?, ADMIN_PORT, "/", "/server_info")
        }
        Page::IstiodDebug => {
            let planes = session.control_planes(&globals.istio_namespace).await?;
            let first = planes.into_iter().next();
            (first.context("no control plane is ready")?, DEBUG_PORT, "/debug", "/version")
        }
    };
    // Asked once first, so that a pod without proxy is told here and not by a
    // browser's empty page.
    session.http_get(&pod, port, probe).await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port))
        .await
        .with_context(|| format!("cannot listen on port {}", args.port))?;
    let url = format!("http://localhost:{}{path}", listener.local_addr()?.port());
    output::line(format_args!("{url}"))?;
    if args.browser {
        open(&url);
    }
    session.relay(&pod, port).serve(listener).await
}

/// Opens a browser where there is a screen to show it; the address was
/// printed, so a failure costs nothing.
fn open(url: &str) {
    let has_screen = ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|v| std::env::var_os(v).is_some());
    if has_screen {
        let mut command = std::process::Command::new("xdg-open");
        command.arg(url).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command.spawn().ok();
    }
}
