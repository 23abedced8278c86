//! What a cgroup uses: cpu and throttling, memory, swap, processes, io, pressure. cgroup-v2.rst.
//!
//! A file that is not there (no controller, an older kernel) makes its number `None`, never zero. Rates and working out who is
//! to blame are done elsewhere.

use super::tree::{Cgroup, MAX_FILE_BYTES, is_gone};
use crate::error::{Context, Error, Result};
use crate::sys::fs;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::AsFd;

/// The controllers that statistics come from, beside those that limits need.
pub const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];

/// One reading.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    pub cpu: Option<Cpu>,
    pub memory: Option<Memory>,
    pub swap: Option<Swap>,
    pub pids: Option<Pids>,
    /// By device; `None` without the io controller.
    pub io: Option<Vec<Io>>,
    pub pressure: Pressures,
}

/// cpu.stat; microseconds. Throttling needs the controller, usage does not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    pub usage_us: u64,
    pub user_us: u64,
    pub system_us: u64,
    /// Periods of cpu.max in which something ran.
    pub periods: Option<u64>,
    /// Periods in which the quota was used up.
    pub throttled_periods: Option<u64>,
    /// How long processes were kept waiting then.
    pub throttled_us: Option<u64>,
}

/// memory.*; bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub usage_bytes: u64,
    /// Usage less inactive file: what the kubelet evicts by.
    pub working_set_bytes: Option<u64>,
    /// The highest usage so far.
    pub peak_bytes: Option<u64>,
    pub anon_bytes: Option<u64>,
    pub file_bytes: Option<u64>,
    /// Of the page cache, what is mapped.
    pub mapped_bytes: Option<u64>,
    pub kernel_bytes: Option<u64>,
    /// Page faults, and those that had to read from a disk.
    pub faults: Option<u64>,
    pub major_faults: Option<u64>,
    /// `None`: no limit here.
    pub limit_bytes: Option<u64>,
}

/// memory.swap.*; bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swap {
    pub usage_bytes: u64,
    /// `None`: no limit here.
    pub limit_bytes: Option<u64>,
}

/// pids.*; processes and threads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pids {
    pub current: u64,
    /// `None`: no limit here.
    pub limit: Option<u64>,
}

/// A line of io.stat.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Io {
    /// `major:minor`.
    pub device: String,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// Pressure stall information, accounting/psi.rst; `None` where the kernel has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressures {
    pub cpu: Option<Pressure>,
    pub memory: Option<Pressure>,
    pub io: Option<Pressure>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// At least one process waited.
    pub some: Stall,
    /// All of them did.
    pub full: Option<Stall>,
}

/// Shares of time in hundredths of a percent over the last seconds, and the total in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    pub avg10_e2: u64,
    pub avg60_e2: u64,
    pub avg300_e2: u64,
    pub total_us: u64,
}

/// How much is read: each file is three system calls, and a kubelet asks for all containers of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// CRI ContainerStats: cpu, memory and swap with their limits, pressure.
    Container,
    /// CRI PodSandboxStats: the number of processes as well.
    Pod,
    /// Everything.
    Full,
}

/// Bytes of a buffer that each file but io.stat fits: memory.stat has 2 KiB.
const BUFFER_BYTES: usize = 8 << 10;

/// One reading. The files are opened and read one after another: their sums need not agree to the last byte.
///
/// # Errors
/// `NotFound` when the cgroup is gone; `Internal` (`EMFILE`).
pub fn read(cgroup: &Cgroup, depth: Depth) -> Result<Stats> {
    let mut reader = Reader { cgroup, buffer: vec![0; BUFFER_BYTES], found: false };
    let memory = reader.memory(depth)?;
    let stats = Stats {
        cpu: reader.text("cpu.stat")?.and_then(parse_cpu),
        swap: if memory.is_some() { reader.swap()? } else { None },
        memory,
        pids: if depth >= Depth::Pod { reader.pids(depth)? } else { None },
        io: if depth >= Depth::Full { reader.text("io.stat")?.map(parse_io) } else { None },
        pressure: Pressures {
            cpu: reader.text("cpu.pressure")?.and_then(parse_pressure),
            memory: reader.text("memory.pressure")?.and_then(parse_pressure),
            io: reader.text("io.pressure")?.and_then(parse_pressure),
        },
    };
    if !reader.found {
        return Err(Error::not_found(format!("cgroup {} is gone", cgroup.path())));
    }
    Ok(stats)
}

/// Reads files of one cgroup. One whose controller is not there is not looked for twice: the first of its files tells.
struct Reader<'a> {
    cgroup: &'a Cgroup,
    buffer: Vec<u8>,
    /// Some file was there.
    found: bool,
}

