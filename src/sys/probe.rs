//! Features of this kernel and host, found by trying them: `clone3`, `pidfd_open`, `open_tree`, `mount_setattr`, `openat2`,
//! `memfd_create`, `seccomp`, `bpf`; and facts: `statfs`, `getrlimit`, `uname`, `adjtimex` (section 2 of the manual each).
//!
//! A probe leaves nothing: whatever it makes belongs to a child that has ended, to its namespaces, or to a closed descriptor.
//! `Ok(())` means that the feature did its work, not merely that the number of the system call is known. Not here: what a
//! missing feature means and what to do about it.

use super::orphan::exit_info;
use super::wait::Wait;
use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

/// Where a probe puts its tmpfs, in a mount namespace of its own: wherever there is a /proc there is this directory.
const PLACE: &str = "/proc/fs";
/// The code with which a probe's child ends to show that it was ours.
const MARK: u8 = 42;

/// A namespace that a container gets, namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    Mnt,
    Pid,
    Net,
    Ipc,
    Uts,
    Cgroup,
    User,
}

/// `fork`, fork(2): runs `attempt` in a child that ends with it, so that what it changes is gone afterwards.
///
/// # Errors
/// What `attempt` returned, by its number; `EDEADLK` in a process with several threads, where a child of fork(2) may find a lock
/// held for ever; `ECANCELED` for a child that was killed.
fn in_child(attempt: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    // SAFETY: this process has one thread (checked above), so no lock is held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let attempt = std::panic::AssertUnwindSafe(attempt);
            let code = match std::panic::catch_unwind(attempt) {
                Ok(Ok(())) => 0,
                Ok(Err(e)) => e.raw_os_error().unwrap_or(libc::EIO),
                Err(_) => libc::ENOTRECOVERABLE,
            };
            // SAFETY: _exit(2) does not return and runs no destructor of the parent's.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let pid = rustix::process::Pid::from_raw(pid);
            let ended =
                rustix::io::retry_on_intr(|| rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()))?;
            match ended.and_then(|(_, status)| status.exit_status()) {
                Some(0) => Ok(()),
                Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                None => Err(io::Error::from_raw_os_error(libc::ECANCELED)),
            }
        }
    }
}

/// `struct clone_args`, clone(2), as of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_PIDFD: u64 = 0x1000; // linux/sched.h
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000; // linux/sched.h

/// A child that ends at once with [`MARK`], and its pidfd.
fn clone3_ending(cgroup: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: CLONE_PIDFD,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: `args` has the layout and size the kernel wants and lives through the call, as does `pidfd`, which it points to;
    // without CLONE_VM the child has its own copy of everything, and it makes one system call that does not return.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: _exit(2) does not return, is safe after a bare clone, and runs no destructor of the parent's.
        0 => unsafe { libc::_exit(MARK.into()) },
        // SAFETY: clone3 succeeded with CLONE_PIDFD, so the kernel stored a new descriptor that nobody else owns.
        _ => Ok(unsafe { OwnedFd::from_raw_fd(pidfd) }),
    }
}

/// Waits for the child behind `pidfd` and checks that it is the one that was made.
fn reap(pidfd: &OwnedFd) -> io::Result<()> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let wait = || waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
    let status = rustix::io::retry_on_intr(wait)?.and_then(|status| status.exit_status());
    if status == Some(MARK.into()) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ECANCELED)) }
}

/// `clone3` with `CLONE_PIDFD`, and `waitid(P_PIDFD)`.
///
/// # Errors
/// `ENOSYS` before Linux 5.3; `EINVAL` of waitid before 5.4.
pub fn clone3_pidfd() -> io::Result<()> {
    reap(&clone3_ending(None)?)
}

/// `clone3` with `CLONE_INTO_CGROUP` into `cgroup`, which should be the caller's own: nothing moves then.
///
/// # Errors
/// `EINVAL` or `E2BIG` before Linux 5.7.
pub fn clone3_into_cgroup(cgroup: &Path) -> io::Result<()> {
    let dir = rustix::fs::open(cgroup, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    reap(&clone3_ending(Some(dir.as_fd()))?)
}

/// `ioctl(PIDFD_GET_INFO)` with `PIDFD_INFO_EXIT`: the exit status of a process that somebody else has reaped.
///
/// # Errors
/// `ENOTTY` or `EINVAL` before Linux 6.13; `ENODATA` before 6.15, which has the call but keeps no exit status.
pub fn pidfd_exit_info() -> io::Result<()> {
    let pidfd = clone3_ending(None)?;
    reap(&pidfd)?;
    let told = exit_info(pidfd.as_fd())?;
    if told == Wait::Exited(MARK) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENODATA)) }
}

