//! Netlink messages: written, sent in one datagram, and their answers read. The layout of linux/netlink.h; the numbers of each request are
//! where the request is made.

use crate::error::{Context, Error, Kind, Result, describe_io};
use crate::sys::netlink::{Family, Netlink};
use std::io;

// linux/netlink.h.
const HEADER_BYTES: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
/// What is dumped was changed in the middle: the answer has something twice, or lacks it.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Answer when it is done.
pub const ACK: u16 = 4;
/// All of them: NLM_F_ROOT and NLM_F_MATCH.
pub const DUMP: u16 = 0x300;
/// It must not be there yet.
pub const EXCL: u16 = 0x200;
/// Make it if it is not there.
pub const CREATE: u16 = 0x400;
/// After what is there.
pub const APPEND: u16 = 0x800;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// The most bytes of one datagram of answers: the kernel makes none longer in a dump (NLMSG_GOODSIZE and, for a large reader, 32 KiB).
const ANSWER_BYTES: usize = 64 << 10;
/// The most datagrams that one exchange reads: some 10^7 routes.
const MAX_DATAGRAMS: usize = 1 << 16;
/// How often a dump is asked for that is changed in the middle. It takes milliseconds, and who changes much, like a kube-proxy, does so some
/// times a second.
const MAX_DUMPS: usize = 16;

// errno-base.h and errno.h.
pub const ENOENT: i32 = 2;
pub const EEXIST: i32 = 17;
pub const ENODEV: i32 = 19;
const EPERM: i32 = 1;
const EBUSY: i32 = 16;
const EOPNOTSUPP: i32 = 95;

/// A message that is being written.
#[derive(Debug, Clone)]
pub struct Message {
    bytes: Vec<u8>,
    /// For people: `add link eth0`.
    what: String,
}

impl Message {
    /// A request of this type; `what` it does, for errors.
    pub fn new(kind: u16, flags: u16, what: impl Into<String>) -> Message {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        Message { bytes, what: what.into() }
    }

