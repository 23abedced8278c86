//! `podwright prune`: frees disk space.

use super::output::{self, Format};
use super::rmi::{self, Document};
use super::{Session, images, units};
use crate::engine::{in_use, sweep};
use crate::error::Result;
use crate::image::gc::Prune;

const EXAMPLES: &str = "\
Examples:
  podwright prune                           images without a name, layers without an image
  podwright prune --all                     images with a name too, unless a container uses them
  podwright prune --all --dry-run           only say what would go, and how much space that is";

/// Removes what nobody needs: images without a name, layers without an image, what a crash left
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PruneArgs {
    /// Also images that have a name and no container
    #[arg(short, long)]
    all: bool,
    /// Say what would be removed and remove nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(args: &PruneArgs, session: &Session) -> Result<u8> {
    super::require_root("prune")?;
    let (store, paths) = (session.store()?, session.paths());
    let which = if args.all { Prune::Unused } else { Prune::Nameless };
    let in_use = || in_use::in_use(&paths);
    let (swept, removed) = if args.dry_run {
        let dead = sweep::instances(&paths)?.iter().filter(|(_, alive)| !alive).count();
        (dead, store.prunable(which, &in_use)?)
    } else {
        let swept = super::runtime()?.block_on(sweep::sweep_dead(&super::run::options(session, None)?))?;
        (swept, store.prune(which, &in_use)?)
    };
    images::report(&store.damaged()?);
    let mut document = Document { swept_instances: Some(swept), ..Document::default() };
    document.add(&removed);
    if session.format == Format::Json {
        output::print_json(&document)?;
        return Ok(0);
    }
    let would = if args.dry_run { "would be " } else { "" };
    let mut text: String = rmi::lines(&removed).lines().map(|line| format!("{would}{line}\n")).collect();
    if swept > 0 {
        text.push_str(&format!("{would}swept: {swept} of `podwright run` that did not end by itself\n"));
    }
    let layers = removed.layers.len();
    text.push_str(&format!(
        "{}: {} in {layers} {}\n",
        if args.dry_run { "would be freed" } else { "freed" },
        units::size(removed.bytes),
        if layers == 1 { "layer" } else { "layers" }
    ));
    output::print(&text)?;
    Ok(0)
}
