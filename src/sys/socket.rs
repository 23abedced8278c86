//! `sendmsg`, `recvmsg` of unix stream sockets with descriptors riding along, unix(7) `SCM_RIGHTS`; keep-alive of TCP, tcp(7).

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// The most descriptors that one call carries here.
pub const MAX_FDS: usize = 8;

/// What a call received.
#[derive(Debug, Default)]
pub struct Received {
    /// 0: the peer has closed.
    pub bytes: usize,
    /// Close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// More descriptors came than [`MAX_FDS`], or than this process may hold; the rest is closed.
    pub truncated: bool,
}

/// Receives at most `buf.len()` bytes without blocking (`MSG_DONTWAIT`, `MSG_CMSG_CLOEXEC`).
///
/// # Errors
/// `EAGAIN`, `ECONNRESET`.
pub fn recvmsg(socket: impl AsFd, buf: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket.as_fd(), &mut [IoSliceMut::new(buf)], &mut control, flags)
    })?;
    let mut fds = Vec::new();
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = item {
            fds.extend(rights);
        }
    }
    // Room for an odd number is rounded up to an even one, cmsg(3).
    let truncated = message.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_FDS;
    Ok(Received { bytes: message.bytes, fds, truncated })
}

/// Sends a part of `bytes`, `fds` with its first, without blocking (`MSG_DONTWAIT`, `MSG_NOSIGNAL`); says how many bytes went.
///
/// # Errors
/// `EAGAIN`, `EPIPE`, `ECONNRESET`; `E2BIG` for more than [`MAX_FDS`] descriptors.
pub fn sendmsg(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if fds.len() > MAX_FDS || !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(rustix::io::retry_on_intr(|| rustix::net::sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut control, flags))?)
}

/// Has the kernel ask a silent peer of a TCP connection whether it is still there: `SO_KEEPALIVE`, and the times of tcp(7).
///
/// # Errors
/// None that a caller could cause.
pub fn keep_alive(socket: impl AsFd, idle: Duration, interval: Duration, count: u32) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_tcp_keepidle(&socket, idle)?;
    sockopt::set_tcp_keepintvl(&socket, interval)?;
    sockopt::set_tcp_keepcnt(&socket, count)?;
    Ok(sockopt::set_socket_keepalive(&socket, true)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_rides_along_with_the_first_byte_and_is_close_on_exec() {
        let (a, b) = UnixStream::pair().expect("pair");
        let (mut reader, writer) = std::io::pipe().expect("pipe");
        assert_eq!(sendmsg(&a, b"hi", &[writer.as_fd()]).expect("send"), 2);
        drop(writer);
        let mut buf = [0; 1];
        let got = recvmsg(&b, &mut buf).expect("receive");
        assert_eq!((got.bytes, buf[0], got.fds.len(), got.truncated), (1, b'h', 1, false));
        let flags = rustix::io::fcntl_getfd(&got.fds[0]).expect("fcntl");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        std::fs::File::from(got.fds.into_iter().next().expect("one")).write_all(b"x").expect("write");
        assert_eq!(reader.read(&mut buf).expect("read"), 1);
        let rest = recvmsg(&b, &mut buf).expect("receive");
        assert_eq!((rest.bytes, rest.fds.len()), (1, 0));
        assert_eq!(recvmsg(&b, &mut buf).expect_err("empty").kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn too_many_descriptors_are_refused_to_send_and_said_when_received() {
        let (a, b) = UnixStream::pair().expect("pair");
        let many = vec![a.as_fd(); MAX_FDS + 1];
        assert_eq!(sendmsg(&a, b"x", &many).expect_err("refused").raw_os_error(), Some(libc::E2BIG));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS + 2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let many = vec![a.as_fd(); MAX_FDS + 2];
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        rustix::net::sendmsg(&a, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).expect("hostile send");
        assert!(recvmsg(&b, &mut [0; 1]).expect("receive").truncated);
    }
}
