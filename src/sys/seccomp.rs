//! `seccomp(SECCOMP_SET_MODE_FILTER, flags, prog)`, seccomp(2), for the calling thread.
//!
//! Not here: what a filter says (`launch::seccomp`), and no_new_privs, which the OCI spec keeps apart from seccomp.

use std::io;

/// One instruction of classic BPF, `struct sock_filter` in linux/filter.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct SockFilter {
    pub code: u16,
    /// Instructions to skip when the test holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    pub k: u32,
}

/// The same filter on every thread of the process, linux/seccomp.h.
pub const SECCOMP_FILTER_FLAG_TSYNC: u32 = 1 << 0;
/// Log every verdict but "allow", linux/seccomp.h.
pub const SECCOMP_FILTER_FLAG_LOG: u32 = 1 << 1;
/// Leave speculative store bypass as it is, linux/seccomp.h.
pub const SECCOMP_FILTER_FLAG_SPEC_ALLOW: u32 = 1 << 2;

/// Puts `program` in front of every system call of this thread and its children, for good.
///
/// Makes one system call and allocates nothing: a child after clone may call it.
///
/// # Errors
/// `EACCES` without CAP_SYS_ADMIN and no_new_privs; `EINVAL` for a program that the kernel's verifier refuses or a flag it does
/// not know, or one longer than 65,535 instructions; `ENOMEM` above 32,768 instructions over all filters of the thread; `ESRCH`
/// (with TSYNC) for a thread that has a filter of its own.
pub fn install(program: &[SockFilter], flags: u32) -> io::Result<()> {
    let len = libc::c_ushort::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let prog = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `prog` lives across the call and points at `len` instructions of the layout of sock_filter (repr(C) above, compared
    // in the test below), which the kernel copies before it returns and does not write: the cast to mut is for the C type alone.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER),
            libc::c_ulong::from(flags),
            std::ptr::from_ref(&prog),
        )
    };
    match result {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        _thread => Err(io::Error::from_raw_os_error(libc::ESRCH)), // TSYNC names the thread that could not follow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_has_the_layout_of_the_kernels() {
        assert_eq!(size_of::<SockFilter>(), size_of::<libc::sock_filter>());
        assert_eq!(align_of::<SockFilter>(), align_of::<libc::sock_filter>());
        assert_eq!(std::mem::offset_of!(SockFilter, jt), std::mem::offset_of!(libc::sock_filter, jt));
        assert_eq!(std::mem::offset_of!(SockFilter, k), std::mem::offset_of!(libc::sock_filter, k));
    }

    #[test]
    fn a_program_without_a_return_is_refused_by_the_kernel() {
        let jump_out = [SockFilter { code: 0x05, jt: 0, jf: 0, k: 7 }];
        assert_eq!(install(&jump_out, 0).expect_err("it jumps out of itself").raw_os_error(), Some(libc::EINVAL));
    }
}
