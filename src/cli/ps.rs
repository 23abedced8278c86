//! `podwright ps`: the table of containers.

use super::{Session, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  podwright ps                              running ones
  podwright ps -a web                       all of pod web, ended ones too
  podwright ps -q";

/// Lists containers
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PsArgs {
    /// Only containers of these pods, or POD/CONTAINER
    #[arg(value_name = "POD")]
    targets: Vec<String>,
    /// Ended ones too
    #[arg(short, long)]
    all: bool,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// Print ids in full
    #[arg(long)]
    no_trunc: bool,
}

impl PsArgs {
    /// What `podwright get containers` asks for.
    pub(super) fn of(targets: Vec<String>) -> Self {
        PsArgs { targets, all: true, quiet: false, no_trunc: false }
    }
}

pub(super) fn run(_args: &PsArgs, _session: &Session) -> Result<u8> {
    without_engine("ps")
}
