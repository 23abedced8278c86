//! A terminal as those who use it see it: its size, ioctl_tty(2) `TIOCGWINSZ` and `TIOCSWINSZ`, and raw mode, termios(3) `cfmakeraw`.

use rustix::termios::{OptionalActions, Termios, Winsize};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Columns and rows.
///
/// # Errors
/// `ENOTTY`.
pub fn size(terminal: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(terminal)?;
    Ok((size.ws_col, size.ws_row))
}

/// Through the master too. The foreground processes are told by SIGWINCH if it is another one.
///
/// # Errors
/// `ENOTTY`, `EIO`.
pub fn set_size(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// A terminal in raw mode: what is typed comes as it is, and at once. Ends with this.
#[derive(Debug)]
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// # Errors
    /// `ENOTTY`; those of dup(2).
    pub fn new(terminal: BorrowedFd<'_>) -> io::Result<Raw> {
        let before = rustix::termios::tcgetattr(terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        let terminal = terminal.try_clone_to_owned()?;
        rustix::termios::tcsetattr(&terminal, OptionalActions::Drain, &raw)?;
        Ok(Raw { terminal, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(&self.terminal, OptionalActions::Drain, &self.before); // it has hung up: nobody sees it
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn raw_mode_ends_with_its_guard_and_a_size_is_the_one_that_was_set() {
        let dir = rustix::fs::open(c"/dev/pts", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).expect("devpts");
        let (master, slave) = super::super::pty::open_pty(dir.as_fd()).expect("a terminal");
        set_size(master.as_fd(), 91, 17).expect("set");
        assert_eq!(size(slave.as_fd()).expect("get"), (91, 17));
        let canonical = || {
            let modes = rustix::termios::tcgetattr(&slave).expect("tcgetattr").local_modes;
            modes.contains(rustix::termios::LocalModes::ICANON | rustix::termios::LocalModes::ECHO)
        };
        let raw = Raw::new(slave.as_fd()).expect("raw");
        assert!(!canonical());
        drop(raw);
        assert!(canonical());
        let (reader, _writer) = io::pipe().expect("pipe");
        assert_eq!(Raw::new(reader.as_fd()).expect_err("no terminal").raw_os_error(), Some(libc::ENOTTY));
    }
}
