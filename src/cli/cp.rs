//! `podwright cp`: files and directories into a running container and out of it, without a program in there.
//!
//! Paths in the container are resolved beneath its root by openat2(2), by this process: whatever links and renames the container makes
//! meanwhile, what is read and written is inside. What comes out are files and directories and nothing else: a symbolic link would be the
//! container's word on where the next file of ours goes (CVE-2019-1002101 and those after it, of kubectl cp).

use super::{Session, find, output};
use crate::error::{Context, Error, Result};
use crate::state::model::IdMap;
use crate::state::record::User;
use crate::sys;
use crate::sys::openat2::{self, Links, Open};
use crate::sys::{at, fs};
use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  podwright cp web/nginx:/etc/nginx/nginx.conf .       a file out of a container
  podwright cp web:/var/log/app ./logs                 a directory
  podwright cp site/ web/nginx:/usr/share/nginx/html   into one: what is made belongs to the container's user

Symbolic links, devices and sockets are left out, and named.";

/// Directories within one another.
const MAX_DEPTH: usize = 128;
/// Names in one directory of a container.
const MAX_ENTRIES: usize = 1 << 20;
/// open(2), of asm-generic/fcntl.h.
const O_NOFOLLOW: i32 = 0o400_000;

/// Copies files and directories into a running container, or out of it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CpArgs {
    /// What to copy: a path here, or POD:PATH or POD/CONTAINER:PATH
    source: String,
    /// Where to: the other of the two; into a directory that is there, under its own name
    destination: String,
    /// Container of the pod
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
}

pub(super) fn run(args: &CpArgs, session: &Session) -> Result<u8> {
    let (out, (target, inside), here) = match (split(&args.source), split(&args.destination)) {
        (Some(there), None) => (true, there, &args.destination),
        (None, Some(there)) => (false, there, &args.source),
        _ => return Err(Error::invalid("one of the two is POD:PATH or POD/CONTAINER:PATH, the other a path here")),
    };
    super::require_root("cp")?;
    super::runtime()?.block_on(async {
        let all = find::all(session).await?;
        let (found, container) = find::container(&all, target, args.container.as_deref())?;
        let root = found.engine.root_of(&container.record.id)?;
        let user = container.process.map(|process| process.user);
        let user = user.ok_or_else(|| Error::precondition("the container does not run"))?;
        let user = match found.pod.record.config.namespaces.user.map() {
            Some(ids) if !out => in_user_namespace(user, ids)?,
            _ => user,
        };
        let mut copy = Copy { root, user, left_out: 0 };
        match out {
            true => copy.out(Path::new(inside), Path::new(here))?,
            false => copy.inside(Path::new(here), Path::new(inside))?,
        }
        Ok(u8::from(copy.left_out > 0))
    })
}

/// The user as the host has it. Files are made as the pod's root from here on: in a volume that is seen through the pod's ids the host's root is
/// nobody.
fn in_user_namespace(user: User, ids: IdMap) -> Result<User> {
    let outside = || Error::internal(format!("user {}:{} is not in the pod's user namespace", user.uid, user.gid));
    let (uid, gid) = (ids.uids.to_host(user.uid), ids.gids.to_host(user.gid));
    let (uid, gid) = (uid.ok_or_else(outside)?, gid.ok_or_else(outside)?);
    sys::credentials::make_files_as(ids.uids.host, ids.gids.host).context(|| "make files as the pod's root")?;
    Ok(User { uid, gid, ..user })
}

/// `POD:PATH`; a path here has no colon before its first slash, or starts with a dot or a slash.
fn split(text: &str) -> Option<(&str, &str)> {
    let (target, path) = text.split_once(':').filter(|_| !text.starts_with(['.', '/']))?;
    (!target.is_empty() && !path.is_empty()).then_some((target, path))
}

/// A container's side of it.
struct Copy {
    root: OwnedFd,
    user: User,
    left_out: u64,
}

