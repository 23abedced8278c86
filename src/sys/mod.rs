//! All `unsafe`, and all use of libc, nix, rustix and caps: thin wrappers that keep the kernel's names and return `io::Result`.
//!
//! One file a facility. What is not done here: policy, retries (but for EINTR), log lines, paths of podwright's own.
#![allow(unsafe_code)]

mod errno;
mod process;
pub mod probe;
mod random;

pub use errno::errno_name;
pub use process::{append_line, is_root, kill_self, start_time};
pub use random::random;
