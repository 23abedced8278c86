//! `podwright prune`: frees disk space.

use super::{Session, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  podwright prune --dry-run                 only say what would go, and how much space that is
  podwright prune";

/// Removes what nobody needs: images without a container, layers without an image, what a crash left
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PruneArgs {
    /// Say what would be removed and remove nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(_args: &PruneArgs, _session: &Session) -> Result<u8> {
    without_engine("prune")
}