/// `openat2` with `RESOLVE_IN_ROOT`, openat2(2).
///
/// # Errors
/// `ENOSYS` before Linux 5.6 or under an old seccomp filter.
pub fn openat2() -> io::Result<()> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, "../proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    Ok(())
}

/// `unshare`, unshare(2), of one namespace in a child.
///
/// # Errors
/// `EPERM` without the privilege, `ENOSPC` at the limit of user.max_*_namespaces (or 0), `EINVAL` where it is not built in.
pub fn unshare(namespace: Namespace) -> io::Result<()> {
    let flag = match namespace {
        Namespace::Mnt => CloneFlags::CLONE_NEWNS,
        Namespace::Pid => CloneFlags::CLONE_NEWPID,
        Namespace::Net => CloneFlags::CLONE_NEWNET,
        Namespace::Ipc => CloneFlags::CLONE_NEWIPC,
        Namespace::Uts => CloneFlags::CLONE_NEWUTS,
        Namespace::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        Namespace::User => CloneFlags::CLONE_NEWUSER,
    };
    in_child(|| nix::sched::unshare(flag).map_err(io::Error::from))
}

/// A mount namespace of the calling child's own, in which nothing spreads, with an empty tmpfs at [`PLACE`].
fn own_mounts() -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    rustix::mount::mount("podwright-probe", PLACE, "tmpfs", MountFlags::empty(), c"size=64k")?;
    Ok(())
}

fn clone_of_place() -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(rustix::mount::open_tree(CWD, PLACE, flags)?)
}

/// `open_tree(OPEN_TREE_CLONE)` and `move_mount`: a detached mount is made and attached elsewhere.
///
/// # Errors
/// `ENOSYS` before Linux 5.2, `EPERM` without CAP_SYS_ADMIN.
pub fn detached_mount() -> io::Result<()> {
    in_child(|| {
        own_mounts()?;
        let to = format!("{PLACE}/to");
        rustix::fs::mkdir(to.as_str(), Mode::RWXU)?;
        rustix::mount::move_mount(clone_of_place()?, "", CWD, to.as_str(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(())
    })
}

/// `fsopen`, `fsconfig` and `fsmount` of a tmpfs that is never attached.
///
/// # Errors
/// `ENOSYS` before Linux 5.2, `EPERM` without CAP_SYS_ADMIN.
pub fn fsopen() -> io::Result<()> {
    in_child(|| {
        let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(&context)?;
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        Ok(())
    })
}

/// `struct mount_attr`, mount_setattr(2).
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// A user namespace with 65536 ids, and a tmpfs that is seen through them: what a pod with a user namespace needs, its volumes among it. May
/// be called in a process with several threads.
///
/// # Errors
/// `EINVAL` before Linux 6.3; `ENOSPC` at the limit of user namespaces; `EPERM` without the capabilities for it.
pub fn user_namespace_with_idmapped_tmpfs() -> io::Result<()> {
    const CLONE_NEWUSER: u64 = 0x1000_0000; // linux/sched.h
    /// In use nowhere, and nothing is made with them.
    const IDS: &str = "0 1879048192 65536";
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: CLONE_PIDFD | CLONE_NEWUSER,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        ..CloneArgs::default()
    };
    // SAFETY: takes nothing.
    let parent = unsafe { libc::syscall(libc::SYS_getpid) };
    // SAFETY: as in `clone3_ending`; the child waits for its end by system calls alone, which take no lock.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    if pid == 0 {
        // A parent that is killed must not leave it behind, and least of all with its locks.
        let call = |number, a: libc::c_long, b: libc::c_long| {
            // SAFETY: numbers alone, as all that this is called with take: nothing of this process's memory is read or written.
            unsafe { libc::syscall(number, a, b, 0, 0, 0) }
        };
        call(libc::SYS_close_range, 0, u32::MAX.into());
        call(libc::SYS_prctl, libc::PR_SET_PDEATHSIG.into(), libc::SIGKILL.into());
        while call(libc::SYS_getppid, 0, 0) == parent {
            call(libc::SYS_ppoll, 0, 0);
        }
        call(libc::SYS_exit_group, 0, 0);
    }
    if pid == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: clone3 succeeded with CLONE_PIDFD, so the kernel stored a new descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let attempt = || {
        for file in ["uid_map", "gid_map"] {
            let mut map = File::options().write(true).open(format!("/proc/{pid}/{file}"))?;
            io::Write::write_all(&mut map, IDS.as_bytes())?;
        }
        let namespace = File::open(format!("/proc/{pid}/ns/user"))?;
        let tmpfs = super::mount::new_fs(c"tmpfs", &[], super::mount::MountAttr::NONE)?;
        super::mount::idmap(tmpfs.as_fd(), namespace.as_fd())
    };
    let done = attempt();
    super::pidfd::kill_and_reap(pidfd.as_fd())?;
    done
}

