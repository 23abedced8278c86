//! Header blocks (SPDY Protocol Draft 3.1, 2.6.10): names and values, compressed as one zlib stream a direction with a dictionary that both
//! know.
//!
//! On the way out there is nothing worth compressing: an answer has no headers. Its blocks are stored ones (RFC 1951, 3.2.4), so that a
//! connection has no compressor.

use super::dictionary::{DICTIONARY_ID, dictionary};
use crate::error::{Error, Result};
use flate2::{Decompress, FlushDecompress, Status};

/// The longest block when it is decompressed, in bytes: a stream of Kubernetes has three headers of a few bytes.
pub const MAX_BLOCK_BYTES: usize = 16 << 10;
/// How many headers a block may have.
const MAX_HEADERS: usize = 64;

/// The headers of a stream. Names are in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of a header; of several the first.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.split('\0').next().unwrap_or_default())
    }
}

/// What a client's header blocks are read with, one after another.
#[derive(Debug)]
pub struct Decompressor {
    zlib: Decompress,
    block: Vec<u8>,
}

impl Default for Decompressor {
    fn default() -> Self {
        Decompressor { zlib: Decompress::new(true), block: Vec::new() }
    }
}

impl Decompressor {
    /// The headers of the next block.
    ///
    /// # Errors
    /// `InvalidArgument`: what comes after it cannot be read any more, and the connection is lost.
    pub fn headers(&mut self, block: &[u8]) -> Result<Headers> {
        self.decompress(block)?;
        let headers = parse(&self.block);
        self.block = Vec::new();
        headers
    }

    /// Stops as soon as there is one byte too many, however much of it would come.
    fn decompress(&mut self, mut block: &[u8]) -> Result<()> {
        let wrong = |what: &str| Error::invalid(format!("SPDY headers: {what}"));
        self.block = vec![0; MAX_BLOCK_BYTES + 1];
        let mut filled = 0;
        while !block.is_empty() {
            let (read, written) = (self.zlib.total_in(), self.zlib.total_out());
            let status = self.zlib.decompress(block, &mut self.block[filled..], FlushDecompress::Sync);
            let count = |total: u64, before: u64| usize::try_from(total - before).unwrap_or(usize::MAX);
            let (read, written) = (count(self.zlib.total_in(), read), count(self.zlib.total_out(), written));
            block = block.get(read..).unwrap_or_default();
            filled += written;
            if filled > MAX_BLOCK_BYTES {
                return Err(wrong(&format!("more than {MAX_BLOCK_BYTES} bytes")));
            }
            match status {
                Err(e) if e.needs_dictionary().is_some() => {
                    self.zlib.set_dictionary(&dictionary()).map_err(|_| wrong("another dictionary"))?;
                }
                Err(_) => return Err(wrong("no zlib stream")),
                Ok(Status::StreamEnd) => return Err(wrong("the zlib stream has ended")),
                Ok(_) if read == 0 && written == 0 => return Err(wrong("the zlib stream does not go on")),
                Ok(_) => {}
            }
        }
        self.block.truncate(filled);
        Ok(())
    }
}

fn parse(block: &[u8]) -> Result<Headers> {
    let wrong = |what: &str| Error::invalid(format!("SPDY headers: {what}"));
    let mut rest = block;
    let number = |rest: &mut &[u8]| {
        let (word, after) = rest.split_first_chunk::<4>().ok_or_else(|| wrong("cut off"))?;
        *rest = after;
        Ok::<usize, Error>(u32::from_be_bytes(*word) as usize)
    };
    let count = number(&mut rest)?;
    if count > MAX_HEADERS {
        return Err(wrong(&format!("{count} of them")));
    }
    let mut headers: Vec<(String, String)> = Vec::new();
    for _ in 0..count {
        let mut text = || {
            let len = number(&mut rest)?;
            let (text, after) = rest.split_at_checked(len).ok_or_else(|| wrong("cut off"))?;
            rest = after;
            String::from_utf8(text.to_vec()).map_err(|_| wrong("no UTF-8"))
        };
        let (name, value) = (text()?, text()?);
        let known = headers.iter().any(|(known, _)| *known == name);
        if name.is_empty() || known || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(wrong(&format!("name {name:?}")));
        }
        headers.push((name, value));
    }
    if rest.is_empty() { Ok(Headers(headers)) } else { Err(wrong("more than it says")) }
}

