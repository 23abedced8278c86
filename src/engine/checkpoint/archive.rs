//! The archive, as CRI-O, containerd and checkpointctl have it: a tar of
//!
//! ```text
//!   config.dump      which container of which image, and when
//!   spec.dump        its OCI runtime spec
//!   status.dump      when it was made and started
//!   rootfs-diff.tar  files that it has made or changed
//!   deleted.files    paths of its image that it has removed, JSON
//!   stats-dump       criu's numbers
//!   dump.log         criu's log
//!   checkpoint/      criu's images: processes, memory, open files
//! ```

use crate::error::{Context, Error, Kind, Result};
use crate::image::layer_tar;
use crate::state::model::IdMap;
use crate::state::record::{ContainerRecord, ProcessRecord};
use crate::sys::at::{self, OFlags, ResolveFlags};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::Instant;

/// criu's images.
pub(super) const IMAGES: &str = "checkpoint";
/// Memory and files of a container are for root.
const MODE: u32 = 0o600;
/// In the order of the archive: what a reader wants first.
const FILES: [&str; 7] =
    ["config.dump", "spec.dump", "status.dump", "stats-dump", "dump.log", "deleted.files", "rootfs-diff.tar"];
/// Images of criu: a few for each process.
const MAX_IMAGES: usize = 1 << 20;
/// Bytes that are written at once.
const BUFFER: usize = 256 << 10;
/// No time: Go's.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Where the archive goes. There is nothing of it there until it is whole.
pub(super) struct Target {
    path: PathBuf,
    directory: File,
    name: OsString,
}

impl Target {
    /// Looks whether a file can be made there.
    pub(super) fn open(path: &Path) -> Result<Target> {
        let wrong = |why: &str| Error::invalid(format!("location {path:?}: {why}"));
        if !path.is_absolute() || path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(wrong("it must be the absolute path of a file"));
        }
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(wrong("it must not contain .."));
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(wrong("it must be the absolute path of a file"));
        };
        // Whatever is there, opening it waits for nobody.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK;
        let directory = match at::openat2(at::CWD, parent, flags, 0, ResolveFlags::empty()) {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(wrong("its directory is not there"));
            }
            opened => File::from(opened.context(|| format!("open {}", parent.display()))?),
        };
        let target = Target { path: path.to_owned(), directory, name: name.to_owned() };
        match at::statat(target.directory.as_fd(), &target.name).context(|| format!("look at {}", path.display()))? {
            Some(_) => Err(target.taken()),
            None => Ok(target),
        }
    }

    fn taken(&self) -> Error {
        Error::new(Kind::AlreadyExists, format!("location {:?}: there is something already", self.path))
    }

    /// Writes all that is in `work`, and syncs it.
    pub(super) fn write(self, work: &Path, until: Instant) -> Result<Whole> {
        let doing = || format!("write {}", self.path.display());
        let flags = OFlags::WRONLY | OFlags::TMPFILE;
        let file = at::openat2(self.directory.as_fd(), Path::new("."), flags, MODE, ResolveFlags::empty());
        let file = File::from(file.context(doing)?);
        at::fchmod(file.as_fd(), MODE).context(doing)?; // whatever the umask
        let out = BufWriter::with_capacity(BUFFER, Bounded { out: &file, until });
        pack(work, out).context(doing)?;
        file.sync_all().context(doing)?;
        Ok(Whole { target: self, file })
    }
}

/// An archive that has all and no name.
pub(super) struct Whole {
    target: Target,
    file: File,
}

impl Whole {
    /// Gives it its name. When that may not last it has none: whoever is told that there is no archive must not find one later.
    pub(super) fn name(self) -> Result<()> {
        self.name_and(File::sync_all)
    }

    fn name_and(self, sync: impl FnOnce(&File) -> io::Result<()>) -> Result<()> {
        let Whole { target, file } = self;
        let doing = || format!("name {}", target.path.display());
        match at::name_open(file.as_fd(), target.directory.as_fd(), &target.name) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(target.taken()),
            named => named.context(doing)?,
        }
        let Err(e) = sync(&target.directory).context(doing) else { return Ok(()) };
        let removed = at::unlinkat(target.directory.as_fd(), &target.name, false);
        let removed = removed.context(|| format!("remove {}, which is not to be relied on", target.path.display()));
        Err(Error::collect(std::iter::once(e).chain(removed.err()).collect())
            .unwrap_or_else(|| Error::internal("no error")))
    }
}

fn pack(work: &Path, out: impl Write) -> Result<()> {
    let mut archive = tar::Builder::new(out);
    let mut add = |name: &str, path: &Path| {
        let file = File::open(path).context(|| format!("open {}", path.display()))?;
        let size = file.metadata().context(|| format!("stat {}", path.display()))?.len();
        let mut header = layer_tar::header_of(size, MODE)?;
        // No more than was announced, whatever is written to it.
        archive.append_data(&mut header, name, file.take(size)).context(|| format!("add {name}"))
    };
    for name in FILES {
        let path = work.join(name);
        if path.exists() {
            add(name, &path)?;
        }
    }
    let images = work.join(IMAGES);
    let directory = File::open(&images).context(|| format!("open {}", images.display()))?;
    let mut names = at::names(directory.as_fd(), MAX_IMAGES).context(|| "list the images")?;
    names.sort();
    for name in names {
        let name = name.to_string_lossy(); // criu's own names, letters and digits
        // A link: the one to the images before these, of which there are none.
        if images.join(&*name).symlink_metadata().is_ok_and(|about| about.is_file()) {
            add(&format!("{IMAGES}/{name}"), &images.join(&*name))?;
        }
    }
    let mut out = archive.into_inner().context(|| "end the archive")?;
    out.flush().context(|| "end the archive")
}

