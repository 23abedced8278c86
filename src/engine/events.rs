//! What happens to pods and containers, told in order after the state is visible (CRI GetContainerEvents).

use crate::id::{ContainerId, PodId};

/// CRI `ContainerEventType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// Something happened to a container, or to the sandbox itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub pod: PodId,
    /// `None`: the sandbox.
    pub container: Option<ContainerId>,
    pub kind: EventKind,
    /// Nanoseconds since the epoch, strictly increasing within one engine; given when it is announced.
    pub at_ns: i64,
}

impl Event {
    pub fn of(pod: &PodId, container: Option<&ContainerId>, kind: EventKind) -> Event {
        Event { pod: pod.clone(), container: container.cloned(), kind, at_ns: 0 }
    }
}
