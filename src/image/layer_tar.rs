//! A layer's directory as a tar stream: the same bytes for the same tree. The way back from [`super::unpack`].
//!
//! Entries are sorted; what ustar cannot hold is in pax headers, and so are the holes of files (GNU's format 1.0, of writable layers alone: the
//! only one that Go's readers take for a file); whiteouts and opaque directories are what layers have for them (image-spec, layer.md). Files are opened by descriptor beneath the layer's root, and no link is followed; what is opened is what was looked at.

use super::tarball::quoted;
use crate::error::{Context, Error, Result};
use crate::state::model::{IdMap, IdRange};
use crate::sys::at::{self, OFlags, ResolveFlags};
use crate::sys::openat2::readlinkat;
use crate::sys::seek::{seek_data, seek_hole};
use crate::sys::{device_numbers, fgetxattr, flistxattr};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Bytes of a tar block.
const BLOCK: usize = 512;
/// What a header's numbers hold: 7 octal digits, and 11 (POSIX.1-2017, pax, ustar).
const MAX_ID: u32 = 0o7_777_777;
const MAX_LONG: u64 = 0o77_777_777_777;
/// Bytes of a name in a header.
const MAX_NAME: usize = 100;
/// Entries of a directory: no layer has more of them ([`super::unpack::MAX_ENTRIES`]).
const MAX_ENTRIES: usize = 512 << 10;
/// Pieces between the holes of one file: so many that their map is less than the 1 MiB that Go's readers take.
const MAX_PIECES: usize = 32 << 10;
/// What a file with holes is called by readers that do not know them.
const SPARSE_NAME: &[u8] = b"GNUSparseFile.0";
/// See [`super::unpack`].
const OPAQUE: &str = "trusted.overlay.opaque";
/// Attributes that layers keep.
const KEPT: [&str; 2] = [CAPABILITY, "user."];
const CAPABILITY: &str = "security.capability";
/// Who has an id that a user namespace does not have (/proc/sys/kernel/overflowuid).
const NOBODY: u32 = 65534;
/// `struct vfs_ns_cap_data` (linux/capability.h): revisions in the highest byte of its first number; the third has the namespace's root at its end.
const REVISION: usize = 3;
const REVISION_OF_NAMESPACE: u8 = 3;
const REVISION_OF_FILE: u8 = 2;
const BYTES_OF_FILE: usize = 20;

/// Writes all of the layer in `root`; `opaque` says of the root itself what its directories say by an attribute.
///
/// # Errors
/// `Internal`, naming the file; those of `out`.
pub fn write(root: &File, opaque: bool, out: &mut dyn Write) -> Result<()> {
    let mut writer = Writer { root, out, linked: HashMap::new(), gone: None, ids: None };
    let about = root.metadata().context(|| "stat the root of a layer")?;
    writer.entry(b"./", b'5', &about, &Extra::default())?;
    if opaque {
        writer.empty(b".wh..wh..opq")?;
    }
    writer.below()
}

/// What a writable layer takes away from those below it; paths relative to the root, without a leading slash.
#[derive(Debug, Default)]
pub struct Gone {
    /// No longer there.
    pub removed: Vec<Vec<u8>>,
    /// Directories of which nothing shows that a layer below has.
    pub replaced: Vec<Vec<u8>>,
}

/// Writes the files of a writable layer alone, and returns what it takes away instead of writing marks for it. Holes stay holes: a file of a
/// container may be of any length and take no room, and nobody needs the same bytes of the same layer twice. Of a container in a user namespace,
/// `ids`, owners are who they are in there: which ids of the host stand for them differs from pod to pod.
///
/// # Errors
/// As [`write`]; `ResourceExhausted` for a file of more than 32,768 pieces.
pub fn write_changes(root: &File, ids: Option<IdMap>, out: &mut dyn Write) -> Result<Gone> {
    let mut writer = Writer { root, out, linked: HashMap::new(), gone: Some(Gone::default()), ids };
    let about = root.metadata().context(|| "stat the root of a layer")?;
    writer.entry(b"./", b'5', &about, &Extra::default())?;
    writer.below()?;
    Ok(writer.gone.unwrap_or_default())
}

