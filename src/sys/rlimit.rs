//! `setrlimit(resource, limit)` and `getrlimit(resource)`, setrlimit(2), by the numbers of asm-generic/resource.h.

use std::io;

/// Resources by their names without `RLIMIT_`, in the kernel's order (asm-generic/resource.h).
const NAMES: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// A resource that can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resource(u8);

impl Resource {
    /// How many descriptors a process may have open, and one more.
    pub const NOFILE: Resource = Resource(7);

    /// By its name, `RLIMIT_NOFILE`.
    pub fn from_name(name: &str) -> Option<Resource> {
        let name = name.strip_prefix("RLIMIT_")?;
        let index = NAMES.iter().position(|known| *known == name)?;
        u8::try_from(index).ok().map(Resource)
    }

    /// `RLIMIT_NOFILE`.
    pub fn name(self) -> String {
        format!("RLIMIT_{}", NAMES[usize::from(self.0)])
    }
}

/// `prlimit(0, resource, {soft, hard})`; `u64::MAX` is no limit.
///
/// # Errors
/// `EPERM` to raise the hard limit without CAP_SYS_RESOURCE, `EINVAL` when soft is above hard.
pub fn setrlimit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` outlives the call, which only reads it; the old limit is not asked for. pid 0 is the caller.
    let result = unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, libc::c_uint::from(resource.0), &raw const limit, std::ptr::null::<u8>())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `prlimit(pid, RLIMIT_FSIZE, {0, 0})`: from now on that process can write no regular file any more; see
/// [`super::inherit::ignore_file_size_signal`].
///
/// # Errors
/// `ESRCH` when it is gone, `EPERM` for another user's.
pub fn forbid_files(pid: u32) -> io::Result<()> {
    let none = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: as in `setrlimit`; a number that is no pid is ESRCH.
    let result =
        unsafe { libc::syscall(libc::SYS_prlimit64, pid, libc::RLIMIT_FSIZE, &raw const none, std::ptr::null::<u8>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `prlimit(0, resource, NULL, &own)`.
fn getrlimit(resource: Resource) -> io::Result<libc::rlimit64> {
    let mut own = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `own` outlives the call, which writes it; no new limit is given. pid 0 is the caller.
    let result = unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, libc::c_uint::from(resource.0), std::ptr::null::<u8>(), &raw mut own)
    };
    if result == 0 { Ok(own) } else { Err(io::Error::last_os_error()) }
}

/// Raises the soft limit to the hard one.
///
/// # Errors
/// Those of setrlimit(2).
pub fn raise(resource: Resource) -> io::Result<()> {
    let own = getrlimit(resource)?;
    setrlimit(resource, own.rlim_max, own.rlim_max)
}

/// Raises soft and hard limit to at least these; what is higher stays.
///
/// # Errors
/// `EPERM` to raise the hard limit without CAP_SYS_RESOURCE in the first user namespace.
pub fn raise_to(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let own = getrlimit(resource)?;
    if own.rlim_cur >= soft && own.rlim_max >= hard {
        return Ok(());
    }
    setrlimit(resource, own.rlim_cur.max(soft), own.rlim_max.max(hard))
}

/// The highest hard limit, up to `wanted`, that this process can give a child: its own, and with CAP_SYS_RESOURCE any, for NOFILE up to
/// fs.nr_open (proc_sys_fs(5)).
///
/// # Errors
/// Those of capget(2) and getrlimit(2).
pub fn highest(resource: Resource, wanted: u64) -> io::Result<u64> {
    let own = getrlimit(resource)?;
    if own.rlim_max >= wanted || super::capability::permitted()? & super::capability::SYS_RESOURCE == 0 {
        return Ok(wanted.min(own.rlim_max));
    }
    let open = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    Ok(match (resource.name().as_str(), open) {
        ("RLIMIT_NOFILE", Some(open)) => wanted.min(open),
        _ => wanted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_given_than_can_be() {
        let nofile = Resource::from_name("RLIMIT_NOFILE").expect("known");
        assert_eq!(highest(nofile, 3).expect("ask"), 3);
        let most = highest(nofile, u64::MAX).expect("ask");
        let open: u64 = std::fs::read_to_string("/proc/sys/fs/nr_open").expect("read").trim().parse().expect("number");
        assert!(most <= open, "{most} of {open}");
    }

    #[test]
    fn names_have_the_kernels_numbers() {
        assert_eq!(Resource::from_name("RLIMIT_NOFILE"), u8::try_from(libc::RLIMIT_NOFILE).ok().map(Resource));
        assert_eq!(Resource::from_name("RLIMIT_RTTIME"), u8::try_from(libc::RLIMIT_RTTIME).ok().map(Resource));
        assert_eq!(Resource::from_name("NOFILE"), None);
    }
}
