//! What an entry does to the tree of a layer: files by directory descriptors, nothing outside the root, whiteouts as overlay wants them.
//!
//! * A name starts at the layer's root whether or not it has a leading `/` (tools as common as ko write one). `..` is refused anywhere.
//! * The last component is never followed: what stands there is replaced, but a directory by a directory keeps its contents.
//! * Parents may be symlinks of the same layer, as long as they stay inside by themselves: openat2 with RESOLVE_BENEATH refuses absolute
//!   targets and those that climb out. Symlinks as such may point anywhere, for they only mean something in a container.
//! * Parents that no entry makes are 0755 root:root, as with Docker: a layer is unpacked alone, so what its parents are in lower layers is
//!   not known, and the same diff id gives the same tree under every image.
//! * A hard link's target is a file made earlier by the same layer.
//! * `.wh.x` becomes a 0/0 character device. What the layer itself has at `x` wins, in whichever order they come (image-spec, layer.md:
//!   whiteouts apply to lower layers only); if that is a directory it is made opaque, for the lower one is gone. `.wh..wh..opq`
//!   makes its directory opaque. Other names in `.wh..wh.` are aufs's bookkeeping and are passed over.
//! * Of extended attributes, `security.capability` and `user.*` but `user.overlay.*` are kept; others would steer this host and are counted.

use super::{MAX_OPAQUE, MAX_UNPACKED};
use crate::error::{Context, Error, Result};
use crate::image::tarball::{Entry, EntryKind, Input, Piece, Tarball, quoted};
use crate::sys::at::{self, Node, OFlags, ResolveFlags, Special, openat2};
use crate::sys::{errno_name, fsetxattr};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Components of a name, at most.
const MAX_DEPTH: usize = 128;
/// Bytes of one component (NAME_MAX).
const MAX_COMPONENT: usize = 255;
/// Bytes of directories' names that are remembered until their times are set, at most: a quarter of the process's memory.
const MAX_REMEMBERED: usize = 64 << 20;
/// Names in one directory that is replaced, read at a time.
const BATCH: usize = 1024;
/// What accounting rounds up to.
const DISK_BLOCK: u64 = 4096;
/// A symlink that leads out of the layer, a hard link that does, a `..`: the same advice.
const REMEDY: &str = "rebuild the image without it";

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

/// The tree being made.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    /// The directory last used as a parent, and its name.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Directories with entries, and their times.
    times: BTreeMap<Vec<u8>, (i64, u32)>,
    remembered: usize,
    opaque: BTreeSet<Vec<u8>>,
    buffer: Vec<u8>,
    apparent: u64,
    /// See [`super::Unpacked`].
    pub unpacked_bytes: u64,
    /// See [`super::Unpacked`].
    pub ignored_xattrs: u64,
}

/// A name: its components, none of them `.` or `..` or empty.
fn components(name: &[u8]) -> Result<Vec<&[u8]>> {
    let mut parts = Vec::new();
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                let why = format!("the name {} climbs out of its directory with \"..\"; {REMEDY}", quoted(name));
                return Err(Error::invalid(why));
            }
            _ if part.len() > MAX_COMPONENT => {
                return Err(Error::exhausted(format!("a name of {} bytes, at most {MAX_COMPONENT}", part.len())));
            }
            _ => parts.push(part),
        }
    }
    if parts.len() > MAX_DEPTH {
        return Err(Error::exhausted(format!("{} directories deep, at most {MAX_DEPTH}", parts.len())));
    }
    Ok(parts)
}

fn os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

fn is_whiteout(node: Option<Node>) -> bool {
    node == Some(Node::Char(0))
}

impl Tree {
    /// A tree in the directory that is `/` here.
    pub fn new(root: OwnedFd) -> Self {
        Tree {
            root,
            parent: None,
            times: BTreeMap::new(),
            remembered: 0,
            opaque: BTreeSet::new(),
            buffer: vec![0; 128 << 10],
            apparent: 0,
            unpacked_bytes: DISK_BLOCK,
            ignored_xattrs: 0,
        }
    }

    /// Does what `entry` says; its body is read from `body`.
    ///
    /// # Errors
    /// `InvalidArgument` and `ResourceExhausted`, with the entry's number and name.
    pub fn apply<R: Input>(&mut self, entry: &Entry, body: &mut Tarball<R>) -> Result<()> {
        self.apply_entry(entry, body).context(|| entry.describe())
    }

