//! GetContainerEvents: the engine's events, each with the pod as it is when it is told.

use super::{Answers, Cri, answer, status};
use crate::criapi::{ContainerEventResponse, ContainerEventType};
use crate::engine::events::{Event, EventKind};
use crate::error::Error;
use std::pin::Pin;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::Status;

/// One listener. It ends with the server, and with the client.
struct Listener {
    cri: Cri,
    events: broadcast::Receiver<Event>,
    closing: watch::Receiver<bool>,
}

impl Cri {
    pub(super) fn container_events(&self) -> Answers<ContainerEventResponse> {
        let listener = Listener { cri: self.clone(), events: self.engine.subscribe(), closing: self.closing.clone() };
        Box::pin(Unfold::new(listener))
    }

    /// The state is visible before its event is: what is told here is at least as new.
    fn event(&self, event: &Event) -> ContainerEventResponse {
        let kind = match event.kind {
            EventKind::Created => ContainerEventType::ContainerCreatedEvent,
            EventKind::Started => ContainerEventType::ContainerStartedEvent,
            EventKind::Stopped => ContainerEventType::ContainerStoppedEvent,
            EventKind::Deleted => ContainerEventType::ContainerDeletedEvent,
        };
        let pod = self.engine.pod_status(&event.pod).ok();
        let containers = self.engine.containers_of(&event.pod);
        ContainerEventResponse {
            container_id: event.container.as_ref().map_or_else(|| event.pod.to_string(), ToString::to_string),
            container_event_type: kind as i32,
            created_at: event.at_ns,
            pod_sandbox_status: pod.as_ref().map(answer::pod_status),
            containers_statuses: containers.iter().map(answer::container_status).collect(),
        }
    }
}

impl Listener {
    /// The next event; `None` when the server ends.
    async fn next(&mut self) -> Option<Result<ContainerEventResponse, Status>> {
        let event = tokio::select! {
            event = self.events.recv() => event,
            () = super::until_closing(&mut self.closing) => return None,
        };
        match event {
            Ok(event) => Some(Ok(self.cri.event(&event))),
            Err(RecvError::Closed) => None,
            // Who misses some must look at everything again, and must know that.
            Err(RecvError::Lagged(missed)) => Some(Err(status::status(&Error::exhausted(format!(
                "this listener was too slow and missed {missed} events; list, and listen again"
            ))))),
        }
    }
}

type Next = Pin<Box<dyn Future<Output = (Listener, Option<Result<ContainerEventResponse, Status>>)> + Send>>;

/// A stream of what [`Listener::next`] gives, up to its first error.
struct Unfold(Option<Next>);

impl Unfold {
    fn new(listener: Listener) -> Unfold {
        Unfold(Some(next(listener)))
    }
}

fn next(mut listener: Listener) -> Next {
    Box::pin(async move {
        let item = listener.next().await;
        (listener, item)
    })
}

impl Stream for Unfold {
    type Item = Result<ContainerEventResponse, Status>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let Some(pending) = &mut self.0 else { return std::task::Poll::Ready(None) };
        let (listener, item) = std::task::ready!(pending.as_mut().poll(context));
        self.0 = matches!(item, Some(Ok(_))).then(|| next(listener));
        std::task::Poll::Ready(item)
    }
}
