//! Files of an image archive by name: a directory, or a tar file (plain, gzip or zstd) that is scanned once and then read at offsets.
//!
//! What the names mean is [`super::import`]'s. A compressed archive, or one that comes through a pipe, is first decompressed into the session
//! by a worker: the layers in it are compressed in their turn, and are read in parallel.

use super::store::session::Session;
use super::tarball::{EntryKind, Input, Tarball, quoted};
use super::unpack::spawn::{self, Blob};
use crate::error::{Context, Error, Result};
use crate::sys::at::{OFlags, ResolveFlags, openat2};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Members of an archive, at most: several images of 127 layers with docker's three files each.
const MAX_MEMBERS: u64 = 16 << 10;
/// Symlinks from one member to the next, at most (docker save once wrote one for a layer it had written already).
const MAX_LINKS: u32 = 4;

/// An archive.
#[derive(Debug)]
pub enum Archive {
    Directory(File),
    Tar { file: File, members: BTreeMap<String, Member> },
}

/// A member of a tar archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member {
    File { offset: u64, len: u64 },
    Link(String),
}

struct At {
    file: File,
    offset: u64,
    len: u64,
}

impl Read for At {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buf, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}

impl Input for At {
    fn skip(&mut self, n: u64) -> io::Result<()> {
        let to = self.offset.checked_add(n).filter(|to| *to <= self.len);
        self.offset = to.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(())
    }
}

/// A member's name without `./`, `//` and a leading `/`; `..` takes a part away, for links use it.
fn clean(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

impl Archive {
    /// Opens the directory or file at `path`.
    ///
    /// # Errors
    /// `NotFound` for no such path; `InvalidArgument` for what is no archive.
    pub fn open(path: &Path, session: &Session<'_>) -> Result<Archive> {
        let absent = || Error::not_found(format!("{} does not exist", path.display()));
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(absent()),
            opened => opened.context(|| format!("open {}", path.display()))?,
        };
        let metadata = file.metadata().context(|| format!("stat {}", path.display()))?;
        if metadata.is_dir() {
            return Ok(Archive::Directory(file));
        }
        let mut magic = [0u8; 4];
        let plain = metadata.is_file()
            && file.read_at(&mut magic, 0).context(|| format!("read {}", path.display()))? == magic.len()
            && !matches!(magic, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd]);
        let file = if plain { file } else { Self::inflate(file, metadata.is_file(), session)? };
        Self::scan(file)
    }

    fn inflate(file: File, regular: bool, session: &Session<'_>) -> Result<File> {
        let dir = session.scratch("inflated")?;
        let blob = match regular {
            true => Blob::File { file, offset: 0, len: None },
            false => Blob::Pipe { pipe: file.into(), len: None },
        };
        spawn::inflate(session.program(), blob, &dir, session.hold())?;
        let inflated = dir.join("archive");
        File::open(&inflated).context(|| format!("open {}", inflated.display()))
    }

    fn scan(file: File) -> Result<Archive> {
        let len = file.metadata().context(|| "stat the archive")?.len();
        let input = At { file: file.try_clone().context(|| "duplicate the archive")?, offset: 0, len };
        let mut tarball = Tarball::new(input, MAX_MEMBERS);
        let mut members = BTreeMap::new();
        // POSIX.1-2017, pax: `magic` of the first header.
        let mut magic = [0; 5];
        let tar = len == 0 || file.read_at(&mut magic, 257).is_ok_and(|n| n == magic.len()) && magic == *b"ustar";
        let other = |e: Error| match tar {
            true => e,
            false => Error::invalid(
                "it is no tar archive: an OCI layout or a docker archive is meant, as a directory or a tar (plain, gzip or zstd)",
            ),
        };
        while let Some(entry) = tarball.next_entry().map_err(other)? {
            let name = String::from_utf8(entry.path)
                .map_err(|e| Error::invalid(format!("archive entry {} is not named in UTF-8", quoted(e.as_bytes()))))?;
            let link = String::from_utf8_lossy(&entry.link);
            let above = name.trim_end_matches('/').rsplit_once('/').map_or("", |(above, _)| above);
            let member = match entry.kind {
                EntryKind::File => Member::File { offset: tarball.position(), len: entry.size },
                EntryKind::Symlink => Member::Link(clean(&format!("{above}/{link}"))),
                EntryKind::HardLink => Member::Link(clean(&link)),
                _ => continue,
            };
            members.insert(clean(&name), member);
        }
        Ok(Archive::Tar { file, members })
    }

    /// Opens a file of the archive for a worker; `None` when there is none of that name.
    ///
    /// # Errors
    /// `InvalidArgument` for what is not a file, or links that go on.
    pub fn blob(&self, name: &str) -> Result<Option<Blob>> {
        match self {
            Archive::Directory(dir) => {
                // O_NONBLOCK: a FIFO in the place of a blob must not stop us.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let file = match openat2(dir.as_fd(), Path::new(&clean(name)), flags, 0, beneath) {
                    Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                        return Ok(None);
                    }
                    opened => File::from(opened.context(|| format!("open {name} of the archive"))?),
                };
                let metadata = file.metadata().context(|| format!("stat {name} of the archive"))?;
                if !metadata.is_file() {
                    return Err(Error::invalid(format!("{name} of the archive is not a file")));
                }
                Ok(Some(Blob::File { file, offset: 0, len: Some(metadata.len()) }))
            }
            Archive::Tar { file, members } => {
                let mut name = clean(name);
                for _ in 0..=MAX_LINKS {
                    match members.get(&name) {
                        None => return Ok(None),
                        Some(Member::Link(to)) => name = to.clone(),
                        Some(Member::File { offset, len }) => {
                            let file = file.try_clone().context(|| "duplicate the archive")?;
                            return Ok(Some(Blob::File { file, offset: *offset, len: Some(*len) }));
                        }
                    }
                }
                Err(Error::invalid(format!("{name} of the archive is a link to a link, more than {MAX_LINKS} times")))
            }
        }
    }

    /// Reads a small file whole; `None` when there is none of that name.
    ///
    /// # Errors
    /// As [`Archive::blob`]; `ResourceExhausted` for one of more than `max` bytes.
    pub fn read(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>> {
        let Some(Blob::File { file, offset, len }) = self.blob(name)? else {
            return Ok(None);
        };
        let len = len.unwrap_or(u64::MAX);
        if len > max {
            return Err(Error::exhausted(format!("{name} of the archive has {len} bytes, at most {max}")));
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        match file.read_exact_at(&mut bytes, offset) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Err(Error::invalid(format!("{name} of the archive is truncated")))
            }
            read => read.context(|| format!("read {name} of the archive")).map(|()| Some(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn names_in_an_archive_are_one_spelling_and_never_leave_it() {
        for (name, cleaned) in
            [("./a//b/", "a/b"), ("/a", "a"), ("x/../../../a", "a"), ("l1/../l2/layer.tar", "l2/layer.tar")]
        {
            assert_eq!(clean(name), cleaned);
        }
    }
}
