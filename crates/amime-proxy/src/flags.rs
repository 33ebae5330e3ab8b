//! Envoy's command line, as far as it is not our own.
//!
//! Scripts that start Envoy start this proxy too: flags are accepted with
//! Envoy's meaning, and those without a meaning here are named when given.

use clap::Args;

/// Flags that Envoy has and that change nothing here.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Envoy's flags without effect here")]
pub(crate) struct Inert {
    /// No effect: there is no hot restart.
    #[arg(long, value_name = "N", hide_short_help = true)]
    base_id: Option<u32>,
    /// No effect: there is no hot restart.
    #[arg(long, hide_short_help = true)]
    use_dynamic_base_id: bool,
    /// No effect: there is no hot restart.
    #[arg(long, value_name = "N", hide_short_help = true)]
    restart_epoch: Option<u32>,
    /// No effect: there is no hot restart.
    #[arg(long, value_name = "SECONDS", hide_short_help = true)]
    parent_shutdown_time_s: Option<u32>,
    /// No effect: there is no hot restart.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    socket_path: Option<String>,
    /// No effect: there is no hot restart.
    #[arg(long, value_name = "MODE", hide_short_help = true)]
    socket_mode: Option<String>,
    /// No effect: there is no hot restart.
    #[arg(long, hide_short_help = true)]
    skip_hot_restart_on_no_parent: bool,
    /// No effect: there is no hot restart.
    #[arg(long, hide_short_help = true)]
    skip_hot_restart_parent_stats: bool,
    /// No effect: clients are asked to leave at once, then waited for.
    #[arg(long, value_name = "STRATEGY", value_parser = ["gradual", "immediate"], hide_short_help = true)]
    drain_strategy: Option<String>,
    /// No effect: log lines have one format.
    #[arg(long, value_name = "FORMAT", hide_short_help = true)]
    log_format: Option<String>,
    /// No effect: log lines are escaped.
    #[arg(long, hide_short_help = true)]
    log_format_escaped: bool,
    /// No effect: levels are by module anyway.
    #[arg(long, hide_short_help = true)]
    enable_fine_grain_logging: bool,
    /// No effect: a stack trace is one entry.
    #[arg(long, hide_short_help = true)]
    log_stacktrace_single_entry: bool,
    /// No effect: deprecated fields are not logged.
    #[arg(long, hide_short_help = true)]
    skip_deprecated_logs: bool,
    /// No effect: the node's address is not looked up.
    #[arg(long, value_name = "VERSION", value_parser = ["v4", "v6"], hide_short_help = true)]
    local_address_ip_version: Option<String>,
    /// No effect: access logs are written after 200 ms at most.
    #[arg(long, value_name = "MS", hide_short_help = true)]
    file_flush_interval_msec: Option<u32>,
    /// No effect: access logs are written after 200 ms at most.
    #[arg(long, value_name = "KB", hide_short_help = true)]
    file_flush_min_size_kb: Option<u32>,
    /// No effect: unknown fields of dynamic configuration are skipped.
    #[arg(long, hide_short_help = true)]
    reject_unknown_dynamic_fields: bool,
    /// No effect: mutexes are not traced.
    #[arg(long, hide_short_help = true)]
    enable_mutex_tracing: bool,
    /// No effect: the system decides about core dumps.
    #[arg(long, hide_short_help = true)]
    enable_core_dump: bool,
    /// No effect: extensions are built in.
    #[arg(long, value_name = "LIST", hide_short_help = true)]
    disable_extensions: Option<String>,
    /// No effect: tags are those of the stat's name.
    #[arg(long, value_name = "TAG:VALUE", hide_short_help = true)]
    stats_tag: Vec<String>,
}

/// Flags whose meaning is what this proxy does anyway, or needs no more than a
/// look.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Envoys {
    /// File to write the base id to, which is always 0.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub(crate) base_id_path: Option<std::path::PathBuf>,
    /// Given: there is no hot restart.
    #[arg(long, hide_short_help = true)]
    disable_hot_restart: bool,
    /// Print the hot restart version, which is `disabled`, and exit.
    #[arg(long, hide_short_help = true)]
    pub(crate) hot_restart_version: bool,
    /// Given: the default number of workers heeds the CPU set.
    #[arg(long, hide_short_help = true)]
    cpuset_threads: bool,
    /// Given: unknown fields of dynamic configuration are skipped.
    #[arg(long, hide_short_help = true)]
    ignore_unknown_dynamic_fields: bool,
    /// Skip fields that a bootstrap does not have instead of refusing them.
    #[arg(long, alias = "allow-unknown-fields", hide_short_help = true)]
    pub(crate) allow_unknown_static_fields: bool,
    /// Version of the bootstrap's API; there is only 3.
    #[arg(long, value_name = "VERSION", value_parser = ["3"], hide_short_help = true)]
    bootstrap_version: Option<String>,
}

impl Inert {
    /// Names of the flags that were given.
    pub(crate) fn given(&self) -> Vec<&'static str> {
        let all = [
            ("--base-id", self.base_id.is_some()),
            ("--use-dynamic-base-id", self.use_dynamic_base_id),
            ("--restart-epoch", self.restart_epoch.is_some()),
            ("--parent-shutdown-time-s", self.parent_shutdown_time_s.is_some()),
            ("--socket-path", self.socket_path.is_some()),
            ("--socket-mode", self.socket_mode.is_some()),
            ("--skip-hot-restart-on-no-parent", self.skip_hot_restart_on_no_parent),
            ("--skip-hot-restart-parent-stats", self.skip_hot_restart_parent_stats),
            ("--drain-strategy", self.drain_strategy.is_some()),
            ("--log-format", self.log_format.is_some()),
            ("--log-format-escaped", self.log_format_escaped),
            ("--enable-fine-grain-logging", self.enable_fine_grain_logging),
            ("--log-stacktrace-single-entry", self.log_stacktrace_single_entry),
            ("--skip-deprecated-logs", self.skip_deprecated_logs),
            ("--local-address-ip-version", self.local_address_ip_version.is_some()),
            ("--file-flush-interval-msec", self.file_flush_interval_msec.is_some()),
            ("--file-flush-min-size-kb", self.file_flush_min_size_kb.is_some()),
            ("--reject-unknown-dynamic-fields", self.reject_unknown_dynamic_fields),
            ("--enable-mutex-tracing", self.enable_mutex_tracing),
            ("--enable-core-dump", self.enable_core_dump),
            ("--disable-extensions", self.disable_extensions.is_some()),
            ("--stats-tag", !self.stats_tag.is_empty()),
        ];
        all.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }
}