impl Reader<'_> {
    fn memory(&mut self, depth: Depth) -> Result<Option<Memory>> {
        let Some(usage_bytes) = self.number("memory.current")? else { return Ok(None) };
        let mut memory = Memory { usage_bytes, ..Memory::default() };
        if let Some(stat) = self.text("memory.stat")? {
            memory.working_set_bytes =
                field(stat, "inactive_file").map(|inactive| usage_bytes.saturating_sub(inactive));
            memory.anon_bytes = field(stat, "anon");
            memory.file_bytes = field(stat, "file");
            memory.mapped_bytes = field(stat, "file_mapped");
            memory.kernel_bytes = field(stat, "kernel");
            memory.faults = field(stat, "pgfault");
            memory.major_faults = field(stat, "pgmajfault");
        }
        memory.limit_bytes = self.number("memory.max")?;
        if depth >= Depth::Full {
            memory.peak_bytes = self.number("memory.peak")?;
        }
        Ok(Some(memory))
    }

    fn swap(&mut self) -> Result<Option<Swap>> {
        let Some(usage_bytes) = self.number("memory.swap.current")? else { return Ok(None) };
        Ok(Some(Swap { usage_bytes, limit_bytes: self.number("memory.swap.max")? }))
    }

    fn pids(&mut self, depth: Depth) -> Result<Option<Pids>> {
        let Some(current) = self.number("pids.current")? else { return Ok(None) };
        let limit = if depth >= Depth::Full { self.number("pids.max")? } else { None };
        Ok(Some(Pids { current, limit }))
    }

    /// A file of one number; `max` is none.
    fn number(&mut self, name: &str) -> Result<Option<u64>> {
        Ok(self.text(name)?.and_then(|text| text.trim().parse().ok()))
    }

    fn text(&mut self, name: &str) -> Result<Option<&str>> {
        let cgroup = self.cgroup;
        let file = match fs::open_file_at(cgroup.as_fd(), name, fs::Access::Read) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.context(|| format!("open {name} of {}", cgroup.path()))?,
        };
        self.found = true;
        match fs::read_record(file.as_fd(), &mut self.buffer, MAX_FILE_BYTES) {
            Ok(text) => Ok(std::str::from_utf8(text).ok()),
            // PSI that was switched off at boot (psi=0) has its files, which cannot be read.
            Err(e) if crate::sys::errno_name(e.raw_os_error().unwrap_or(0)) == "EOPNOTSUPP" => Ok(None),
            Err(e) if is_gone(&e) => Err(Error::not_found(format!("cgroup {} is gone", cgroup.path()))),
            Err(e) => Err(e).context(|| format!("read {name} of {}", cgroup.path())),
        }
    }
}

/// The number after `key` in a file of `key number` lines.
pub(super) fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn parse_cpu(text: &str) -> Option<Cpu> {
    Some(Cpu {
        usage_us: field(text, "usage_usec")?,
        user_us: field(text, "user_usec")?,
        system_us: field(text, "system_usec")?,
        periods: field(text, "nr_periods"),
        throttled_periods: field(text, "nr_throttled"),
        throttled_us: field(text, "throttled_usec"),
    })
}

fn parse_io(text: &str) -> Vec<Io> {
    let device = |line: &str| {
        let (name, values) = line.split_once(' ')?;
        let mut io = Io { device: name.to_owned(), ..Io::default() };
        for (key, value) in values.split(' ').filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match key {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.written_bytes = value,
                "rios" => io.reads = value,
                "wios" => io.writes = value,
                _ => {}
            }
        }
        Some(io)
    };
    text.lines().filter_map(device).collect()
}

fn parse_pressure(text: &str) -> Option<Pressure> {
    let stall = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let value = |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let hundredths = |key: &str| value(key)?.replacen('.', "", 1).parse().ok();
        Some(Stall {
            avg10_e2: hundredths("avg10")?,
            avg60_e2: hundredths("avg60")?,
            avg300_e2: hundredths("avg300")?,
            total_us: value("total")?.parse().ok()?,
        })
    };
    Some(Pressure { some: stall("some ")?, full: stall("full ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_usage_is_known_without_the_controller_and_throttling_is_not() {
        let bare = parse_cpu("usage_usec 3\nuser_usec 2\nsystem_usec 1\n").expect("cpu");
        assert_eq!((bare.usage_us, bare.throttled_periods), (3, None));
        let full =
            "usage_usec 3\nuser_usec 2\nsystem_usec 1\nnr_periods 9\nnr_throttled 7\nthrottled_usec 5\nnr_bursts 0\n";
        let full = parse_cpu(full).expect("cpu");
        assert_eq!((full.periods, full.throttled_periods, full.throttled_us), (Some(9), Some(7), Some(5)));
        assert_eq!(parse_cpu(""), None);
    }

    #[test]
    fn a_key_is_not_taken_for_another_that_starts_with_it() {
        assert_eq!(field("anon_thp 7\nanon 5\n", "anon"), Some(5));
        assert_eq!(field("anon_thp 7\n", "anon"), None);
    }

    #[test]
    fn io_is_told_by_device() {
        let text = "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:16 \n";
        let io = parse_io(text);
        assert_eq!(io.len(), 2);
        assert_eq!(io[0], Io { device: "8:0".to_owned(), read_bytes: 1, written_bytes: 2, reads: 3, writes: 4 });
    }

    #[test]
    fn pressure_keeps_its_hundredths_and_may_lack_full() {
        let some = "some avg10=1.25 avg60=0.00 avg300=12.05 total=4242\n";
        let parsed = parse_pressure(some).expect("pressure");
        assert_eq!(parsed.some, Stall { avg10_e2: 125, avg60_e2: 0, avg300_e2: 1205, total_us: 4242 });
        assert_eq!(parsed.full, None);
        let both =
            parse_pressure(&format!("{some}full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n")).expect("pressure");
        assert_eq!(both.full.map(|f| f.total_us), Some(7));
        assert_eq!(parse_pressure(""), None);
    }
}
