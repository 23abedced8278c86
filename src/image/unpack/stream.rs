//! The bytes of a blob: counted, hashed, decompressed by what they are (not by what they are called), hashed and bounded again.

use super::{MAX_RATIO, MAX_UNPACKED, RATIO_FROM};
use crate::error::Error;
use crate::id::Digest;
use crate::image::tarball::Input;
use sha2::{Digest as _, Sha256};
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

/// Bytes of a read buffer.
const BUFFER: usize = 128 << 10;
/// The largest zstd window that is accepted, as a power of two: 128 MiB, what `zstd --ultra -22 --long` makes; half the memory cap.
const MAX_WINDOW_LOG: u32 = 27;

/// Where the blob comes from.
#[derive(Debug)]
pub enum Source {
    Pipe(File),
    /// Read at offsets, for the open file is shared with other workers.
    At {
        file: File,
        offset: u64,
    },
}

/// The blob: exactly `len` bytes when that is known.
#[derive(Debug)]
pub struct Blob {
    source: Source,
    len: Option<u64>,
    read: Rc<Cell<u64>>,
    hash: Sha256,
}

impl Blob {
    pub fn new(source: Source, len: Option<u64>) -> Self {
        Blob { source, len, read: Rc::default(), hash: Sha256::new() }
    }

    /// How many bytes were read, for others to look at.
    pub fn counter(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.read)
    }

    fn some(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.source {
            Source::Pipe(file) => file.read(buf),
            Source::At { file, offset } => {
                let n = file.read_at(buf, *offset)?;
                *offset += n as u64;
                Ok(n)
            }
        }
    }

    /// Reads what is left and gives digest and length.
    pub fn finish(mut self) -> io::Result<(Digest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((Digest::from_sha256(&self.hash.finalize().into()), self.read.get()))
    }
}

fn wrong(message: String) -> io::Error {
    io::Error::other(Error::invalid(message))
}

impl Read for Blob {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.read.get();
        let mut most = buf.len();
        if let Some(len) = self.len {
            if len == read {
                // A file holds other blobs behind this one; a pipe must end here.
                let mut one = [0u8; 1];
                let more = matches!(self.source, Source::Pipe(_)) && self.some(&mut one)? > 0;
                return if more { Err(wrong(format!("the blob is longer than its {len} bytes"))) } else { Ok(0) };
            }
            most = most.min(usize::try_from(len - read).unwrap_or(usize::MAX));
        }
        let n = self.some(&mut buf[..most])?;
        if let (0, Some(len)) = (n, self.len) {
            return Err(wrong(format!("the blob ends after {read} of {len} bytes: it is truncated")));
        }
        self.hash.update(&buf[..n]);
        self.read.set(read + n as u64);
        Ok(n)
    }
}

/// How a blob is compressed, told from its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// What compression a stream that starts with `magic` has (RFC 1952, RFC 8878 with its skippable frames).
pub fn compression(magic: &[u8]) -> Result<Compression, Error> {
    let skippable = magic.len() >= 4 && magic[0] & 0xf0 == 0x50 && magic[1..4] == [0x2a, 0x4d, 0x18];
    match magic {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
        _ if skippable => Ok(Compression::Zstd),
        [0xfd, b'7', b'z', b'X', ..] => Err(other("xz")),
        [b'B', b'Z', b'h', ..] => Err(other("bzip2")),
        _ => Ok(Compression::None),
    }
}

fn other(name: &str) -> Error {
    Error::unsupported(format!("it is compressed with {name}; layers are plain, gzip or zstd"))
}

type Rest = BufReader<io::Chain<io::Cursor<Vec<u8>>, Blob>>;

enum Decoder {
    None(Rest),
    Gzip(Box<flate2::bufread::MultiGzDecoder<Rest>>),
    Zstd(zstd::stream::read::Decoder<'static, Rest>),
}

/// The tar stream in a blob.
pub struct Stream {
    decoder: Decoder,
    hash: Sha256,
    out: u64,
    read: Rc<Cell<u64>>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("out", &self.out).field("read", &self.read).finish_non_exhaustive()
    }
}

