//! `podwright import`: images from files.

use super::{Session, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  podwright import nginx.tar                under the names in the archive
  podwright import ./layout --name example.com/web:1";

/// Imports images from OCI layouts or docker archives (plain, gzip or zstd)
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ImportArgs {
    /// Archive or OCI layout directory; `-` is an archive on standard input
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<std::path::PathBuf>,
    /// Name for the one image in PATH, instead of the one it has
    #[arg(long, value_name = "IMAGE")]
    name: Option<String>,
}

pub(super) fn run(_args: &ImportArgs, _session: &Session) -> Result<u8> {
    without_engine("import")
}
