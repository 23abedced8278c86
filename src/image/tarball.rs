//! The entries of a tar stream: POSIX ustar and pax, GNU long names and sparse files, each count and size with a bound.
//!
//! The `tar` crate parses the 512 bytes of a header and nothing else: its own iterator reads extended headers of any size into memory. What
//! two readers could understand differently is read as Go's archive/tar does (Docker and containerd) or refused: a pax size wins over
//! the header's, global headers change nothing, links and directories have no body whatever their size says.
//!
//! Not here: what a name means in a file system, which is for who extracts.

mod pax;

use crate::error::{Context, Error, Kind, Result};
use pax::Pax;
use std::io::{self, Read};

/// Bytes of a tar block.
const BLOCK: usize = 512;
/// Bytes of one extended header, at most: room for an attribute of the largest size (64 KiB) and long names, several times.
const MAX_EXTENDED: u64 = 1 << 20;
/// Extended headers before one entry, at most: a long name, a long link, a pax header, and a global one.
const MAX_EXTENDED_RUN: u32 = 8;
/// Bytes of a name or a link's target, at most (PATH_MAX with its NUL).
const MAX_PATH: usize = 4095;
/// Bytes of a body, at most: far above every other bound, far below where sums of sizes could wrap.
const MAX_BODY: u64 = 1 << 50;
/// Pieces of data in a sparse file, at most.
const MAX_PIECES: usize = 64 << 10;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    File,
    Directory,
    Symlink,
    HardLink,
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
}

/// One entry. Names are as written: nothing is cleaned.
#[derive(Debug, Clone)]
pub struct Entry {
    /// From 1, for messages.
    pub ordinal: u64,
    pub path: Vec<u8>,
    /// The target of a link.
    pub link: Vec<u8>,
    pub kind: EntryKind,
    /// Permission bits with set-id and sticky, 0 to 0o7777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub mtime: (i64, u32),
    /// Bytes of the file when it is whole, holes included.
    pub size: u64,
    /// Names without the SCHILY prefix, and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the bytes of the body belong, for a sparse file.
    pub pieces: Option<Vec<Piece>>,
}

/// Data in a sparse file: offset and length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub offset: u64,
    pub len: u64,
}

impl Entry {
    /// `entry 3 "a/b"`.
    pub fn describe(&self) -> String {
        format!("entry {} {}", self.ordinal, quoted(&self.path))
    }
}

/// A name in quotes with escapes, as much of it as fits a line.
pub fn quoted(name: &[u8]) -> String {
    const SHOWN: usize = 200;
    let cut = &name[..name.len().min(SHOWN)];
    format!("{:?}{}", String::from_utf8_lossy(cut), if name.len() > SHOWN { "..." } else { "" })
}

