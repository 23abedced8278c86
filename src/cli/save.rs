//! `podwright save`: images into a file.

use super::Session;
use super::output::{self, Format};
use crate::error::{Context, Error, Result};
use crate::image::export::{self, Saved};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  podwright save nginx -f nginx.tar
  podwright save nginx redis:7 | zstd > both.tar.zst
  podwright save nginx | ssh other podwright import -

The archive is an OCI layout, for podwright, podman and skopeo, and what docker load reads. Its layers are written from the files that are
unpacked here, so that the image has another id in there.";

/// Saves images into an archive
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct SaveArgs {
    /// Name or id
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// File to write, instead of standard output
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// `-o json`, with a file: `{"images": [{"id", "savedId", "names"}]}`.
#[derive(Serialize)]
struct Document {
    images: Vec<Entry>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    id: String,
    /// The id in the archive.
    saved_id: String,
    names: Vec<String>,
}

pub(super) fn run(args: &SaveArgs, session: &Session) -> Result<u8> {
    super::require_root("save")?;
    let store = session.store()?;
    let Some(path) = &args.file else {
        let stdout = std::io::stdout();
        if stdout.is_terminal() {
            return Err(Error::invalid("an archive is nothing for a terminal; give a file, or redirect the output"));
        }
        export::save(&store, &args.images, &mut stdout.lock())?;
        return Ok(0);
    };
    let saved = to_file(path, &mut |out| export::save(&store, &args.images, out))?;
    if session.format == Format::Json {
        let entry =
            |saved: Saved| Entry { id: saved.id.to_string(), saved_id: saved.saved_id.to_string(), names: saved.names };
        output::print_json(&Document { images: saved.into_iter().map(entry).collect() })?;
    }
    Ok(0)
}

/// Writes a file, which is there when it is whole: nobody shall load half of one.
fn to_file<T>(path: &Path, write: &mut dyn FnMut(&mut dyn Write) -> Result<T>) -> Result<T> {
    let mut name =
        path.file_name().ok_or_else(|| Error::invalid(format!("{} names no file", path.display())))?.to_owned();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let mut open = std::fs::OpenOptions::new();
    let file = open.write(true).create(true).truncate(true).open(&partial);
    let mut file = file.context(|| format!("create {}", partial.display()))?;
    let written = write(&mut file).and_then(|written| {
        std::fs::rename(&partial, path).context(|| format!("rename {} to {}", partial.display(), path.display()))?;
        Ok(written)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&partial); // the first error is the one to tell
    }
    written
}
