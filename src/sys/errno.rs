//! Names of error numbers, errno(3).

/// `EINVAL` for 22, and so on; empty for a number that has no name.
pub fn errno_name(number: i32) -> &'static str {
    use nix::errno::Errno as E;
    match E::from_raw(number) {
        E::UnknownErrno => "",
        known => NAMES.iter().find(|(errno, _)| *errno == known).map_or("", |(_, name)| name),
    }
}

macro_rules! names {
    ($($name:ident)*) => { &[$((nix::errno::Errno::$name, stringify!($name))),*] };
}

/// Every errno that a call made here can return (asm-generic/errno-base.h and errno.h).
const NAMES: &[(nix::errno::Errno, &str)] = names!(
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY EEXIST EXDEV
    ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE EDEADLK
    ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP ENOMSG EOVERFLOW EUSERS ENOTSOCK EMSGSIZE EPROTO EPROTONOSUPPORT
    EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ECONNABORTED ECONNRESET ENOBUFS ENOTCONN ETIMEDOUT
    ECONNREFUSED EHOSTUNREACH EALREADY EINPROGRESS ESTALE EDQUOT ENODATA EOPNOTSUPP EKEYREJECTED ENOKEY EBADMSG
);

#[cfg(test)]
mod tests {
    #[test]
    fn errno_names_are_those_of_the_man_page() {
        assert_eq!(super::errno_name(22), "EINVAL");
        assert_eq!(super::errno_name(0), "");
    }
}
