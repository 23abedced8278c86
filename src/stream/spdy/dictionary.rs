//! The dictionary of SPDY/3's header compression: a table (SPDY Protocol Draft 3.1, 2.6.10.1; the bytes are checked by their SHA-256).

/// Words that stand in it with their lengths in front, as in a header block.
const WORDS: [&str; 65] = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// What follows them.
const REST: &str = "\
    100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Au\
    thoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidd\
    en404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr Ma\
    y Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,imag\
    e/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicpri\
    vatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// How long it is, in bytes.
pub const DICTIONARY_BYTES: usize = 1423;
/// Its Adler-32, by which a zlib stream names it (RFC 1950).
pub const DICTIONARY_ID: u32 = 0xe3c6_a7c2;

/// The bytes.
pub fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(DICTIONARY_BYTES);
    for word in WORDS {
        bytes.extend_from_slice(&u32::try_from(word.len()).unwrap_or_default().to_be_bytes());
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(REST.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Digest;
    use sha2::{Digest as _, Sha256};

    #[test]
    fn it_is_the_one_of_the_draft() {
        let bytes = dictionary();
        assert_eq!(bytes.len(), DICTIONARY_BYTES);
        let hash: [u8; 32] = Sha256::digest(&bytes).into();
        let known = "51d27341373f923f3cd88e1eb7162aeaa3723d7585ff2399201dc06498407f02";
        assert_eq!(Digest::from_sha256(&hash).hex(), known);
    }
}
