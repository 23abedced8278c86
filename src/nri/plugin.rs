//! One plugin: who it says it is, what it wants to be told, and how it is asked. One question at a time, for plugins are written for that.

use super::link::{Asked, Failure, Link};
use super::ttrpc::{self, Request};
use crate::error::{Error, Result};
use crate::nriapi::{
    ConfigureRequest, ConfigureResponse, Container, Empty, Event, PodSandbox, RegisterPluginRequest, StateChangeEvent,
    SynchronizeRequest, SynchronizeResponse,
};
use prost::Message;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

const SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";
/// What plugins ask of.
pub const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";
/// The release of NRI whose events and adjustments these are.
const NRI_VERSION: &str = "v0.11.0";
/// The longest name of a plugin, in bytes.
const MAX_NAME_BYTES: usize = 128;
/// Every event there is.
const ALL_EVENTS: i32 = (1 << (Event::Last as i32 - 1)) - 1;
/// A message of a synchronisation is ended when it has this many bytes: below what ttrpc takes, however long the next object is.
const SYNCHRONIZE_BYTES: usize = 2 << 20;
/// The longest object in there: its labels and annotations are the kubelet's, its arguments and environment the kernel bounds.
const MAX_OBJECT_BYTES: usize = ttrpc::MAX_SENT_BYTES - SYNCHRONIZE_BYTES - 1024;

/// How long plugins may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// To register, once connected.
    pub registration: Duration,
    /// To answer.
    pub request: Duration,
}

impl Times {
    /// For everything there is at once, each message of it: as much as five answers.
    fn synchronize(self) -> Duration {
        self.request * 5
    }
}

/// A plugin that has registered.
#[derive(Debug)]
pub struct Plugin {
    /// Two digits.
    pub index: String,
    pub name: String,
    /// A bit each, event n at n-1.
    events: i32,
    pub link: Link,
    times: Times,
    turn: tokio::sync::Mutex<()>,
    /// It is older than the methods that events have now, and takes StateChange instead.
    old: AtomicBool,
}

impl Plugin {
    /// Lets whoever has connected say who it is, and tells it what it may know.
    ///
    /// # Errors
    /// What it did wrong; the link is to be closed.
    pub async fn register(link: Link, asked: &mut mpsc::Receiver<Asked>, times: Times) -> Result<Plugin> {
        let first = tokio::time::timeout(times.registration, asked.recv()).await;
        let first = first.map_err(|_| Error::invalid("it did not register in time"))?;
        let first = first.ok_or_else(|| Error::invalid(link.closed().unwrap_or_default()))?;
        let who = match identity(&first) {
            Ok(who) => who,
            Err(e) => {
                link.answer(&first, Err((ttrpc::UNKNOWN, e.to_string()))).await;
                return Err(e);
            }
        };
        link.answer(&first, Ok(Empty {}.encode_to_vec())).await;
        let plugin = Plugin {
            index: who.plugin_idx,
            name: who.plugin_name,
            events: 0,
            link,
            times,
            turn: tokio::sync::Mutex::default(),
            old: AtomicBool::new(false),
        };
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let request = ConfigureRequest {
            config: String::new(),
            runtime_name: env!("CARGO_PKG_NAME").to_owned(),
            runtime_version: format!("v{}", env!("CARGO_PKG_VERSION")),
            registration_timeout: millis(times.registration),
            request_timeout: millis(times.request),
            nri_version: NRI_VERSION.to_owned(),
        };
        let answer: ConfigureResponse =
            plugin.ask("Configure", &request).await.map_err(|e| plugin.error("Configure", &e))?;
        if answer.events & !ALL_EVENTS != 0 {
            return Err(Error::invalid(format!("it asks for events that there are not: {:#x}", answer.events)));
        }
        Ok(Plugin { events: if answer.events == 0 { ALL_EVENTS } else { answer.events }, ..plugin })
    }

    /// `00-name`.
    pub fn full_name(&self) -> String {
        format!("{}-{}", self.index, self.name)
    }

    pub fn wants(&self, event: Event) -> bool {
        self.events & (1 << (event as i32 - 1)) != 0
    }

