//! D-Bus messages as bytes, as far as podwright speaks: calls of systemd's manager out, returns, errors and signals in. No I/O.
//!
//! D-Bus Specification, "Type system" and "Message Protocol". Little-endian both ways: a peer answers in its own order, and of the
//! processors podwright runs on none has another.

use crate::error::{Error, Result};

/// The longest message that is read, in bytes. The protocol admits 128 MiB; what systemd tells of units is a few KiB.
pub const MAX_BYTES: usize = 1 << 20;
/// Bytes of a header before its fields, the length of those included.
pub const FIXED_BYTES: usize = 16;

const LITTLE_ENDIAN: u8 = b'l';
const VERSION: u8 = 1;
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;
/// Fields of a header.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// A property of a unit, `(sv)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Bool(bool),
    U64(u64),
    U32s(Vec<u32>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Value::Text(_) => "s",
            Value::Bool(_) => "b",
            Value::U64(_) => "t",
            Value::U32s(_) => "au",
        }
    }
}

/// Properties by their names, systemd.exec(5) and the like.
pub type Properties = Vec<(&'static str, Value)>;

/// A message that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// The answer to the call of that serial; the object that it names first, which is the job of a call that makes one.
    Return { to: u32, job: Option<String> },
    /// The same, as an error: its name and what it says.
    Error { to: u32, name: String, text: String },
    /// The manager's `JobRemoved`: that job, of that unit, has ended so.
    JobRemoved { job: String, unit: String, result: String },
    /// Anything else.
    Other,
}

/// Bytes in which each value begins where its type wants it.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, number: u32) {
        self.align(4);
        self.0.extend(number.to_le_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.align(8);
        self.0.extend(number.to_le_bytes());
    }

    pub fn text(&mut self, text: &str) {
        self.u32(length(text.len()));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX)); // ours are shorter
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// An array of what `elements` writes, each beginning at a multiple of `to`.
    fn array(&mut self, to: usize, elements: impl FnOnce(&mut Writer)) {
        self.u32(0);
        let at = self.0.len() - 4;
        self.align(to); // not counted
        let start = self.0.len();
        elements(self);
        let bytes = length(self.0.len() - start);
        self.0[at..at + 4].copy_from_slice(&bytes.to_le_bytes());
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Text(text) => self.text(text),
            Value::Bool(on) => self.u32(u32::from(*on)),
            Value::U64(number) => self.u64(*number),
            Value::U32s(numbers) => self.array(4, |w| numbers.iter().for_each(|n| w.u32(*n))),
        }
    }

    fn properties(&mut self, properties: &Properties) {
        self.array(8, |w| {
            for (name, value) in properties {
                w.align(8);
                w.text(name);
                w.variant(value);
            }
        });
    }
}

/// No message of ours is longer than a few KiB.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// `StartTransientUnit(name, mode, properties, auxiliary units)`, org.freedesktop.systemd1(5). Signature [`START`].
pub fn start_arguments(unit: &str, properties: &Properties, auxiliary: &[(String, Properties)]) -> Vec<u8> {
    let mut body = Writer::default();
    body.text(unit);
    body.text("replace"); // a job that stops the slice because it was empty until now
    body.properties(properties);
    body.array(8, |w| {
        for (name, properties) in auxiliary {
            w.align(8);
            w.text(name);
            w.properties(properties);
        }
    });
    body.0
}

pub const START: &str = "ssa(sv)a(sa(sv))";
pub const STOP: &str = "ss";

/// `StopUnit(name, mode)`. Signature [`STOP`].
pub fn stop_arguments(unit: &str) -> Vec<u8> {
    let mut body = Writer::default();
    body.text(unit);
    body.text("replace");
    body.0
}

/// A call of systemd's manager.
pub fn call(serial: u32, member: &str, signature: &str, body: &[u8]) -> Vec<u8> {
    let mut message = Writer(vec![LITTLE_ENDIAN, METHOD_CALL, 0, VERSION]);
    message.u32(length(body.len()));
    message.u32(serial);
    let fields = [
        (PATH, "o", "/org/freedesktop/systemd1"),
        (INTERFACE, "s", "org.freedesktop.systemd1.Manager"),
        (MEMBER, "s", member),
        (DESTINATION, "s", "org.freedesktop.systemd1"),
    ];
    message.array(8, |w| {
        for (code, kind, text) in fields {
            w.align(8);
            w.0.push(code);
            w.signature(kind);
            w.text(text);
        }
        w.align(8);
        w.0.push(SIGNATURE);
        w.signature("g");
        w.signature(signature);
    });
    message.align(8);
    message.0.extend(body);
    message.0
}

