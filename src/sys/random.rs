//! `getrandom(buf, len, 0)`, getrandom(2).

/// Fills `buf` with random bytes.
///
/// # Panics
/// When the kernel has no getrandom, which Linux has had since 3.17: nothing here could go on.
pub fn random(buf: &mut [u8]) {
    let mut filled = 0;
    while filled < buf.len() {
        match rustix::rand::getrandom(&mut buf[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("getrandom: {e}"),
        }
    }
}
