//! `close_range(first, last, 0)`, close_range(2).

use std::io;

/// Closes every descriptor from 3 on but `keep`: what a careless parent let through.
///
/// # Errors
/// Those of close_range(2): `ENOSYS` below Linux 5.9.
///
/// To be called first in `main` of a role, when nothing here owns a descriptor yet; whatever does finds it closed.
pub fn close_all_but(keep: Option<u32>) -> io::Result<()> {
    let ranges = match keep {
        Some(keep) => [(3, keep.saturating_sub(1)), (keep.saturating_add(1).max(3), u32::MAX)],
        None => [(3, u32::MAX), (u32::MAX, u32::MAX)],
    };
    for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
        // SAFETY: the call takes three numbers and no memory; nobody owns what is closed, as the doc above demands.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