/// How many bytes a message has, by its first [`FIXED_BYTES`].
///
/// # Errors
/// `Internal` for what is no message, or a longer one than [`MAX_BYTES`].
pub fn whole_length(fixed: [u8; FIXED_BYTES]) -> Result<usize> {
    if fixed[0] != LITTLE_ENDIAN || fixed[3] != VERSION {
        return Err(malformed("it begins like none"));
    }
    let number = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]) as usize;
    let fields = FIXED_BYTES.saturating_add(number(12));
    match fields.checked_next_multiple_of(8).and_then(|n| n.checked_add(number(4))) {
        Some(bytes) if bytes <= MAX_BYTES => Ok(bytes),
        _ => Err(malformed("it is too long")),
    }
}

fn malformed(why: &str) -> Error {
    Error::internal(format!("systemd sent no D-Bus message: {why}"))
}

/// What is left to be read of a message.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize, align: usize) -> Result<&'a [u8]> {
        let start = self.at.next_multiple_of(align);
        let end = start.checked_add(count).filter(|end| *end <= self.bytes.len());
        self.at = end.ok_or_else(|| malformed("it ends in the middle"))?;
        Ok(&self.bytes[start..self.at])
    }

    fn u32(&mut self) -> Result<u32> {
        let four = self.take(4, 4)?;
        Ok(u32::from_le_bytes([four[0], four[1], four[2], four[3]]))
    }

    fn text(&mut self) -> Result<&'a str> {
        let length = self.u32()? as usize;
        self.ended(length)
    }

    fn signature(&mut self) -> Result<&'a str> {
        let length = usize::from(self.take(1, 1)?[0]);
        self.ended(length)
    }

    fn ended(&mut self, length: usize) -> Result<&'a str> {
        let text = std::str::from_utf8(self.take(length, 1)?).map_err(|_| malformed("a text is not UTF-8"))?;
        self.take(1, 1)?; // its NUL
        Ok(text)
    }
}

/// Reads a whole message.
///
/// # Errors
/// `Internal` for what is none.
pub fn decode(message: &[u8]) -> Result<Incoming> {
    let fixed = message.first_chunk::<FIXED_BYTES>().ok_or_else(|| malformed("it is too short"))?;
    let whole = whole_length(*fixed)?;
    let mut reader = Reader { bytes: message, at: FIXED_BYTES - 4 };
    let fields_end = FIXED_BYTES + reader.u32()? as usize;
    let (mut member, mut interface, mut error_name, mut to, mut signature) = ("", "", "", 0, "");
    while reader.at < fields_end {
        let code = reader.take(1, 8)?[0];
        match reader.signature()? {
            "s" | "o" => {
                let text = reader.text()?;
                match code {
                    MEMBER => member = text,
                    INTERFACE => interface = text,
                    ERROR_NAME => error_name = text,
                    _ => {}
                }
            }
            "g" => signature = reader.signature()?,
            "u" => {
                let number = reader.u32()?;
                to = if code == REPLY_SERIAL { number } else { to };
            }
            _ => return Err(malformed("a header has a field of no known type")),
        }
    }
    let mut body =
        Reader { bytes: message.get(..whole).ok_or_else(|| malformed("it ends in the middle"))?, at: fields_end };
    body.take(0, 8)?;
    Ok(match fixed[1] {
        METHOD_RETURN => {
            let job = if signature.starts_with('o') { Some(body.text()?.to_owned()) } else { None };
            Incoming::Return { to, job }
        }
        ERROR => {
            let text = if signature.starts_with('s') { body.text()? } else { "" };
            Incoming::Error { to, name: error_name.to_owned(), text: text.to_owned() }
        }
        SIGNAL if interface == "org.freedesktop.systemd1.Manager" && member == "JobRemoved" && signature == "uoss" => {
            body.u32()?;
            let mut text = || body.text().map(str::to_owned);
            Incoming::JobRemoved { job: text()?, unit: text()?, result: text()? }
        }
        _ => Incoming::Other,
    })
}

/// Messages as systemd sends them, for tests.
#[cfg(test)]
pub mod made {
    use super::*;

    fn message(kind: u8, fields: &[(u8, &str, &str)], to: Option<u32>, body: &[u8]) -> Vec<u8> {
        let mut message = Writer(vec![LITTLE_ENDIAN, kind, 1, VERSION]);
        message.u32(length(body.len()));
        message.u32(7);
        message.array(8, |w| {
            for (code, kind, text) in fields {
                w.align(8);
                w.0.push(*code);
                w.signature(kind);
                if *kind == "g" { w.signature(text) } else { w.text(text) }
            }
            if let Some(to) = to {
                w.align(8);
                w.0.push(REPLY_SERIAL);
                w.signature("u");
                w.u32(to);
            }
        });
        message.align(8);
        message.0.extend(body);
        message.0
    }

