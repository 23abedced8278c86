//! `podwright import`: images from files.

use super::output::{self, Format};
use super::{Session, progress};
use crate::error::{Error, Result};
use crate::image::import::{self, Request};
use crate::image::oci::Platform;
use crate::image::reference::Reference;
use serde::Serialize;
use std::path::Path;

const EXAMPLES: &str = "\
Examples:
  podwright import nginx.tar                under the names in the archive
  podwright import ./layout --name example.com/web:1
  docker save nginx | podwright import -";

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
    /// Which image of several platforms, linux/arm64 for instance, instead of this machine's
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Say nothing of layers
    #[arg(short, long)]
    quiet: bool,
}

/// `-o json`: `{"images": [{"id", "names"}]}`.
#[derive(Serialize)]
struct Document {
    images: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    id: String,
    names: Vec<String>,
}

pub(super) fn run(args: &ImportArgs, session: &Session) -> Result<u8> {
    if args.name.is_some() && args.paths.len() > 1 {
        return Err(Error::invalid(format!("--name names one image, and there are {} paths", args.paths.len())));
    }
    let name = args.name.as_deref().map(str::parse::<Reference>).transpose()?;
    super::require_root("import")?;
    let store = session.store()?;
    let progress = progress::of(args.quiet, "unpacking");
    let mut images = Vec::new();
    for path in &args.paths {
        let path = if path == Path::new("-") { Path::new("/dev/stdin") } else { path };
        let platform = args.platform.clone().unwrap_or_else(Platform::host);
        let request = Request { path: path.to_owned(), name: name.clone(), platform };
        for image in import::import(&store, &request, &*progress)? {
            let entry =
                Entry { id: image.id.to_string(), names: image.names.iter().map(Reference::to_string).collect() };
            if session.format == Format::Table {
                output::print(&imported(&entry))?;
            }
            images.push(entry);
        }
    }
    if session.format == Format::Json {
        output::print_json(&Document { images })?;
    }
    Ok(0)
}

/// A line a name: what `podwright run` will find the image by.
fn imported(image: &Entry) -> String {
    match image.names.as_slice() {
        [] => format!("{} (without a name; --name gives it one)\n", image.id),
        names => names.iter().map(|name| format!("{name} {}\n", image.id)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_imported_is_a_line_a_name_or_one_with_the_remedy() {
        let entry =
            |names: &[&str]| Entry { id: "sha256:0".into(), names: names.iter().map(|n| (*n).into()).collect() };
        assert_eq!(imported(&entry(&["a:1", "a:2"])), "a:1 sha256:0\na:2 sha256:0\n");
        assert!(imported(&entry(&[])).contains("--name"));
    }
}
