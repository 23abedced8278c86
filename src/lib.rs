//! podwright: runs Kubernetes pods on a Linux host.
//!
//! The map, in rank order; a module may name only modules above it (`tests/cli_layout.rs` keeps this table):
//!
//! * `sys`     everything unsafe; libc, nix, rustix and caps; kernel names
//! * `error`   kinds that mirror gRPC's codes, and sentences for people
//! * `id`      pods, containers, execs, instances, digests
//! * `fault`   named points where a test may kill the process
//! * `config`  settings: defaults, file, environment, flags, and which of them won
//! * `state`   what is on disk: the shape of a pod, paths, records, the flight recorder
//! * `wire`    the protocol between engine and shim
//! * `cgroup`  cgroup v2: limits, stats, out of memory
//! * `launch`  the OCI runtime: plan, spawn, init, root, seccomp, devices, exec
//! * `shim`    the per-pod process
//! * `image`   reference, import, unpack, store
//! * `network` what pods are connected to: the built-in bridge, CNI
//! * `engine`  the verbs
//! * `stream`  exec, attach and port-forward over HTTP
//! * `nriapi`  generated: the messages of the Node Resource Interface
//! * `nri`     plugins on the node that see and adjust what is made
//! * `criapi`  generated: the messages and services of the CRI
//! * `ownapi`  generated: what podwright's commands ask of a daemon
//! * `cri`     the gRPC surface: convert, call, convert
//! * `agent`   Pod manifests
//! * `daemon`  wiring of the process that serves them all
//! * `cli`     what people type
//! * `fuzz`    what must hold whatever bytes come; in tests and under cargo fuzz only
pub mod sys;
pub mod error;
pub mod id;
pub mod fault;
pub mod config;
pub mod state;
pub mod wire;
pub mod cgroup;
pub mod launch;
pub mod shim;
pub mod image;
pub mod network;
pub mod engine;
pub mod stream;
#[rustfmt::skip]
#[allow(missing_debug_implementations, clippy::all, reason = "generated")]
pub mod nriapi;
pub mod nri;
#[rustfmt::skip]
#[allow(deprecated, missing_debug_implementations, clippy::all, reason = "generated")]
pub mod criapi;
#[rustfmt::skip]
#[allow(missing_debug_implementations, clippy::all, reason = "generated")]
pub mod ownapi;
pub mod cri;
pub mod agent;
pub mod daemon;
pub mod cli;
#[cfg(any(test, fuzzing))]
pub mod fuzz;

/// musl's allocator maps and unmaps single pages all the time: a quarter of a container's start (hack/bench). This one asks for
/// 64 KiB at once, and a shim of one thread never waits for its lock.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;
