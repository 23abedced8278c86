//! What `run` shows: the output of containers as it comes, and a line on stderr for what a person should know.

use super::outlet::Outlet;
use crate::agent::convert::ContainerPlan;
use crate::agent::logs::{Line, Stream, Tail};
use crate::agent::runner::{Ending, Observer};
use crate::id::{ContainerId, PodId};
use crate::state::record::ExitRecord;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The terminal, or whatever reads us, for one pod.
#[derive(Debug)]
pub(super) struct Console {
    quiet: bool,
    /// Names before lines: with one container there is nothing to tell apart.
    prefix: bool,
    width: usize,
    outlet: Outlet,
    /// By container and attempt.
    followers: Mutex<HashMap<(String, u32), Follower>>,
}

#[derive(Debug)]
struct Follower {
    finish: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// What a person should know of a container's end.
#[derive(Debug)]
pub(super) struct Notice {
    pub code: i32,
    pub reason: String,
    pub message: String,
}

impl Notice {
    fn of(exit: &ExitRecord) -> Option<Notice> {
        let reason = exit.status.reason(exit.oom).to_owned();
        let notice = Notice { code: exit.status.code(), reason, message: exit.message.clone() };
        (!exit.is_uneventful()).then_some(notice)
    }
}

impl Console {
    /// For one pod; `names` are those of the containers of all pods that are shown side by side.
    pub(super) fn new(names: &[String], quiet: bool, outlet: Outlet) -> Console {
        Console {
            quiet,
            outlet,
            prefix: names.len() > 1,
            width: names.iter().map(String::len).max().unwrap_or(0),
            followers: Mutex::default(),
        }
    }

    /// Shows what a container writes, from now on.
    pub(super) fn show(&self, name: &str, attempt: u32, log: Option<&Path>) {
        let Some(log) = log.filter(|_| !self.quiet) else { return };
        let prefix = if self.prefix { format!("{name:<width$} | ", width = self.width) } else { String::new() };
        let tail = match Tail::open(log) {
            Ok(tail) => tail,
            Err(e) => return self.outlet.say(&e.to_string()),
        };
        let (finish, finished) = oneshot::channel();
        let task = tokio::spawn(follow(self.outlet.clone(), prefix, tail, finished));
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        followers.insert((name.to_owned(), attempt), Follower { finish, task });
    }

    /// Shows what is left of a container that has ended, and then its notice.
    pub(super) fn finish(self: Arc<Self>, name: &str, attempt: u32, notice: Option<Notice>) -> Ending {
        let key = (name.to_owned(), attempt);
        let follower = self.followers.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        let outlet = self.outlet.clone();
        let rest = async move {
            if let Some(follower) = follower {
                let _ = follower.finish.send(()); // it may have ended by itself, with the log's directory
                let _ = follower.task.await; // a follower that panicked has said so
            }
            if let Some(Notice { code, reason, message }) = notice {
                let message = if message.is_empty() { String::new() } else { format!(": {}", message.trim_end()) };
                outlet.tell(&format!("container {} ended with {code} ({reason}){message}", key.0)).await;
            }
        };
        Box::pin(async move { self.outlet.finish(rest).await })
    }

    pub(super) fn again(&self, name: &str, delay: Duration) {
        self.outlet.say(&format!("container {name} is started again in {} s", delay.as_secs()));
    }
}

/// Follows a log until told to finish, then reads what is left.
async fn follow(outlet: Outlet, prefix: String, mut tail: Tail, mut finish: oneshot::Receiver<()>) {
    let mut open = [false; 2];
    let mut last = false;
    loop {
        loop {
            let mut shown = Vec::new();
            let more = match tail.read_chunk(|line| show(&prefix, &line, &mut open, &mut shown)) {
                Ok(more) => more,
                Err(e) => return tracing::warn!("{e}"),
            };
            for (stream, bytes) in shown {
                if !outlet.write(stream, bytes).await {
                    return;
                }
            }
            if !more {
                break;
            }
        }
        if last {
            return;
        }
        tokio::select! {
            biased;
            _ = &mut finish => last = true,
            changed = tail.changed() => if changed.is_err() { return },
        }
    }
}

/// Adds a line to what is shown on the stream that it came from.
fn show(prefix: &str, line: &Line<'_>, open: &mut [bool; 2], shown: &mut Vec<(Stream, Vec<u8>)>) {
    if shown.last().is_none_or(|(stream, _)| *stream != line.stream) {
        shown.push((line.stream, Vec::new()));
    }
    let Some((_, bytes)) = shown.last_mut() else { return };
    let open = &mut open[usize::from(line.stream == Stream::Stderr)];
    if !*open {
        bytes.extend_from_slice(prefix.as_bytes());
    }
    bytes.extend_from_slice(line.text);
    *open = line.partial;
    if !line.partial {
        bytes.push(b'\n');
    }
}

impl Observer for Console {
    fn ready(&self, _pod: &PodId) {}

    fn started(&self, container: &ContainerPlan, _id: &ContainerId, attempt: u32, log: Option<&Path>) {
        self.show(&container.config.name, attempt, log);
    }

    fn ended(self: Arc<Self>, container: &ContainerPlan, attempt: u32, exit: &ExitRecord) -> Ending {
        self.finish(&container.config.name, attempt, Notice::of(exit))
    }

    fn backing_off(&self, container: &ContainerPlan, delay: Duration) {
        self.again(&container.config.name, delay);
    }
}
