//! Seam until `cgroup::oom` is merged: the same interface, and nothing is ever seen.
use crate::state::record::Oom;
use std::os::fd::BorrowedFd;
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OomCounts;
pub fn read(_container: BorrowedFd<'_>, _pod: Option<BorrowedFd<'_>>) -> std::io::Result<OomCounts> {
    Ok(OomCounts)
}
pub fn judge(_before: OomCounts, _now: OomCounts) -> Option<Oom> {
    None
}
