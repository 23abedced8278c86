//! From requests and limits to numbers of the kernel: QoS class, effective resources, the pod's and the containers' cgroups.
//!
//! The rules are the kubelet's (pkg/apis/core/v1/helper/qos, component-helpers/resource, pkg/kubelet/cm/helpers_linux.go,
//! kuberuntime_container_linux.go, pkg/kubelet/qos/policy.go). Limits have become requests before (when the file was read).

use super::pod::{Container, PodSpec, ResourceList};
use super::quantity::Quantity;
use crate::state::model::Resources;
use std::collections::{BTreeMap, BTreeSet};

/// Microseconds; the kernel's default period of cpu.max.
const PERIOD_US: i64 = 100_000;
/// Least quota the kernel takes, microseconds.
const MIN_QUOTA_US: i64 = 1_000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// oom_score_adj of Guaranteed and BestEffort containers.
const OOM_GUARANTEED: i32 = -997;
const OOM_BEST_EFFORT: i32 = 1000;

/// Quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl std::fmt::Display for Qos {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

/// What the node has; numbers of cgroups depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeResources {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    /// Sizes of huge pages that the kernel knows, bytes.
    pub hugepage_bytes: Vec<u64>,
}

fn value(list: &ResourceList, name: &str) -> Quantity {
    list.get(name).map_or(Quantity::ZERO, |q| q.value)
}

/// The class: only cpu and memory count, of init containers as well, and zero is none.
pub fn qos(spec: &PodSpec) -> Qos {
    let everyone = || spec.init_containers.iter().chain(&spec.containers);
    let total = |list: fn(&Container) -> &ResourceList, name: &str| {
        everyone().fold(Quantity::ZERO, |sum, c| sum.plus(value(list(c), name)))
    };
    let requests = |name: &str| total(|c| &c.requests, name);
    let limits = |name: &str| total(|c| &c.limits, name);
    let names = ["cpu", "memory"];
    if names.iter().all(|n| requests(n) == Quantity::ZERO && limits(n) == Quantity::ZERO) {
        return Qos::BestEffort;
    }
    let guaranteed = names
        .iter()
        .all(|name| everyone().all(|c| value(&c.limits, name) > Quantity::ZERO) && requests(name) == limits(name));
    if guaranteed { Qos::Guaranteed } else { Qos::Burstable }
}

/// What the pod needs as a whole at its worst moment: app containers and sidecars together, or one init container with the
/// sidecars declared before it.
pub fn effective(spec: &PodSpec, list: fn(&Container) -> &ResourceList) -> BTreeMap<String, Quantity> {
    let everyone = spec.init_containers.iter().chain(&spec.containers);
    let names: BTreeSet<&String> = everyone.flat_map(|c| list(c).keys()).collect();
    let worst = |name: &str| {
        let (mut sidecars, mut init_peak) = (Quantity::ZERO, Quantity::ZERO);
        for container in &spec.init_containers {
            let own = sidecars.plus(value(list(container), name));
            if container.is_sidecar() {
                sidecars = own;
            }
            init_peak = init_peak.max(own);
        }
        spec.containers.iter().fold(sidecars, |sum, c| sum.plus(value(list(c), name))).max(init_peak)
    };
    names.into_iter().map(|name| (name.clone(), worst(name))).collect()
}

/// cpu.shares of cgroup v1 for millicores: the request in CRI.
fn shares(millis: i64) -> u64 {
    let shares =
        if millis <= 0 { MIN_SHARES } else { (millis.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES) };
    shares.unsigned_abs()
}

/// Microseconds of each period for millicores; 0 for none.
fn quota_us(millis: i64) -> i64 {
    if millis <= 0 { 0 } else { (millis.saturating_mul(PERIOD_US) / 1000).max(MIN_QUOTA_US) }
}

