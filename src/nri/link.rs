//! A plugin's socket: calls in both directions at once, each within its time. A peer that breaks the protocol, sends more than is taken or
//! does not read is closed, and every call on it ends at once.

use super::mux::{self, Demux};
use super::ttrpc::{self, Message, Request, Response, Status, Type};
use crate::error::{Context, Error, Result};
use prost::Message as _;
use std::collections::HashMap;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

/// Calls of a plugin that wait for the one before them; one more and it is closed.
const MAX_WAITING: usize = 16;
/// Calls to a plugin that are not answered yet; the registry makes one at a time.
const MAX_PENDING: usize = 16;
/// Bytes that are read at once.
const READ_BYTES: usize = 16 << 10;
/// How long a plugin may take to read an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The plugin answered with an error: it goes on.
    Refused { code: i32, message: String },
    /// It did not answer, or not in the protocol: it is closed.
    Lost(String),
}

/// What a plugin asks.
#[derive(Debug)]
pub struct Asked {
    stream: u32,
    pub service: String,
    pub method: String,
    pub payload: Vec<u8>,
}

#[cfg(test)]
impl Asked {
    /// For the tests of those who are asked.
    pub fn of(service: &str, method: &str, payload: Vec<u8>) -> Asked {
        Asked { stream: 1, service: service.to_owned(), method: method.to_owned(), payload }
    }
}

/// Which end of the socket this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Runtime,
    Plugin,
}

impl Side {
    /// The connection on which it asks.
    fn asks(self) -> u32 {
        if self == Side::Runtime { mux::PLUGIN } else { mux::RUNTIME }
    }

    /// The connection on which it answers.
    fn answers(self) -> u32 {
        if self == Side::Runtime { mux::RUNTIME } else { mux::PLUGIN }
    }
}

/// A plugin's socket. Cheap to clone; all clones are the same one.
#[derive(Debug, Clone)]
pub struct Link(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    side: Side,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    /// The same socket, to end what waits for it.
    socket: std::os::unix::net::UnixStream,
    calls: Mutex<Calls>,
    /// Why it is closed.
    closed: watch::Sender<Option<String>>,
}

#[derive(Debug)]
struct Calls {
    next_stream: u32,
    pending: HashMap<u32, oneshot::Sender<Response>>,
}

