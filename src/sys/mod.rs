//! All `unsafe`, and all use of libc, nix, rustix and caps: thin wrappers that keep the kernel's names and return `io::Result`.
//!
//! One file a facility. What is not done here: policy, retries (but for EINTR), log lines, paths of podwright's own.
#![allow(unsafe_code)]

pub mod capability;
pub mod clone;
pub mod credentials;
pub mod epoll;
mod errno;
pub mod exec;
pub mod fs;
mod memory;
pub mod mmap;
pub mod mount;
pub mod ns;
pub mod openat2;
mod param;
pub mod pidfd;
pub mod poll;
pub mod prctl;
mod process;
pub mod pty;
mod random;
pub mod rlimit;
pub mod session;
pub mod signalfd;
pub mod socket;
pub mod wait;

pub use errno::errno_name;
pub use memory::{malloc_trim, memchr};
pub use param::page_bytes;
pub use process::{append_line, kill_self, start_time};
pub use random::random;
