//! Constants of the running kernel: sysconf(3).

/// Bytes of a page of memory: `sysconf(_SC_PAGESIZE)`.
pub fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}
