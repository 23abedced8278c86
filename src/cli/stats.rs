//! `podwright stats`: cgroup statistics.

use super::{Session, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  podwright stats                           all containers
  podwright stats web/nginx -o json";

/// Prints what containers use: CPU, throttling, memory, processes, I/O and pressure
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct StatsArgs {
    /// POD, POD/CONTAINER, or the first digits of an id; all containers if none is given
    #[arg(value_name = "POD")]
    targets: Vec<String>,
}

pub(super) fn run(_args: &StatsArgs, _session: &Session) -> Result<u8> {
    without_engine("stats")
}