impl Link {
    /// Speaks on `socket` from now on; what the other side asks comes out of the receiver, which ends with the link.
    ///
    /// # Errors
    /// `ResourceExhausted` without a descriptor to spare.
    pub fn new(socket: UnixStream, side: Side) -> Result<(Link, mpsc::Receiver<Asked>)> {
        let doing = || "take a plugin's connection";
        let plain = socket.into_std().context(doing)?;
        let socket = UnixStream::from_std(plain.try_clone().context(doing)?).context(doing)?;
        let (reader, writer) = socket.into_split();
        let link = Link(Arc::new(Inner {
            side,
            writer: tokio::sync::Mutex::new(writer),
            socket: plain,
            calls: Mutex::new(Calls { next_stream: 1, pending: HashMap::new() }),
            closed: watch::Sender::new(None),
        }));
        let (sender, asked) = mpsc::channel(MAX_WAITING);
        tokio::spawn(link.clone().read(reader, sender));
        Ok((link, asked))
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.0.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes it; the first reason stays.
    pub fn close(&self, why: &str) {
        self.0.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert_with(|| why.to_owned());
            first
        });
        self.calls().pending.clear();
        let _ = self.0.socket.shutdown(Shutdown::Both); // ENOTCONN: the other side was faster
    }

    /// Why it is closed, if it is.
    pub fn closed(&self) -> Option<String> {
        self.0.closed.borrow().clone()
    }

    /// Waits until it is closed; why.
    pub async fn until_closed(&self) -> String {
        let mut closed = self.0.closed.subscribe();
        let why = closed.wait_for(Option::is_some).await;
        why.ok().and_then(|why| why.clone()).unwrap_or_default() // `self` holds the sender
    }

    /// Asks the plugin. One that does not answer within `wait` is closed.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn call(&self, request: Request, wait: Duration) -> Result<Vec<u8>, Failure> {
        let method = request.method.clone();
        match tokio::time::timeout(wait, self.ask(request)).await {
            Ok(answered) => answered,
            Err(_) => {
                let why = format!("{method} was not answered within {} ms", wait.as_millis());
                self.close(&why);
                Err(Failure::Lost(why))
            }
        }
    }

    async fn ask(&self, request: Request) -> Result<Vec<u8>, Failure> {
        let (sender, answer) = oneshot::channel();
        let stream = {
            let mut calls = self.calls();
            if let Some(why) = self.closed() {
                return Err(Failure::Lost(why));
            }
            let stream = calls.next_stream;
            // 2^31 calls: it is closed rather than counted over.
            let next = stream.checked_add(2);
            if calls.pending.len() >= MAX_PENDING || next.is_none() {
                return Err(Failure::Lost("too many calls".to_owned()));
            }
            calls.next_stream = next.unwrap_or(1);
            calls.pending.insert(stream, sender);
            stream
        };
        if let Err(e) = self.send(self.0.side.asks(), &Message::request(stream, &request)).await {
            self.calls().pending.remove(&stream);
            return Err(Failure::Lost(e.to_string()));
        }
        match answer.await {
            Ok(Response { status: Some(Status { code, message }), .. }) if code != ttrpc::OK => {
                Err(Failure::Refused { code, message })
            }
            Ok(response) => Ok(response.payload),
            Err(_) => Err(Failure::Lost(self.closed().unwrap_or_else(|| "it was closed".to_owned()))),
        }
    }

    /// Answers what the plugin has asked.
    pub async fn answer(&self, asked: &Asked, answer: Result<Vec<u8>, (i32, String)>) {
        let response = match answer {
            Ok(payload) => Response { status: None, payload },
            Err((code, message)) => Response { status: Some(Status { code, message }), payload: Vec::new() },
        };
        let message = Message::response(asked.stream, &response);
        let sent = self.send(self.0.side.answers(), &message);
        match tokio::time::timeout(ANSWER_WAIT, sent).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => self.close(&e.to_string()),
            Err(_) => self.close(&format!("it did not read within {} s", ANSWER_WAIT.as_secs())),
        }
    }

    async fn send(&self, connection: u32, message: &Message) -> Result<()> {
        let bytes = mux::frames(connection, &message.bytes()?);
        let mut writer = self.0.writer.lock().await;
        // Dropped in the middle by a caller whose time is over, who then closes it: nobody writes behind half a message.
        let written = writer.write_all(&bytes).await;
        written.context(|| "write to a plugin").inspect_err(|e| self.close(&e.to_string()))
    }

    /// Reads until the end.
    async fn read(self, mut reader: OwnedReadHalf, asked: mpsc::Sender<Asked>) {
        let mut demux = Demux::default();
        let mut buffer = vec![0; READ_BYTES];
        let why = loop {
            match reader.read(&mut buffer).await {
                Ok(0) => break "it closed the connection".to_owned(),
                Ok(n) => demux.take(&buffer[..n]),
                Err(e) => break format!("read from a plugin: {e}"),
            }
            if let Err(e) = self.heard(&mut demux, &asked) {
                break e.to_string();
            }
        };
        self.close(&why);
    }

    fn heard(&self, demux: &mut Demux, asked: &mpsc::Sender<Asked>) -> Result<()> {
        while let Some((connection, message)) = demux.message()? {
            let (asks, answers) = (self.0.side.asks(), self.0.side.answers());
            match message.kind {
                Type::Response if connection == asks => {
                    let response = Response::decode(message.data.as_slice());
                    let response = response.map_err(|e| Error::invalid(format!("no response: {e}")))?;
                    // One that nobody waits for any more, or never did.
                    let waits = self.calls().pending.remove(&message.stream);
                    let waits = waits.ok_or_else(|| Error::invalid("an answer to a call that was not made"))?;
                    let _ = waits.send(response); // whoever waited was dropped in this moment
                }
                Type::Request if connection == answers => {
                    let request = Request::decode(message.data.as_slice());
                    let Request { service, method, payload, .. } =
                        request.map_err(|e| Error::invalid(format!("no request: {e}")))?;
                    let call = Asked { stream: message.stream, service, method, payload };
                    asked.try_send(call).map_err(|_| Error::exhausted("more calls at once than are taken"))?;
                }
                _ => return Err(Error::invalid("a request or response on the connection of the other")),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str) -> Request {
        Request { service: "s".into(), method: method.into(), ..Request::default() }
    }

    #[tokio::test]
    async fn a_call_that_is_not_answered_closes_the_link_and_ends_every_other() {
        let (here, _there) = UnixStream::pair().expect("socketpair");
        let (link, mut asked) = Link::new(here, Side::Runtime).expect("link");
        let other = link.clone();
        let waits = tokio::spawn(async move { other.call(request("Long"), Duration::from_secs(600)).await });
        let failure = link.call(request("Short"), Duration::from_millis(1)).await.expect_err("late");
        assert_eq!(failure, Failure::Lost("Short was not answered within 1 ms".into()));
        assert!(matches!(waits.await.expect("joined"), Err(Failure::Lost(_))));
        assert!(asked.recv().await.is_none(), "it hears no more");
        assert!(matches!(link.call(request("More"), Duration::from_secs(600)).await, Err(Failure::Lost(_))));
    }

    #[tokio::test]
    async fn a_peer_that_answers_what_was_not_asked_or_sends_too_much_is_closed() {
        let answer = mux::frames(mux::PLUGIN, &Message::response(9, &Response::default()).bytes().expect("short"));
        let long = vec![0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff];
        let wrong_way = mux::frames(mux::PLUGIN, &Message::request(1, &request("X")).bytes().expect("short"));
        for (bytes, why) in [(answer, "was not made"), (long, "at most"), (wrong_way, "of the other")] {
            let (here, mut there) = UnixStream::pair().expect("socketpair");
            let (link, _asked) = Link::new(here, Side::Runtime).expect("link");
            there.write_all(&bytes).await.expect("written");
            let said = link.until_closed().await;
            assert!(said.contains(why), "{said}");
            let mut rest = Vec::new();
            assert_eq!(there.read_to_end(&mut rest).await.expect("the end"), 0);
        }
    }

    #[tokio::test]
    async fn more_calls_than_are_taken_close_it() {
        let (here, mut there) = UnixStream::pair().expect("socketpair");
        let (link, _asked) = Link::new(here, Side::Runtime).expect("link");
        let call = mux::frames(mux::RUNTIME, &Message::request(1, &request("X")).bytes().expect("short"));
        there.write_all(&call.repeat(MAX_WAITING + 1)).await.expect("written");
        assert!(link.until_closed().await.contains("more calls"));
    }

    #[tokio::test]
    async fn both_sides_ask_each_other_at_once() {
        let (here, there) = UnixStream::pair().expect("socketpair");
        let (runtime, mut of_plugin) = Link::new(here, Side::Runtime).expect("link");
        let (plugin, mut of_runtime) = Link::new(there, Side::Plugin).expect("link");
        let wait = Duration::from_secs(60);
        let (asks, asked) = (plugin.clone(), runtime.clone());
        let registers = tokio::spawn(async move { asks.call(request("Register"), wait).await });
        let configures = tokio::spawn(async move { asked.call(request("Configure"), wait).await });
        let question = of_plugin.recv().await.expect("asked");
        assert_eq!((question.service.as_str(), question.method.as_str()), ("s", "Register"));
        let other = of_runtime.recv().await.expect("asked");
        plugin.answer(&other, Ok(vec![7; 10_000])).await;
        runtime.answer(&question, Err((5, "no".into()))).await;
        let refused = Failure::Refused { code: 5, message: "no".into() };
        assert_eq!(registers.await.expect("joined"), Err(refused));
        assert_eq!(configures.await.expect("joined"), Ok(vec![7; 10_000]));
    }
}