    /// A part without a header of its own, padded.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Message {
        self.put(bytes);
        self
    }

    /// An attribute.
    #[must_use]
    pub fn attr(mut self, kind: u16, value: &[u8]) -> Message {
        self.put_attr(kind, value);
        self
    }

    /// A string with its NUL.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Message {
        self.attr(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// An attribute that consists of others.
    #[must_use]
    pub fn nest(mut self, kind: u16, inside: impl FnOnce(Message) -> Message) -> Message {
        let start = self.bytes.len();
        self.put(&[0; 4]);
        self = inside(self);
        let bytes = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX); // longer ones are refused by the kernel
        self.bytes[start..start + 2].copy_from_slice(&bytes.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        self
    }

    /// Wants an answer even when all is well.
    #[must_use]
    pub fn acked(mut self) -> Message {
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | ACK;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn put_attr(&mut self, kind: u16, value: &[u8]) {
        let bytes = u16::try_from(value.len() + 4).unwrap_or(u16::MAX); // longer ones are refused by the kernel
        self.bytes.extend_from_slice(&bytes.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.put(value);
    }

    fn finish(&mut self, sequence: u32) {
        let bytes = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX); // a message of 4 GiB is refused by the kernel
        self.bytes[..4].copy_from_slice(&bytes.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }
}

/// What the kernel has against a request.
#[derive(Debug)]
pub struct Refusal {
    what: String,
    pub errno: i32,
    /// The kernel's own words; may be empty.
    text: String,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        let Refusal { what, errno, text } = refusal;
        let kind = match errno {
            ENOENT | ENODEV => Kind::NotFound,
            EEXIST | EBUSY => Kind::AlreadyExists,
            EPERM | EOPNOTSUPP => Kind::Unsupported,
            _ => Kind::Internal,
        };
        let why = describe_io(&io::Error::from_raw_os_error(errno));
        let text = if text.is_empty() { text } else { format!(" ({text})") };
        Error::new(kind, format!("{what}: {why}{text}"))
    }
}

/// A message of an answer: its type and what is behind the header.
#[derive(Debug)]
pub struct Answer {
    pub kind: u16,
    pub body: Vec<u8>,
}

/// What came of some requests.
#[derive(Debug, Default)]
struct Exchange {
    /// The messages that answered.
    answers: Vec<Answer>,
    /// What was refused, by its place.
    refused: Vec<(usize, Refusal)>,
    /// The answers are not of one moment.
    interrupted: bool,
}

/// A connection to one part of the kernel, in one network namespace.
#[derive(Debug)]
pub struct Socket {
    socket: Netlink,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// # Errors
    /// `Internal` when there can be none.
    pub fn open(family: Family) -> Result<Socket> {
        let socket = Netlink::open(family).context(|| format!("open a netlink socket, {family:?}"))?;
        Ok(Socket { socket, sequence: 0, buffer: Vec::new() })
    }

    /// Sends requests in one datagram; the last one must be one that is answered in any case. Returns all that was refused, by its place;
    /// later requests were tried in spite of it.
    ///
    /// # Errors
    /// `Internal` when the kernel cannot be spoken with.
    pub fn send(&mut self, messages: Vec<Message>) -> Result<Vec<(usize, Refusal)>> {
        let last = messages.len().saturating_sub(1);
        self.send_until(messages, last)
    }

    /// The same, where the message at `answered` is the one that is answered last.
    ///
    /// # Errors
    /// As [`Socket::send`].
    pub fn send_until(&mut self, messages: Vec<Message>, answered: usize) -> Result<Vec<(usize, Refusal)>> {
        Ok(self.exchange(messages, answered)?.refused)
    }

    /// As [`Socket::send`], where nothing may be refused.
    ///
    /// # Errors
    /// The first refusal.
    pub fn done(&mut self, messages: Vec<Message>) -> Result<()> {
        self.send(messages)?.into_iter().next().map_or(Ok(()), |(_, refusal)| Err(refusal.into()))
    }

    /// Sends one request, and reads the messages that answer it: again when what they list was changed meanwhile.
    ///
    /// # Errors
    /// What the kernel has against it; `Unavailable` for a list that is changed each time.
    pub fn ask(&mut self, message: Message) -> Result<Result<Vec<Answer>, Refusal>> {
        let Exchange { answers, mut refused, .. } =
            until_whole(&message.what, || self.exchange(vec![message.clone()], 0))?;
        Ok(if refused.is_empty() { Ok(answers) } else { Err(refused.remove(0).1) })
    }

    /// The same for a request that is answered by one message.
    ///
    /// # Errors
    /// As [`Socket::ask`].
    pub fn ask_one(&mut self, message: Message) -> Result<Result<Vec<u8>, Refusal>> {
        let what = message.what.clone();
        let answers = self.ask(message.acked())?;
        let none = || Refusal { what, errno: ENOENT, text: "no answer".to_owned() };
        Ok(answers.and_then(|answers| answers.into_iter().next().map(|answer| answer.body).ok_or_else(none)))
    }

    fn exchange(&mut self, mut messages: Vec<Message>, answered: usize) -> Result<Exchange> {
        let first = self.sequence.wrapping_add(1);
        for message in &mut messages {
            self.sequence = self.sequence.wrapping_add(1);
            message.finish(self.sequence);
        }
        let doing = || messages.get(answered).map_or_else(String::new, |last| last.what.clone());
        let bytes: Vec<u8> = messages.iter().flat_map(|message| message.bytes.iter().copied()).collect();
        self.socket.send(&bytes).context(doing)?;
        self.buffer.resize(ANSWER_BYTES, 0);
        let mut exchange = Exchange::default();
        for _ in 0..MAX_DATAGRAMS {
            let received = self.socket.receive(&mut self.buffer).context(|| "no answer").context(doing)?;
            if exchange.take(&self.buffer[..received], first, &messages, answered) {
                return Ok(exchange);
            }
        }
        Err(Error::exhausted(format!("{}: an answer without end", doing())))
    }
}

impl Exchange {
    /// Reads a datagram of answers; whether the message at `answered` is. `first`: the sequence number of the first one.
    fn take(&mut self, datagram: &[u8], first: u32, messages: &[Message], answered: usize) -> bool {
        let mut rest = datagram;
        while let Some((header, body, after)) = split(rest) {
            rest = after;
            let (kind, sequence) = (u16::from_ne_bytes([header[4], header[5]]), word(&header[8..]));
            let place = usize::try_from(sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
            let Some(message) = messages.get(place) else { continue }; // of an exchange that was given up
            match kind {
                // Its flags are of another kind.
                NLMSG_ERROR => {
                    let errno = i32::from_ne_bytes(word(body).to_ne_bytes()).wrapping_neg();
                    if errno != 0 {
                        let text = ext_ack(header, body);
                        self.refused.push((place, Refusal { what: message.what.clone(), errno, text }));
                    }
                }
                kind => {
                    self.interrupted |= u16::from_ne_bytes([header[6], header[7]]) & NLM_F_DUMP_INTR != 0;
                    if kind != NLMSG_DONE {
                        self.answers.push(Answer { kind, body: body.to_vec() });
                        continue;
                    }
                }
            }
            if place == answered {
                return true;
            }
        }
        false
    }
}

/// Asks until the answer is of one moment.
fn until_whole(what: &str, mut ask: impl FnMut() -> Result<Exchange>) -> Result<Exchange> {
    for _ in 0..MAX_DUMPS {
        let exchange = ask()?;
        if !exchange.interrupted {
            return Ok(exchange);
        }
    }
    Err(Error::new(
        Kind::Unavailable,
        format!("{what}: it was changed in the middle, {MAX_DUMPS} times one after the other"),
    ))
}

/// Header, body and what follows of the first message.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (header, _) = bytes.split_at_checked(HEADER_BYTES)?;
    let length = usize::try_from(word(header)).ok()?;
    let body = bytes.get(HEADER_BYTES..length)?;
    Some((header, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The kernel's own words in an answer that refuses: struct nlmsgerr is an int and a header, and attributes follow.
fn ext_ack(header: &[u8], body: &[u8]) -> String {
    let has = u16::from_ne_bytes([header[6], header[7]]) & NLM_F_ACK_TLVS != 0;
    let attributes = body.get(4 + HEADER_BYTES..).filter(|_| has).unwrap_or_default();
    let text = Attributes(attributes).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG);
    text.map(|(_, text)| as_text(text)).unwrap_or_default()
}

/// The first four bytes as a number; 0 when there are fewer.
pub fn word(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |word| u32::from_ne_bytes(*word))
}

/// A string attribute.
pub fn as_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// The attributes in some bytes: type without flags, value.
#[derive(Debug, Clone)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.0;
        let [a, b, c, d] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(4..length)?;
        self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK, value))
    }
}

