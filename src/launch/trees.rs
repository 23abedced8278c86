//! What a container's root is made of, opened by the parent in the host's mount namespace and attached nowhere: the overlay,
//! volumes, devpts, /dev/null. Each is a descriptor that the child attaches; nothing here is ever seen in the host's mount table.

use super::plan::{Plan, Root};
use super::plan_mounts::{Bind, Fs, What};
use super::{StartError, Step, image_volume, libc_errno};
use crate::sys::clone::helper_newns;
use crate::sys::mount::{self, Depth, MountAttr, PropagationType};
use crate::sys::openat2::{self, Links, Open};
use crate::sys::pty;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The detached trees of one container.
#[derive(Debug)]
pub(super) struct Trees {
    pub root: OwnedFd,
    /// As many as the plan's mounts; `None` for those that the child makes.
    pub mounts: Vec<Option<OwnedFd>>,
    /// /dev/null, for masked files; `None` where nothing is masked: a tree that nobody attaches makes whoever closes it last wait for RCU.
    pub null: Option<OwnedFd>,
    pub terminal: Option<Terminal>,
}

/// The container's terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

fn os(step: Step, object: &str) -> impl FnOnce(io::Error) -> StartError + '_ {
    move |e| StartError::os(step, object, e.raw_os_error().unwrap_or(0))
}

