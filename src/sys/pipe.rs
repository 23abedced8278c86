//! Pipes that outlive who reads them: pipe(2), and open(2) of one through /proc/pid/fd, proc_pid_fd(5). And `F_SETPIPE_SZ`, fcntl(2).

use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// How many descriptors of a process are looked at.
const MAX_FDS: usize = 1 << 16;

/// A pipe whose writing end is open for reading too, both close-on-exec: whoever writes is its own reader, so that when all others have
/// gone a write waits, and is not answered by SIGPIPE. The reader's end-of-file comes as ever, when the last writer has gone.
///
/// # Errors
/// Those of pipe(2) and open(2).
pub fn lasting_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    Ok((reader.into(), rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?))
}

/// The inode number of an open file: of a pipe the N of `pipe:[N]`, its own for as long as anybody has it open.
///
/// # Errors
/// None that a caller could cause.
pub fn inode(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::fs::fstat(fd)?.st_ino)
}

/// Another end of the pipe with this inode number, found among the descriptors of the process `pid`: its reading end, or its writing end
/// for `write`. Non-blocking, close-on-exec. `None` when the process has none.
///
/// # Errors
/// `ENOENT` when there is no such process; those of open(2).
pub fn reopen(pid: u32, pipe: u64, write: bool) -> io::Result<Option<OwnedFd>> {
    let wanted = format!("pipe:[{pipe}]");
    let access = if write { OFlags::WRONLY } else { OFlags::RDONLY };
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))?.take(MAX_FDS) {
        let path = entry?.path();
        if !std::fs::read_link(&path).is_ok_and(|target| target.as_os_str() == wanted.as_str()) {
            continue;
        }
        let end = rustix::fs::open(&path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        // The descriptor may have become another's between the two.
        if inode(end.as_fd())? == pipe {
            return Ok(Some(end));
        }
    }
    Ok(None)
}

/// Makes a pipe hold so many bytes.
///
/// # Errors
/// Those of fcntl(2); `EPERM` above `/proc/sys/fs/pipe-max-size`.
pub fn set_size(pipe: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    rustix::pipe::fcntl_setpipe_size(pipe, bytes)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_pipe_without_its_reader_is_written_on_and_found_again() {
        let (reader, writer) = lasting_pipe().expect("pipe");
        let number = inode(reader.as_fd()).expect("fstat");
        drop(reader);
        let mut writer = std::fs::File::from(writer);
        writer.write_all(b"kept").expect("no SIGPIPE, no EPIPE");
        let reader = reopen(std::process::id(), number, false).expect("open").expect("the writer has it");
        drop(writer);
        let mut text = String::new();
        std::fs::File::from(reader).read_to_string(&mut text).expect("up to the end, which comes");
        assert_eq!(text, "kept");
        assert!(reopen(std::process::id(), number, false).expect("look").is_none());
    }
}
