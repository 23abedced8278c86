//! All `unsafe`, and all use of libc, nix, rustix and caps: thin wrappers that keep the kernel's names and return `io::Result`.
//!
//! One file a facility. What is not done here: policy, retries (but for EINTR), log lines, paths of podwright's own.
#![allow(unsafe_code)]

pub mod at;
pub mod confine;
mod errno;
mod flock;
mod inherit;
mod process;
mod random;
mod xattr;

pub use errno::errno_name;
pub use flock::{flock, try_flock};
pub use inherit::inherit_fd;
pub use process::{append_line, kill_self, start_time};
pub use random::random;
pub use xattr::{fgetxattr, fsetxattr};
