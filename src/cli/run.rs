//! `podwright run`: runs a manifest with an engine of its own.

use super::{Session, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  podwright run pod.yaml                    output of all containers, each line with its container's name
  podwright run --dry-run pod.yaml          only the plan: cgroup files, mounts, capabilities
  podwright run --timeout 5m job.yaml       exit code 124 when it is not done by then
  cat pod.yaml | podwright run -";

/// Runs the pods of a manifest until their containers end, then takes them away
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RunArgs {
    /// Manifest, YAML or JSON; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<std::path::PathBuf>,
    /// Print the plan and run nothing (as `podwright check` does)
    #[arg(long)]
    dry_run: bool,
    /// Stop the pod after this long (90s, 5m, 1h30m) and exit with 124
    #[arg(long, value_name = "DURATION")]
    timeout: Option<String>,
    /// Keep the stopped pod, its logs and volumes, until `podwright rm`
    #[arg(long)]
    keep: bool,
    /// Do not print what the containers write
    #[arg(short, long)]
    quiet: bool,
    /// Return once the pod runs (needs a daemon, which would restart it)
    #[arg(short, long)]
    detach: bool,
    /// Host the engine in this command even if a daemon is up
    #[arg(long)]
    no_daemon: bool,
}

pub(super) fn run(_args: &RunArgs, _session: &Session) -> Result<u8> {
    without_engine("run")
}
