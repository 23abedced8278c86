//! Names and numbers of signals, signal(7), as CRI, images and people write them.

/// What asks a container to stop unless it says otherwise.
pub const SIGTERM: i32 = 15;
/// What ends it.
pub const SIGKILL: i32 = 9;
/// The first real-time signal as programs see it with glibc and musl (the kernel's 32 and 33 are theirs).
const SIGRTMIN: i32 = 34;
/// The last one, x86 and aarch64.
const SIGRTMAX: i32 = 64;

/// Numbers of x86 and aarch64 (asm-generic/signal.h).
const NAMES: [(&str, i32); 33] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The number of `15`, `TERM`, `SIGTERM`, `RTMIN+3` or `SIGRTMAX-2`, whatever the case.
pub fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=SIGRTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |rest: &str, base: i32| -> Option<i32> {
        let offset = if rest.is_empty() { 0 } else { rest.parse::<i32>().ok()? };
        let number = base.checked_add(offset)?;
        (SIGRTMIN..=SIGRTMAX).contains(&number).then_some(number)
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return real_time(rest, SIGRTMIN);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return real_time(rest, SIGRTMAX);
    }
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn a_signal_is_known_by_number_name_and_real_time_offset() {
        for (text, expected) in
            [("15", 15), ("SIGTERM", 15), ("usr1", 10), ("RTMIN+3", 37), ("SIGRTMAX-1", 63), ("sigrtmin", 34)]
        {
            assert_eq!(number(text), Some(expected), "{text}");
        }
        for text in ["", "0", "65", "-1", "TERMX", "RTMIN+31", "RTMAX+1", "RTMIN+x", "SIG"] {
            assert_eq!(number(text), None, "{text}");
        }
    }
}