/// oom_score_adj of `container`.
fn oom_score_adj(spec: &PodSpec, qos: Qos, container: &Container, node: &NodeResources) -> i32 {
    let burstable = |c: &Container| {
        let request = value(&c.requests, "memory").units();
        let share = 1000 * i128::from(request) / i128::from(node.memory_bytes.max(1));
        i32::try_from((1000 - share).clamp(3, 999)).unwrap_or(999)
    };
    match qos {
        Qos::Guaranteed => OOM_GUARANTEED,
        Qos::BestEffort => OOM_BEST_EFFORT,
        // A sidecar must not die before those it serves.
        Qos::Burstable if container.is_sidecar() => {
            spec.containers.iter().map(burstable).chain([burstable(container)]).min().unwrap_or(999)
        }
        Qos::Burstable => burstable(container),
    }
}

/// `2MB` for 2 MiB, as the kernel names the files of the hugetlb controller.
fn page_name(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{}GB", b >> 30),
        b if b >= 1 << 20 => format!("{}MB", b >> 20),
        b => format!("{}KB", b >> 10),
    }
}

/// Bytes of huge pages asked for, for every size of the node (0 where none is, as the kubelet has it) and every size asked for.
/// Also the files of those that nobody asked for.
fn hugepages(
    asked: impl Iterator<Item = (String, i64)>,
    node: &NodeResources,
) -> (BTreeMap<String, u64>, BTreeSet<String>) {
    let mut result: BTreeMap<String, u64> = node.hugepage_bytes.iter().map(|size| (page_name(*size), 0)).collect();
    let mut defaults: BTreeSet<String> = result.keys().flat_map(|size| hugepage_files(size)).collect();
    for (name, bytes) in asked {
        let Some(size) = name.strip_prefix("hugepages-").and_then(|s| s.parse::<Quantity>().ok()) else { continue };
        let size = page_name(size.units().unsigned_abs());
        hugepage_files(&size).iter().for_each(|file| _ = defaults.remove(file));
        result.insert(size, bytes.unsigned_abs());
    }
    (result, defaults)
}

fn hugepage_files(size: &str) -> [String; 2] {
    [format!("hugetlb.{size}.max"), format!("hugetlb.{size}.rsvd.max")]
}

