//! The records of a pax extended header, pax(1) "Extended Header": `LEN KEY=VALUE\n`, and GNU tar's and star's keys in them.

use super::{MAX_PIECES, Piece, quoted, too_many_pieces};
use crate::error::{Error, Result};

/// Attributes of one entry, at most.
const MAX_XATTRS: usize = 64;
/// Bytes of an attribute's name and of its value, at most: XATTR_NAME_MAX and XATTR_SIZE_MAX (linux/limits.h).
const MAX_XATTR_NAME: usize = 255;
const MAX_XATTR_VALUE: usize = 64 << 10;

/// What the records say that matters here.
#[derive(Debug, Default)]
pub struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Option<Sparse>,
}

/// GNU.sparse.* records: formats 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
pub struct Sparse {
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    pub pieces: Vec<Piece>,
    /// Format 1.0.
    pub map_in_body: bool,
    /// Format 0.0 gives offsets and lengths in turn.
    offset: Option<u64>,
}

impl Pax {
    /// Reads all records.
    ///
    /// # Errors
    /// `InvalidArgument` for a record that is malformed, `ResourceExhausted` for one above a bound.
    pub fn parse(mut bytes: &[u8]) -> Result<Pax> {
        let mut pax = Pax::default();
        while !bytes.is_empty() && bytes[0] != 0 {
            let bad = || Error::invalid(format!("a pax record is not \"LENGTH KEY=VALUE\": {}", quoted(bytes)));
            let space = bytes.iter().take(10).position(|b| *b == b' ').ok_or_else(bad)?;
            let len = decimal(&bytes[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(bad)?;
            if len <= space + 1 || len > bytes.len() || bytes[len - 1] != b'\n' {
                return Err(bad());
            }
            let record = &bytes[space + 1..len - 1];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
            pax.record(&record[..equals], &record[equals + 1..])?;
            bytes = &bytes[len..];
        }
        Ok(pax)
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let bad = || Error::invalid(format!("pax record {} has the value {}", quoted(key), quoted(value)));
        let number = || decimal(value).map(Some).ok_or_else(bad);
        match key {
            // An empty value takes a record back; here every header starts without any.
            _ if value.is_empty() && !key.starts_with(b"SCHILY.xattr.") => {}
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => self.mtime = Some(time(value).ok_or_else(bad)?),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    return self.xattr(name, value);
                }
                if let Some(sparse) = key.strip_prefix(b"GNU.sparse.") {
                    return self.sparse.get_or_insert_default().record(sparse, value).unwrap_or_else(|| Err(bad()));
                }
            }
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        let small = name.len() <= MAX_XATTR_NAME && value.len() <= MAX_XATTR_VALUE && self.xattrs.len() < MAX_XATTRS;
        if !small {
            return Err(Error::exhausted(format!(
                "attribute {} of {} bytes: at most {MAX_XATTRS} of {MAX_XATTR_VALUE} bytes are accepted",
                quoted(name),
                value.len()
            )));
        }
        if name.is_empty() || name.contains(&0) {
            return Err(Error::invalid(format!("an attribute named {}", quoted(name))));
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }
}

impl Sparse {
    /// `None` for a value that is not what the key wants.
    fn record(&mut self, key: &[u8], value: &[u8]) -> Option<Result<()>> {
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.real_size = Some(decimal(value)?),
            b"major" => self.map_in_body = decimal(value)? == 1,
            b"offset" => self.offset = Some(decimal(value)?),
            b"numbytes" => {
                let offset = self.offset.take()?;
                return Some(self.push(offset, decimal(value)?));
            }
            b"map" => {
                let numbers: Option<Vec<u64>> = value.split(|b| *b == b',').map(decimal).collect();
                for pair in numbers?.chunks(2) {
                    if let Err(e) = self.push(pair[0], *pair.get(1)?) {
                        return Some(Err(e));
                    }
                }
            }
            _ => {} // minor, numblocks: the list has its own length
        }
        Some(Ok(()))
    }

    fn push(&mut self, offset: u64, len: u64) -> Result<()> {
        if self.pieces.len() == MAX_PIECES {
            return Err(too_many_pieces());
        }
        self.pieces.push(Piece { offset, len });
        Ok(())
    }
}

fn decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// `[-]SECONDS[.FRACTION]`; digits below the nanosecond are dropped.
fn time(bytes: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = i64::try_from(decimal(whole.as_bytes())?).ok()?;
    let mut nanos = 0u32;
    for place in 0..9 {
        let digit = fraction.as_bytes().get(place).map_or(Some(0), |b| b.is_ascii_digit().then(|| b - b'0'))?;
        nanos = nanos * 10 + u32::from(digit);
    }
    match (negative, nanos) {
        (false, _) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_fractions_and_may_be_before_the_epoch() {
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        assert_eq!(time(b"1.1234567899"), Some((1, 123_456_789)));
        assert_eq!((time(b""), time(b"1.x"), time(b"--1")), (None, None, None));
    }

    #[test]
    fn a_record_whose_length_lies_is_refused() {
        for bad in [&b"99 path=a\n"[..], b"5 path=a\n", b"path=a\n", b"10 pathxxa\n", b"0 \n", b"11 size=-12\n"] {
            assert!(Pax::parse(bad).is_err(), "{}", quoted(bad));
        }
        assert_eq!(Pax::parse(b"10 path=ab\n").expect_err("one too short").kind(), crate::error::Kind::InvalidArgument);
        assert_eq!(Pax::parse(b"11 path=ab\n").expect("right").path.as_deref(), Some(&b"ab"[..]));
    }
}
