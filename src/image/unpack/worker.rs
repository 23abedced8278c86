//! The process `podwright unpack`: takes everything away from itself, then does one job.
//!
//! Confinement comes first and is not optional: a step that fails ends the process before a byte of the blob is read.

use super::stream::{Blob, Source, Stream};
use super::tree::Tree;
use super::{Job, MAX_ENTRIES, MAX_UNPACKED, PROGRESS_EVERY, Reply, Unpacked, What, calls, failed};
use crate::error::{Context, Error, Result};
use crate::image::tarball::Tarball;
use crate::sys::confine::{self, Capabilities};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

/// Address space and data, bytes.
const MAX_MEMORY: u64 = 256 << 20;
/// Open files: one for each level of a directory that is replaced, and some.
const MAX_FILES: u64 = 192;
/// Nobody: who the worker is.
const NOBODY: u32 = 65534;

/// See the module above.
const KEPT: Capabilities = Capabilities::CHOWN
    .union(Capabilities::DAC_OVERRIDE)
    .union(Capabilities::FOWNER)
    .union(Capabilities::FSETID)
    .union(Capabilities::MKNOD)
    .union(Capabilities::SETFCAP);

/// The role. `job` is the one argument that [`super::spawn`] gives.
pub fn main(job: &str) -> ExitCode {
    let reply = match serde_json::from_str(job) {
        Ok(job) => run(&job),
        Err(e) => Err(Error::invalid(format!("unpack job {job:?}: {e}; this role is started by podwright itself"))),
    };
    let (line, code) = match reply {
        Ok(done) => (Reply::Done(done), ExitCode::SUCCESS),
        Err(e) => (failed(&e), ExitCode::FAILURE),
    };
    let _ = send(&line); // a parent that is gone needs no answer
    code
}

fn send(reply: &Reply) -> Result<()> {
    let mut line = serde_json::to_vec(reply).map_err(|e| Error::internal(format!("encode a reply: {e}")))?;
    line.push(b'\n');
    io::stdout().lock().write_all(&line).context(|| "reply to the parent")
}

fn run(job: &Job) -> Result<Unpacked> {
    confine::close_all_but(Some(job.keep)).context(|| "close what was inherited")?;
    confine(job.parent)?;
    let input = File::from(io::stdin().as_fd().try_clone_to_owned().context(|| "duplicate standard input")?);
    let source = if job.pipe { Source::Pipe(input) } else { Source::At { file: input, offset: job.offset } };
    let blob = Blob::new(source, job.len);
    match job.what {
        What::Layer => layer(blob),
        What::Inflate => inflate(blob),
    }
}

fn confine(parent: u32) -> Result<()> {
    confine::unshare_host().context(|| "unshare the host's namespaces")?;
    confine::pivot_to_working_directory().context(|| "pivot_root to the layer")?;
    confine::limit(MAX_MEMORY, MAX_FILES, MAX_UNPACKED).context(|| "lower the rlimits")?;
    confine::umask(0);
    confine::become_user(NOBODY, KEPT).context(|| "become nobody")?;
    confine::die_with_parent(parent).context(|| "tie to the parent")?;
    // Last, for all of the above is forbidden from here on.
    calls::forbid_others()
}

/// What goes wrong below the tar format.
pub fn stream_error(e: io::Error) -> Error {
    if e.kind() == io::ErrorKind::UnexpectedEof {
        return Error::invalid("the stream ends too early: it is truncated");
    }
    match e.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(ours) => ours.clone(),
        None => Err::<(), _>(e).context(|| "read the blob").expect_err("it was made an error"),
    }
}

fn layer(blob: Blob) -> Result<Unpacked> {
    let root = File::open("/").context(|| "open the layer's root")?;
    let mut tree = Tree::new(root.into());
    let read = blob.counter();
    let mut tarball = Tarball::new(Stream::new(blob).map_err(stream_error)?, MAX_ENTRIES);
    let (mut entries, mut told) = (0, 0);
    while let Some(entry) = tarball.next_entry()? {
        tree.apply(&entry, &mut tarball)?;
        entries = entry.ordinal;
        if read.get() - told >= PROGRESS_EVERY {
            told = read.get();
            send(&Reply::Progress { read: told })?;
        }
    }
    let (diff_id, blob, blob_bytes) = tarball.into_inner().finish().map_err(stream_error)?;
    let (unpacked_bytes, ignored_xattrs) = (tree.unpacked_bytes, tree.ignored_xattrs);
    let opaque = tree.finish()?;
    for path in opaque.iter().filter(|path| !path.is_empty()) {
        send(&Reply::Opaque { path: path.clone() })?;
    }
    let opaque_root = opaque.contains(&Vec::new());
    Ok(Unpacked { blob, blob_bytes, diff_id, unpacked_bytes, entries, opaque_root, ignored_xattrs })
}

/// The whole stream to one file, for an archive that has to be read at offsets.
fn inflate(blob: Blob) -> Result<Unpacked> {
    let mut stream = Stream::new(blob).map_err(stream_error)?;
    let mut open = std::fs::OpenOptions::new();
    let mut file = open.write(true).create_new(true).open("/archive").context(|| "create the archive")?;
    let mut buffer = vec![0; 128 << 10];
    let mut unpacked_bytes = 0;
    loop {
        let n = match stream.read(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(stream_error)?,
        };
        if n == 0 {
            break;
        }
        file.write_all(&buffer[..n]).context(|| "write the archive")?;
        unpacked_bytes += n as u64;
    }
    let (diff_id, blob, blob_bytes) = stream.finish().map_err(stream_error)?;
    Ok(Unpacked { blob, blob_bytes, diff_id, unpacked_bytes, entries: 1, opaque_root: false, ignored_xattrs: 0 })
}
