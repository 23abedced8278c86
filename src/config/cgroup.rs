//! The setting of who makes cgroups.

/// Who makes the cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupDriver {
    /// podwright alone.
    #[default]
    Cgroupfs,
    /// systemd makes a scope for each pod, and podwright what is in it.
    Systemd,
}

impl CgroupDriver {
    pub(super) const WORDS: &[&str] = &["cgroupfs", "systemd"];

    /// The word of the configuration.
    pub fn word(self) -> &'static str {
        match self {
            CgroupDriver::Cgroupfs => "cgroupfs",
            CgroupDriver::Systemd => "systemd",
        }
    }

    /// Of a word that was checked; any other is the default.
    pub fn of(word: &str) -> CgroupDriver {
        if word == CgroupDriver::Systemd.word() { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs }
    }
}
