//! The configuration file as text: bounded, and UTF-8. What it says is read in [`super`].

use crate::error::{Context, Error, Kind, Result};
use std::io::Read;
use std::path::Path;

/// The longest configuration file, in bytes. Ours is a page; a device or a log by mistake is not read to its end.
const MAX_FILE_BYTES: u64 = 256 << 10;

/// The file's text, `None` when it is absent and need not be there.
pub(super) fn read(path: &Path, needed: bool) -> Result<Option<String>> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !needed => return Ok(None),
        Err(e) => {
            let kind = if e.kind() == std::io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Internal };
            return Err(e).context(|| format!("open {}", path.display())).map_err(|e| e.with_kind(kind));
        }
    };
    let mut bytes = vec![];
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).context(|| format!("read {}", path.display()))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let message =
            format!("{} is larger than {} KiB: not a configuration file", path.display(), MAX_FILE_BYTES >> 10);
        return Err(Error::invalid(message));
    }
    String::from_utf8(bytes).map(Some).map_err(|e| {
        let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        Error::invalid(format!("{}:{line}: not UTF-8", path.display()))
    })
}
