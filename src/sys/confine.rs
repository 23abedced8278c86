//! What a process takes away from itself: unshare(2), pivot_root(2), capabilities(7), prctl(2), setrlimit(2), close_range(2).
//!
//! For a process of one thread. The order of the steps is the caller's policy; the one that works for a process that keeps
//! some capabilities under another uid is: namespaces, root, rlimits, [`become_user`], [`die_with_parent`].

use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use std::io;

/// Capabilities by the kernel's names.
pub type Capabilities = CapabilitySet;

/// Closes every descriptor from 3 on but `keep`: what a careless parent let through.
///
/// # Errors
/// Those of close_range(2): `ENOSYS` below Linux 5.9.
///
/// To be called first in `main` of a role, when nothing here owns a descriptor yet; whatever does finds it closed.
pub fn close_all_but(keep: Option<u32>) -> io::Result<()> {
    let ranges = match keep {
        Some(keep) => [(3, keep.saturating_sub(1)), (keep.saturating_add(1).max(3), u32::MAX)],
        None => [(3, u32::MAX), (u32::MAX, u32::MAX)],
    };
    for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
        // SAFETY: the call takes three numbers and no memory; nobody owns what is closed, as the doc above demands.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// `unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)`.
///
/// # Errors
/// Those of unshare(2).
pub fn unshare_host() -> io::Result<()> {
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: the precondition of this call is about CLONE_FILES, which is not among the flags.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Makes the working directory the root, bound `nosuid,nodev,noexec`, and detaches every other mount (pivot_root(2), "pivot_root(".",
/// ".")"). Needs a mount namespace of its own.
///
/// # Errors
/// Those of the mount calls.
pub fn pivot_to_working_directory() -> io::Result<()> {
    use rustix::fs::CWD;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let tree = rustix::mount::open_tree(CWD, ".", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    rustix::mount::move_mount(&tree, "", CWD, ".", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::fchdir(&tree)?;
    let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount_remount(".", flags, "")?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// Lowers soft and hard limit of address space and data, open files, core size, and a file's size; bytes but for `files`.
///
/// # Errors
/// Those of setrlimit(2); a hard limit that is lower already is kept.
pub fn limit(memory: u64, files: u64, file_size: u64) -> io::Result<()> {
    for (resource, value) in [
        (Resource::As, memory),
        (Resource::Data, memory),
        (Resource::Nofile, files),
        (Resource::Fsize, file_size),
        (Resource::Core, 0),
    ] {
        let hard = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let value = Some(value.min(hard));
        rustix::process::setrlimit(resource, Rlimit { current: value, maximum: value })?;
    }
    Ok(())
}

/// Becomes `id` (uid and gid, no further groups), keeping exactly `keep` as permitted and effective and nothing as inheritable, ambient or
/// in the bounding set; no_new_privs is set.
///
/// # Errors
/// Those of prctl(2), setresuid(2) and capset(2).
pub fn become_user(id: u32, keep: Capabilities) -> io::Result<()> {
    use rustix::thread as t;
    t::set_no_new_privs(true)?;
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match t::remove_capability_from_bounding_set(capability) {
            Err(rustix::io::Errno::INVAL) => break, // the kernel's last capability was the one before
            dropped => dropped?,
        }
    }
    t::set_keep_capabilities(true)?;
    t::set_thread_groups(&[])?;
    let (uid, gid) = (rustix::fs::Uid::from_raw(id), rustix::fs::Gid::from_raw(id));
    t::set_thread_res_gid(gid, gid, gid)?;
    t::set_thread_res_uid(uid, uid, uid)?;
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    Ok(t::set_capabilities(None, sets)?)
}

/// `PR_SET_PDEATHSIG` SIGKILL. A change of credentials clears it, so it comes after one.
///
/// # Errors
/// `ESRCH` when `parent` is not the parent (any more): it died before this call.
pub fn die_with_parent(parent: u32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if now == i32::try_from(parent).ok() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
}

/// umask(2).
pub fn umask(mask: u32) {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
}