/// The overlay, attached nowhere. `volatile`: after a crash of the machine the container is gone, so its writes need no sync.
///
/// fsconfig(2) takes values of up to 255 bytes, which is some 14 layers by their descriptors; Linux 6.1 has no `lowerdir+`. More of
/// them take mount(2) in a helper's mount namespace, which is three times as slow.
///
/// In a pod with a user namespace the layers are seen through its ids, which they are shared with no other pod for. The upper directory is
/// not: what is in there is the pod's own.
pub(super) fn overlay(root: &Root, namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd, StartError> {
    let made = new_overlay(root, namespace);
    let marked = || mark_of(root).join("volatile").exists();
    if !made.as_ref().is_err_and(|e| e.errno == libc_errno::EINVAL) || !marked() {
        return made;
    }
    // The mark of a shim that has made it in advance, and died. Nothing runs in it: the container's cgroup is empty.
    forget_volatile(root);
    new_overlay(root, namespace)
}

fn new_overlay(root: &Root, namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd, StartError> {
    if namespace.is_some() {
        return overlay_by_helper(root, namespace);
    }
    let layers = Layers::open(root)?;
    let lower = layers.lower();
    if lower.len() > MAX_PARAMETER {
        drop(layers); // the helper opens its own
        return overlay_by_helper(root, None);
    }
    let text = |bytes| CString::new(bytes).map_err(|_| StartError::refused(Step::Overlay, "a descriptor with a NUL"));
    let lower = text(lower)?;
    let (upper, work) = (mount::proc_path(layers.upper.as_fd()), mount::proc_path(layers.work.as_fd()));
    let mut parameters: Vec<(&CStr, Option<&CStr>)> = vec![
        (c"lowerdir", Some(&lower)),
        (c"upperdir", Some(&upper)),
        (c"workdir", Some(&work)),
        (c"index", Some(c"off")),
        (c"volatile", None),
    ];
    parameters.extend(root.label.as_ref().map(|label| (c"context", Some(label.as_c_str()))));
    mount::new_fs(c"overlay", &parameters, MountAttr::NONE).map_err(os(Step::Overlay, &root.upper.to_string_lossy()))
}

/// The longest value of fsconfig(2), in bytes.
const MAX_PARAMETER: usize = 255;

/// An overlay's directories, opened.
struct Layers {
    /// The lowest first.
    layers: Vec<OwnedFd>,
    upper: OwnedFd,
    work: OwnedFd,
}

impl Layers {
    fn open(root: &Root) -> Result<Layers, StartError> {
        let open = |path: &CString| openat2::open_host_path(path).map_err(os(Step::Overlay, &path.to_string_lossy()));
        let layers = root.layers.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Layers { layers, upper: open(&root.upper)?, work: open(&root.work)? })
    }

    /// The value of `lowerdir`: the uppermost first.
    fn lower(&self) -> Vec<u8> {
        let paths: Vec<CString> = self.layers.iter().rev().map(|layer| mount::proc_path(layer.as_fd())).collect();
        paths.iter().map(|path| path.to_bytes()).collect::<Vec<_>>().join(&b':')
    }
}

/// Mounts the overlay in a private mount namespace of a helper and takes a copy out of it.
fn overlay_by_helper(root: &Root, namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd, StartError> {
    let mut made = Err(StartError::refused(Step::Overlay, "mount overlay: the helper did not run"));
    helper_newns(&mut || made = overlay_here(root, namespace)).map_err(os(Step::Overlay, "(helper)"))?;
    made
}

/// In the helper. Its descriptors are the shim's as well, so what is opened here is closed here; and it is opened here, for
/// overlayfs takes layers of the caller's mount namespace only.
fn overlay_here(root: &Root, namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd, StartError> {
    mount::make_all_private().map_err(os(Step::Overlay, "(private mounts)"))?;
    let layers = Layers::open(root)?;
    let lower = match namespace {
        Some(namespace) => idmapped(&root.layers, namespace)?,
        None => layers.lower(),
    };
    let mut options = [b"lowerdir=".to_vec(), lower].concat();
    for (key, dir) in [("upperdir", &layers.upper), ("workdir", &layers.work)] {
        options.extend_from_slice(format!(",{key}=").as_bytes());
        options.extend_from_slice(mount::proc_path(dir.as_fd()).to_bytes());
    }
    options.extend_from_slice(b",index=off,volatile");
    options.extend(context_option(root.label.as_deref()));
    let options = CString::new(options).map_err(|_| StartError::refused(Step::Overlay, "options with a NUL"))?;
    // /proc/fs: a directory that is on every host and in nobody's way.
    mount::mount_overlay(c"/proc/fs", &options)
        .and_then(|()| mount::open_tree_clone_path(c"/proc/fs", Depth::One))
        .map_err(os(Step::Overlay, &root.upper.to_string_lossy()))
}

/// The label of SELinux as an option of mount(2), quoted for the commas in it.
pub(super) fn context_option(label: Option<&CStr>) -> Vec<u8> {
    label.map_or_else(Vec::new, |label| [b",context=\"".as_slice(), label.to_bytes(), b"\""].concat())
}

/// The value of `lowerdir` for layers (the lowest first) that are seen through the ids of `namespace`: in a helper's mount namespace, for
/// overlayfs takes mapped layers only where they are attached. They lie in directories of a tmpfs over /proc/fs.
pub(super) fn idmapped(layers: &[CString], namespace: BorrowedFd<'_>) -> Result<Vec<u8>, StartError> {
    let table = mount::new_fs(c"tmpfs", &[(c"size", Some(c"64k"))], MountAttr::NONE)
        .and_then(|table| mount::move_mount_path(table.as_fd(), c"/proc/fs").map(|()| table))
        .map_err(os(Step::Overlay, "(table of layers)"))?;
    let mut lower = Vec::new();
    for (index, layer) in layers.iter().enumerate().rev() {
        let attach = || {
            let tree = mount::open_tree_clone_path(layer, Depth::One)?;
            mount::idmap(tree.as_fd(), namespace)?;
            let name = CString::new(index.to_string())?;
            openat2::mkdirat(table.as_fd(), &name, 0o700)?;
            let place = openat2::open_beneath(table.as_fd(), &name, Links::Refused, Open::Directory)?;
            mount::move_mount(tree.as_fd(), place.as_fd())
        };
        attach().map_err(os(Step::Overlay, &format!("{} with mapped ids", layer.to_string_lossy())))?;
        if !lower.is_empty() {
            lower.push(b':');
        }
        lower.extend_from_slice(format!("/proc/fs/{index}").as_bytes());
    }
    // The overlay itself comes to lie over this table, and is copied from there.
    Ok(lower)
}

/// Opens everything but the overlay, which is given. `namespace`: the pod's user namespace.
pub(super) fn open(
    plan: &Plan,
    root: OwnedFd,
    terminal: bool,
    namespace: Option<BorrowedFd<'_>>,
) -> Result<Trees, StartError> {
    let mut mounts = Vec::with_capacity(plan.mounts.len());
    let mut pts = None;
    for mount in &plan.mounts {
        mounts.push(match &mount.what {
            What::Bind(bind) => Some(volume(bind, &mount.target, namespace)?),
            What::Devpts(fs) => {
                let tree = new_fs(fs).map_err(os(Step::Terminal, "devpts"))?;
                if terminal && pts.is_none() {
                    let (master, slave) = pty::open_pty(tree.as_fd()).map_err(os(Step::Terminal, ""))?;
                    pts = Some(Terminal { master, slave });
                }
                Some(tree)
            }
            What::Image(image) => Some(image_volume::tree(image, &mount.target, namespace)?),
            What::Fs(_) | What::Dev(_) | What::Shm => None,
        });
    }
    if terminal && pts.is_none() {
        return Err(StartError::refused(Step::Terminal, "a container with a terminal needs a devpts among its mounts"));
    }
    let null = if plan.masked.is_empty() { None } else { Some(dev_null()?) };
    Ok(Trees { root, mounts, null, terminal: pts })
}

/// A new file system, attached nowhere.
pub(super) fn new_fs(fs: &Fs) -> io::Result<OwnedFd> {
    let parameters: Vec<(&CStr, Option<&CStr>)> =
        fs.parameters.iter().map(|(key, value)| (key.as_c_str(), value.as_deref())).collect();
    mount::new_fs(&fs.fs, &parameters, fs.attr)
}

/// The host's /dev/null, verified to be the device: what masks a file must not be one that an image chose (CVE-2025-31133).
fn dev_null() -> Result<OwnedFd, StartError> {
    let tree = mount::open_tree_clone_path(c"/dev/null", Depth::One).map_err(os(Step::Device, "/dev/null"))?;
    let stat = openat2::fstat(tree.as_fd()).map_err(os(Step::Device, "/dev/null"))?;
    // 1:3, Documentation/admin-guide/devices.txt
    if stat.char_device != Some((1, 3)) {
        return Err(StartError::refused(Step::Device, "/dev/null of the host is not the null device"));
    }
    private(tree.as_fd(), Depth::One).map_err(os(Step::Device, "/dev/null"))?;
    Ok(tree)
}

/// Out of the host's peer groups: a detached copy of a shared mount is a peer still, and what is mounted on it would show up there.
fn private(tree: BorrowedFd<'_>, depth: Depth) -> io::Result<()> {
    mount::mount_setattr(tree, depth, MountAttr::NONE, MountAttr::NONE, Some(PropagationType::Private))
}

fn volume(bind: &Bind, target: &CStr, namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd, StartError> {
    let host_cgroup = bind.source.is_empty();
    let source = if host_cgroup { mount_table()?.cgroup2()? } else { bind.source.clone() };
    let shown = format!("{} for /{}", source.to_string_lossy(), target.to_string_lossy());
    let tree = mount::open_tree_clone_path(&source, bind.depth).map_err(os(Step::Volume, &shown))?;
    let attr = |depth, set, clear, propagation| {
        mount::mount_setattr(tree.as_fd(), depth, set, clear, propagation).map_err(os(Step::Volume, &shown))
    };
    // Of the whole tree: a submount that stayed a peer would leak, and one that is no slave would see nothing.
    if bind.propagation != PropagationType::Shared {
        attr(bind.depth, MountAttr::NONE, MountAttr::NONE, Some(bind.propagation))?;
    }
    if !bind.set.is_empty() || !bind.clear.is_empty() {
        attr(bind.set_depth, bind.set, bind.clear, None)?;
    }
    if let Some(namespace) = namespace.filter(|_| bind.idmap) {
        mount::idmap(tree.as_fd(), namespace).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidInput => {
                let why = "its file system cannot map ids, as a user namespace needs (a tmpfs can from Linux 6.3 on)";
                StartError::refused(Step::Volume, format!("open volume {shown}: {why}"))
            }
            _ => os(Step::Volume, &format!("{shown} with mapped ids"))(e),
        })?;
    }
    Ok(tree)
}

/// /proc/self/mountinfo, proc_pid_mountinfo(5).
struct MountTable {
    text: String,
}

/// One mount: where, whether it has peers or a master, and what it is.
struct MountLine<'a> {
    line: &'a str,
    point: PathBuf,
    shared: bool,
    slave: bool,
    fs: &'a str,
    root: &'a str,
}

/// The mount point that an absolute path without links is below.
pub(super) fn mount_point(path: &Path) -> Option<PathBuf> {
    mount_table().ok()?.of(path).map(|line| line.point)
}

fn mount_table() -> Result<MountTable, StartError> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").map_err(os(Step::Volume, "/proc/self/mountinfo"))?;
    Ok(MountTable { text })
}