impl Stream {
    /// Looks at the blob's first bytes and starts to decompress it.
    pub fn new(mut blob: Blob) -> io::Result<Self> {
        let read = blob.counter();
        let mut magic = Vec::new();
        (&mut blob).take(6).read_to_end(&mut magic)?;
        let compression = compression(&magic).map_err(io::Error::other)?;
        let rest = BufReader::with_capacity(BUFFER, io::Cursor::new(magic).chain(blob));
        let decoder = match compression {
            Compression::None => Decoder::None(rest),
            Compression::Gzip => Decoder::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(rest))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(rest)?;
                decoder.window_log_max(MAX_WINDOW_LOG)?;
                Decoder::Zstd(decoder)
            }
        };
        Ok(Stream { decoder, hash: Sha256::new(), out: 0, read })
    }

    fn guard(&self) -> io::Result<()> {
        if self.out > MAX_UNPACKED {
            return Err(io::Error::other(Error::exhausted(format!("it unpacks to more than {MAX_UNPACKED} bytes"))));
        }
        let read = self.read.get();
        if self.out > RATIO_FROM && self.out / MAX_RATIO > read {
            return Err(io::Error::other(Error::exhausted(format!(
                "{read} bytes unpack to more than {} bytes, above {MAX_RATIO} to 1: a decompression bomb",
                self.out
            ))));
        }
        Ok(())
    }

    /// Reads both streams to their ends: digest of the tar stream, digest and length of the blob.
    pub fn finish(mut self) -> io::Result<(Digest, Digest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        let diff_id = Digest::from_sha256(&self.hash.finalize().into());
        let mut rest = match self.decoder {
            Decoder::None(rest) => rest,
            Decoder::Gzip(decoder) => decoder.into_inner(),
            Decoder::Zstd(decoder) => decoder.finish(),
        };
        if !rest.fill_buf()?.is_empty() {
            return Err(wrong("there are bytes behind the end of the compressed stream".to_owned()));
        }
        let (blob, len) = rest.into_inner().into_inner().1.finish()?;
        Ok((diff_id, blob, len))
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (name, read) = match &mut self.decoder {
            Decoder::None(rest) => ("", rest.read(buf)),
            Decoder::Gzip(decoder) => ("gzip", decoder.read(buf)),
            Decoder::Zstd(decoder) => ("zstd", decoder.read(buf)),
        };
        let n = read.map_err(|e| {
            let ours = e.get_ref().is_some_and(|inner| inner.is::<Error>()) || e.raw_os_error().is_some();
            if ours || name.is_empty() || e.kind() == io::ErrorKind::Interrupted {
                return e;
            }
            wrong(format!("the {name} stream is damaged or truncated: {}", e.to_string().to_lowercase()))
        })?;
        self.hash.update(&buf[..n]);
        self.out += n as u64;
        self.guard()?;
        Ok(n)
    }
}

impl Input for Stream {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

    fn blob(bytes: &[u8], len: Option<u64>) -> Blob {
        let mut file = tempfile::tempfile().expect("tempfile");
        file.write_all(b"xx").and_then(|()| file.write_all(bytes)).and_then(|()| file.rewind()).expect("fill");
        Blob::new(Source::At { file, offset: 2 }, len)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn sha(bytes: &[u8]) -> Digest {
        Digest::from_sha256(&Sha256::digest(bytes).into())
    }

    #[test]
    fn every_compression_gives_the_same_stream_and_both_digests() {
        let text = b"some bytes".repeat(100_000);
        let two_members = [gzip(&text[..7]), gzip(&text[7..])].concat();
        let zstd = zstd::encode_all(&text[..], 3).expect("memory");
        for packed in [text.clone(), gzip(&text), two_members, zstd] {
            let stream = Stream::new(blob(&packed, Some(packed.len() as u64))).expect("start");
            assert_eq!(stream.finish().expect("finish"), (sha(&text), sha(&packed), packed.len() as u64));
        }
    }

    #[test]
    fn a_blob_that_is_cut_or_damaged_is_refused() {
        let whole = gzip(&b"some bytes".repeat(1000));
        let finish =
            |bytes: &[u8], len| Stream::new(blob(bytes, len)).and_then(Stream::finish).expect_err("bad").to_string();
        assert!(finish(&whole[..50], Some(whole.len() as u64)).contains("truncated"));
        assert!(finish(&whole[..50], None).contains("truncated"));
        assert!(finish(&[&whole[..], b"tail"].concat(), None).contains("damaged"));
        assert!(finish(b"\xfd7zXZ\0...", None).contains("xz"));
    }
}
