//! cgroup v2: the hierarchy, limits that are verified, statistics, out of memory. The drivers cgroupfs and systemd.
//!
//! * `path`       what a cgroup may be called (pure)
//! * `hierarchy`  where v2 is mounted; cgroups made with the controllers they need; why a controller is missing
//! * `tree`       one cgroup as a directory descriptor: kill, wait, remove
//! * `limits`     what was asked for, as files and values (pure)
//! * `compare`    whether what the kernel shows is what was written (pure)
//! * `report`     asked, written, kernel, effective; limits that are not enforced
//! * `apply`      write, read back, compare; in-place resize
//! * `stats`      usage, throttling, pressure
//! * `census`     who is in it: processes, threads, open descriptors
//! * `oom`        whose memory ran out
//! * `slice`      what systemd calls its cgroups (pure)
//! * `systemd`    systemd asked to make them
//!
//! The engine creates, writes, verifies and removes. The shim gets directory descriptors and uses `tree` and `oom` through them.
//!
//! # The crate `cgroups-rs`, and where it is not used
//! Used: its table of v1 mounts, to say which v1 hierarchy holds a controller that v2 therefore lacks; and, in the tests, as the
//! independent reader of what we wrote. Not used for anything on v2 that must be right, because version 0.5.1
//! * looks for v2 only at /sys/fs/cgroup, and ignores errors when it enables controllers;
//! * moves the processes of a cgroup it deletes to the root cgroup, where no limit holds;
//! * stops at the first missing controller and leaves the other limits unset; returns Ok without lifting a memory limit (-1);
//!   sets swap to 0 when nobody asked; leaves `unified`, memory.high and io.weight out; never reads anything back;
//! * has no memory.events, no PSI, no throttled time on v2; opens memory.oom_control, a file of v1, for OOM events;
//! * names cgroups by path, which neither clone3(CLONE_INTO_CGROUP) nor a descriptor passed to the shim can use.

pub mod apply;
pub mod census;
pub mod compare;
pub mod hierarchy;
pub mod limits;
pub mod oom;
pub mod path;
pub mod report;
pub mod slice;
pub mod stats;
pub mod systemd;
pub mod tree;

pub use hierarchy::{Controllers, Hierarchy, unescape};
pub use path::CgroupPath;
pub use report::{Report, Row};
pub use tree::{Cgroup, limits_of_pod};

/// The controllers a container's cgroup is made with: those its limits need, and those that statistics come from.
pub fn controllers_for(settings: &[limits::Setting]) -> Controllers {
    let mut controllers = limits::controllers(settings);
    controllers.extend(stats::CONTROLLERS.map(str::to_owned));
    controllers
}