/// A reader that may know a cheaper way to pass over bytes.
pub trait Input: Read {
    /// Passes over `n` bytes.
    ///
    /// # Errors
    /// `UnexpectedEof` when there are fewer.
    fn skip(&mut self, n: u64) -> io::Result<()> {
        let passed = io::copy(&mut Read::take(&mut *self, n), &mut io::sink())?;
        if passed == n { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// The entries of `input`.
#[derive(Debug)]
pub struct Tarball<R> {
    input: R,
    /// Bytes of the current body that were not read.
    body: u64,
    /// And the padding behind it.
    padding: u64,
    position: u64,
    ordinal: u64,
    max_entries: u64,
}

/// What goes wrong below the tar format is passed on; its own truncation gets a sentence.
fn io_error(e: io::Error) -> Error {
    if e.kind() == io::ErrorKind::UnexpectedEof {
        return Error::invalid("the tar stream ends in the middle of an entry: it is truncated");
    }
    match e.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(ours) => ours.clone(),
        None => Err::<(), _>(e).context(|| "read the tar stream").expect_err("it was made an error"),
    }
}

impl<R: Input> Tarball<R> {
    /// Reads `input`, refusing what has more than `max_entries` entries.
    pub fn new(input: R, max_entries: u64) -> Self {
        Tarball { input, body: 0, padding: 0, position: 0, ordinal: 0, max_entries }
    }

    /// Where the body of the entry last returned starts, in bytes of the stream; only before it is read.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes of the body that were not read yet.
    pub fn remaining(&self) -> u64 {
        self.body
    }

    /// The reader, wherever it stands.
    pub fn into_inner(self) -> R {
        self.input
    }

    fn take_block(&mut self, block: &mut [u8; BLOCK]) -> Result<()> {
        self.input.read_exact(block).map_err(io_error)?;
        self.position += BLOCK as u64;
        Ok(())
    }

    /// A header's block; `None` at the end of the archive (a zero block, or no block at all).
    fn header(&mut self) -> Result<Option<tar::Header>> {
        let mut block = [0u8; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            match self.input.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(io_error(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(io_error(e)),
            }
        }
        self.position += BLOCK as u64;
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let header = tar::Header::from_byte_slice(&block).clone();
        check_sum(&header)?;
        Ok(Some(header))
    }

    fn extended(&mut self, header: &tar::Header) -> Result<Vec<u8>> {
        let size = header.entry_size().map_err(number)?;
        if size > MAX_EXTENDED {
            return Err(Error::exhausted(format!("an extended header of {size} bytes, at most {MAX_EXTENDED}")));
        }
        self.start_body(size);
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes).map_err(io_error)?;
        if bytes.len() as u64 != size {
            return Err(io_error(io::ErrorKind::UnexpectedEof.into()));
        }
        self.finish_body()?;
        Ok(bytes)
    }

    fn start_body(&mut self, size: u64) {
        self.body = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn finish_body(&mut self) -> Result<()> {
        let rest = self.body + self.padding;
        if rest > 0 {
            self.input.skip(rest).map_err(io_error)?;
            self.position += rest;
        }
        (self.body, self.padding) = (0, 0);
        Ok(())
    }

    /// The next entry; what was not read of the last one's body is passed over.
    ///
    /// # Errors
    /// `InvalidArgument` for what is not tar, `ResourceExhausted` for what is above a bound, and the reader's own.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.finish_body()?;
        self.read_entry().context(|| format!("tar entry {}", self.ordinal + 1))
    }

    fn read_entry(&mut self) -> Result<Option<Entry>> {
        let (mut pax, mut long_name, mut long_link) = (Pax::default(), None, None);
        for _ in 0..MAX_EXTENDED_RUN {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            match header.as_old().linkflag[0] {
                b'x' => pax = Pax::parse(&self.extended(&header)?)?,
                b'g' => drop(self.extended(&header)?), // as Go: it changes nothing
                b'L' => long_name = Some(until_nul(&self.extended(&header)?).to_vec()),
                b'K' => long_link = Some(until_nul(&self.extended(&header)?).to_vec()),
                _ => {
                    self.ordinal += 1;
                    if self.ordinal > self.max_entries {
                        return Err(Error::exhausted(format!(
                            "more than {} entries, which is the most",
                            self.max_entries
                        )));
                    }
                    return self.entry(&header, pax, long_name, long_link).map(Some);
                }
            }
        }
        Err(Error::invalid(format!("more than {MAX_EXTENDED_RUN} extended headers in a row")))
    }

    fn entry(
        &mut self,
        header: &tar::Header,
        mut pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry> {
        let path = pax.path.take().or(long_name).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = pax.link.take().or(long_link).or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
        let link = link.unwrap_or_default();
        for name in [&path, &link] {
            if name.len() > MAX_PATH {
                return Err(Error::exhausted(format!(
                    "a name of {} bytes, at most {MAX_PATH}: {}",
                    name.len(),
                    quoted(name)
                )));
            }
            if name.contains(&0) {
                return Err(Error::invalid(format!("a NUL in the name {}", quoted(name))));
            }
        }
        let kind = kind(header, &path)?;
        let size = match kind {
            EntryKind::File => pax.size.map_or_else(|| header.entry_size().map_err(number), Ok)?,
            _ => 0,
        };
        if size > MAX_BODY {
            return Err(Error::exhausted(format!("a file of {size} bytes")));
        }
        let mut entry = Entry {
            ordinal: self.ordinal,
            path,
            link,
            kind,
            mode: header.mode().map_err(number)? & 0o7777,
            uid: owner("uid", pax.uid, header.uid())?,
            gid: owner("gid", pax.gid, header.gid())?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => (i64::try_from(header.mtime().map_err(number)?).unwrap_or(0), 0),
            },
            size,
            xattrs: std::mem::take(&mut pax.xattrs),
            pieces: None,
        };
        if kind == EntryKind::File {
            let gnu = (header.as_old().linkflag[0] == b'S').then(|| header.as_gnu()).flatten();
            let map = match gnu {
                Some(gnu) => Some((self.gnu_map(gnu)?, gnu.real_size().map_err(number)?)),
                None => None,
            };
            self.start_body(size);
            self.sparse(&mut entry, pax, map)?;
        }
        Ok(entry)
    }

    /// The old GNU format: four pieces in the header, 21 in each further block.
    fn gnu_map(&mut self, header: &tar::GnuHeader) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        push_gnu(&mut pieces, &header.sparse)?;
        let mut more = header.is_extended();
        while more {
            let mut next = tar::GnuExtSparseHeader::new();
            self.take_block(next.as_mut_bytes())?;
            push_gnu(&mut pieces, next.sparse())?;
            more = next.is_extended();
        }
        Ok(pieces)
    }

    /// Completes a sparse entry: its map (from the header, from pax records, or from the start of the body) and its real size.
    fn sparse(&mut self, entry: &mut Entry, pax: Pax, gnu: Option<(Vec<Piece>, u64)>) -> Result<()> {
        let (pieces, size) = match (gnu, pax.sparse) {
            (Some((pieces, size)), _) => (pieces, pax.size.unwrap_or(size)),
            (None, Some(sparse)) => {
                entry.path = sparse.name.unwrap_or_else(|| std::mem::take(&mut entry.path));
                let size = sparse.real_size.ok_or_else(|| Error::invalid("a sparse file without its real size"))?;
                (if sparse.map_in_body { self.body_map()? } else { sparse.pieces }, size)
            }
            (None, None) => return Ok(()),
        };
        check_pieces(&pieces, size, self.body)?;
        entry.size = size;
        entry.pieces = Some(pieces);
        Ok(())
    }

    /// Pax format 1.0: decimal numbers, one a line, then padding to a block: how many pieces, then offset and length of each.
    fn body_map(&mut self) -> Result<Vec<Piece>> {
        let bad = || Error::invalid("the map of a sparse file is not numbers on lines");
        let (mut numbers, mut digits) = (Vec::new(), 0u64);
        let mut wanted = 1;
        let mut have_digit = false;
        while numbers.len() < wanted {
            let mut block = [0u8; BLOCK];
            if self.body < BLOCK as u64 {
                return Err(bad());
            }
            self.read_exact(&mut block).map_err(io_error)?;
            for byte in block {
                match byte {
                    _ if numbers.len() == wanted => break,
                    b'0'..=b'9' => {
                        let next = digits.checked_mul(10).and_then(|d| d.checked_add(u64::from(byte - b'0')));
                        (digits, have_digit) = (next.ok_or_else(bad)?, true);
                    }
                    b'\n' if have_digit => {
                        numbers.push(digits);
                        (digits, have_digit) = (0, false);
                        if numbers.len() == 1 {
                            let count = usize::try_from(numbers[0]).ok().filter(|n| *n <= MAX_PIECES);
                            wanted = 1 + 2 * count.ok_or_else(too_many_pieces)?;
                        }
                    }
                    _ => return Err(bad()),
                }
            }
        }
        Ok(numbers[1..].chunks(2).map(|pair| Piece { offset: pair[0], len: pair[1] }).collect())
    }
}

impl<R: Input> Read for Tarball<R> {
    /// The body of the entry last returned.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.body).unwrap_or(usize::MAX).min(buf.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.input.read(&mut buf[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.body -= n as u64;
        self.position += n as u64;
        Ok(n)
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

fn number(e: io::Error) -> Error {
    Error::new(Kind::InvalidArgument, e.to_string().escape_default().to_string())
}

fn too_many_pieces() -> Error {
    Error::exhausted(format!("a sparse file of more than {MAX_PIECES} pieces"))
}

/// The sum of a header's bytes, its own field counted as spaces; some old writers summed signed bytes.
fn check_sum(header: &tar::Header) -> Result<()> {
    let stored = header.cksum().map_err(number)?;
    let field = 148..156;
    let bytes = || header.as_bytes().iter().enumerate().map(|(i, b)| if field.contains(&i) { b' ' } else { *b });
    let unsigned: u32 = bytes().map(u32::from).sum();
    let signed: i32 = bytes().map(|b| i32::from(b.cast_signed())).sum();
    if stored == unsigned || i64::from(stored) == i64::from(signed) {
        return Ok(());
    }
    Err(Error::invalid(format!("a header whose checksum is {unsigned} says {stored}: not tar, or damaged")))
}

fn kind(header: &tar::Header, path: &[u8]) -> Result<EntryKind> {
    let device = || -> Result<(u32, u32)> {
        let major = header.device_major().map_err(number)?.unwrap_or(0);
        Ok((major, header.device_minor().map_err(number)?.unwrap_or(0)))
    };
    Ok(match header.as_old().linkflag[0] {
        // Version 7 had no type for a directory.
        0 if path.ends_with(b"/") => EntryKind::Directory,
        0 | b'0' | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => device().map(|(major, minor)| EntryKind::Char { major, minor })?,
        b'4' => device().map(|(major, minor)| EntryKind::Block { major, minor })?,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        other => {
            return Err(Error::invalid(format!(
                "{}: entries of type {:?} are not supported",
                quoted(path),
                char::from(other)
            )));
        }
    })
}

fn owner(which: &str, pax: Option<u64>, header: io::Result<u64>) -> Result<u32> {
    let id = pax.map_or_else(|| header.map_err(number), Ok)?;
    // u32::MAX is chown's "leave it".
    u32::try_from(id)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| Error::invalid(format!("{which} {id} is not one that Linux has (0 to {})", u32::MAX - 1)))
}

fn push_gnu(pieces: &mut Vec<Piece>, headers: &[tar::GnuSparseHeader]) -> Result<()> {
    for header in headers.iter().filter(|h| !h.is_empty()) {
        if pieces.len() == MAX_PIECES {
            return Err(too_many_pieces());
        }
        pieces.push(Piece { offset: header.offset().map_err(number)?, len: header.length().map_err(number)? });
    }
    Ok(())
}

/// Pieces ascend, do not overlap, end within the file, and are as long together as the body.
fn check_pieces(pieces: &[Piece], size: u64, body: u64) -> Result<()> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for piece in pieces {
        let next = piece.offset.checked_add(piece.len).filter(|next| *next <= size && piece.offset >= end);
        end = next.ok_or_else(|| {
            Error::invalid(format!(
                "piece {}+{} of a sparse file of {size} bytes overlaps or lies outside",
                piece.offset, piece.len
            ))
        })?;
        sum += piece.len;
    }
    if sum == body {
        Ok(())
    } else {
        Err(Error::invalid(format!("the pieces of a sparse file are {sum} bytes, its body {body}")))
    }
}

#[cfg(test)]
mod tests;