/// A header of root's, with every number in it: readers differ about those that are not there.
///
/// # Errors
/// `Internal`: it is no ustar header.
pub(crate) fn header_of(size: u64, mode: u32) -> Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let wrong = |e: io::Error| Error::internal(format!("device numbers: {e}"));
    header.set_device_major(0).map_err(wrong)?;
    header.set_device_minor(0).map_err(wrong)?;
    Ok(header)
}

struct Writer<'a> {
    root: &'a File,
    out: &'a mut dyn Write,
    /// Files of several names, by inode number: the first of them.
    linked: HashMap<u64, Vec<u8>>,
    /// Where marks go, if not into the stream.
    gone: Option<Gone>,
    /// Of the user namespace whose files these are.
    ids: Option<IdMap>,
}

/// What an entry has beside its metadata.
#[derive(Default)]
struct Extra {
    link: Vec<u8>,
    size: u64,
    device: (u32, u32),
    xattrs: Vec<(OsString, Vec<u8>)>,
    /// Of a file with holes: how long it is with them.
    real_size: Option<u64>,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).context(|| "write a layer")
    }

    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let path = Path::new(OsStr::from_bytes(if path.is_empty() { b"." } else { path }));
        at::openat2(self.root.as_fd(), path, flags, 0, beneath).context(|| "open it")
    }

    /// Writes all below the root, and the end.
    fn below(&mut self) -> Result<()> {
        // Directories that are not yet done, the next one last.
        let mut todo = self.children(b"")?;
        while let Some(path) = todo.pop() {
            if let Some(directory) = self.node(&path).context(|| format!("file {} of a layer", quoted(&path)))? {
                todo.extend(self.children(&directory)?);
            }
        }
        self.put(&[0; 2 * BLOCK])
    }

    /// The paths of what is in a directory, the first of them last.
    fn children(&self, directory: &[u8]) -> Result<Vec<Vec<u8>>> {
        let fd = self.open(directory, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = at::names(fd.as_fd(), MAX_ENTRIES).context(|| format!("list {}", quoted(directory)))?;
        names.sort_by(|a, b| b.cmp(a));
        let slash: &[u8] = if directory.is_empty() { b"" } else { b"/" };
        Ok(names.into_iter().map(|name| [directory, slash, &name.into_vec()].concat()).collect())
    }

    /// Writes what stands at a path; its path when it is a directory.
    fn node(&mut self, path: &[u8]) -> Result<Option<Vec<u8>>> {
        let place = self.open(path, OFlags::PATH | OFlags::NOFOLLOW)?;
        let place = File::from(place);
        let about = place.metadata().context(|| "stat it")?;
        let kind = about.file_type();
        if kind.is_dir() {
            let fd = reopen(&place, OFlags::RDONLY | OFlags::DIRECTORY)?;
            let extra = Extra { xattrs: self.xattrs(fd.as_fd())?, ..Extra::default() };
            self.entry(&[path, b"/"].concat(), b'5', &about, &extra)?;
            let opaque = fgetxattr(fd.as_fd(), OsStr::new(OPAQUE)).context(|| "read whether it is opaque")?;
            match &mut self.gone {
                _ if opaque.as_deref() != Some(b"y") => {}
                Some(gone) => gone.replaced.push(path.to_vec()),
                None => self.empty(&[path, b"/.wh..wh..opq"].concat())?,
            }
            return Ok(Some(path.to_vec()));
        }
        if kind.is_char_device() && about.rdev() == 0 {
            if let Some(gone) = &mut self.gone {
                gone.removed.push(path.to_vec());
                return Ok(None);
            }
            let (above, name) =
                path.iter().rposition(|b| *b == b'/').map_or((&path[..0], path), |at| path.split_at(at + 1));
            self.empty(&[above, b".wh.", name].concat())?;
            return Ok(None);
        }
        if about.nlink() > 1 {
            if let Some(first) = self.linked.get(&about.ino()) {
                let extra = Extra { link: first.clone(), ..Extra::default() };
                self.entry(path, b'1', &about, &extra)?;
                return Ok(None);
            }
            self.linked.insert(about.ino(), path.to_vec());
        }
        if kind.is_file() {
            self.file(path, &place, &about)?;
        } else if kind.is_symlink() {
            let link = readlinkat(place.as_fd(), c"").context(|| "read the link")?;
            self.entry(path, b'2', &about, &Extra { link: link.into_bytes(), ..Extra::default() })?;
        } else if kind.is_fifo() {
            self.entry(path, b'6', &about, &Extra::default())?;
        } else if kind.is_char_device() || kind.is_block_device() {
            let numbers = device_numbers(about.rdev());
            let flag = if kind.is_char_device() { b'3' } else { b'4' };
            self.entry(path, flag, &about, &Extra { device: numbers, ..Extra::default() })?;
        } // a socket is in no layer
        Ok(None)
    }

    fn xattrs(&self, fd: BorrowedFd<'_>) -> Result<Vec<(OsString, Vec<u8>)>> {
        let mut kept = Vec::new();
        let mut names = flistxattr(fd).context(|| "list its attributes")?;
        names.retain(|name| KEPT.iter().any(|kept| name.as_bytes().starts_with(kept.as_bytes())));
        names.sort();
        for name in names {
            let value = fgetxattr(fd, &name).context(|| "read its attributes")?;
            let value = value.map(|value| match self.ids.filter(|_| name == CAPABILITY) {
                Some(ids) => without_namespace(value, ids.uids),
                None => value,
            });
            kept.extend(value.map(|value| (name, value)));
        }
        Ok(kept)
    }

    fn file(&mut self, path: &[u8], place: &File, about: &Metadata) -> Result<()> {
        // Not by its name again: a container that still runs could have put a device there, which a host must not open for it.
        let mut file = File::from(reopen(place, OFlags::RDONLY)?);
        let size = about.size();
        let extra = Extra { xattrs: self.xattrs(file.as_fd())?, size, ..Extra::default() };
        // What has fewer blocks than bytes may have holes; what has not is not asked.
        let pieces = if self.gone.is_some() && about.blocks() < size.div_ceil(512) {
            pieces(&file, size)?
        } else {
            vec![(0, size)]
        };
        if pieces == [(0, size)] {
            self.entry(path, b'0', about, &extra)?;
            return self.copy(&mut file, size);
        }
        let map = map_of(&pieces);
        let stored = pieces.iter().map(|(_, length)| length).sum::<u64>() + map.len() as u64;
        self.entry(path, b'0', about, &Extra { size: stored, real_size: Some(size), ..extra })?;
        self.put(&map)?;
        for (offset, length) in pieces {
            file.seek(SeekFrom::Start(offset)).context(|| "seek in it")?;
            self.copy(&mut file, length)?;
        }
        Ok(())
    }

    /// The next bytes of a file; all but the last ones of a file are whole blocks.
    fn copy(&mut self, file: &mut File, length: u64) -> Result<()> {
        let copied = io::copy(&mut file.take(length), self.out).context(|| "copy it")?;
        if copied != length {
            return Err(Error::internal(format!("it was changed meanwhile: {copied} bytes where {length} were")));
        }
        self.pad(length)
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let over = usize::try_from(size % BLOCK as u64).unwrap_or_default();
        self.put(&[0; BLOCK][..(BLOCK - over) % BLOCK])
    }

    /// A mark that is an empty file.
    fn empty(&mut self, path: &[u8]) -> Result<()> {
        self.head(header_of(0, 0o644)?, path, b'0', &[], &mut Vec::new())
    }

    fn entry(&mut self, path: &[u8], flag: u8, about: &Metadata, extra: &Extra) -> Result<()> {
        let mut pax: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut more = |key: &str, value: String| pax.push((key.into(), value.into_bytes()));
        let mut header = header_of(extra.size.min(MAX_LONG), about.mode() & 0o7777)?;
        let owners =
            [("uid", about.uid(), self.ids.map(|ids| ids.uids)), ("gid", about.gid(), self.ids.map(|ids| ids.gids))];
        for (key, id, range) in owners {
            let id = range.map_or(id, |range| range.from_host(id).unwrap_or(NOBODY));
            if id > MAX_ID {
                more(key, id.to_string());
            }
            let id = u64::from(id.min(MAX_ID));
            if key == "uid" { header.set_uid(id) } else { header.set_gid(id) }
        }
        if extra.size > MAX_LONG {
            more("size", extra.size.to_string());
        }
        let seconds = u64::try_from(about.mtime()).ok().filter(|seconds| *seconds <= MAX_LONG);
        if seconds.is_none() || about.mtime_nsec() != 0 {
            more("mtime", time(about.mtime(), about.mtime_nsec()));
        }
        header.set_mtime(seconds.unwrap_or_default());
        if flag == b'3' || flag == b'4' {
            let wrong = |e: io::Error| Error::internal(format!("device numbers: {e}"));
            header.set_device_major(extra.device.0).map_err(wrong)?;
            header.set_device_minor(extra.device.1).map_err(wrong)?;
        }
        for (name, value) in &extra.xattrs {
            pax.push(([b"SCHILY.xattr.", name.as_bytes()].concat(), value.clone()));
        }
        let Some(real_size) = extra.real_size else { return self.head(header, path, flag, &extra.link, &mut pax) };
        for (key, value) in [("major", b"1".as_slice()), ("minor", b"0"), ("name", path)] {
            pax.push((format!("GNU.sparse.{key}").into_bytes(), value.to_vec()));
        }
        pax.push((b"GNU.sparse.realsize".to_vec(), real_size.to_string().into_bytes()));
        self.head(header, SPARSE_NAME, flag, &extra.link, &mut pax)
    }

    /// The header, and before it those that have what it cannot hold.
    fn head(
        &mut self,
        mut header: tar::Header,
        path: &[u8],
        flag: u8,
        link: &[u8],
        pax: &mut Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<()> {
        for (key, value) in [("path", path), ("linkpath", link)] {
            if value.len() > MAX_NAME || !value.is_ascii() {
                pax.push((key.into(), value.to_vec()));
            }
        }
        if !pax.is_empty() {
            let records: Vec<u8> = pax.iter().flat_map(|(key, value)| record(key, value)).collect();
            let extended = header_of(records.len() as u64, 0o644)?;
            self.block(extended, b"pax", b'x', b"")?;
            self.put(&records)?;
            self.pad(records.len() as u64)?;
        }
        header.set_entry_type(tar::EntryType::new(flag));
        self.block(header, path, flag, link)
    }

    fn block(&mut self, mut header: tar::Header, path: &[u8], flag: u8, link: &[u8]) -> Result<()> {
        let old = header.as_old_mut();
        let fits = |text: &[u8]| text.len().min(MAX_NAME);
        old.name[..fits(path)].copy_from_slice(&path[..fits(path)]);
        old.linkname[..fits(link)].copy_from_slice(&link[..fits(link)]);
        old.linkflag = [flag];
        header.set_cksum();
        self.put(header.as_bytes())
    }
}

fn reopen(place: &File, flags: OFlags) -> Result<OwnedFd> {
    at::reopen(place.as_fd(), flags).context(|| "open it")
}

/// The map of a file with holes, which comes before its pieces: how many, and offset and length of each, a line each; whole blocks.
fn map_of(pieces: &[(u64, u64)]) -> Vec<u8> {
    let lines = pieces.iter().map(|(offset, length)| format!("{offset}\n{length}\n"));
    let mut map = std::iter::once(format!("{}\n", pieces.len())).chain(lines).collect::<String>().into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

/// What of a file of `size` bytes is no hole: offsets and lengths, in order, whole blocks but for the last one. One that ends with a hole has
/// an empty piece at its end: readers want to see it reached.
fn pieces(file: &File, size: u64) -> Result<Vec<(u64, u64)>> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    let (mut at, mut end) = (0, 0);
    while at < size
        && let Some(data) = seek_data(file.as_fd(), at).context(|| "look for its data")?.filter(|data| *data < size)
    {
        // Onwards in any case, whoever makes holes in it meanwhile.
        at = seek_hole(file.as_fd(), data).context(|| "look for its holes")?.max(data + 1).min(size);
        let start = (data - data % BLOCK as u64).max(end);
        end = at.next_multiple_of(BLOCK as u64).min(size);
        match found.last_mut() {
            Some((offset, length)) if *offset + *length == start => *length = end - *offset,
            _ => found.push((start, end - start)),
        }
        if found.len() > MAX_PIECES {
            return Err(Error::exhausted(format!("it has more than {MAX_PIECES} holes")));
        }
    }
    if end < size {
        found.push((size, 0));
    }
    Ok(found)
}

/// A pax record: its own length, which counts itself, the key and the value.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3; // the space, "=" and the line's end
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// Seconds and nanoseconds as a decimal number: of -1 s and 5e8 ns it is -0.5.
fn time(seconds: i64, nanoseconds: i64) -> String {
    let (sign, whole, part) = match (seconds < 0, nanoseconds) {
        (false, part) => ("", seconds.unsigned_abs(), part),
        (true, 0) => ("-", seconds.unsigned_abs(), 0),
        (true, part) => ("-", seconds.unsigned_abs() - 1, 1_000_000_000 - part),
    };
    if part == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{part:09}") }
}

/// Capabilities of a file that a user namespace's root has given it, as they would be without that namespace; others as they are.
fn without_namespace(value: Vec<u8>, uids: IdRange) -> Vec<u8> {
    let root = value.get(BYTES_OF_FILE..).and_then(|root| root.try_into().ok()).map(u32::from_le_bytes);
    if value.get(REVISION) != Some(&REVISION_OF_NAMESPACE) || root != Some(uids.host) {
        return value;
    }
    let mut value = value;
    value[REVISION] = REVISION_OF_FILE;
    value.truncate(BYTES_OF_FILE);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pax_record_counts_its_own_digits() {
        assert_eq!(record(b"a", b"b"), b"6 a=b\n");
        for length in [1, 92, 93, 94, 991, 992, 993, 9990] {
            let made = record(b"path", &vec![b'x'; length]);
            let says: usize =
                std::str::from_utf8(&made).expect("text").split(' ').next().expect("one").parse().expect("a number");
            assert_eq!(says, made.len());
        }
    }

    #[test]
    fn capabilities_of_a_file_are_those_without_the_namespace_that_gave_them() {
        let uids = IdRange::new(1 << 30, 65536).expect("a range");
        let of = |revision: u8, root: Option<u32>| {
            let mut value = vec![1, 0, 0, revision];
            value.extend([7; 16]);
            value.extend(root.into_iter().flat_map(u32::to_le_bytes));
            value
        };
        assert_eq!(without_namespace(of(3, Some(1 << 30)), uids), of(2, None));
        for other in [of(2, None), of(3, Some(5)), of(3, None), vec![], vec![3; 24], vec![0, 0, 0, 3]] {
            assert_eq!(without_namespace(other.clone(), uids), other);
        }
    }

    #[test]
    fn owners_in_a_user_namespace_are_who_they_are_in_there() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (mut out, root) = (Vec::new(), File::open(dir.path()).expect("open"));
        let host = 1 << 30;
        for (name, owner) in
            [("root", host), ("user", host + 1000), ("last", host + 65535), ("beyond", host + 65536), ("host", 0)]
        {
            let path = dir.path().join(name);
            File::create_new(&path).expect("create");
            std::os::unix::fs::chown(&path, Some(owner), Some(owner)).expect("chown");
        }
        let range = IdRange::new(host, 65536).expect("a range");
        write_changes(&root, Some(IdMap { uids: range, gids: range }), &mut out).expect("written");
        let mut archive = tar::Archive::new(out.as_slice());
        let owners: HashMap<String, (u64, u64)> = archive
            .entries()
            .expect("entries")
            .map(|entry| {
                let entry = entry.expect("an entry");
                let owner = (entry.header().uid().expect("uid"), entry.header().gid().expect("gid"));
                (entry.path().expect("a path").display().to_string(), owner)
            })
            .collect();
        for (name, id) in [("root", 0), ("user", 1000), ("last", 65535), ("beyond", 65534), ("host", 65534)] {
            assert_eq!(owners[name], (id, id), "{name}");
        }
    }

    #[test]
    fn a_time_is_a_decimal_number() {
        for (parts, text) in
            [((1, 0), "1"), ((1, 5), "1.000000005"), ((-1, 500_000_000), "-0.500000000"), ((-2, 0), "-2")]
        {
            assert_eq!(time(parts.0, parts.1), text);
        }
    }

    #[test]
    fn holes_of_a_writable_layer_stay_holes_and_a_layers_are_its_bytes() {
        let dir = tempfile::tempdir().expect("tempdir");
        // Of a piece each, more than a header and two blocks of it have room for; one of nothing else; one that begins and one that ends with it.
        let long = "n".repeat(120);
        let files: [(&str, u64, Vec<u64>); 4] = [
            (&long, 60 << 20, (0..60).map(|n| (n << 20) + 5000).collect()),
            ("nothing", 9 << 30, vec![]),
            ("begins", (1 << 20) + 1, vec![1 << 20]),
            ("ends", 1 << 20, vec![0]),
        ];
        for (name, size, marks) in &files {
            let file = File::create_new(dir.path().join(name)).expect("create");
            file.set_len(*size).expect("truncate");
            marks.iter().for_each(|at| {
                std::os::unix::fs::FileExt::write_all_at(&file, b"x", *at).expect("write");
            });
        }
        let (mut out, root) = (Vec::new(), File::open(dir.path()).expect("open"));
        write_changes(&root, None, &mut out).expect("written");
        assert!(out.len() < 4 << 20, "{}", out.len());
        // GNU's own reader makes of it what it was.
        let (into, stream) =
            (tempfile::tempdir().expect("tempdir"), tempfile::NamedTempFile::new().expect("temp file"));
        std::fs::write(stream.path(), &out).expect("write");
        let mut tar = std::process::Command::new("tar");
        tar.arg("--no-same-owner").arg("-C").arg(into.path()).arg("-xf").arg(stream.path());
        assert!(tar.status().expect("tar runs").success());
        for (name, size, marks) in &files {
            let path = into.path().join(name);
            assert_eq!(path.metadata().expect("it is there").size(), *size, "{name}");
            if *size < 1 << 30 {
                let bytes = std::fs::read(&path).expect("read");
                let found: Vec<u64> = bytes.iter().zip(0..).filter(|(b, _)| **b != 0).map(|(_, at)| at).collect();
                assert_eq!(&found, marks, "{name}");
            }
        }
        // What Go's reader goes by: an ordinary file, whose name and length are in its pax header.
        let mut archive = tar::Archive::new(out.as_slice());
        let kinds: Vec<_> =
            archive.entries().expect("entries").map(|e| e.expect("an entry").header().entry_type()).collect();
        assert_eq!(kinds.iter().filter(|kind| **kind == tar::EntryType::Regular).count(), files.len(), "{kinds:?}");
        std::fs::remove_file(dir.path().join("nothing")).expect("remove");
        let mut whole = io::sink();
        write(&root, false, &mut whole).expect("written");
    }
}
