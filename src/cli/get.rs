//! `podwright get`: kubectl's name for `pods`, `ps` and `images`. It has no output of its own.

use super::{Session, images, pods, ps};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  podwright get pods
  podwright get containers web              those of pod web
  podwright get images -o json";

/// Lists pods, containers or images: kubectl's name for `pods`, `ps --all` and `images`
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct GetArgs {
    kind: Kind,
    /// Only those of these names, or whose id starts so
    #[arg(value_name = "NAME")]
    targets: Vec<String>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Kind {
    #[value(aliases = ["pod", "po"])]
    Pods,
    #[value(alias = "container")]
    Containers,
    #[value(alias = "image")]
    Images,
}

pub(super) fn run(args: GetArgs, session: &Session) -> Result<u8> {
    let GetArgs { kind, targets } = args;
    match kind {
        Kind::Pods => pods::run(&pods::PodsArgs::of(targets), session),
        Kind::Containers => ps::run(&ps::PsArgs::of(targets), session),
        Kind::Images => images::run(&images::ImagesArgs::of(targets), session),
    }
}
