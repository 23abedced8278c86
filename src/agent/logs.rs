//! Reading container logs: the CRI's format, and following a file as it grows and is rotated. The shim writes them.

use crate::error::{Context, Result};
use crate::sys::{self, inotify};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How much of a log is read at a time, in bytes.
const CHUNK_BYTES: usize = 64 << 10;
/// The longest line that is waited for, in bytes: the shim cuts at 16 KiB and puts a time, stream and tag before it. A longer one
/// is not ours and is passed over.
const MAX_LINE_BYTES: usize = 64 << 10;

/// Which stream of the container a line was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A line of a log: `2026-01-02T15:04:05.123456789Z stdout F text`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// RFC 3339 with nanoseconds, UTC: compares as text.
    pub time: &'a str,
    pub stream: Stream,
    /// Tag `P`: the next line of this stream goes on with it, without a newline between.
    pub partial: bool,
    /// What the container wrote, without the newline.
    pub text: &'a [u8],
}

/// Takes a line apart, `None` when it is none of the CRI's format.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut words = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(words.next()?).ok()?;
    let stream = match words.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // Tags are separated by colons; the first says whether the line is whole.
    let partial = match words.next()?.split(|b| *b == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Line { time, stream, partial, text: words.next()? })
}

/// A log that is read from its start, and followed.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    file: Option<File>,
    /// What was read after the last newline.
    rest: Vec<u8>,
    watch: AsyncFd<OwnedFd>,
}

impl Tail {
    /// Opens a log whose directory is there; the file itself may not be yet. Within a tokio runtime.
    ///
    /// # Errors
    /// `Internal` when its directory cannot be watched.
    pub fn open(path: &Path) -> Result<Tail> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let watch = inotify::directory(directory).context(|| format!("watch {}", directory.display()))?;
        let watch = sys::async_fd::readable(watch).context(|| "watch an inotify descriptor")?;
        Ok(Tail { path: path.to_owned(), file: None, rest: Vec::new(), watch })
    }

    /// Gives every complete line that is there to `each`, across a rotation.
    ///
    /// # Errors
    /// `Internal` when the log cannot be read.
    pub fn read(&mut self, mut each: impl FnMut(Line<'_>)) -> Result<()> {
        while self.read_chunk(&mut each)? {}
        Ok(())
    }

    /// Gives some complete lines that are there to `each`, no more than are read at a time; whether there may be more.
    ///
    /// # Errors
    /// `Internal` when the log cannot be read.
    pub fn read_chunk(&mut self, mut each: impl FnMut(Line<'_>)) -> Result<bool> {
        if self.file.is_none() {
            match File::open(&self.path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
                opened => self.file = Some(opened.context(|| format!("open {}", self.path.display()))?),
            }
        }
        let Some(file) = &mut self.file else { return Ok(false) };
        let mut read = |file: &mut File| read_lines(file, &mut self.rest, &mut each);
        let doing = || format!("read {}", self.path.display());
        if read(file).context(doing)? {
            return Ok(true);
        }
        if !rotated(file, &self.path) {
            return Ok(false);
        }
        // What was written to the old file between our last read and the rotation is read before it is let go.
        if !read(file).context(doing)? {
            self.file = None;
            self.rest.clear();
        }
        Ok(true)
    }

    /// Waits until something in the log's directory has changed.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn changed(&self) -> Result<()> {
        self.watch
            .async_io(Interest::READABLE, |watch| inotify::take(watch))
            .await
            .context(|| format!("wait for {}", self.path.display()))
    }
}

fn rotated(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) != (there.dev(), there.ino()),
        _ => false,
    }
}

/// Reads a chunk; `false` at the end of the file.
fn read_lines(file: &mut File, rest: &mut Vec<u8>, each: &mut impl FnMut(Line<'_>)) -> std::io::Result<bool> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let n = file.read(&mut chunk)?;
    rest.extend_from_slice(&chunk[..n]);
    let mut start = 0;
    while let Some(end) = rest[start..].iter().position(|b| *b == b'\n') {
        if let Some(line) = parse(&rest[start..start + end]) {
            each(line);
        }
        start += end + 1;
    }
    rest.drain(..start);
    if rest.len() > MAX_LINE_BYTES {
        rest.clear();
    }
    Ok(n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_line_is_taken_apart_and_what_is_no_line_is_none() {
        let line = parse(b"2026-01-02T15:04:05.123456789Z stderr P a b ").expect("a line");
        assert_eq!((line.stream, line.partial, line.text), (Stream::Stderr, true, &b"a b "[..]));
        assert_eq!(parse(b"t stdout F ").expect("empty").text, b"");
        assert!(!parse(b"t stdout F:x:y z").expect("more tags").partial);
        for bad in [&b""[..], b"t stdout F", b"t other F x", b"t stdout X x"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_log_is_followed_across_a_rotation_without_a_lost_line() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("0.log");
        let mut tail = Tail::open(&path).expect("open");
        let mut seen = String::new();
        let look = |tail: &mut Tail, seen: &mut String| {
            tail.read(|line| seen.push_str(std::str::from_utf8(line.text).expect("text"))).expect("read");
        };
        look(&mut tail, &mut seen);
        let append = || std::fs::OpenOptions::new().append(true).create(true).open(&path).expect("open");
        let mut old = append();
        old.write_all(b"t stdout F a\nt stdout F b\nt std").expect("write");
        tail.changed().await.expect("changed");
        look(&mut tail, &mut seen);
        assert_eq!(seen, "ab");
        std::fs::rename(&path, dir.path().join("0.log.1")).expect("rotate");
        old.write_all(b"out F c\n").expect("the last line of the old file");
        append().write_all(b"t stdout F d\n").expect("the first of the new one");
        look(&mut tail, &mut seen);
        assert_eq!(seen, "abcd");
    }
}
