//! Bytes, the heap, and the program itself as memory: memchr(3), malloc_trim(3), madvise(2), dl_iterate_phdr(3).

use std::ffi::{c_int, c_void};

/// Where `byte` first is in `bytes`.
pub fn memchr(byte: u8, bytes: &[u8]) -> Option<usize> {
    // SAFETY: the range is that of the slice, which is only read.
    let found = unsafe { libc::memchr(bytes.as_ptr().cast(), i32::from(byte), bytes.len()) };
    (!found.is_null()).then(|| found.addr() - bytes.as_ptr().addr())
}

/// Gives freed pages of the heap back to the kernel. musl's allocator does so by itself.
pub fn malloc_trim() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: no invariant; it takes the allocator's own locks.
        unsafe { libc::malloc_trim(0) };
    }
}

/// Unmaps the pages of this program's code and constants: `madvise(MADV_DONTNEED)` on whatever of it was loaded and cannot be written.
/// They come back from the page cache one fault at a time, so this is for a process that is about to wait for long.
pub fn forget_program() {
    advise_program(libc::MADV_DONTNEED);
}

fn advise_program(mut advice: c_int) {
    // SAFETY: the function has the type that is asked for; its data is the number that it is given, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(advise_object), (&raw mut advice).cast()) };
}

/// One loaded object: the program, and the vdso (whose pages are not given back: EINVAL).
unsafe extern "C" fn advise_object(object: *mut libc::dl_phdr_info, _size: usize, advice: *mut c_void) -> c_int {
    // SAFETY: `advise_program` passes a number.
    let advice = unsafe { *advice.cast::<c_int>() };
    // SAFETY: dl_iterate_phdr gives a valid one for the time of this call.
    let object = unsafe { &*object };
    if object.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: the object's program headers, as many as it says; they are part of it and stay mapped.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
    let Ok(page) = usize::try_from(super::page_bytes()) else { return 0 };
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0) {
        let place = |offset: u64| usize::try_from(object.dlpi_addr + offset).unwrap_or(0);
        let start = place(header.p_vaddr) & !(page - 1);
        let end = place(header.p_vaddr + header.p_memsz).next_multiple_of(page);
        // SAFETY: a private mapping of a file that was never writable: each page is read from the file again when it is touched,
        // and is what it was. A text relocation would be lost, but there are none in what rustc links.
        unsafe { libc::madvise(std::ptr::without_provenance_mut(start), end - start, advice) };
    }
    0
}

#[cfg(test)]
mod tests {
    /// KiB of this process's mappings of its own program that cannot be written and are in memory, /proc/self/smaps of proc(5).
    fn resident_program() -> u64 {
        let program = std::fs::read_link("/proc/self/exe").expect("proc").to_string_lossy().into_owned();
        let (mut ours, mut kib) = (false, 0);
        for line in std::fs::read_to_string("/proc/self/smaps").expect("proc").lines() {
            if line.split_once(' ').is_some_and(|(range, _)| range.contains('-')) {
                ours = line.ends_with(&program) && line.contains(" r-xp ");
            } else if let Some(rss) = line.strip_prefix("Rss:").filter(|_| ours) {
                kib += rss.trim().trim_end_matches(" kB").parse::<u64>().expect("a number");
            }
        }
        kib
    }

    #[test]
    fn a_forgotten_program_is_out_of_memory_and_runs_on() {
        super::advise_program(libc::MADV_POPULATE_READ);
        let before = resident_program();
        super::forget_program();
        let after = resident_program();
        assert!(after * 2 < before, "{before} KiB, then {after}");
    }

    #[test]
    fn the_first_of_several_is_found_and_none_in_none() {
        assert_eq!(
            (super::memchr(b'b', b"abb"), super::memchr(b'c', b"abb"), super::memchr(0, b"")),
            (Some(1), None, None)
        );
    }
}
