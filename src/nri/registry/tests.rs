//! Plugins over real sockets, on a list instead of an engine.

use super::*;
use crate::error::Kind;
use crate::nriapi::{
    ConfigureResponse, ContainerAdjustment, Empty, KeyValue, RegisterPluginRequest, SynchronizeRequest,
    SynchronizeResponse,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;

/// No test waits for it.
const LONG: Duration = Duration::from_secs(600);

fn times(request: Duration) -> Times {
    Times { registration: LONG, request }
}

/// The containers that there are.
#[derive(Debug, Default)]
struct List(Mutex<Vec<Container>>);

impl World for List {
    fn everything(&self) -> (Vec<PodSandbox>, Vec<Container>) {
        (Vec::new(), self.0.lock().expect("no panic").clone())
    }

    fn change(&self, updates: Vec<ContainerUpdate>) -> Pin<Box<dyn Future<Output = Vec<ContainerUpdate>> + Send + '_>> {
        Box::pin(async move { updates }) // none of them can be
    }
}

/// How often a plugin was told of which container: in the synchronisation, and as new.
type Seen = Arc<Mutex<BTreeMap<String, (u32, u32)>>>;

/// What a plugin of a test answers a creation with.
#[derive(Debug, Clone)]
enum Answer {
    Nothing,
    Env(&'static str),
    Refuse,
    /// It does not.
    Hang,
    Close,
}

/// A plugin at work.
struct At {
    seen: Seen,
    synchronised: watch::Receiver<bool>,
    link: Link,
}

async fn connect(registry: &Registry, world: &Arc<List>, index: &str, answer: Answer) -> At {
    let (here, there) = UnixStream::pair().expect("socketpair");
    tokio::spawn(registry.clone().serve(here, world.clone()));
    let (link, mut asked) = Link::new(there, Side::Plugin).expect("link");
    let seen = Seen::default();
    let (done, synchronised) = watch::channel(false);
    let (noted, answers) = (seen.clone(), link.clone());
    tokio::spawn(async move {
        while let Some(question) = asked.recv().await {
            let payload = question.payload.as_slice();
            let reply = match question.method.as_str() {
                "Configure" => ConfigureResponse { events: 1 << (Event::CreateContainer as i32 - 1) }.encode_to_vec(),
                "Synchronize" => {
                    let all = SynchronizeRequest::decode(payload).expect("decodes");
                    let mut seen = noted.lock().expect("no panic");
                    all.containers.into_iter().for_each(|c| seen.entry(c.id).or_default().0 += 1);
                    done.send_replace(!all.more);
                    SynchronizeResponse { update: Vec::new(), more: all.more }.encode_to_vec()
                }
                "CreateContainer" => {
                    let container = CreateContainerRequest::decode(payload).expect("decodes").container;
                    noted.lock().expect("no panic").entry(container.expect("there").id).or_default().1 += 1;
                    let env = match &answer {
                        Answer::Hang => continue,
                        Answer::Close => return answers.close("as the test wants it"),
                        Answer::Refuse => {
                            answers.answer(&question, Err((2, "not today".into()))).await;
                            continue;
                        }
                        Answer::Nothing => Vec::new(),
                        Answer::Env(key) => vec![KeyValue { key: (*key).into(), value: "1".into() }],
                    };
                    let adjust = Some(ContainerAdjustment { env, ..ContainerAdjustment::default() });
                    CreateContainerResponse { adjust, ..CreateContainerResponse::default() }.encode_to_vec()
                }
                _ => Empty {}.encode_to_vec(),
            };
            answers.answer(&question, Ok(reply)).await;
        }
    });
    let who =
        RegisterPluginRequest { plugin_name: "t".into(), plugin_idx: index.into(), ..RegisterPluginRequest::default() };
    let request = ttrpc::Request {
        service: RUNTIME_SERVICE.into(),
        method: "RegisterPlugin".into(),
        payload: who.encode_to_vec(),
        timeout_nano: 0,
    };
    link.call(request, LONG).await.expect("registered");
    At { seen, synchronised, link }
}

impl At {
    async fn synchronised(&mut self) {
        self.synchronised.wait_for(|done| *done).await.expect("it is");
    }
}

/// Waits until the registry has that many plugins.
async fn until_there_are(registry: &Registry, count: usize) {
    while registry.open(None).len() != count {
        tokio::task::yield_now().await;
    }
}

fn container(id: &str) -> Container {
    Container { id: id.into(), ..Container::default() }
}

/// As the engine makes one.
async fn make(registry: &Registry, world: &List, id: &str) -> Result<Merge> {
    let _entered = registry.enter().await;
    let merge = registry.create(&PodSandbox::default(), container(id)).await?;
    tokio::task::yield_now().await;
    world.0.lock().expect("no panic").push(container(id));
    Ok(merge)
}

#[tokio::test]
async fn plugins_are_asked_in_the_order_of_their_index_each_with_what_those_before_it_adjusted() {
    let (registry, world) = (Registry::new(times(LONG)), Arc::new(List::default()));
    let _late = connect(&registry, &world, "20", Answer::Env("B")).await;
    let _early = connect(&registry, &world, "10", Answer::Env("A")).await;
    until_there_are(&registry, 2).await;
    let merge = make(&registry, &world, "c1").await.expect("made");
    assert_eq!(merge.container.env, ["A=1", "B=1"]);
    let _other = connect(&registry, &world, "30", Answer::Env("A")).await;
    until_there_are(&registry, 3).await;
    let e = make(&registry, &world, "c2").await.expect_err("a conflict");
    assert_eq!(e.to_string(), "NRI plugins 10-t and 30-t both set Env A of container c2");
    assert_eq!(e.kind(), Kind::FailedPrecondition);
}

#[tokio::test]
async fn a_plugin_that_refuses_fails_the_container_and_one_that_hangs_or_dies_is_gone() {
    let (registry, world) = (Registry::new(times(LONG)), Arc::new(List::default()));
    let refuses = connect(&registry, &world, "00", Answer::Refuse).await;
    until_there_are(&registry, 1).await;
    let e = make(&registry, &world, "c1").await.expect_err("refused");
    assert_eq!(e.to_string(), "NRI plugin 00-t: CREATE_CONTAINER: not today");
    refuses.link.close("done");
    until_there_are(&registry, 0).await;
    let _dies = connect(&registry, &world, "00", Answer::Close).await;
    until_there_are(&registry, 1).await;
    make(&registry, &world, "c2").await.expect("without it");
    until_there_are(&registry, 0).await;

    let registry = Registry::new(times(Duration::from_millis(200)));
    let mut hangs = connect(&registry, &world, "00", Answer::Hang).await;
    hangs.synchronised().await;
    until_there_are(&registry, 1).await;
    make(&registry, &world, "c3").await.expect("without it");
    assert!(hangs.link.until_closed().await.contains("closed"), "it is told to go");
    until_there_are(&registry, 0).await;
    make(&registry, &world, "c4").await.expect("nobody is waited for");
    let seen = hangs.seen.lock().expect("no panic").clone();
    assert_eq!(seen.get("c3"), Some(&(0, 1)));
    assert_eq!(seen.get("c4"), None);
}

#[tokio::test]
async fn one_that_does_not_register_in_time_is_closed() {
    let registry = Registry::new(Times { registration: Duration::from_millis(10), request: LONG });
    let (here, there) = UnixStream::pair().expect("socketpair");
    tokio::spawn(registry.serve(here, Arc::new(List::default())));
    let (link, _asked) = Link::new(there, Side::Plugin).expect("link");
    assert!(link.until_closed().await.contains("closed"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever comes when: a plugin hears of each container in its synchronisation or as new, and never of one in both.
    #[test]
    fn no_container_is_lost_and_none_is_told_twice(
        makers in proptest::collection::vec(1usize..8, 1..6),
        plugins in proptest::collection::vec((0u32..100, 0usize..12), 1..6),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        let (made, seen) = runtime.block_on(async {
            let (registry, world) = (Registry::new(times(LONG)), Arc::new(List::default()));
            let mut work = tokio::task::JoinSet::new();
            for (maker, count) in makers.iter().copied().enumerate() {
                let (registry, world) = (registry.clone(), world.clone());
                work.spawn(async move {
                    for n in 0..count {
                        make(&registry, &world, &format!("{maker}-{n}")).await.expect("made");
                    }
                });
            }
            let mut coming = tokio::task::JoinSet::new();
            for (index, yields) in plugins.iter().copied() {
                let (registry, world) = (registry.clone(), world.clone());
                coming.spawn(async move {
                    for _ in 0..yields {
                        tokio::task::yield_now().await;
                    }
                    let mut plugin = connect(&registry, &world, &format!("{index:02}"), Answer::Nothing).await;
                    plugin.synchronised().await;
                    plugin
                });
            }
            work.join_all().await;
            let there = coming.join_all().await;
            until_there_are(&registry, there.len()).await;
            // One more: the last that each has to hear of.
            make(&registry, &world, "last").await.expect("made");
            let made: Vec<String> = world.0.lock().expect("no panic").iter().map(|c| c.id.clone()).collect();
            let seen: Vec<_> = there.iter().map(|plugin| plugin.seen.lock().expect("no panic").clone()).collect();
            (made, seen)
        });
        for seen in seen {
            for id in &made {
                let (synchronised, told) = seen.get(id).copied().unwrap_or_default();
                prop_assert_eq!(synchronised + told, 1, "container {}: {} and {}", id, synchronised, told);
            }
        }
    }
}