/// The numbers of a container's cgroup, as the kubelet gives them to CRI.
pub fn container(spec: &PodSpec, qos: Qos, container: &Container, node: &NodeResources) -> Resources {
    let memory = value(&container.limits, "memory").units();
    let quota = quota_us(value(&container.limits, "cpu").millis());
    let asked = container.limits.iter().map(|(n, q)| (n.clone(), q.value.units()));
    let (hugepage_limits, mut defaults) = hugepages(asked, node);
    let request = value(&container.requests, "cpu").millis();
    let unasked = [
        ("memory.oom.group", true),
        // With a limit it is part of it: what does not fit in the memory may not go to swap instead.
        ("memory.swap.max", memory == 0),
        ("cpu.weight", request == 0),
    ];
    defaults.extend(unasked.into_iter().filter(|(_, unasked)| *unasked).map(|(file, _)| file.to_owned()));
    Resources {
        cpu_period_us: if quota == 0 { 0 } else { PERIOD_US.unsigned_abs() },
        cpu_quota_us: quota,
        cpu_shares: shares(request),
        memory_limit_bytes: memory,
        memory_swap_limit_bytes: 0,
        oom_score_adj: oom_score_adj(spec, qos, container, node),
        hugepage_limits,
        unified: [("memory.oom.group", "1"), ("memory.swap.max", "0")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        defaults,
        ..Resources::default()
    }
}

/// The pod's cgroup below the root for pods: `pod<uid>` of a Guaranteed pod, else below its class.
pub fn cgroup_path(qos: Qos, uid: &str) -> String {
    match qos {
        Qos::Guaranteed => format!("pod{uid}"),
        Qos::Burstable => format!("burstable/pod{uid}"),
        Qos::BestEffort => format!("besteffort/pod{uid}"),
    }
}

/// `needs` of the containers with the pod's overhead: a request in any case, a limit only where there is one
/// (component-helpers/resource, PodRequests and PodLimits).
fn with_overhead(spec: &PodSpec, mut needs: BTreeMap<String, Quantity>, limits: bool) -> BTreeMap<String, Quantity> {
    for (name, overhead) in &spec.overhead {
        match needs.get_mut(name) {
            Some(need) => *need = need.plus(overhead.value),
            None if limits => {}
            None => _ = needs.insert(name.clone(), overhead.value),
        }
    }
    needs
}

/// The numbers of the pod's cgroup: a limit only where every container has one, for else their sum bounds nothing. With its overhead, which
/// changes no class and no container.
pub fn pod(spec: &PodSpec, qos: Qos, node: &NodeResources) -> Resources {
    let requests = with_overhead(spec, effective(spec, |c| &c.requests), false);
    let limits = with_overhead(spec, effective(spec, |c| &c.limits), true);
    let everyone = || spec.init_containers.iter().chain(&spec.containers);
    let all_limited = |name: &str| everyone().all(|c| value(&c.limits, name) > Quantity::ZERO);
    let limit = |name: &str| limits.get(name).copied().filter(|_| all_limited(name)).unwrap_or_default();
    let (hugepage_limits, mut defaults) = hugepages(requests.iter().map(|(n, q)| (n.clone(), q.units())), node);
    let request = requests.get("cpu").map_or(0, |q| q.millis());
    if request == 0 {
        defaults.insert("cpu.weight".to_owned());
    }
    if qos == Qos::BestEffort {
        let cpu_shares = MIN_SHARES.unsigned_abs();
        return Resources { cpu_shares, hugepage_limits, defaults, ..Resources::default() };
    }
    let quota = quota_us(limit("cpu").millis());
    Resources {
        cpu_period_us: if quota == 0 { 0 } else { PERIOD_US.unsigned_abs() },
        cpu_quota_us: quota,
        cpu_shares: shares(request),
        memory_limit_bytes: limit("memory").units(),
        hugepage_limits,
        defaults,
        ..Resources::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::pod::RestartPolicy;
    use crate::agent::problem::{At, Spot};

    fn list(text: &str) -> ResourceList {
        text.split_whitespace()
            .map(|pair| pair.split_once('=').expect("name=quantity"))
            .map(|(n, q)| (n.to_owned(), At { value: q.parse().expect("a quantity"), spot: Spot::default() }))
            .collect()
    }

    fn with(requests: &str, limits: &str) -> Container {
        let limits = list(limits);
        let mut requests = list(requests);
        for (name, limit) in &limits {
            requests.entry(name.clone()).or_insert_with(|| limit.clone());
        }
        Container { requests, limits, ..Container::default() }
    }

    fn sidecar(requests: &str, limits: &str) -> Container {
        Container { restart_policy: Some(RestartPolicy::Always), ..with(requests, limits) }
    }

    fn spec(init_containers: Vec<Container>, containers: Vec<Container>) -> PodSpec {
        PodSpec { init_containers, containers, ..PodSpec::default() }
    }

    fn node() -> NodeResources {
        NodeResources { cpu_millis: 4000, memory_bytes: 4 << 30, hugepage_bytes: vec![2 << 20, 1 << 30] }
    }

    #[test]
    fn the_class_follows_the_documented_rules() {
        let full = || with("", "cpu=1 memory=1Gi");
        for (what, spec, expected) in [
            ("nothing", spec(vec![], vec![with("", "")]), Qos::BestEffort),
            ("zeros", spec(vec![], vec![with("cpu=0", "memory=0")]), Qos::BestEffort),
            ("huge pages only", spec(vec![], vec![with("", "hugepages-2Mi=2Mi")]), Qos::BestEffort),
            ("limits only", spec(vec![], vec![full()]), Qos::Guaranteed),
            ("a request only", spec(vec![], vec![with("cpu=1", "")]), Qos::Burstable),
            ("a lower request", spec(vec![], vec![with("cpu=500m", "cpu=1 memory=1Gi")]), Qos::Burstable),
            ("one resource", spec(vec![], vec![with("", "cpu=1")]), Qos::Burstable),
            ("a bare neighbour", spec(vec![], vec![full(), with("", "")]), Qos::Burstable),
            ("a bare init container", spec(vec![with("", "")], vec![full()]), Qos::Burstable),
            ("a full init container", spec(vec![full()], vec![full()]), Qos::Guaranteed),
        ] {
            assert_eq!(qos(&spec), expected, "{what}");
        }
    }

    #[test]
    fn the_worst_moment_of_a_pod_counts() {
        let effective_cpu =
            |init, apps| effective(&spec(init, apps), |c| &c.requests).get("cpu").copied().map(Quantity::millis);
        let apps = || vec![with("cpu=100m", ""), with("cpu=200m", "")];
        assert_eq!(effective_cpu(vec![], apps()), Some(300));
        assert_eq!(effective_cpu(vec![with("cpu=1", ""), with("cpu=2", "")], apps()), Some(2000), "one init at a time");
        assert_eq!(
            effective_cpu(vec![sidecar("cpu=50m", ""), with("cpu=1", "")], apps()),
            Some(1050),
            "a sidecar before"
        );
        assert_eq!(
            effective_cpu(vec![with("cpu=1", ""), sidecar("cpu=50m", "")], apps()),
            Some(1000),
            "a sidecar after"
        );
        assert_eq!(effective_cpu(vec![sidecar("cpu=50m", "")], apps()), Some(350), "it runs on");
        assert_eq!(effective_cpu(vec![], vec![with("", "")]), None);
    }

    #[test]
    fn the_documentation_example_becomes_its_documented_numbers() {
        let example = with("cpu=250m memory=64Mi", "cpu=500m memory=128Mi");
        let pod_spec = spec(vec![], vec![example.clone(), example.clone()]);
        let own = container(&pod_spec, qos(&pod_spec), &example, &node());
        assert_eq!((own.cpu_shares, own.cpu_quota_us, own.cpu_period_us), (256, 50_000, 100_000));
        assert_eq!((own.memory_limit_bytes, own.oom_score_adj), (128 << 20, 1000 - 15));
        assert_eq!(own.unified.get("memory.oom.group").map(String::as_str), Some("1"));
        assert_eq!(own.hugepage_limits, [("1GB".to_owned(), 0), ("2MB".to_owned(), 0)].into());
        let whole = pod(&pod_spec, qos(&pod_spec), &node());
        assert_eq!((whole.cpu_shares, whole.cpu_quota_us, whole.memory_limit_bytes), (512, 100_000, 256 << 20));
        assert_eq!(cgroup_path(qos(&pod_spec), "u"), "burstable/podu");
    }

    #[test]
    fn what_nobody_asked_for_is_known_as_a_default() {
        let defaults = |one: Container| {
            let spec = spec(vec![], vec![one.clone()]);
            let whole = pod(&spec, qos(&spec), &node());
            let of = |resources: &Resources| resources.defaults.iter().cloned().collect::<Vec<_>>().join(" ");
            (of(&container(&spec, qos(&spec), &one, &node())), of(&whole))
        };
        let one_gb = "hugetlb.1GB.max hugetlb.1GB.rsvd.max";
        let huge = &format!("{one_gb} hugetlb.2MB.max hugetlb.2MB.rsvd.max");
        assert_eq!(
            defaults(with("", "")),
            (format!("cpu.weight {huge} memory.oom.group memory.swap.max"), format!("cpu.weight {huge}"))
        );
        assert_eq!(
            defaults(with("cpu=1", "memory=1Gi hugepages-2Mi=4Mi")),
            (format!("{one_gb} memory.oom.group"), one_gb.to_owned()),
            "a memory limit is one of swap as well"
        );
    }

    #[test]
    fn a_pod_is_limited_only_if_every_container_is() {
        let limits = |spec: &PodSpec| {
            let whole = pod(spec, qos(spec), &node());
            (whole.cpu_quota_us, whole.memory_limit_bytes)
        };
        let (full, bare) = (|| with("", "cpu=1 memory=1Gi"), || with("", ""));
        assert_eq!(limits(&spec(vec![], vec![full()])), (100_000, 1 << 30));
        assert_eq!(limits(&spec(vec![], vec![full(), bare()])), (0, 0));
        assert_eq!(limits(&spec(vec![bare()], vec![full()])), (0, 0), "an init container counts");
        assert_eq!(limits(&spec(vec![], vec![full(), with("", "cpu=1")])), (200_000, 0), "each resource by itself");
        let best_effort = pod(&spec(vec![], vec![bare()]), Qos::BestEffort, &node());
        assert_eq!((best_effort.cpu_shares, best_effort.memory_limit_bytes), (2, 0));
    }

    #[test]
    fn overhead_is_the_pods_and_no_containers() {
        let numbers = |spec: &PodSpec| {
            let whole = pod(spec, qos(spec), &node());
            (qos(spec), whole.cpu_shares, whole.cpu_quota_us, whole.memory_limit_bytes)
        };
        let with_it = |one: Container| PodSpec { overhead: list("cpu=250m memory=64Mi"), ..spec(vec![], vec![one]) };
        let full = with_it(with("", "cpu=1 memory=1Gi"));
        assert_eq!(numbers(&full), (Qos::Guaranteed, 1280, 125_000, (1 << 30) + (64 << 20)));
        let own = container(&full, Qos::Guaranteed, &full.containers[0], &node());
        assert_eq!((own.cpu_shares, own.cpu_quota_us, own.memory_limit_bytes), (1024, 100_000, 1 << 30));
        assert_eq!(
            numbers(&with_it(with("memory=1Gi", ""))),
            (Qos::Burstable, 256, 0, 0),
            "it limits nothing by itself"
        );
        assert_eq!(numbers(&with_it(with("", ""))), (Qos::BestEffort, 2, 0, 0));
    }

    #[test]
    fn shares_and_quota_have_the_kernels_bounds() {
        assert_eq!([0, 1, 2, 1000, i64::MAX].map(shares), [2, 2, 2, 1024, 262_144]);
        assert_eq!([0, 1, 10, 11, 1500].map(quota_us), [0, 1000, 1000, 1100, 150_000]);
    }

    #[test]
    fn the_oom_killers_order_is_that_of_the_classes() {
        let pod_spec = spec(
            vec![sidecar("memory=1Mi", ""), with("memory=1Mi", "")],
            vec![with("memory=2Gi", ""), with("memory=1", ""), with("memory=8Gi", "")],
        );
        let score = |c: &Container| oom_score_adj(&pod_spec, Qos::Burstable, c, &node());
        assert_eq!(pod_spec.containers.iter().map(score).collect::<Vec<_>>(), [500, 999, 3]);
        assert_eq!(
            pod_spec.init_containers.iter().map(score).collect::<Vec<_>>(),
            [3, 999],
            "a sidecar outlives the apps"
        );
        let any = with("", "");
        assert_eq!(oom_score_adj(&pod_spec, Qos::Guaranteed, &any, &node()), -997);
        assert_eq!(oom_score_adj(&pod_spec, Qos::BestEffort, &any, &node()), 1000);
    }

    #[test]
    fn huge_pages_are_named_as_the_kernel_names_them() {
        let pod_spec = spec(vec![], vec![with("", "cpu=1 hugepages-2Mi=64Mi hugepages-64Ki=128Ki")]);
        let own = container(&pod_spec, Qos::Burstable, &pod_spec.containers[0], &node());
        let expected = [("1GB", 0), ("2MB", 64 << 20), ("64KB", 128 << 10)].map(|(n, b)| (n.to_owned(), b));
        assert_eq!(own.hugepage_limits, expected.into());
    }
}
