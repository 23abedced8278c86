//! `podwright rmi`: removes images.

use super::Session;
use super::output::{self, Format};
use crate::engine::in_use;
use crate::error::{Error, Result};
use crate::image::gc::Removed;
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  podwright rmi nginx:1.27
  podwright rmi sha256:0123456789ab";

/// Removes images; layers that no other image has go too
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RmiArgs {
    /// Name, or the first digits of an id. A name of several is only taken away; the last one goes with its image
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// `-o json` of `rmi` and `prune`: what was taken away.
#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    pub names: Vec<String>,
    pub images: Vec<String>,
    pub layers: Vec<String>,
    pub freed_bytes: u64,
    /// Only `prune`: instances of a `run` that was killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swept_instances: Option<usize>,
}

impl Document {
    pub(super) fn add(&mut self, removed: &Removed) {
        self.names.extend(removed.names.iter().cloned());
        self.images.extend(removed.images.iter().map(ToString::to_string));
        self.layers.extend(removed.layers.iter().map(ToString::to_string));
        self.freed_bytes += removed.bytes;
    }
}

pub(super) fn run(args: &RmiArgs, session: &Session) -> Result<u8> {
    super::require_root("rmi")?;
    let (store, paths) = (session.store()?, session.paths());
    let mut document = Document::default();
    let mut errors = Vec::new();
    for image in &args.images {
        match store.remove(image, &|| in_use::in_use(&paths)) {
            Ok(removed) => {
                if session.format == Format::Table {
                    output::print(&lines(&removed))?;
                }
                document.add(&removed);
            }
            Err(e) => errors.push(e),
        }
    }
    if session.format == Format::Json {
        output::print_json(&document)?;
    }
    Error::collect(errors).map_or(Ok(0), Err)
}

/// As docker and podman say it.
pub(super) fn lines(removed: &Removed) -> String {
    let names = removed.names.iter().map(|name| format!("untagged {name}\n"));
    let images = removed.images.iter().map(|id| format!("deleted {id}\n"));
    names.chain(images).collect()
}