    /// A failure as an error.
    pub fn error(&self, what: &str, failure: &Failure) -> Error {
        let why = match failure {
            Failure::Refused { message, .. } => message,
            Failure::Lost(why) => why,
        };
        Error::precondition(format!("NRI plugin {}: {what}: {why}", self.full_name()))
    }

    /// Asks.
    ///
    /// # Errors
    /// [`Failure`]; with [`Failure::Lost`] it is closed.
    pub async fn ask<Q: Message, A: Message + Default>(&self, method: &str, question: &Q) -> Result<A, Failure> {
        let _turn = self.turn.lock().await;
        self.ask_within(method, question, self.times.request).await
    }

    async fn ask_within<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        question: &Q,
        wait: Duration,
    ) -> Result<A, Failure> {
        let request = Request {
            service: SERVICE.to_owned(),
            method: method.to_owned(),
            payload: question.encode_to_vec(),
            timeout_nano: i64::try_from(wait.as_nanos()).unwrap_or(i64::MAX),
        };
        let answer = self.link.call(request, wait).await?;
        A::decode(answer.as_slice()).map_err(|e| {
            let why = format!("{method} was answered with what is no answer: {e}");
            self.link.close(&why);
            Failure::Lost(why)
        })
    }

    /// Tells of an event that has no answer but whether it is refused.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn tell<Q: Message>(
        &self,
        event: Event,
        question: &Q,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<(), Failure> {
        if !self.old.load(Ordering::Relaxed) {
            match self.ask::<Q, Empty>(method(event), question).await {
                Err(Failure::Refused { code: ttrpc::UNIMPLEMENTED, .. }) => self.old.store(true, Ordering::Relaxed),
                told => return told.map(|_| ()),
            }
        }
        let change = StateChangeEvent { event: event.into(), pod: Some(pod.clone()), container: container.cloned() };
        self.ask::<_, Empty>("StateChange", &change).await.map(|_| ())
    }

    /// Tells of everything there is; what of it the plugin wants changed.
    ///
    /// # Errors
    /// [`Failure`]; it is closed with either.
    pub async fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<Container>,
    ) -> Result<SynchronizeResponse, Failure> {
        let _turn = self.turn.lock().await;
        let mut messages = pieces(pods, containers);
        let last = messages.pop().unwrap_or_default();
        let give_up = |why: &str| {
            self.link.close(why);
            Failure::Lost(why.to_owned())
        };
        for message in messages {
            let answer: SynchronizeResponse =
                self.ask_within("Synchronize", &message, self.times.synchronize()).await?;
            if !answer.more || !answer.update.is_empty() {
                return Err(give_up("it takes a synchronisation in one message only, and this one has several"));
            }
        }
        let answer = self.ask_within("Synchronize", &last, self.times.synchronize()).await;
        answer.inspect_err(|failure| self.link.close(&format!("{failure:?}")))
    }
}

/// Who asks to be registered.
fn identity(asked: &Asked) -> Result<RegisterPluginRequest> {
    if asked.service != RUNTIME_SERVICE || asked.method != "RegisterPlugin" {
        return Err(Error::invalid(format!("it asks {} before it has registered", asked.method)));
    }
    let who = RegisterPluginRequest::decode(asked.payload.as_slice());
    let who = who.map_err(|e| Error::invalid(format!("RegisterPlugin: {e}")))?;
    let digits = who.plugin_idx.len() == 2 && who.plugin_idx.bytes().all(|b| b.is_ascii_digit());
    if !digits {
        return Err(Error::invalid(format!("index {:?} of a plugin must be two digits", who.plugin_idx)));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+');
    if who.plugin_name.is_empty() || who.plugin_name.len() > MAX_NAME_BYTES || !who.plugin_name.bytes().all(plain) {
        let start: String = who.plugin_name.chars().take(32).collect();
        return Err(Error::invalid(format!(
            "name {start:?} of a plugin must be 1 to {MAX_NAME_BYTES} letters, digits, - _ . and +"
        )));
    }
    Ok(who)
}

/// What is told of by events without an answer, by the name of its method.
fn method(event: Event) -> &'static str {
    match event {
        Event::RunPodSandbox => "RunPodSandbox",
        Event::UpdatePodSandbox => "UpdatePodSandbox",
        Event::PostUpdatePodSandbox => "PostUpdatePodSandbox",
        Event::StopPodSandbox => "StopPodSandbox",
        Event::RemovePodSandbox => "RemovePodSandbox",
        Event::PostCreateContainer => "PostCreateContainer",
        Event::StartContainer => "StartContainer",
        Event::PostStartContainer => "PostStartContainer",
        Event::PostUpdateContainer => "PostUpdateContainer",
        Event::RemoveContainer => "RemoveContainer",
        // These have answers, and are asked by name.
        Event::CreateContainer | Event::UpdateContainer | Event::StopContainer => event.as_str_name(),
        Event::ValidateContainerAdjustment | Event::Unknown | Event::Last => event.as_str_name(),
    }
}

