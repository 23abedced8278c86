//! Bytes and the heap: memchr(3), malloc_trim(3).

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

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_of_several_is_found_and_none_in_none() {
        assert_eq!(
            (super::memchr(b'b', b"abb"), super::memchr(b'c', b"abb"), super::memchr(0, b"")),
            (Some(1), None, None)
        );
    }
}