/// Blocks without headers, one after another.
#[derive(Debug, Default)]
pub struct NoHeaders {
    begun: bool,
}

impl NoHeaders {
    /// The next one.
    pub fn block(&mut self) -> Vec<u8> {
        let mut block = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            // RFC 1950: deflate with a window of 32 KiB; a dictionary follows; the check bits make it a multiple of 31.
            block.extend_from_slice(&[0x78, 0x20]);
            block.extend_from_slice(&DICTIONARY_ID.to_be_bytes());
        }
        // A stored block of the four bytes that say "none", and an empty one: readers give out what they have when they see that.
        block.extend_from_slice(&[0, 4, 0, !4, !0, 0, 0, 0, 0]);
        block.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};

    fn compressor() -> Compress {
        let mut zlib = Compress::new(Compression::best(), true);
        zlib.set_dictionary(&dictionary()).expect("set");
        zlib
    }

    fn compressed(zlib: &mut Compress, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 1024);
        zlib.compress_vec(bytes, &mut out, FlushCompress::Sync).expect("compress");
        out
    }

    fn raw(headers: &[(&str, &str)]) -> Vec<u8> {
        let word = |n: usize| u32::try_from(n).expect("short").to_be_bytes();
        let mut raw = word(headers.len()).to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            raw.extend_from_slice(&word(text.len()));
            raw.extend_from_slice(text.as_bytes());
        }
        raw
    }

    #[test]
    fn blocks_are_read_one_after_another_as_one_stream() {
        let (mut zlib, mut reader) = (compressor(), Decompressor::default());
        for n in 0..100 {
            let port = n.to_string();
            let block = raw(&[("streamtype", "data"), ("port", &port), ("many", "a\0b")]);
            let headers = reader.headers(&compressed(&mut zlib, &block)).expect("valid");
            assert_eq!((headers.get("port"), headers.get("many")), (Some(port.as_str()), Some("a")));
            assert_eq!(headers.get("other"), None);
        }
    }

    #[test]
    fn our_own_blocks_are_a_zlib_stream_that_any_reader_takes() {
        let (mut ours, mut reader) = (NoHeaders::default(), Decompressor::default());
        for _ in 0..3 {
            assert_eq!(reader.headers(&ours.block()).expect("valid"), Headers::default());
        }
    }

    #[test]
    fn a_bomb_is_refused_after_its_first_bytes() {
        let mut zlib = compressor();
        let bomb = compressed(&mut zlib, &vec![0; 16 << 20]);
        assert!(bomb.len() < 32 << 10, "{}", bomb.len());
        let error = Decompressor::default().headers(&bomb).expect_err("too much");
        assert!(error.to_string().contains("more than 16384 bytes"), "{error}");
    }

    #[test]
    fn what_is_no_header_block_is_refused() {
        let bad = |block: &[u8]| Decompressor::default().headers(&compressed(&mut compressor(), block)).is_err();
        let fine = raw(&[("a", "b")]);
        assert!(!bad(&fine));
        assert!(bad(&fine[..fine.len() - 1]) && bad(&[&fine[..], b"x"].concat()) && bad(b""));
        assert!(bad(&raw(&[("a", "b"), ("a", "c")])) && bad(&raw(&[("A", "b")])) && bad(&raw(&[("", "b")])));
        assert!(bad(&[0xff; 8]) && bad(&raw(&[("a", "\u{fffd}")]).iter().map(|b| b | 0x80).collect::<Vec<_>>()));
        assert!(Decompressor::default().headers(b"no zlib at all").is_err());
        let mut other = Compress::new(Compression::best(), true);
        other.set_dictionary(b"another").expect("set");
        assert!(Decompressor::default().headers(&compressed(&mut other, &fine)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_more_than_an_error(blocks: Vec<Vec<u8>>) {
            let mut reader = Decompressor::default();
            let (mut zlib, mut second) = (compressor(), Decompressor::default());
            for block in blocks {
                let _ = reader.headers(&block); // it returns
                let _ = second.headers(&compressed(&mut zlib, &block)); // likewise
            }
        }
    }
}
