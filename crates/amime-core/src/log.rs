//! Log set-up of a process: where, which format, which levels, and changing levels at run time.
//!
//! Only binaries call this; libraries log through `tracing` and never configure it.

use std::io::IsTerminal;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::{Layered, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::{Layer, fmt, reload};

/// How one line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Settings of [`init`].
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Directives as in `info,amime_xds=debug`. Default `info`.
    pub directives: String,
    /// Line format.
    pub format: LogFormat,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { directives: "info".to_owned(), format: LogFormat::Text }
    }
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The directives do not parse.
    #[error("log directives {directives:?} are not valid")]
    Directives {
        /// The text that was read.
        directives: String,
        /// What the parser says.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// [`init`] ran before in this process.
    #[error("logging is already set up")]
    AlreadySet(#[source] tracing::subscriber::SetGlobalDefaultError),
    /// The subscriber is gone.
    #[error("log levels cannot be changed any more")]
    Reload(#[source] reload::Error),
}

/// Changes levels while the process runs; cheap to clone.
#[derive(Clone, Debug)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl LogHandle {
    /// Replaces all directives.
    pub fn set(&self, directives: &str) -> Result<(), LogError> {
        self.filter.reload(parse(directives)?).map_err(LogError::Reload)
    }

    /// The directives in force.
    pub fn directives(&self) -> String {
        self.filter.with_current(ToString::to_string).unwrap_or_default()
    }
}

/// Installs the process-wide subscriber, which writes to standard error.
pub fn init(options: &LogOptions) -> Result<LogHandle, LogError> {
    install(options, std::io::stderr, std::io::stderr().is_terminal())
}

/// Installs the process-wide subscriber, which appends to `file`.
pub fn init_to_file(options: &LogOptions, file: std::fs::File) -> Result<LogHandle, LogError> {
    install(options, std::sync::Mutex::new(file), false)
}

fn install<W>(options: &LogOptions, writer: W, coloured: bool) -> Result<LogHandle, LogError>
where
    W: for<'a> fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(parse(&options.directives)?);
    let base: Layered<_, Registry> = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_writer(writer);
    let lines = match options.format {
        LogFormat::Text => lines.with_ansi(coloured).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing::subscriber::set_global_default(base.with(lines)).map_err(LogError::AlreadySet)?;
    Ok(LogHandle { filter: handle })
}

fn parse(directives: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder()
        .parse(directives)
        .map_err(|source| LogError::Directives { directives: directives.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_change_at_run_time_and_bad_ones_are_refused() {
        let handle = init(&LogOptions::default()).expect("first set-up");
        assert_eq!(handle.directives(), "info");
        handle.set("warn,amime_xds=debug").expect("valid directives");
        assert!(handle.directives().contains("amime_xds=debug"));
        assert!(matches!(handle.set("amime=loud"), Err(LogError::Directives { .. })));
        assert!(matches!(init(&LogOptions::default()), Err(LogError::AlreadySet(_))));
    }
}
