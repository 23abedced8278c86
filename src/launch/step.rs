//! The steps of a start, each a name that people see. What a step does is in `init`, `pause`, `exec` and `spawn`.

use std::fmt;

macro_rules! steps {
    ($($name:ident = $text:literal,)*) => {
        /// A step of a start: what the child was doing when it failed. Its number is what crosses the report pipe.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Step { $($name,)* }

        impl Step {
            const ALL: &'static [Step] = &[$(Step::$name,)*];

            /// As messages have it.
            pub fn name(self) -> &'static str {
                match self { $(Step::$name => $text,)* }
            }
        }
    };
}

steps! {
    // The parent's.
    Plan = "plan",
    Overlay = "mount overlay",
    User = "user",
    Volume = "open volume",
    Device = "open device",
    DeviceFilter = "filter devices",
    Terminal = "open terminal",
    Namespace = "enter pid namespace",
    Clone = "clone3",
    Report = "wait for the child",
    Runtime = "call",
    // The child's, in the order of `init`.
    CloseInherited = "close inherited files",
    Session = "setsid",
    Keyring = "join session keyring",
    OomScoreAdj = "write oom_score_adj",
    AppArmor = "enter AppArmor profile",
    Selinux = "set SELinux label",
    Rlimit = "setrlimit",
    Setns = "setns",
    Unshare = "unshare",
    UserNamespace = "enter user namespace",
    MakeFilesAs = "make files as the pod's root",
    Sibling = "clone3 in the user namespace",
    AttachRoot = "attach root",
    Mount = "mount",
    DeviceNode = "make device",
    Mask = "mask",
    ReadonlyPath = "make read-only",
    ReadonlyRoot = "make root read-only",
    Console = "attach console",
    Workdir = "enter working directory",
    PivotRoot = "pivot_root",
    DetachOldRoot = "detach old root",
    Stdio = "set up standard streams",
    Umask = "umask",
    NoNewPrivs = "set no_new_privs",
    BoundingSet = "drop bounding capabilities",
    Groups = "setgroups",
    Gid = "setresgid",
    Uid = "setresuid",
    Capabilities = "capset",
    Ambient = "raise ambient capabilities",
    Signals = "reset signals",
    Seccomp = "load seccomp filter",
    CloseFiles = "close files",
    Policy = "come under the quota",
    Exec = "exec",
    Init = "exec the own init",
    // Of pause.
    IdMaps = "map ids",
    Hostname = "sethostname",
    Loopback = "bring up lo",
    Sysctl = "write sysctl",
    Shm = "mount shm",
    Dumpable = "set dumpable",
}

impl Step {
    /// The step of that number, as the report pipe has it.
    pub(crate) fn from_number(number: u8) -> Option<Step> {
        Step::ALL.get(usize::from(number)).copied()
    }

    pub(crate) fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_survives_its_number() {
        for step in Step::ALL {
            assert_eq!(Step::from_number(step.number()), Some(*step));
        }
        assert_eq!(Step::from_number(u8::MAX), None);
    }
}
