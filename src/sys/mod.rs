//! All `unsafe`, and all use of libc, nix, rustix and caps: thin wrappers that keep the kernel's names and return `io::Result`.
//!
//! One file a facility. What is not done here: policy, retries (but for EINTR), log lines, paths of podwright's own.
#![allow(unsafe_code)]

pub mod async_fd;
pub mod at;
mod bpf;
pub mod capability;
pub mod clone;
pub mod confine;
pub mod credentials;
mod device;
pub mod epoll;
mod errno;
pub mod exec;
mod flock;
pub mod fs;
mod inherit;
pub mod inotify;
pub mod memfd;
mod memory;
pub mod mmap;
pub mod mount;
pub mod netlink;
pub mod ns;
pub mod openat2;
pub mod orphan;
mod param;
pub mod pidfd;
pub mod pipe;
pub mod poll;
pub mod prctl;
pub mod probe;
mod process;
pub mod pty;
mod random;
pub mod rlimit;
pub mod sched;
mod seccomp;
pub mod seek;
pub mod session;
pub mod signalfd;
pub mod socket;
pub mod spawn;
pub mod terminal;
pub mod wait;
mod xattr;

pub use bpf::{BpfInsn, attach_device_program, detach_device_program, load_device_program};
pub use device::{Device, device, device_numbers};
pub use errno::errno_name;
pub use flock::{flock, try_flock};
pub use inherit::{ignore_file_size_signal, inherit_fd};
pub use memory::{forget_program, malloc_trim, memchr};

pub use param::page_bytes;
pub use process::{
    CommandLine, append_line, cpu_time, ended_children, has_executed, is_root, kill_self, parent_of, start_time,
};
pub use random::random;
pub use seccomp::{
    SECCOMP_FILTER_FLAG_LOG, SECCOMP_FILTER_FLAG_SPEC_ALLOW, SECCOMP_FILTER_FLAG_TSYNC, SockFilter,
    install as install_seccomp,
};
pub use xattr::{fgetxattr, flistxattr, fsetxattr, getxattr_of, setxattr_of};
