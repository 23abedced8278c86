//! `podwright exec`: not interactive yet.

use super::{Session, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  podwright exec web/nginx -- nginx -t
  podwright exec web -c nginx --timeout 5s -- cat /etc/nginx/nginx.conf";

/// Runs a command in a running container and exits with its code
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ExecArgs {
    /// POD, POD/CONTAINER, or the first digits of an id; a pod of one container needs no more
    target: String,
    /// Container of the pod
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Kill the command and all it started after this long (90s, 5m), and exit with 124
    #[arg(long, value_name = "DURATION")]
    timeout: Option<String>,
    /// Command and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) fn run(_args: &ExecArgs, _session: &Session) -> Result<u8> {
    without_engine("exec")
}