impl Copy {
    fn left_out(&mut self, what: &Path) {
        self.left_out += 1;
        output::note(&format!(
            "podwright: {} is left out: no file or directory",
            output::harmless(&what.to_string_lossy())
        ));
    }

    /// A place in the container; its last link is followed.
    fn place(&self, path: &Path) -> Result<OwnedFd> {
        openat2::open_beneath(self.root.as_fd(), &text(path)?, Links::InRoot, Open::Path)
            .context(|| format!("open {} in the container", path.display()))
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.place(path).and_then(|fd| openat2::fstat(fd.as_fd()).context(|| "stat")).is_ok_and(|stat| stat.is_dir)
    }

    // Out.

    fn out(&mut self, from: &Path, to: &Path) -> Result<()> {
        let from = relative(from)?;
        let to = if to.is_dir() { to.join(name_of(&from)?) } else { to.to_owned() };
        let is_dir = self.is_dir(&from);
        if is_dir { self.dir_out(&from, &to, 0) } else { self.file_out(&from, &to) }
    }

    fn dir_out(&mut self, from: &Path, to: &Path, depth: usize) -> Result<()> {
        deep(from, depth)?;
        let doing = || format!("read {} in the container", from.display());
        let dir =
            openat2::open_beneath(self.root.as_fd(), &text(from)?, Links::InRoot, Open::Directory).context(doing)?;
        if !std::fs::symlink_metadata(to).is_ok_and(|there| there.is_dir()) {
            std::fs::create_dir(to).context(|| format!("make directory {}", to.display()))?;
        }
        for entry in fs::list_dir(dir.as_fd(), MAX_ENTRIES).context(doing)? {
            // A name of a directory has no slash; a file system that the container serves may say so all the same.
            let one = Path::new(&entry.name).components().eq([Component::Normal(&entry.name)]);
            let (inner, outer) = (from.join(&entry.name), to.join(&entry.name));
            let name = text(Path::new(&entry.name))?;
            let plain = one && {
                let fd = openat2::open_beneath(dir.as_fd(), &name, Links::Refused, Open::Path);
                let stat = fd.and_then(|fd| openat2::fstat(fd.as_fd()));
                stat.is_ok_and(|stat| if entry.is_dir { stat.is_dir } else { stat.is_file })
            };
            match (plain, entry.is_dir) {
                (false, _) => self.left_out(&inner),
                (true, true) => self.dir_out(&inner, &outer, depth + 1)?,
                (true, false) => self.file_out(&inner, &outer)?,
            }
        }
        Ok(())
    }

    fn file_out(&mut self, from: &Path, to: &Path) -> Result<()> {
        let doing = || format!("read {} in the container", from.display());
        // Looked at before it is opened: to open a device is to use it.
        if !openat2::fstat(self.place(from)?.as_fd()).context(doing)?.is_file {
            self.left_out(from);
            return Ok(());
        }
        let fd = openat2::open_beneath(self.root.as_fd(), &text(from)?, Links::InRoot, Open::Read).context(doing)?;
        let stat = openat2::fstat(fd.as_fd()).context(doing)?;
        if !stat.is_file {
            self.left_out(from);
            return Ok(());
        }
        let writing = || format!("write {}", to.display());
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(stat.mode & 0o777).custom_flags(O_NOFOLLOW);
        let mut file = options.open(to).context(writing)?;
        std::io::copy(&mut File::from(fd), &mut file).context(writing)?;
        Ok(())
    }

    // Into.

    fn inside(&mut self, from: &Path, to: &Path) -> Result<()> {
        let mut to = relative(to)?;
        let there = std::fs::metadata(from).context(|| format!("read {}", from.display()))?;
        if self.is_dir(&to) {
            let real = std::fs::canonicalize(from).context(|| format!("read {}", from.display()))?;
            to = to.join(name_of(&real)?);
        }
        if there.is_dir() { self.dir_into(from, &to, 0) } else { self.file_into(from, &to) }
    }

