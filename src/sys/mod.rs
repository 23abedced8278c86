//! All `unsafe`, and all use of libc, nix, rustix and caps: thin wrappers that keep the kernel's names and return `io::Result`.
//!
//! One file a facility. What is not done here: policy, retries (but for EINTR), log lines, paths of podwright's own.
#![allow(unsafe_code)]

mod bpf;
mod errno;
mod process;
mod random;
mod seccomp;

pub use bpf::{BpfInsn, attach_device_program, detach_device_program, load_device_program};
pub use errno::errno_name;
pub use process::{append_line, kill_self, start_time};
pub use random::random;
pub use seccomp::{
    SECCOMP_FILTER_FLAG_LOG, SECCOMP_FILTER_FLAG_SPEC_ALLOW, SECCOMP_FILTER_FLAG_TSYNC, SockFilter,
    install as install_seccomp,
};
