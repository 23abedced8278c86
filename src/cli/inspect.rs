//! `podwright inspect`: records, status, limits and the flight recorder.

use super::{Session, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  podwright inspect web                     a pod and its flight recorder
  podwright inspect -o json web/nginx";

/// Prints all that is known of a pod or container: config, status, limits, OCI spec, and the steps that made it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct InspectArgs {
    /// POD, POD/CONTAINER, or the first digits of an id
    #[arg(required = true, value_name = "POD")]
    targets: Vec<String>,
}

pub(super) fn run(_args: &InspectArgs, _session: &Session) -> Result<u8> {
    without_engine("inspect")
}