    fn dir_into(&mut self, from: &Path, to: &Path, depth: usize) -> Result<()> {
        deep(from, depth)?;
        let doing = || format!("read {}", from.display());
        let mode = std::fs::metadata(from).context(doing)?.permissions().mode() & 0o777;
        if !self.is_dir(to) {
            self.make_dir(to, mode).context(|| format!("make directory {} in the container", to.display()))?;
        }
        for entry in std::fs::read_dir(from).context(doing)? {
            let entry = entry.context(doing)?;
            let kind = entry.file_type().context(doing)?;
            let inner = to.join(entry.file_name());
            if kind.is_dir() {
                self.dir_into(&entry.path(), &inner, depth + 1)?;
            } else if kind.is_file() {
                self.file_into(&entry.path(), &inner)?;
            } else {
                self.left_out(&entry.path());
            }
        }
        Ok(())
    }

    fn make_dir(&self, path: &Path, mode: u32) -> Result<()> {
        let name = name_of(path)?;
        let parent = self.place(path.parent().unwrap_or(Path::new("")))?;
        openat2::mkdirat(parent.as_fd(), &text(Path::new(name))?, mode).context(|| "mkdir")?;
        at::chownat(parent.as_fd(), name, self.user.uid, self.user.gid).context(|| "chown")
    }

    fn file_into(&mut self, from: &Path, to: &Path) -> Result<()> {
        let mut file = File::open(from).context(|| format!("open {}", from.display()))?;
        let stat = file.metadata().context(|| format!("read {}", from.display()))?;
        if !stat.is_file() {
            self.left_out(from);
            return Ok(());
        }
        let writing = || format!("write {} in the container", to.display());
        let fd = openat2::create_beneath(self.root.as_fd(), &text(to)?, 0o600).context(writing)?;
        // A place in /proc, or a device, which a link led to.
        if !openat2::fstat(fd.as_fd()).context(writing)?.is_file || openat2::is_procfs(fd.as_fd()).context(writing)? {
            return Err(Error::invalid("it is no ordinary file")).context(writing);
        }
        let mut into = File::from(fd);
        std::io::copy(&mut file, &mut into).context(writing)?;
        std::os::unix::fs::fchown(&into, Some(self.user.uid), Some(self.user.gid)).context(writing)?;
        into.set_permissions(Permissions::from_mode(stat.permissions().mode() & 0o777)).context(writing)
    }
}

fn deep(path: &Path, depth: usize) -> Result<()> {
    match depth {
        ..MAX_DEPTH => Ok(()),
        _ => Err(Error::invalid(format!("{}: more than {MAX_DEPTH} directories deep", path.display()))),
    }
}

/// A path in the container, from its root.
fn relative(path: &Path) -> Result<PathBuf> {
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(Error::invalid(format!("{}: a path in a container is written without ..", path.display())));
    }
    Ok(path.components().filter(|part| matches!(part, Component::Normal(_))).collect())
}

fn name_of(path: &Path) -> Result<&OsStr> {
    path.file_name().ok_or_else(|| Error::invalid(format!("{:?} has no name of its own", path.display())))
}

fn text(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::invalid(format!("{path:?} has a NUL byte")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_told_from_a_path_by_its_colon() {
        assert_eq!(split("web:/etc/x"), Some(("web", "/etc/x")));
        assert_eq!(split("ns/web/nginx:etc"), Some(("ns/web/nginx", "etc")));
        for here in ["/a:b", "./web:x", "file", ":x", "web:", "../a:b"] {
            assert_eq!(split(here), None, "{here}");
        }
        assert_eq!(relative(Path::new("/a/./b/")).expect("valid"), Path::new("a/b"));
        assert!(relative(Path::new("/a/../b")).is_err());
    }
}
