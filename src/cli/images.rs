//! `podwright images`: the table of images.

use super::{Session, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  podwright images
  podwright images -q                       only digests
  podwright images nginx -o json";

/// Lists images
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ImagesArgs {
    /// Only images of these names
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// Print only digests
    #[arg(short, long)]
    quiet: bool,
    /// Print digests in full
    #[arg(long)]
    no_trunc: bool,
}

impl ImagesArgs {
    /// What `podwright get images` asks for.
    pub(super) fn of(targets: Vec<String>) -> Self {
        ImagesArgs { images: targets, quiet: false, no_trunc: false }
    }
}

pub(super) fn run(_args: &ImagesArgs, _session: &Session) -> Result<u8> {
    without_engine("images")
}
