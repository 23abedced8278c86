//! `memfd_create(name, flags)`, memfd_create(2), and its seals, fcntl(2).

use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

/// How often sealing is tried while the kernel says that pages are in use.
const SEAL_ATTEMPTS: u32 = 20;

/// A sealed, executable copy of this program: nobody who reaches it through /proc/pid/exe can change it (CVE-2019-5736).
///
/// # Errors
/// Those of memfd_create(2): `EACCES` with vm.memfd_noexec=2.
pub fn sealed_self(name: &str) -> io::Result<OwnedFd> {
    let base = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match rustix::fs::memfd_create(name, base | MemfdFlags::EXEC) {
        // MFD_EXEC is new in Linux 6.3, and older kernels refuse flags that they do not know: until 6.3 is our floor.
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(name, base)?,
        made => made?,
    };
    let mut copy = File::from(fd);
    io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
    seal(&copy)?;
    // F_SEAL_EXEC is new in 6.3 as well: keeps the mode executable and is a bonus where it is known.
    Ok(copy.into())
}

/// An empty file of no directory.
///
/// # Errors
/// Those of memfd_create(2).
#[cfg(any(test, fuzzing))]
pub fn scratch(name: &str) -> io::Result<File> {
    Ok(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

/// Seals a memfd whose content is complete. The kernel refuses while anybody holds a page of it, who might write to it; that may be the
/// kernel itself, which moves pages about, and has let go a moment later. It waits 150 ms by itself (memfd_wait_for_pins), so the bound is 3 s.
pub(super) fn seal(memfd: &File) -> io::Result<()> {
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    for _ in 1..SEAL_ATTEMPTS {
        match rustix::fs::fcntl_add_seals(memfd, all) {
            Err(rustix::io::Errno::BUSY) => {}
            sealed => return Ok(sealed?),
        }
    }
    Ok(rustix::fs::fcntl_add_seals(memfd, all)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    #[test]
    fn a_sealed_copy_cannot_be_written() {
        let fd = super::sealed_self("test").expect("memfd");
        let e = std::fs::File::from(fd).write_all(b"x").expect_err("sealed");
        assert_eq!(e.raw_os_error(), Some(libc::EPERM));
    }
}
