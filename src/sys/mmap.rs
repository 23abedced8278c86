//! `mmap(MAP_SHARED)` of a small file as 64-bit words that several processes read and write atomically, mmap(2).

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// Words of a file, shared with every other process that maps it.
#[derive(Debug)]
pub struct SharedWords {
    first: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the words are only ever handed out as `&[AtomicU64]`, and the mapping belongs to the process, not to a thread.
unsafe impl Send for SharedWords {}
// SAFETY: as above; atomics may be used from any thread at once.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the first `count` words of `file`. Whoever else can write to the file must not make it shorter: a word that is no longer
    /// in the file is a SIGBUS.
    ///
    /// # Errors
    /// `EINVAL` when the file is shorter; `ENOMEM`, `EACCES`.
    pub fn map(file: &File, count: usize) -> io::Result<Self> {
        let bytes = count * size_of::<u64>();
        if count == 0 || file.metadata()?.len() < bytes as u64 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: the address is the kernel's choice, so no mapping of ours is replaced; the length is within the file.
        let at = unsafe {
            mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0)
        }?;
        let first = NonNull::new(at.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(SharedWords { first, count })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: `first` is page-aligned and mapped for `count` words until drop; every bit pattern is a u64; other processes
        // change the words too, which is what atomics admit.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`, and no slice of it outlives `self`.
        let _ = unsafe { munmap(self.first.as_ptr().cast(), self.count * size_of::<u64>()) }; // fails only for a bad range
    }
}
