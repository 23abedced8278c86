//! The OCI runtime: plan, spawn, init, root, seccomp, devices, exec.

pub mod devices;
pub mod seccomp;
pub mod seccomp_abi;
pub mod seccomp_profile;
mod seccomp_program;
