//! `podwright pods`: the table of pods.

use super::{Session, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  podwright pods
  podwright pods -q                         only ids
  podwright pods -o json";

/// Lists pods
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PodsArgs {
    /// Only pods of this name, or whose id starts so
    #[arg(value_name = "POD")]
    targets: Vec<String>,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// Print ids in full
    #[arg(long)]
    no_trunc: bool,
}

impl PodsArgs {
    /// What `podwright get pods` asks for.
    pub(super) fn of(targets: Vec<String>) -> Self {
        PodsArgs { targets, quiet: false, no_trunc: false }
    }
}

pub(super) fn run(_args: &PodsArgs, _session: &Session) -> Result<u8> {
    without_engine("pods")
}
