//! `podwright stop`: graceful stop.

use super::{Session, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  podwright stop web                        as long as the pod's own grace period says
  podwright stop --grace 0s web/nginx       kill at once";

/// Stops pods or containers: the stop signal, then SIGKILL when the grace period is over
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct StopArgs {
    /// POD, POD/CONTAINER, or the first digits of an id
    #[arg(required = true, value_name = "POD")]
    targets: Vec<String>,
    /// Time between the stop signal and SIGKILL, instead of the pod's own (30s)
    #[arg(long, value_name = "DURATION")]
    grace: Option<String>,
}

pub(super) fn run(_args: &StopArgs, _session: &Session) -> Result<u8> {
    without_engine("stop")
}