    fn path_of(job: u32) -> String {
        format!("/org/freedesktop/systemd1/job/{job}")
    }

    pub fn answer(to: u32, job: u32) -> Vec<u8> {
        let mut body = Writer::default();
        body.text(&path_of(job));
        message(METHOD_RETURN, &[(SIGNATURE, "g", "o")], Some(to), &body.0)
    }

    pub fn error(to: u32, name: &str, text: &str) -> Vec<u8> {
        let mut body = Writer::default();
        body.text(text);
        message(ERROR, &[(ERROR_NAME, "s", name), (SIGNATURE, "g", "s")], Some(to), &body.0)
    }

    pub fn removed(job: u32, unit: &str, result: &str) -> Vec<u8> {
        let mut body = Writer::default();
        body.u32(job);
        for text in [path_of(job).as_str(), unit, result] {
            body.text(text);
        }
        let manager = (INTERFACE, "s", "org.freedesktop.systemd1.Manager");
        let path = (PATH, "o", "/org/freedesktop/systemd1");
        message(SIGNAL, &[path, manager, (MEMBER, "s", "JobRemoved"), (SIGNATURE, "g", "uoss")], None, &body.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_the_bytes_that_the_specification_says() {
        let bytes = call(3, "StopUnit", STOP, &stop_arguments("a.scope"));
        assert_eq!(bytes.len(), whole_length(*bytes.first_chunk().expect("a header")).expect("a message"));
        assert_eq!(&bytes[..12], b"l\x01\0\x01\x18\0\0\0\x03\0\0\0", "body of 24 bytes, serial 3");
        assert_eq!(&bytes[16..24], b"\x01\x01o\0\x19\0\0\0", "field 1 is a path of 25 bytes");
        let body = bytes.len() - 24;
        assert_eq!(body % 8, 0);
        assert_eq!(&bytes[body..], b"\x07\0\0\0a.scope\0\x07\0\0\0replace\0");
        assert_eq!(decode(&bytes).expect("a message"), Incoming::Other);
    }

    #[test]
    fn properties_begin_at_multiples_of_eight() {
        let properties =
            vec![("Delegate", Value::Bool(true)), ("PIDs", Value::U32s(vec![258])), ("TasksMax", Value::U64(u64::MAX))];
        let body = start_arguments("a", &properties, &[]);
        // "a", "replace", the array's length; then the first struct.
        assert_eq!(&body[..24], b"\x01\0\0\0a\0\0\0\x07\0\0\0replace\0\x48\0\0\0");
        assert_eq!(&body[24..48], b"\x08\0\0\0Delegate\0\x01b\0\x01\0\0\0\0\0\0\0");
        assert_eq!(&body[48..72], b"\x04\0\0\0PIDs\0\x02au\0\0\0\0\x04\0\0\0\x02\x01\0\0");
        assert_eq!(&body[72..96], b"\x08\0\0\0TasksMax\0\x01t\0\xff\xff\xff\xff\xff\xff\xff\xff");
        assert_eq!(&body[96..], b"\0\0\0\0\0\0\0\0", "no auxiliary unit");
    }

    #[test]
    fn answers_and_the_end_of_a_job_are_read() {
        let job = || "/org/freedesktop/systemd1/job/9".to_owned();
        assert_eq!(decode(&made::answer(5, 9)).expect("a message"), Incoming::Return { to: 5, job: Some(job()) });
        let (name, text) = ("org.freedesktop.systemd1.UnitExists", "Unit x was already loaded");
        let error = Incoming::Error { to: 5, name: name.to_owned(), text: text.to_owned() };
        assert_eq!(decode(&made::error(5, name, text)).expect("a message"), error);
        let removed = Incoming::JobRemoved { job: job(), unit: "a.scope".to_owned(), result: "done".to_owned() };
        assert_eq!(decode(&made::removed(9, "a.scope", "done")).expect("a message"), removed);
    }

    #[test]
    fn what_is_no_message_is_an_error_and_no_panic() {
        let whole = made::removed(9, "a.scope", "done");
        for end in 0..whole.len() {
            assert!(decode(&whole[..end]).is_err(), "{end}");
        }
        for at in 0..whole.len() {
            let mut bent = whole.clone();
            for byte in [0, 1, 0x7f, 0xff] {
                bent[at] = byte;
                let _ = decode(&bent);
            }
        }
        assert!(whole_length(*b"l\x01\0\x01\xff\xff\xff\xff\0\0\0\0\xff\xff\xff\xff").is_err());
        assert!(whole_length(*b"B\x01\0\x01\0\0\0\0\0\0\0\0\0\0\0\0").is_err());
    }
}