/// A file that is written to until a time.
struct Bounded<W> {
    out: W,
    until: Instant,
}

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if Instant::now() > self.until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.out.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn create(path: &Path) -> Result<File> {
    let mut open = std::fs::OpenOptions::new();
    open.write(true).create_new(true).mode(MODE).open(path).context(|| format!("create {}", path.display()))
}

pub(super) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_vec(value).map_err(|e| Error::internal(format!("encode {}: {e}", path.display())))?;
    create(path)?.write_all(&text).context(|| format!("write {}", path.display()))
}

/// What a container has changed of its files.
pub(super) struct Changes;

impl Changes {
    /// Writes `rootfs-diff.tar` and `deleted.files` of the writable layer `upper`, above `layers`, the lowest first; `ids` of the user namespace
    /// whose it is.
    pub(super) fn write(
        upper: &Path,
        layers: &[PathBuf],
        ids: Option<IdMap>,
        work: &Path,
        until: Instant,
    ) -> Result<()> {
        let root = File::open(upper).context(|| format!("open {}", upper.display()))?;
        let file = create(&work.join("rootfs-diff.tar"))?;
        let mut out = BufWriter::with_capacity(BUFFER, Bounded { out: file, until });
        let gone = layer_tar::write_changes(&root, ids, &mut out).context(|| "write the changed files")?;
        out.flush().context(|| "write the changed files")?;
        let mut deleted: BTreeSet<PathBuf> = gone.removed.iter().map(|path| OsStr::from_bytes(path).into()).collect();
        for directory in gone.replaced.iter().map(|path| Path::new(OsStr::from_bytes(path))) {
            if Instant::now() > until {
                return Err(io::Error::from(io::ErrorKind::TimedOut)).context(|| "list the files that are gone");
            }
            deleted.extend(hidden(directory, upper, layers));
        }
        // Most are none: what is no UTF-8 cannot be said in JSON.
        let deleted: Vec<_> = deleted.iter().filter_map(|path| path.to_str()).collect();
        if deleted.is_empty() { Ok(()) } else { write_json(&work.join("deleted.files"), &json!(deleted)) }
    }
}

/// What the layers have in a directory that the one above them has made anew.
fn hidden(directory: &Path, upper: &Path, layers: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for layer in layers {
        // A link on the way leads elsewhere, and its place in this layer was no directory then.
        let mut place = layer.clone();
        let is_directory = directory.components().all(|part| {
            place.push(part);
            place.symlink_metadata().is_ok_and(|about| about.is_dir())
        });
        let Ok(entries) = std::fs::read_dir(&place) else { continue };
        let names = entries.flatten().filter(|_| is_directory).map(|entry| directory.join(entry.file_name()));
        found.extend(names.filter(|path| upper.join(path).symlink_metadata().is_err()));
    }
    found
}

fn time(ns: i64) -> String {
    jiff::Timestamp::from_nanosecond(ns.into()).map_or_else(|_| NEVER.to_owned(), |time| time.to_string())
}

/// Writes what is known of the container besides.
pub(super) fn describe(record: &ContainerRecord, process: &ProcessRecord, work: &Path) -> Result<()> {
    let (config, created) = (&record.config, time(record.created_at_ns));
    let described = json!({
        "id": record.id,
        "name": config.name,
        "rootfsImage": config.image_id,
        "rootfsImageRef": record.image_ref,
        "rootfsImageName": config.image,
        "runtime": "podwright",
        "createdTime": created,
        "checkpointedTime": jiff::Timestamp::now().to_string(),
        "restoredTime": NEVER,
        "restored": false,
    });
    write_json(&work.join("config.dump"), &described)?;
    write_json(&work.join("spec.dump"), &record.spec.value())?;
    let status = json!({
        "CreatedAt": record.created_at_ns,
        "StartedAt": process.started_at_ns,
        "Pid": process.process.pid,
    });
    write_json(&work.join("status.dump"), &status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_whose_name_is_not_to_be_relied_on_has_none() {
        let temp = tempfile::tempdir().expect("tempdir");
        let path = temp.path().join("a.tar");
        let whole = || {
            let target = Target::open(&path).expect("free");
            let file = at::openat2(
                target.directory.as_fd(),
                Path::new("."),
                OFlags::WRONLY | OFlags::TMPFILE,
                MODE,
                ResolveFlags::empty(),
            );
            Whole { file: File::from(file.expect("a file without a name")), target }
        };
        let e = whole().name_and(|_| Err(io::Error::other("the disk is gone"))).expect_err("not synced");
        assert!(e.to_string().contains("the disk is gone") && e.to_string().contains("a.tar"), "{e}");
        assert_eq!(temp.path().read_dir().expect("listed").count(), 0);
        // Somebody else's in its place stays.
        let late = whole();
        std::fs::write(&path, "another's").expect("write");
        assert_eq!(late.name().expect_err("taken").kind(), Kind::AlreadyExists);
        assert_eq!(std::fs::read(&path).expect("it is there"), b"another's");
        std::fs::remove_file(&path).expect("remove");
        whole().name().expect("named");
        assert!(path.exists());
    }
}