impl MountTable {
    fn lines(&self) -> impl Iterator<Item = MountLine<'_>> {
        self.text.lines().filter_map(|line| {
            let (head, tail) = line.split_once(" - ")?;
            let mut fields = head.split(' ').skip(3);
            let (root, point) = (fields.next()?, unescape(fields.next()?));
            let (mut shared, mut slave) = (false, false);
            for field in fields.skip(1) {
                shared |= field.starts_with("shared:");
                slave |= field.starts_with("master:");
            }
            Some(MountLine { line, point, shared, slave, fs: tail.split(' ').next()?, root })
        })
    }

    /// Where the host's whole cgroup2 tree is.
    fn cgroup2(&self) -> Result<CString, StartError> {
        let point = self.lines().find(|line| line.fs == "cgroup2" && line.root == "/").map(|line| line.point);
        let point = point.ok_or_else(|| StartError::refused(Step::Volume, "no cgroup2 is mounted on this host"))?;
        CString::new(point.as_os_str().as_bytes()).map_err(|_| StartError::refused(Step::Volume, "a path with a NUL"))
    }

    /// The mount that a path is on: the deepest, and of those on one point the last.
    fn of(&self, path: &Path) -> Option<MountLine<'_>> {
        self.lines().filter(|line| path.starts_with(&line.point)).max_by_key(|line| line.point.components().count())
    }

    /// The lines at and below some paths, to be compared.
    fn below(&self, paths: &[PathBuf]) -> String {
        let lines = self.lines().filter(|line| paths.iter().any(|path| line.point.starts_with(path)));
        lines.map(|line| line.line).collect::<Vec<_>>().join("\n")
    }
}

