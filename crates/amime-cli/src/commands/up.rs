//! `up` and `down`: a whole mesh on this machine.
//!
//! Owns the options and the display; starting and stopping are
//! `amime-local`'s.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use amime_local::{Down, ImageMapping, ManifestFile, Progress, StepState, UpOptions};
use anstyle::{AnsiColor, Style};
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::args::Globals;
use crate::files::{self, Manifest};
use crate::{output, session};

/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(80);
const GOOD: Style = Style::new().bold().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Green)));

/// Arguments of `up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// File or folder with manifests to apply; repeatable
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
    /// Command that stands in for an image; repeatable
    #[arg(long, value_name = "NAME=COMMAND")]
    image: Vec<ImageMapping>,
    /// Do not deploy the Bookinfo sample
    #[arg(long)]
    no_demo: bool,
    /// Port of the ingress gateway on this machine; 0 for any free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Address of the ingress gateway on this machine
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: IpAddr,
    /// Log directives of the supervisor
    #[arg(long, default_value = "info", value_name = "DIRECTIVES", hide_short_help = true)]
    log: String,
}

/// Starts the mesh and keeps it until it is stopped.
pub(crate) async fn up(globals: &Globals, args: UpArgs) -> anyhow::Result<()> {
    let demo = !args.no_demo;
    let files = files::read(&args.files)?;
    let files = files.into_iter().map(|Manifest { name, text }| ManifestFile { name, text });
    let options = UpOptions {
        state_dir: Some(session::state_dir(globals)?),
        host: args.host,
        port: args.port,
        files: files.collect(),
        images: args.image,
        demo,
        log: args.log,
        ..UpOptions::default()
    };
    let mut display = Display::new(demo);
    amime_local::up(options, |progress| display.show(progress)).await?;
    Ok(())
}

/// Stops the mesh, or cleans up after one that was killed.
pub(crate) async fn down(globals: &Globals) -> anyhow::Result<()> {
    let dir = session::state_dir(globals)?;
    match amime_local::down(Some(&dir)).await? {
        Down::Stopped => output::line("the mesh has stopped")?,
        Down::Cleaned => output::line("no mesh was running; removed what a killed one had left")?,
        Down::NothingThere => output::line("no mesh was running")?,
    }
    Ok(())
}

/// What the user sees of a start: a line a step, on standard error.
struct Display {
    bars: MultiProgress,
    steps: BTreeMap<String, ProgressBar>,
    terminal: bool,
    demo: bool,
}

impl Display {
    fn new(demo: bool) -> Self {
        Self {
            bars: MultiProgress::new(),
            steps: BTreeMap::new(),
            terminal: std::io::stderr().is_terminal(),
            demo,
        }
    }

    fn show(&mut self, progress: Progress) {
        match progress {
            Progress::Step { name, state } => self.step(name, &state),
            Progress::Warning { message } => self.bars.suspend(|| output::warning(&message)),
            Progress::Ready { url, elapsed_ms } => {
                self.finish();
                self.ready(&url, elapsed_ms);
            }
            // The error itself comes back from `up` and is printed at the end.
            Progress::Failed { .. } => self.finish(),
            _ => {}
        }
    }

    fn step(&mut self, name: String, state: &StepState) {
        if !self.terminal {
            if *state == StepState::Done {
                eprintln!("{name} ready");
            }
            return;
        }
        let bars = &self.bars;
        let bar = self.steps.entry(name.clone()).or_insert_with(|| spinner(bars));
        match state {
            StepState::Started => bar.set_message(name),
            StepState::Waiting { ready, wanted, reason } => {
                let reason =
                    if reason.is_empty() { String::new() } else { format!(" · {reason}") };
                bar.set_message(format!("{name} {ready}/{wanted}{reason}"));
            }
            StepState::Done => {
                bar.set_style(style("{prefix} {msg}"));
                bar.set_prefix(format!("{GOOD}✓{GOOD:#}"));
                bar.finish_with_message(name);
            }
        }
    }

    fn finish(&mut self) {
        for bar in self.steps.values().filter(|bar| !bar.is_finished()) {
            bar.abandon();
        }
        self.steps.clear();
    }

    fn ready(&self, url: &str, elapsed_ms: u64) {
        let seconds = elapsed_ms as f64 / 1000.0;
        let page = if self.demo { "/productpage" } else { "" };
        anstream::println!("\n{GOOD}The mesh is ready{GOOD:#} after {seconds:.1} s.\n");
        anstream::println!("  {url}{page}\n");
        anstream::println!(
            "Ctrl-C stops it. Meanwhile, from another terminal: amime status, amime get pods."
        );
    }
}

fn spinner(bars: &MultiProgress) -> ProgressBar {
    let bar = bars.add(ProgressBar::new_spinner());
    bar.set_style(style("{spinner} {msg}"));
    bar.enable_steady_tick(TICK);
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is correct")
}