/// Everything there is, in messages that are short enough; an object that is too long by itself is left out, and that is logged.
fn pieces(pods: Vec<PodSandbox>, containers: Vec<Container>) -> Vec<SynchronizeRequest> {
    let mut all = vec![SynchronizeRequest::default()];
    let mut bytes = 0;
    let mut room = |all: &mut Vec<SynchronizeRequest>, length: usize, id: &str| {
        if length > MAX_OBJECT_BYTES {
            tracing::error!(
                "{id} has {length} bytes as NRI has it: more than a message takes, and no plugin is told of it"
            );
            return false;
        }
        if bytes > 0 && bytes + length > SYNCHRONIZE_BYTES {
            all.push(SynchronizeRequest::default());
            bytes = 0;
        }
        bytes += length + 8;
        true
    };
    for pod in pods {
        if room(&mut all, pod.encoded_len(), &pod.id)
            && let Some(last) = all.last_mut()
        {
            last.pods.push(pod);
        }
    }
    for container in containers {
        if room(&mut all, container.encoded_len(), &container.id)
            && let Some(last) = all.last_mut()
        {
            last.containers.push(container);
        }
    }
    let count = all.len();
    for message in all.iter_mut().take(count - 1) {
        message.more = true;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_synchronisation_is_several_messages_with_everything_in_them_once() {
        let pod = |n: usize| PodSandbox { id: format!("p{n}"), name: "x".repeat(300_000), ..PodSandbox::default() };
        let container = |n: usize| Container { id: format!("c{n}"), name: "x".repeat(200_000), ..Container::default() };
        let messages = pieces((0..20).map(pod).collect(), (0..20).map(container).collect());
        assert!(messages.len() > 4);
        assert!(messages.iter().all(|message| message.encoded_len() < ttrpc::MAX_SENT_BYTES));
        let more: Vec<bool> = messages.iter().map(|message| message.more).collect();
        assert!(more[..more.len() - 1].iter().all(|more| *more) && !more[more.len() - 1]);
        let pods: Vec<&str> = messages.iter().flat_map(|m| m.pods.iter().map(|p| p.id.as_str())).collect();
        let containers: usize = messages.iter().map(|m| m.containers.len()).sum();
        assert_eq!((pods.len(), pods[19], containers), (20, "p19", 20));
        assert_eq!(pieces(Vec::new(), Vec::new()), [SynchronizeRequest::default()], "nothing is told as well");
        let huge = Container { name: "x".repeat(MAX_OBJECT_BYTES), ..Container::default() };
        assert_eq!(pieces(Vec::new(), vec![huge, container(1)])[0].containers.len(), 1);
    }

    #[test]
    fn a_plugin_says_who_it_is_by_two_digits_and_a_plain_name() {
        let try_to = |index: &str, name: &str, method: &str| {
            let who =
                RegisterPluginRequest { plugin_name: name.into(), plugin_idx: index.into(), ..Default::default() };
            identity(&Asked::of(RUNTIME_SERVICE, method, who.encode_to_vec()))
        };
        assert_eq!(try_to("07", "a-b_c.d+e", "RegisterPlugin").expect("valid").plugin_idx, "07");
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        for (index, name) in [("7", "a"), ("077", "a"), ("0x", "a"), ("07", ""), ("07", "a/b"), ("07", &long)] {
            assert!(try_to(index, name, "RegisterPlugin").is_err(), "{index} {name}");
        }
        assert!(try_to("07", "a", "UpdateContainers").is_err());
    }
}