/// Space, tab, newline and backslash are three octal digits there.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

/// Sees whether something was mounted below a volume with propagation between its copying and its attaching: what was is lost to
/// the copy for good, for a detached tree hears no events.
#[derive(Debug)]
pub(super) struct Watch {
    sources: Vec<PathBuf>,
    before: String,
}

/// A watch over the plan's volumes with propagation, to be made before [`open`]; `None` when there are none.
///
/// # Errors
/// [`Step::Volume`]: a source whose mount cannot propagate as asked.
pub(super) fn watch(plan: &Plan) -> Result<Option<Watch>, StartError> {
    let binds = plan.mounts.iter().filter_map(|mount| match &mount.what {
        What::Bind(bind) if bind.propagation != PropagationType::Private => Some(bind),
        _ => None,
    });
    let mut binds = binds.peekable();
    if binds.peek().is_none() {
        return Ok(None); // the table of a busy host is long
    }
    let mut sources = Vec::new();
    let table = mount_table()?;
    for bind in binds {
        let shown = bind.source.to_string_lossy();
        let path = Path::new(OsStr::from_bytes(bind.source.to_bytes()));
        let path = path.canonicalize().map_err(os(Step::Volume, &shown))?;
        let on = table.of(&path);
        let (shared, slave) = on.map_or((false, false), |line| (line.shared, line.slave));
        let (able, wanted) = match bind.propagation {
            PropagationType::Shared => (shared, "Bidirectional propagation needs it shared"),
            _ => (shared || slave, "HostToContainer propagation needs it shared or a slave"),
        };
        if !able {
            return Err(StartError::refused(
                Step::Volume,
                format!("open volume {shown}: it is on a private mount, and {wanted} (mount --make-shared)"),
            ));
        }
        sources.push(path);
    }
    let before = table.below(&sources);
    Ok(Some(Watch { sources, before }))
}

impl Watch {
    /// Whether the mounts below the sources are others than before.
    pub(super) fn changed(&self) -> Result<bool, StartError> {
        Ok(mount_table()?.below(&self.sources) != self.before)
    }
}

/// Makes the overlay's work directory fit for another mount of the same container: `volatile` leaves a mark there on purpose.
pub(super) fn forget_volatile(root: &Root) {
    let _ = std::fs::remove_dir_all(mark_of(root)); // if it stays, the next mount fails and says so
}

fn mark_of(root: &Root) -> PathBuf {
    Path::new(OsStr::from_bytes(root.work.to_bytes())).join("work/incompat")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw\n\
        27 1 254:0 / / rw,relatime shared:1 master:3 - ext4 /dev/vda rw\n\
        30 27 0:28 / /mnt/a\\040b rw - tmpfs tmpfs rw\n\
        31 30 0:29 / /mnt/a\\040b/sub rw master:9 - tmpfs tmpfs rw\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\ngarbage\n";

    #[test]
    fn a_path_is_on_its_deepest_mount() {
        let table = MountTable { text: TABLE.into() };
        let on = |path: &str| table.of(Path::new(path)).map(|l| (l.point, l.shared, l.slave)).expect("a mount");
        assert_eq!(on("/etc"), ("/".into(), true, true));
        assert_eq!(on("/mnt/a b/x"), ("/mnt/a b".into(), false, false));
        assert_eq!(on("/mnt/a b/sub"), ("/mnt/a b/sub".into(), false, true));
        assert_eq!(table.cgroup2().expect("there"), c"/sys/fs/cgroup/unified".to_owned());
        assert_eq!(table.below(&["/mnt/a b".into()]).lines().count(), 2);
    }
}