    fn apply_entry<R: Input>(&mut self, entry: &Entry, body: &mut Tarball<R>) -> Result<()> {
        let parts = components(&entry.path)?;
        let Some((name, parents)) = parts.split_last() else {
            return self.root_entry(entry);
        };
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.whiteout(parents, hidden);
        }
        if parents.iter().any(|p| p.starts_with(b".wh..wh.")) {
            return Ok(()); // aufs: .wh..wh.plnk/
        }
        if let EntryKind::HardLink = entry.kind {
            return self.hard_link(parents, name, &entry.link);
        }
        let parent = self.open_parent(parents)?;
        let path = parts.join(&b'/');
        if entry.kind == EntryKind::Directory {
            return self.directory(&parent, name, path, entry);
        }
        self.clear(parent.as_fd(), name, &path)?;
        match entry.kind {
            EntryKind::File => self.file(parent.as_fd(), name, entry, body),
            _ => self.special(parent.as_fd(), name, entry),
        }
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != EntryKind::Directory {
            return Err(Error::invalid("the root of a layer is a directory"));
        }
        let root = self.root.try_clone().context(|| "duplicate the root")?;
        self.attributes(root.as_fd(), entry)?;
        self.remember(Vec::new(), entry.mtime)
    }

    /// Opens the directory that `parents` name, making those that are missing.
    fn open_parent(&mut self, parents: &[&[u8]]) -> Result<OwnedFd> {
        let path = parents.join(&b'/');
        if path.is_empty() {
            return self.root.try_clone().context(|| "duplicate the root");
        }
        if let Some((cached, fd)) = &self.parent
            && *cached == path
        {
            return fd.try_clone().context(|| "duplicate a directory");
        }
        let fd = match self.open_directory(&path, OFlags::PATH) {
            Err(e) if missing(&e) => self.make_parents(parents)?,
            opened => explain(opened, &path)?,
        };
        self.parent = Some((path, fd.try_clone().context(|| "duplicate a directory")?));
        Ok(fd)
    }

    fn open_directory(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        openat2(self.root.as_fd(), Path::new(os(path)), flags | OFlags::DIRECTORY, 0, BENEATH)
    }

    fn make_parents(&mut self, parents: &[&[u8]]) -> Result<OwnedFd> {
        let mut above = self.root.try_clone().context(|| "duplicate the root")?;
        for depth in 1..=parents.len() {
            let (path, name) = (parents[..depth].join(&b'/'), parents[depth - 1]);
            above = match self.open_directory(&path, OFlags::PATH) {
                Err(e) if missing(&e) => {
                    let node = at::statat(above.as_fd(), os(name)).context(|| format!("stat {}", quoted(&path)))?;
                    match node {
                        None => {}
                        Some(Node::Char(0)) => {
                            at::unlinkat(above.as_fd(), os(name), false)
                                .context(|| format!("unlink {}", quoted(&path)))?;
                            self.hide(path.clone())?;
                        }
                        Some(_) => {
                            let why = format!("its parent {} is not a directory; {REMEDY}", quoted(&path));
                            return Err(Error::invalid(why));
                        }
                    }
                    at::mkdirat(above.as_fd(), os(name), 0o755).context(|| format!("mkdir {}", quoted(&path)))?;
                    at::chownat(above.as_fd(), os(name), 0, 0).context(|| format!("chown {}", quoted(&path)))?;
                    self.unpacked_bytes += DISK_BLOCK;
                    explain(self.open_directory(&path, OFlags::PATH), &path)?
                }
                opened => explain(opened, &path)?,
            };
        }
        Ok(above)
    }

    /// Makes a name free; whether a whiteout stood there.
    fn clear(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<bool> {
        let node = at::statat(parent, os(name)).context(|| "stat")?;
        if node.is_some() {
            self.parent = None; // it may be inside, or reached through this name
        }
        match node {
            None => {}
            Some(Node::Directory) => {
                self.forget(path);
                remove_tree(parent, os(name)).context(|| "replace a directory")?;
            }
            Some(_) => at::unlinkat(parent, os(name), false).context(|| "replace a file")?,
        }
        Ok(is_whiteout(node))
    }

    /// Forgets what was to be done to a directory and below it.
    fn forget(&mut self, path: &[u8]) {
        let inside = [path, b"/"].concat();
        self.opaque.remove(path);
        self.times.remove(path);
        let gone = |p: &&Vec<u8>| p.starts_with(&inside);
        for p in self.opaque.range(inside.clone()..).take_while(gone).cloned().collect::<Vec<_>>() {
            self.opaque.remove(&p);
        }
        for p in self.times.range(inside.clone()..).map(|(p, _)| p).take_while(gone).cloned().collect::<Vec<_>>() {
            self.times.remove(&p);
        }
    }

    fn directory(&mut self, parent: &OwnedFd, name: &[u8], path: Vec<u8>, entry: &Entry) -> Result<()> {
        let node = at::statat(parent.as_fd(), os(name)).context(|| "stat")?;
        if node != Some(Node::Directory) {
            if self.clear(parent.as_fd(), name, &path)? {
                self.hide(path.clone())?;
            }
            at::mkdirat(parent.as_fd(), os(name), 0o700).context(|| "mkdir")?;
            self.unpacked_bytes += DISK_BLOCK;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let fd = openat2(parent.as_fd(), Path::new(os(name)), flags, 0, BENEATH).context(|| "open")?;
        self.attributes(fd.as_fd(), entry)?;
        self.remember(path, entry.mtime)
    }

    fn remember(&mut self, path: Vec<u8>, mtime: (i64, u32)) -> Result<()> {
        self.remembered += path.len() + size_of::<(Vec<u8>, (i64, u32))>();
        if self.remembered > MAX_REMEMBERED {
            return Err(Error::exhausted(format!(
                "the names of its directories take more than {MAX_REMEMBERED} bytes"
            )));
        }
        self.times.insert(path, mtime);
        Ok(())
    }

    fn file<R: Input>(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        body: &mut Tarball<R>,
    ) -> Result<()> {
        self.apparent = self.apparent.saturating_add(entry.size);
        if self.apparent > MAX_UNPACKED {
            return Err(Error::exhausted(format!("the layer's files are more than {MAX_UNPACKED} bytes")));
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let fd = openat2(parent, Path::new(os(name)), flags, 0o600, BENEATH).context(|| "create")?;
        let file = File::from(fd);
        let whole = [Piece { offset: 0, len: entry.size }];
        for piece in entry.pieces.as_deref().unwrap_or(&whole) {
            self.write(&file, *piece, body)?;
            self.unpacked_bytes += piece.len.next_multiple_of(DISK_BLOCK);
        }
        if entry.pieces.is_some() {
            file.set_len(entry.size).context(|| "truncate")?;
        }
        self.attributes(file.as_fd(), entry)?;
        at::futimens(file.as_fd(), entry.mtime.0, entry.mtime.1).context(|| "set the times")
    }

    fn write<R: Input>(&mut self, file: &File, piece: Piece, body: &mut Tarball<R>) -> Result<()> {
        let (mut offset, mut left) = (piece.offset, piece.len);
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let n = match body.read(&mut self.buffer[..most]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map_err(super::worker::stream_error)?,
            };
            file.write_all_at(&self.buffer[..n], offset).context(|| "write")?;
            offset += n as u64;
            left -= n as u64;
        }
        Ok(())
    }

    /// Symlinks, devices and FIFOs.
    fn special(&mut self, parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<()> {
        let name = os(name);
        let node = match entry.kind {
            EntryKind::Char { major, minor } => Some(Special::Char { major, minor }),
            EntryKind::Block { major, minor } => Some(Special::Block { major, minor }),
            EntryKind::Fifo => Some(Special::Fifo),
            _ => None,
        };
        match node {
            Some(node) => at::mknodat(parent, name, node, entry.mode).context(|| "mknod")?,
            None if entry.link.is_empty() => return Err(Error::invalid("a symlink without a target")),
            None => at::symlinkat(os(&entry.link), parent, name).context(|| "symlink")?,
        }
        self.ignored_xattrs += entry.xattrs.len() as u64; // user.* exists on files and directories only, xattr(7)
        at::chownat(parent, name, entry.uid, entry.gid).context(|| "chown")?;
        at::utimensat(parent, name, entry.mtime.0, entry.mtime.1).context(|| "set the times")
    }

    /// Owner, then mode (chown clears set-id bits), then attributes (it clears capabilities too).
    fn attributes(&mut self, fd: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
        at::fchown(fd, entry.uid, entry.gid).context(|| format!("chown to {}:{}", entry.uid, entry.gid))?;
        at::fchmod(fd, entry.mode).context(|| format!("chmod to {:o}", entry.mode))?;
        for (name, value) in &entry.xattrs {
            let kept =
                name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."));
            if !kept {
                self.ignored_xattrs += 1;
                continue;
            }
            fsetxattr(fd, os(name), value).context(|| format!("set attribute {}", quoted(name)))?;
        }
        Ok(())
    }

    fn hard_link(&mut self, parents: &[&[u8]], name: &[u8], target: &[u8]) -> Result<()> {
        let outside = || format!("its hard link's target {} is outside the layer; {REMEDY}", quoted(target));
        if target.starts_with(b"/") {
            return Err(Error::invalid(outside()));
        }
        let parts = components(target).map_err(|e| e.context(outside()))?;
        let Some((old, old_parents)) = parts.split_last() else {
            return Err(Error::invalid(outside()));
        };
        if parts.len() == parents.len() + 1 && old_parents == parents && *old == name {
            return Ok(()); // a link to itself: GNU tar writes them for files named twice
        }
        let absent =
            || Error::invalid(format!("its hard link's target {} is not in the layer; {REMEDY}", quoted(target)));
        let path = old_parents.join(&b'/');
        let from = match self.open_directory(if path.is_empty() { b"." } else { &path }, OFlags::PATH) {
            Err(e) if missing(&e) => return Err(absent()),
            opened => explain(opened, &path)?,
        };
        match at::statat(from.as_fd(), os(old)).context(|| "stat")? {
            None | Some(Node::Directory | Node::Char(0)) => return Err(absent()),
            Some(_) => {}
        }
        let to = self.open_parent(parents)?;
        self.clear(to.as_fd(), name, &[parents.join(&b'/').as_slice(), name].join(&b'/'))?;
        at::linkat(from.as_fd(), os(old), to.as_fd(), os(name)).context(|| format!("link to {}", quoted(target)))
    }

    fn whiteout(&mut self, parents: &[&[u8]], hidden: &[u8]) -> Result<()> {
        let path = parents.join(&b'/');
        match hidden {
            b".wh..opq" => {
                drop(self.open_parent(parents)?);
                return self.hide(path);
            }
            _ if hidden.starts_with(b".wh.") => return Ok(()),
            b"" | b"." | b".." => return Err(Error::invalid(format!("a whiteout of nothing; {REMEDY}"))),
            _ => {}
        }
        let parent = self.open_parent(parents)?;
        match at::statat(parent.as_fd(), os(hidden)).context(|| "stat")? {
            None => at::mknodat(parent.as_fd(), os(hidden), Special::Char { major: 0, minor: 0 }, 0)
                .context(|| "make a whiteout"),
            Some(Node::Directory) => self.hide([parents, &[hidden]].concat().join(&b'/')),
            Some(_) => Ok(()),
        }
    }

    fn hide(&mut self, path: Vec<u8>) -> Result<()> {
        self.opaque.insert(path);
        if self.opaque.len() > MAX_OPAQUE {
            return Err(Error::exhausted(format!("more than {MAX_OPAQUE} opaque directories")));
        }
        Ok(())
    }

    /// Sets the directories' times, which making what is in them has changed, and gives the opaque ones.
    ///
    /// # Errors
    /// `Internal` when a directory cannot be opened any more.
    pub fn finish(self) -> Result<BTreeSet<Vec<u8>>> {
        for (path, (seconds, nanoseconds)) in &self.times {
            let dir = self.open_directory(if path.is_empty() { b"." } else { path }, OFlags::RDONLY);
            match dir {
                Ok(dir) => at::futimens(dir.as_fd(), *seconds, *nanoseconds)
                    .context(|| format!("set the times of {}", quoted(path)))?,
                Err(e) if missing(&e) => {} // a later entry replaced one of its parents through a symlink
                Err(e) => return Err(e).context(|| format!("open {}", quoted(path))),
            }
        }
        Ok(self.opaque)
    }
}

fn missing(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn explain(opened: io::Result<OwnedFd>, path: &[u8]) -> Result<OwnedFd> {
    match opened {
        Err(e) if e.raw_os_error().is_some_and(|n| matches!(errno_name(n), "EXDEV" | "ELOOP")) => Err(Error::invalid(
            format!("its parent {} leads through a symlink out of the layer; {REMEDY}", quoted(path)),
        )),
        opened => opened.context(|| format!("open {}", quoted(path))),
    }
}

/// Removes what `name` is, with everything below it. Depth is bounded by [`MAX_DEPTH`], for only this process made it.
fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let dir = openat2(parent, Path::new(name), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, 0, BENEATH)?;
    loop {
        let names = at::some_names(dir.as_fd(), BATCH)?;
        for inner in &names {
            match at::statat(dir.as_fd(), inner)? {
                Some(Node::Directory) => remove_tree(dir.as_fd(), inner)?,
                _ => at::unlinkat(dir.as_fd(), inner, false)?,
            }
        }
        if names.len() < BATCH {
            return at::unlinkat(parent, name, true);
        }
    }
}