impl<'a> Attributes<'a> {
    /// The value of the first attribute of this type.
    pub fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find(|(known, _)| *known == kind).map(|(_, value)| value)
    }

    /// The attributes in it.
    pub fn inside(&self, kind: u16) -> Attributes<'a> {
        Attributes(self.get(kind).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_with_its_padding() {
        let message = Message::new(7, 0, "x").raw(&[1, 2]).text(3, "ab").nest(4, |m| m.attr(5, &[9]).attr(6, &[8; 5]));
        assert_eq!(message.bytes.len() % 4, 0);
        let attributes = Attributes(&message.bytes[HEADER_BYTES + 4..]);
        assert_eq!(attributes.get(3).map(as_text).as_deref(), Some("ab"));
        let inside = attributes.inside(4);
        assert_eq!((inside.get(5), inside.get(6), inside.get(7)), (Some(&[9][..]), Some(&[8; 5][..]), None));
    }

    /// A message of an answer.
    fn answer(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut message = Message::new(kind, 0, "").raw(body);
        message.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        message.finish(sequence);
        message.bytes
    }

    #[test]
    fn a_list_that_was_changed_in_the_middle_is_asked_for_again_and_not_for_ever() {
        /// NLM_F_MULTI
        const MULTI: u16 = 2;
        let messages = [Message::new(7, DUMP, "list x")];
        // The flag may be on a message in the middle, or on the last one only.
        let (one, done) =
            (|flags| answer(9, MULTI | flags, 5, &[1; 4]), |flags| answer(NLMSG_DONE, MULTI | flags, 5, &[0; 4]));
        let cases = [
            (vec![[one(0), one(0)].concat(), done(0)], false),
            (vec![[one(0), one(NLM_F_DUMP_INTR)].concat(), [one(0), done(0)].concat()], true),
            (vec![one(0), done(NLM_F_DUMP_INTR)], true),
        ];
        for (datagrams, interrupted) in cases {
            let mut exchange = Exchange::default();
            let (last, before) = datagrams.split_last().expect("some");
            assert!(before.iter().all(|datagram| !exchange.take(datagram, 5, &messages, 0)));
            assert!(exchange.take(last, 5, &messages, 0));
            assert!(exchange.interrupted == interrupted && !exchange.answers.is_empty(), "{exchange:?}");
        }
        let mut asked = 0;
        let mut changed = |times: usize| {
            asked = 0;
            until_whole("list x", || {
                asked += 1;
                Ok(Exchange { interrupted: asked <= times, ..Exchange::default() })
            })
            .map(|_| asked)
        };
        assert_eq!((changed(0).expect("at once"), changed(3).expect("at last")), (1, 4));
        let e = changed(usize::MAX).expect_err("never");
        assert!(e.kind() == Kind::Unavailable && e.to_string().contains("list x"), "{e}");
    }

    #[test]
    fn an_answer_that_is_cut_short_ends_there() {
        assert_eq!(Attributes(&[8, 0, 1, 0, 1, 2]).next(), None);
        assert_eq!(Attributes(&[1, 0, 0, 0]).next(), None);
        assert!(split(&[0; 15]).is_none() && split(&[255; 16]).is_none());
        assert_eq!(word(&[1]), 0);
    }
}
