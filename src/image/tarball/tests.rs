//! Streams as GNU tar and pax writers make them, built here byte by byte.
use super::*;

impl Input for &[u8] {}

fn header(path: &str, kind: u8, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path).expect("short path");
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(7);
    header.set_size(size);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn body(bytes: &[u8]) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(BLOCK), 0);
    padded
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let len = (rest..).find(|n| n - n.to_string().len() == rest).expect("some length fits");
        text.push_str(&format!("{len} {key}={value}\n"));
    }
    [header("pax", b'x', text.len() as u64), body(text.as_bytes())].concat()
}

fn entries(stream: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
    let mut tarball = Tarball::new(stream, 100);
    let mut all = Vec::new();
    while let Some(entry) = tarball.next_entry()? {
        let mut bytes = Vec::new();
        tarball.read_to_end(&mut bytes).map_err(io_error)?;
        all.push((entry, bytes));
    }
    Ok(all)
}

#[test]
fn pax_records_win_over_the_header() {
    let stream = [
        pax(&[
            ("path", "long/name"),
            ("size", "5"),
            ("uid", "4000000000"),
            ("mtime", "9.5"),
            ("SCHILY.xattr.user.a", "b=c"),
        ]),
        header("short", b'0', 1),
        body(b"hello"),
        header("next", b'0', 0),
    ];
    let all = entries(&stream.concat()).expect("valid");
    let (first, bytes) = &all[0];
    assert_eq!((first.path.as_slice(), bytes.as_slice(), first.uid), (&b"long/name"[..], &b"hello"[..], 4_000_000_000));
    assert_eq!((first.mtime, first.xattrs.len()), ((9, 500_000_000), 1));
    assert_eq!((all[1].0.path.as_slice(), all[1].0.uid), (&b"next"[..], 0));
}

#[test]
fn gnu_long_names_reach_the_next_entry_only() {
    let long = "d/".repeat(100) + "f";
    let stream = [
        header("L", b'L', long.len() as u64 + 1),
        body(format!("{long}\0").as_bytes()),
        header("a", b'0', 0),
        header("b", b'0', 0),
    ];
    let all = entries(&stream.concat()).expect("valid");
    assert_eq!((all[0].0.path.as_slice(), all[1].0.path.as_slice()), (long.as_bytes(), &b"b"[..]));
}

#[test]
fn a_sparse_map_in_the_body_is_read_and_checked() {
    let records = |real: &str| {
        pax(&[
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "s"),
            ("GNU.sparse.realsize", real),
        ])
    };
    let data = [body(b"2\n0\n3\n1000\n2\n"), b"abcde".to_vec()].concat();
    let stream = |real| [records(real), header("x", b'0', data.len() as u64), body(&data)].concat();
    let all = entries(&stream("1002")).expect("valid");
    assert_eq!((all[0].0.path.as_slice(), all[0].0.size, all[0].1.as_slice()), (&b"s"[..], 1002, &b"abcde"[..]));
    assert_eq!(all[0].0.pieces.as_deref(), Some(&[Piece { offset: 0, len: 3 }, Piece { offset: 1000, len: 2 }][..]));
    assert!(entries(&stream("1001")).expect_err("outside").to_string().contains("outside"));
}

#[test]
fn a_truncated_stream_a_bad_sum_and_a_huge_header_are_told_apart() {
    let whole = [header("a", b'0', 600), body(&[1; 600])].concat();
    assert!(entries(&whole[..900]).expect_err("short").to_string().contains("truncated"));
    let mut damaged = whole.clone();
    damaged[0] ^= 1;
    assert!(entries(&damaged).expect_err("damaged").to_string().contains("checksum"));
    let e = entries(&header("x", b'x', 1 << 40)).expect_err("huge");
    assert_eq!(e.kind(), Kind::ResourceExhausted, "{e}");
    let e = entries(&header("a", b'0', 0).repeat(101)).expect_err("many");
    assert_eq!(e.to_string(), "tar entry 102: more than 100 entries, which is the most");
}

proptest::proptest! {
    #[test]
    fn no_stream_makes_the_reader_panic(noise in proptest::collection::vec(proptest::num::u8::ANY, 0..2048), at in 0usize..512) {
        let mut stream = [pax(&[("GNU.sparse.map", "0,1,5,6")]), header("a", b'S', 20), noise.clone()].concat();
        let _ = entries(&noise); // only that it returns matters
        if let Some(byte) = noise.first() {
            stream[at] = *byte;
        }
        let _ = entries(&stream);
    }
}
