//! `bpf(cmd, attr, size)`, bpf(2), for the one kind of program used here: BPF_PROG_TYPE_CGROUP_DEVICE.
//!
//! Not here: what a program says (`launch::devices`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One instruction of eBPF, `struct bpf_insn` in linux/bpf.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct BpfInsn {
    pub code: u8,
    /// Destination register in the low four bits, source in the high ones (little endian).
    pub registers: u8,
    pub off: i16,
    pub imm: i32,
}

// enum bpf_cmd, bpf_prog_type, bpf_attach_type and the flags of linux/bpf.h.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
const BPF_F_REPLACE: u32 = 1 << 2;

/// Tries of a load that a signal keeps interrupting; libbpf has the same number.
const LOAD_TRIES: u32 = 5;

/// The part of `union bpf_attr` that BPF_PROG_LOAD reads, up to the name.
#[derive(Default)]
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The part of `union bpf_attr` that BPF_PROG_ATTACH and BPF_PROG_DETACH read.
#[derive(Default)]
#[repr(C)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// # Safety
/// `A` has the layout of the part of `union bpf_attr` that `command` reads; every pointer in it is valid for as long as the kernel
/// reads through it, which is until this returns.
unsafe fn bpf<A>(command: libc::c_int, attr: &A) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is valid for its size; its content is the caller's promise. The kernel writes nothing for these commands.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { libc::c_int::try_from(result).map_err(io::Error::other) }
}

/// Loads a program that decides about opening and making devices.
///
/// # Errors
/// `EPERM` without CAP_BPF and CAP_NET_ADMIN or CAP_SYS_ADMIN in the first user namespace, or below a filter; `EINVAL` or `EACCES`
/// for a program that the verifier refuses, or a kernel without CONFIG_CGROUP_BPF; `ENOSYS` for one without bpf(2).
pub fn load_device_program(program: &[BpfInsn]) -> io::Result<OwnedFd> {
    let mut name = [0; 16];
    name[..13].copy_from_slice(b"podwright_dev");
    let attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
        insns: program.as_ptr().expose_provenance() as u64,
        license: c"Apache-2.0".as_ptr().expose_provenance() as u64, // no helper is called, so none asks for another one
        prog_name: name,
        expected_attach_type: BPF_CGROUP_DEVICE,
        ..LoadAttr::default()
    };
    let mut tries = 0;
    let fd = loop {
        tries += 1;
        // SAFETY: LoadAttr mirrors union bpf_attr field by field; `program` and the literal outlive the call, and `insn_cnt` is the
        // number of instructions, each of the layout of struct bpf_insn (repr(C)).
        match unsafe { bpf(BPF_PROG_LOAD, &attr) } {
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) && tries < LOAD_TRIES => {}
            other => break other?,
        }
    };
    // SAFETY: the kernel has just made this descriptor (close-on-exec) for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts a program on a cgroup beside those of its ancestors, all of which must agree; in the place of `old`, if given, with no
/// moment in between. The cgroup keeps the program: it lives as long as either of them.
///
/// # Errors
/// `ENOENT` when `old` is not attached; `EBADF` when `cgroup` is no cgroup v2 directory; `E2BIG` with 64 programs there; `EPERM` as for
/// the load, or when an ancestor's program was attached as the only one.
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    old: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let attr = AttachAttr {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_bpf_fd: program.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI | old.map_or(0, |_| BPF_F_REPLACE),
        replace_bpf_fd: old.map_or(0, |old| old.as_raw_fd().cast_unsigned()),
    };
    // SAFETY: AttachAttr mirrors union bpf_attr field by field and holds no pointer.
    unsafe { bpf(BPF_PROG_ATTACH, &attr) }.map(drop)
}

/// Takes a program off a cgroup.
///
/// # Errors
/// `ENOENT` when it is not attached there.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = AttachAttr {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_bpf_fd: program.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        ..AttachAttr::default()
    };
    // SAFETY: AttachAttr mirrors union bpf_attr field by field and holds no pointer.
    unsafe { bpf(BPF_PROG_DETACH, &attr) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attributes_have_the_kernels_offsets() {
        // include/uapi/linux/bpf.h, union bpf_attr, as pahole prints it.
        assert_eq!(std::mem::offset_of!(LoadAttr, license), 16);
        assert_eq!(std::mem::offset_of!(LoadAttr, log_buf), 32);
        assert_eq!(std::mem::offset_of!(LoadAttr, prog_name), 48);
        assert_eq!(std::mem::offset_of!(LoadAttr, expected_attach_type), 68);
        assert_eq!(std::mem::offset_of!(AttachAttr, replace_bpf_fd), 16);
        assert_eq!((size_of::<LoadAttr>(), size_of::<AttachAttr>(), size_of::<BpfInsn>()), (72, 20, 8));
    }
}
