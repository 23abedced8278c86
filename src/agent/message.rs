//! The termination message: a file that the container may write, or the end of its log (Kubernetes,
//! spec.containers.terminationMessagePath and Policy).

use super::logs;
use crate::engine::mkdir_all;
use crate::error::{Context, Result};
use std::fs::{OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// How much of the file counts, in bytes (pkg/kubelet/container/runtime.go).
const MAX_FILE_BYTES: u64 = 4096;
/// How much of the log, in lines and bytes, as there.
const MAX_LOG_LINES: usize = 80;
const MAX_LOG_BYTES: usize = 2048;
/// How much of the end of a log file is looked at, in bytes: 80 lines of our format with short texts and long ones.
const LOG_TAIL_BYTES: u64 = 64 << 10;

/// Makes the empty file, writable by every user of the container.
///
/// # Errors
/// `Internal` when it cannot be made.
pub fn prepare(file: &Path) -> Result<()> {
    if let Some(directory) = file.parent() {
        mkdir_all(directory, 0o755)?;
    }
    let doing = || format!("make {}", file.display());
    OpenOptions::new().create(true).truncate(true).write(true).mode(0o666).open(file).context(doing)?;
    std::fs::set_permissions(file, Permissions::from_mode(0o666)).context(doing) // the umask took some
}

/// What the container said: its file, else the end of `log` if that is given. Unreadable is empty.
pub fn read(file: &Path, log: Option<&Path>) -> String {
    let mut bytes = Vec::new();
    // The container may have put anything in the file's place, but not reach it here: the bind mount was over our file.
    if let Ok(file) = std::fs::File::open(file) {
        let _ = file.take(MAX_FILE_BYTES).read_to_end(&mut bytes); // what was read until then is the message
    }
    match (bytes.is_empty(), log) {
        (true, Some(log)) => log_tail(log).unwrap_or_default(),
        _ => String::from_utf8_lossy(&bytes).into_owned(),
    }
}

fn log_tail(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    let mut text = Vec::new();
    let lines: Vec<logs::Line<'_>> = bytes.split(|b| *b == b'\n').filter_map(logs::parse).collect();
    for line in &lines[lines.len().saturating_sub(MAX_LOG_LINES)..] {
        text.extend_from_slice(line.text);
        if !line.partial {
            text.push(b'\n');
        }
    }
    let cut = text.len().saturating_sub(MAX_LOG_BYTES);
    Ok(String::from_utf8_lossy(&text[cut..]).into_owned())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test plants whole files")]
mod tests {
    use super::*;

    #[test]
    fn the_file_wins_over_the_log_and_both_are_bounded() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (file, log) = (dir.path().join("m/0"), dir.path().join("0.log"));
        prepare(&file).expect("prepare");
        assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o666);
        let lines: String = (0..200).map(|n| format!("t stdout F {n}\n")).collect();
        std::fs::write(&log, lines).expect("log");
        assert_eq!(read(&file, None), "");
        let tail = read(&file, Some(&log));
        assert!(tail.starts_with("120\n") && tail.ends_with("199\n"), "{tail}");
        std::fs::write(&file, "x".repeat(5000)).expect("message");
        assert_eq!(read(&file, Some(&log)), "x".repeat(4096));
    }
}