const MOUNT_ATTR_RDONLY: u64 = 1; // linux/mount.h

/// `mount_setattr(AT_RECURSIVE)` with `MOUNT_ATTR_RDONLY` on a detached tree, shown by a write that fails.
///
/// # Errors
/// `ENOSYS` before Linux 5.12; `ENODATA` when the tree stayed writable.
pub fn mount_setattr() -> io::Result<()> {
    in_child(|| {
        own_mounts()?;
        let tree = clone_of_place()?;
        let attr = MountAttr { attr_set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
        // SAFETY: the path is a NUL-terminated literal, `attr` has the layout and the size that is passed and is only read.
        let done = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                tree.as_raw_fd(),
                c"".as_ptr(),
                flags,
                &raw const attr,
                size_of::<MountAttr>(),
            )
        };
        if done == -1 {
            return Err(io::Error::last_os_error());
        }
        match rustix::fs::mkdirat(&tree, "d", Mode::RWXU) {
            Err(rustix::io::Errno::ROFS) => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::ENODATA)),
        }
    })
}

/// `mount` of overlay, with upper and work directories on a tmpfs.
///
/// # Errors
/// `ENODEV` when the module is not there and cannot be loaded, `EPERM` without CAP_SYS_ADMIN.
pub fn overlay() -> io::Result<()> {
    in_child(|| {
        own_mounts()?;
        for dir in ["lower", "upper", "work", "root"] {
            rustix::fs::mkdir(format!("{PLACE}/{dir}").as_str(), Mode::RWXU)?;
        }
        let options = format!("lowerdir={PLACE}/lower,upperdir={PLACE}/upper,workdir={PLACE}/work");
        let options = std::ffi::CString::new(options)?;
        let root = format!("{PLACE}/root");
        rustix::mount::mount("overlay", root.as_str(), "overlay", MountFlags::empty(), options.as_c_str())?;
        rustix::fs::mkdir(format!("{root}/made").as_str(), Mode::RWXU)?;
        Ok(())
    })
}

/// `memfd_create`, seals, and `execveat(AT_EMPTY_PATH)` of a copy of this program (`podwright version`): how a shim starts.
///
/// # Errors
/// `EACCES` under vm.memfd_noexec=2 or a security module that forbids it.
pub fn memfd_exec() -> io::Result<()> {
    use rustix::fs::MemfdFlags;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = match rustix::fs::memfd_create("podwright-probe", flags | MemfdFlags::EXEC) {
        // until Linux 6.3 is our floor: the flag is unknown before, and the file executable without it
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create("podwright-probe", flags),
        made => made,
    };
    let mut copy = File::from(made?);
    io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
    super::memfd::seal(&copy)?;
    in_child(|| {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        nix::unistd::dup2_stdout(&null)?;
        nix::unistd::dup2_stderr(&null)?;
        let argv = [c"podwright".as_ptr(), c"version".as_ptr(), std::ptr::null()];
        let envp = [std::ptr::null::<libc::c_char>()];
        // SAFETY: both vectors end with a null pointer and hold pointers to literals; the call returns only when it failed.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                copy.as_raw_fd(),
                c"".as_ptr(),
                argv.as_ptr(),
                envp.as_ptr(),
                libc::AT_EMPTY_PATH,
            )
        };
        Err(io::Error::last_os_error())
    })
}

