//! `podwright rm`: removes what is stopped.

use super::{Session, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  podwright rm web
  podwright rm --force web                  stop it first";

/// Removes stopped pods or containers, with their logs and volumes
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RmArgs {
    /// POD, POD/CONTAINER, or the first digits of an id
    #[arg(required = true, value_name = "POD")]
    targets: Vec<String>,
    /// Stop what still runs
    #[arg(short, long)]
    force: bool,
}

pub(super) fn run(_args: &RmArgs, _session: &Session) -> Result<u8> {
    without_engine("rm")
}
