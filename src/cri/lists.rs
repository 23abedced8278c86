//! ListContainers and ListPodSandbox, for which a kubelet asks every second: of what they say of an object nothing ever changes but its
//! state, so the rest is encoded once and kept with the object ([`crate::engine::kept`]). A list of 500 is then copied, not built.
//!
//! The generated service encodes messages, so these two are served beside it, by the same paths.

use super::{Cri, answer, convert};
use crate::criapi::{ContainerFilter, ListContainersRequest, ListPodSandboxRequest, PodSandboxFilter};
use crate::engine::kept::Kept;
use crate::engine::query::{ContainerLine, PodLine};
use hyper::body::Incoming;
use prost::Message;
use prost::bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use std::future::{Ready, ready};
use std::marker::PhantomData;
use std::sync::Arc;
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstDecoder;

pub(super) const CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";
pub(super) const PODS: &str = "/runtime.v1.RuntimeService/ListPodSandbox";

/// `ListContainersResponse.containers`, `ListPodSandboxResponse.items`.
const ITEMS: u32 = 1;
/// `Container.state`.
const CONTAINER_STATE: u32 = 6;
/// `PodSandbox.state`.
const POD_STATE: u32 = 3;

/// A list, each item a message but for its state.
#[derive(Debug)]
struct Lines {
    state_tag: u32,
    items: Vec<(Arc<Kept>, i32)>,
}

/// What an item says that was kept; it is made before it gets into a list.
fn text(kept: &Kept) -> &[u8] {
    kept.line(Vec::new)
}

impl Lines {
    /// Bytes of an item's state; the default is not sent.
    fn state_len(&self, state: i32) -> usize {
        if state == 0 { 0 } else { key_len(self.state_tag) + encoded_len_varint(varint(state)) }
    }

    fn len(&self) -> usize {
        let item = |(kept, state): &(Arc<Kept>, i32)| {
            let len = text(kept).len() + self.state_len(*state);
            key_len(ITEMS) + encoded_len_varint(len as u64) + len
        };
        self.items.iter().map(item).sum()
    }

    fn encode(&self, buf: &mut impl BufMut) {
        for (kept, state) in &self.items {
            let text = text(kept);
            encode_key(ITEMS, WireType::LengthDelimited, buf);
            encode_varint((text.len() + self.state_len(*state)) as u64, buf);
            buf.put_slice(text);
            if *state != 0 {
                encode_key(self.state_tag, WireType::Varint, buf);
                encode_varint(varint(*state), buf);
            }
        }
    }
}

/// The states of both interfaces are small and not negative.
fn varint(state: i32) -> u64 {
    u64::try_from(state).unwrap_or_default()
}

/// Messages of type `D` in, lists out.
struct Lists<D>(PhantomData<D>);

impl<D: Message + Default + Send + 'static> Codec for Lists<D> {
    type Encode = Lines;
    type Decode = D;
    type Encoder = LinesEncoder;
    type Decoder = ProstDecoder<D>;

    fn encoder(&mut self) -> LinesEncoder {
        LinesEncoder
    }

    fn decoder(&mut self) -> ProstDecoder<D> {
        ProstDecoder::new(BufferSettings::default())
    }
}

struct LinesEncoder;

impl Encoder for LinesEncoder {
    type Item = Lines;
    type Error = Status;

    fn encode(&mut self, item: Lines, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(item.len());
        item.encode(buf);
        Ok(())
    }
}

struct Containers(Cri);

impl UnaryService<ListContainersRequest> for Containers {
    type Response = Lines;
    type Future = Ready<Result<Response<Lines>, Status>>;

    fn call(&mut self, request: Request<ListContainersRequest>) -> Self::Future {
        let line = |container: ContainerLine| {
            container.kept.line(|| answer::container(&container.record, None).encode_to_vec());
            (container.kept, answer::container_state(container.state) as i32)
        };
        let lines = self.0.container_lines(request.into_inner().filter).map(line);
        ready(Ok(Response::new(Lines { state_tag: CONTAINER_STATE, items: lines.collect() })))
    }
}

struct Pods(Cri);

impl UnaryService<ListPodSandboxRequest> for Pods {
    type Response = Lines;
    type Future = Ready<Result<Response<Lines>, Status>>;

    fn call(&mut self, request: Request<ListPodSandboxRequest>) -> Self::Future {
        let line = |pod: PodLine| {
            pod.kept.line(|| answer::pod(&pod.record, None).encode_to_vec());
            (pod.kept, answer::pod_state(pod.ready) as i32)
        };
        let lines = self.0.pod_lines(request.into_inner().filter).map(line);
        ready(Ok(Response::new(Lines { state_tag: POD_STATE, items: lines.collect() })))
    }
}