/// `seccomp(SECCOMP_SET_MODE_FILTER)` with a filter that allows everything, after `SECCOMP_GET_ACTION_AVAIL` of the actions that
/// profiles use, seccomp(2).
///
/// # Errors
/// `EINVAL` where it is not built in, `EOPNOTSUPP` for an action that the kernel lacks.
pub fn seccomp() -> io::Result<()> {
    in_child(|| {
        for action in [libc::SECCOMP_RET_KILL_PROCESS, libc::SECCOMP_RET_ERRNO, libc::SECCOMP_RET_LOG] {
            // SAFETY: the third argument points to a u32 that lives through the call and is only read.
            let known =
                unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
            if known == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        rustix::thread::set_no_new_privs(true)?;
        // BPF_RET | BPF_K (linux/bpf_common.h): return the constant.
        let mut allow = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW }];
        let program = libc::sock_fprog { len: 1, filter: allow.as_mut_ptr() };
        // SAFETY: `program` points to `allow`, of the length it says; both live through the call and are only read.
        let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
        if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    })
}

/// The part of `union bpf_attr` that BPF_PROG_LOAD needs, bpf(2).
#[repr(C)]
#[derive(Default)]
struct BpfProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// `bpf(BPF_PROG_LOAD)` of a `BPF_PROG_TYPE_CGROUP_DEVICE` that allows everything. It is not attached anywhere.
///
/// # Errors
/// `EPERM` without the privilege, `EINVAL` where CONFIG_CGROUP_BPF is not built in, `ENOSYS` without bpf(2).
pub fn bpf_cgroup_device() -> io::Result<()> {
    const BPF_PROG_LOAD: libc::c_int = 5; // linux/bpf.h
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15; // linux/bpf.h
    // `r0 = 1; exit`: opcode, registers, offset (u16), immediate (u32), in the machine's byte order; both are little endian.
    let code: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
    let attr = BpfProgLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: 2,
        insns: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..BpfProgLoad::default()
    };
    // SAFETY: `attr` starts as the union does for this command and its size is passed; what it points to lives through the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<BpfProgLoad>()) };
    let Ok(fd) = i32::try_from(fd) else { return Err(io::Error::from_raw_os_error(libc::EOVERFLOW)) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// What statfs(2) and statvfs(3) say of the file system at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// linux/magic.h.
    pub magic: u64,
    pub read_only: bool,
    pub total_bytes: u64,
    /// For whoever is not privileged; reserved blocks are not counted.
    pub free_bytes: u64,
    /// 0 where inodes are made as needed (btrfs).
    pub total_inodes: u64,
    pub free_inodes: u64,
}

/// `statfs` and `statvfs` of `path`.
///
/// # Errors
/// `ENOENT` when there is nothing at `path`.
pub fn file_system(path: &Path) -> io::Result<FileSystem> {
    let magic = u64::try_from(rustix::fs::statfs(path)?.f_type).unwrap_or_default();
    let stat = rustix::fs::statvfs(path)?;
    Ok(FileSystem {
        magic,
        read_only: stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        total_inodes: stat.f_files,
        free_inodes: stat.f_favail,
    })
}

/// `getrlimit(RLIMIT_NOFILE)`, getrlimit(2): soft and hard; `None` is unlimited.
pub fn rlimit_nofile() -> (Option<u64>, Option<u64>) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    (limit.current, limit.maximum)
}

/// `uname`, uname(2): release and machine.
pub fn uname() -> (String, String) {
    let name = rustix::system::uname();
    let text = |part: &CStr| part.to_string_lossy().into_owned();
    (text(name.release()), text(name.machine()))
}

/// `adjtimex` that sets nothing, adjtimex(2): whether the kernel's clock is kept in step by something (NTP, PTP, the hypervisor).
///
/// # Errors
/// `EPERM` under a seccomp filter.
pub fn clock_is_synchronised() -> io::Result<bool> {
    // SAFETY: `timex` holds numbers only, for which zeros are valid.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `state` is the structure the call wants; with `modes` 0 it only fills it.
    if unsafe { libc::adjtimex(&raw mut state) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(state.status & libc::STA_UNSYNC == 0)
}
