//! `setrlimit(resource, limit)`, setrlimit(2), by the numbers of asm-generic/resource.h.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_kernels_numbers() {
        assert_eq!(Resource::from_name("RLIMIT_NOFILE"), u8::try_from(libc::RLIMIT_NOFILE).ok().map(Resource));
        assert_eq!(Resource::from_name("RLIMIT_RTTIME"), u8::try_from(libc::RLIMIT_RTTIME).ok().map(Resource));
        assert_eq!(Resource::from_name("NOFILE"), None);
    }
}