fn grpc<D: Message + Default + Send + 'static>(max_bytes: usize) -> Grpc<Lists<D>> {
    Grpc::new(Lists(PhantomData)).max_decoding_message_size(max_bytes)
}

impl Cri {
    /// Answers ListContainers; a request of more than `max_bytes` is refused.
    pub(super) async fn answer_containers(
        self,
        request: http::Request<Incoming>,
        max_bytes: usize,
    ) -> http::Response<Body> {
        grpc(max_bytes).unary(Containers(self), request).await
    }

    /// Answers ListPodSandbox; the same.
    pub(super) async fn answer_pods(self, request: http::Request<Incoming>, max_bytes: usize) -> http::Response<Body> {
        grpc(max_bytes).unary(Pods(self), request).await
    }

    /// The containers that `filter` selects, the newest first. From memory.
    pub(super) fn container_lines(
        &self,
        filter: Option<ContainerFilter>,
    ) -> impl Iterator<Item = ContainerLine> + use<> {
        let filter = filter.unwrap_or_default();
        let state = filter.state.map(|s| s.state);
        let wanted = move |line: &ContainerLine| {
            line.record.id.as_str().starts_with(&filter.id)
                && line.record.pod.as_str().starts_with(&filter.pod_sandbox_id)
                && state.is_none_or(|state| state == answer::container_state(line.state) as i32)
                && convert::selects(&filter.label_selector, &line.record.config.labels)
        };
        self.engine.container_lines().into_iter().filter(wanted)
    }

    /// The pods that `filter` selects, the newest first. From memory.
    pub(super) fn pod_lines(&self, filter: Option<PodSandboxFilter>) -> impl Iterator<Item = PodLine> + use<> {
        let filter = filter.unwrap_or_default();
        let state = filter.state.map(|s| s.state);
        let wanted = move |line: &PodLine| {
            line.record.id.as_str().starts_with(&filter.id)
                && state.is_none_or(|state| state == answer::pod_state(line.ready) as i32)
                && convert::selects(&filter.label_selector, &line.record.config.labels)
        };
        self.engine.pod_lines().into_iter().filter(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criapi::runtime_service_server::SERVICE_NAME;
    use crate::criapi::{Container, ContainerMetadata, ContainerState, ListContainersResponse, ListPodSandboxResponse};
    use crate::criapi::{PodSandbox, PodSandboxState};

    fn list(state_tag: u32, messages: &[(Vec<u8>, i32)]) -> Vec<u8> {
        let kept = |(text, state): &(Vec<u8>, i32)| {
            let kept = Arc::new(Kept::default());
            kept.line(|| text.clone());
            (kept, *state)
        };
        let lines = Lines { state_tag, items: messages.iter().map(kept).collect() };
        let mut bytes = Vec::new();
        lines.encode(&mut bytes);
        assert_eq!(bytes.len(), lines.len());
        bytes
    }

    #[test]
    fn a_list_of_kept_lines_is_the_message_that_it_stands_for() {
        let long = "x".repeat(300);
        let metadata = Some(ContainerMetadata { name: long.clone(), attempt: 1 });
        let line = Container {
            id: "a".into(),
            metadata,
            created_at: 7,
            labels: [(long, "v".into())].into(),
            ..Default::default()
        };
        let states =
            [ContainerState::ContainerCreated, ContainerState::ContainerRunning, ContainerState::ContainerExited];
        let bytes = list(CONTAINER_STATE, &states.map(|state| (line.encode_to_vec(), state as i32)));
        let whole = |state| Container { state: state as i32, ..line.clone() };
        let expected = ListContainersResponse { containers: states.map(whole).to_vec() };
        assert_eq!(ListContainersResponse::decode(&*bytes).expect("a message"), expected);

        let line = PodSandbox { id: "b".into(), runtime_handler: "h".into(), ..Default::default() };
        let states = [PodSandboxState::SandboxReady, PodSandboxState::SandboxNotready];
        let bytes = list(POD_STATE, &states.map(|state| (line.encode_to_vec(), state as i32)));
        let whole = |state| PodSandbox { state: state as i32, ..line.clone() };
        let expected = ListPodSandboxResponse { items: states.map(whole).to_vec() };
        assert_eq!(ListPodSandboxResponse::decode(&*bytes).expect("a message"), expected);
    }

    #[test]
    fn the_paths_are_those_of_the_service() {
        for path in [CONTAINERS, PODS] {
            assert!(
                path.strip_prefix('/').and_then(|p| p.strip_prefix(SERVICE_NAME)).is_some_and(|m| m.starts_with('/'))
            );
        }
    }
}
