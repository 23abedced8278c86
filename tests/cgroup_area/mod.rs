//! For the tests of cgroups: a part of the hierarchy of one's own that is gone afterwards, and processes to put there.

use podwright::cgroup::{Cgroup, CgroupPath, Controllers, Hierarchy};
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Longer than anything here takes on an emulated machine.
pub const BOUND: Duration = Duration::from_secs(60);

/// A cgroup below the root that no other test uses.
#[derive(Debug)]
pub struct Area {
    pub host: Hierarchy,
    pub path: CgroupPath,
}

impl Area {
    pub fn new() -> Area {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("podwright-cgroup-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let host = Hierarchy::discover().expect("cgroup v2 is mounted");
        Area { host, path: CgroupPath::root().child(&name).expect("a valid name") }
    }

    pub fn at(&self, relative: &str) -> CgroupPath {
        self.path.join(relative).expect("a valid name")
    }

    /// A cgroup in the area that has these controllers.
    pub fn create(&self, relative: &str, controllers: &[&str]) -> Cgroup {
        self.host.create(&self.at(relative), &set(controllers), &CgroupPath::root()).expect("create")
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        let removed = self.host.remove(&self.path, BOUND);
        if !std::thread::panicking() {
            removed.expect("the area is removed");
            assert!(!self.host.file(&self.path, "").exists(), "{} is left", self.path);
        }
    }
}

pub fn set(controllers: &[&str]) -> Controllers {
    controllers.iter().map(|c| (*c).to_owned()).collect()
}

/// A shell that is in `cgroup` before it runs the first line of `script`.
#[allow(dead_code)] // one test file starts no process
pub fn shell_in(cgroup: &Cgroup, script: &str) -> Child {
    let mut child = Command::new("sh")
        .args(["-c", &format!("read go; {script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh");
    cgroup.write("cgroup.procs", &child.id().to_string()).expect("enter the cgroup");
    child.stdin.as_mut().expect("stdin").write_all(b"\n").expect("go");
    child
}
