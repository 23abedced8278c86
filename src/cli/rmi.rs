//! `podwright rmi`: removes images.

use super::{Session, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  podwright rmi nginx:1.27
  podwright rmi sha256:0123456789ab";

/// Removes images; layers that no other image has go too
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RmiArgs {
    /// Name or digest
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

pub(super) fn run(_args: &RmiArgs, _session: &Session) -> Result<u8> {
    without_engine("rmi")
}
