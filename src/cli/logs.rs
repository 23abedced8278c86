//! `podwright logs`: reads a container's log file.

use super::{Session, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  podwright logs web/nginx
  podwright logs web -c nginx --tail 20 -f  the last 20 lines, then new ones as they come
  podwright logs web/nginx --since 10m -t";

/// Prints what a container has written to stdout and stderr
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct LogsArgs {
    /// POD, POD/CONTAINER, or the first digits of an id; a pod of one container needs no more
    target: String,
    /// Container of the pod
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Go on with new lines until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// Only lines younger than this (90s, 10m, 2h)
    #[arg(long, value_name = "DURATION")]
    since: Option<String>,
    /// The time before each line
    #[arg(short, long)]
    timestamps: bool,
}

pub(super) fn run(_args: &LogsArgs, _session: &Session) -> Result<u8> {
    without_engine("logs")
}
