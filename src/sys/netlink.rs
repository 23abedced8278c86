//! Netlink sockets, netlink(7): rtnetlink(7) and nfnetlink. Bytes in and out; what they mean is the caller's.

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, socket_with};
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Which part of the kernel is spoken with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Route,
    Netfilter,
}

/// A socket to the kernel. It belongs to the network namespace in which it was opened, wherever its user goes.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

impl Netlink {
    /// With the kernel's own words in errors where it has them (`NETLINK_EXT_ACK`), and without a copy of the request (`NETLINK_CAP_ACK`).
    ///
    /// # Errors
    /// Those of socket(2) and setsockopt(2).
    pub fn open(family: Family) -> io::Result<Netlink> {
        let protocol = match family {
            Family::Route => None, // NETLINK_ROUTE is 0
            Family::Netfilter => Some(netlink::NETFILTER),
        };
        let socket = Netlink(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?);
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            socket.set(option)?;
        }
        Ok(socket)
    }

    fn set(&self, option: c_int) -> io::Result<()> {
        let on: c_int = 1;
        let bytes = u32::try_from(size_of::<c_int>()).unwrap_or_default(); // 4
        // SAFETY: the option is an int, `on` is one and outlives the call, and its size is given; the descriptor is ours and open.
        let set =
            unsafe { libc::setsockopt(self.0.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), bytes) };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sends messages to the kernel in one datagram. Those of rtnetlink(7) and nfnetlink have been worked off when this returns.
    ///
    /// # Errors
    /// `EMSGSIZE`, `ENOBUFS`.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = rustix::io::retry_on_intr(|| rustix::net::send(&self.0, bytes, SendFlags::empty()))?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EMSGSIZE)) }
    }

    /// Receives one datagram of answers, without blocking; the number of bytes.
    ///
    /// # Errors
    /// `EAGAIN` when there is none; `EMSGSIZE` for one that is longer than `buf`; `ENOBUFS` when answers were lost.
    pub fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let (_, bytes) = rustix::io::retry_on_intr(|| rustix::net::recv(&self.0, &mut *buf, flags))?;
        if bytes > buf.len() { Err(io::Error::from_raw_os_error(libc::EMSGSIZE)) } else { Ok(bytes) }
    }
}
