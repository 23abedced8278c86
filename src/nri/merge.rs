//! What several plugins want of one container, put together in their order (pure; containerd/nri, pkg/adaptation).
//!
//! Each plugin is shown the container as those before it have adjusted it. What one has set, another one may not set: the request fails,
//! naming both. A plugin may remove what another has set (a `-` before the key), and may then set it itself.

use crate::error::{Error, Result};
use crate::nriapi::{
    Container, ContainerAdjustment, ContainerUpdate, Field, KeyValue, LinuxContainer, LinuxContainerAdjustment,
    LinuxContainerUpdate, LinuxCpu, LinuxDevice, LinuxMemory, LinuxResources, Mount, OwningPlugins, PosixRlimit,
};
use std::collections::{BTreeMap, BTreeSet};

/// Which plugin has set what.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Owners(pub OwningPlugins);

impl Owners {
    /// Notes that `plugin` sets a field, or one entry of it.
    ///
    /// # Errors
    /// `FailedPrecondition` when another one has.
    fn claim(&mut self, container: &str, field: Field, key: &str, plugin: &str) -> Result<()> {
        let fields = self.0.owners.entry(container.to_owned()).or_default();
        let number = field as i32;
        let owner = match key {
            "" => fields.simple.entry(number).or_default(),
            key => fields.compound.entry(number).or_default().owners.entry(key.to_owned()).or_default(),
        };
        if !owner.is_empty() {
            let what = format!("{} {key}", field.as_str_name());
            return Err(Error::precondition(format!(
                "NRI plugins {owner} and {plugin} both set {} of container {container}",
                what.trim_end()
            )));
        }
        plugin.clone_into(owner);
        Ok(())
    }

    /// Nobody has set an entry any more.
    fn clear(&mut self, container: &str, field: Field, key: &str) {
        let Some(fields) = self.0.owners.get_mut(container) else { return };
        match key {
            "" => drop(fields.simple.remove(&(field as i32))),
            key => drop(fields.compound.get_mut(&(field as i32)).and_then(|entries| entries.owners.remove(key))),
        }
    }
}

/// What plugins have asked for so far.
#[derive(Debug, Clone, Default)]
pub struct Merge {
    /// The one that is made or changed: as the next plugin sees it. Without an id: one has ended, and is no longer to be changed.
    pub container: Container,
    pub adjust: ContainerAdjustment,
    /// The limits that it is to get by an update, as asked and as changed so far; `None`: it is not updated.
    pub resources: Option<LinuxResources>,
    /// Of other containers.
    pub updates: BTreeMap<String, ContainerUpdate>,
    pub owners: Owners,
}

impl Merge {
    pub fn new(container: Container, resources: Option<LinuxResources>) -> Merge {
        Merge { container, resources, ..Merge::default() }
    }

    /// Takes what a plugin asks of a container that is to be made.
    ///
    /// # Errors
    /// `FailedPrecondition` for what another one has set.
    pub fn adjust(&mut self, asked: ContainerAdjustment, plugin: &str) -> Result<()> {
        self.annotations(asked.annotations, plugin)?;
        self.mounts(asked.mounts, plugin)?;
        self.env(asked.env, plugin)?;
        self.args(asked.args, plugin)?;
        self.rlimits(asked.rlimits, plugin)?;
        let id = self.container.id.clone();
        for device in asked.cdi_devices {
            self.owners.claim(&id, Field::CdiDevices, &device.name, plugin)?;
            self.adjust.cdi_devices.push(device);
        }
        // Hooks of several plugins are all to be run.
        if let Some(hooks) = asked.hooks.filter(|hooks| *hooks != crate::nriapi::Hooks::default()) {
            self.adjust.hooks.get_or_insert_with(Default::default).prestart.extend(hooks.prestart);
            let all = self.adjust.hooks.get_or_insert_with(Default::default);
            all.create_runtime.extend(hooks.create_runtime);
            all.create_container.extend(hooks.create_container);
            all.start_container.extend(hooks.start_container);
            all.poststart.extend(hooks.poststart);
            all.poststop.extend(hooks.poststop);
        }
        asked.linux.map_or(Ok(()), |linux| self.linux(linux, plugin))
    }

    fn linux(&mut self, asked: LinuxContainerAdjustment, plugin: &str) -> Result<()> {
        self.devices(asked.devices, plugin)?;
        let id = self.container.id.clone();
        if let Some(resources) = asked.resources {
            claim_resources(&mut self.owners, &id, &resources, plugin)?;
            overlay(&resources, self.container.linux_mut().resources.get_or_insert_default());
            overlay(&resources, self.adjust.linux_mut().resources.get_or_insert_default());
        }
        let owners = &mut self.owners;
        let (adjust, linux) = (self.adjust.linux.get_or_insert_default(), self.container.linux.get_or_insert_default());
        macro_rules! single {
            ($field:ident, $name:ident) => {
                if let Some(value) = asked.$field {
                    owners.claim(&id, Field::$name, "", plugin)?;
                    adjust.$field = Some(value);
                }
            };
        }
        if asked.oom_score_adj.is_some() {
            linux.oom_score_adj = asked.oom_score_adj;
        }
        single!(oom_score_adj, OomScoreAdj);
        single!(io_priority, IoPriority);
        single!(seccomp_policy, SeccompPolicy);
        single!(scheduler, LinuxSched);
        single!(memory_policy, MemoryPolicy);
        single!(rdt, RdtClosId);
        if !asked.cgroups_path.is_empty() {
            owners.claim(&id, Field::CgroupsPath, "", plugin)?;
            linux.cgroups_path.clone_from(&asked.cgroups_path);
            adjust.cgroups_path = asked.cgroups_path;
        }
        for namespace in asked.namespaces {
            owners.claim(&id, Field::Namespace, bare(&namespace.r#type), plugin)?;
            adjust.namespaces.push(namespace);
        }
        for (name, value) in asked.sysctl {
            owners.claim(&id, Field::Sysctl, bare(&name), plugin)?;
            adjust.sysctl.insert(name, value);
        }
        for (name, device) in asked.net_devices {
            owners.claim(&id, Field::LinuxNetDevices, bare(&name), plugin)?;
            adjust.net_devices.insert(name, device);
        }
        Ok(())
    }

    fn annotations(&mut self, asked: BTreeMap<String, String>, plugin: &str) -> Result<()> {
        let id = self.container.id.clone();
        for key in asked.keys().filter_map(|key| key.strip_prefix('-')) {
            self.owners.clear(&id, Field::Annotations, key);
            self.container.annotations.remove(key);
            self.adjust.annotations.remove(key);
            self.adjust.annotations.insert(format!("-{key}"), String::new());
        }
        for (key, value) in asked.into_iter().filter(|(key, _)| !key.starts_with('-')) {
            self.owners.claim(&id, Field::Annotations, &key, plugin)?;
            self.container.annotations.insert(key.clone(), value.clone());
            self.adjust.annotations.insert(key, value);
        }
        Ok(())
    }

    fn mounts(&mut self, asked: Vec<Mount>, plugin: &str) -> Result<()> {
        let id = self.container.id.clone();
        let (removed, added): (Vec<Mount>, Vec<Mount>) =
            asked.into_iter().partition(|m| m.destination.starts_with('-'));
        for mount in &removed {
            self.owners.clear(&id, Field::Mounts, &clean(bare(&mount.destination)));
        }
        let touched: BTreeSet<String> = removed.iter().chain(&added).map(|m| clean(bare(&m.destination))).collect();
        for mount in &added {
            self.owners.claim(&id, Field::Mounts, &clean(&mount.destination), plugin)?;
        }
        self.container.mounts.retain(|mount| !touched.contains(&clean(&mount.destination)));
        self.adjust.mounts.retain(|mount| !touched.contains(&clean(bare(&mount.destination))));
        self.container.mounts.extend(added.iter().cloned());
        self.adjust.mounts.extend(removed.into_iter().chain(added));
        Ok(())
    }

    fn env(&mut self, asked: Vec<KeyValue>, plugin: &str) -> Result<()> {
        let id = self.container.id.clone();
        let (removed, added): (Vec<KeyValue>, Vec<KeyValue>) = asked.into_iter().partition(|e| e.key.starts_with('-'));
        for entry in &removed {
            self.owners.clear(&id, Field::Env, bare(&entry.key));
        }
        for entry in &added {
            self.owners.claim(&id, Field::Env, &entry.key, plugin)?;
        }
        let touched: BTreeSet<&str> = removed.iter().chain(&added).map(|entry| bare(&entry.key)).collect();
        self.container.env.retain(|line| !touched.contains(line.split('=').next().unwrap_or_default()));
        self.container.env.extend(added.iter().map(|entry| format!("{}={}", entry.key, entry.value)));
        self.adjust.env.retain(|entry| !touched.contains(bare(&entry.key)));
        self.adjust.env.extend(removed.iter().chain(&added).cloned());
        Ok(())
    }

    /// An empty first word: whatever another plugin has set.
    fn args(&mut self, mut asked: Vec<String>, plugin: &str) -> Result<()> {
        if asked.is_empty() {
            return Ok(());
        }
        let id = self.container.id.clone();
        if asked[0].is_empty() {
            self.owners.clear(&id, Field::Args, "");
            asked.remove(0);
        }
        self.owners.claim(&id, Field::Args, "", plugin)?;
        self.container.args.clone_from(&asked);
        self.adjust.args = asked;
        Ok(())
    }

    fn rlimits(&mut self, asked: Vec<PosixRlimit>, plugin: &str) -> Result<()> {
        let id = self.container.id.clone();
        for limit in asked {
            self.owners.claim(&id, Field::Rlimits, &limit.r#type, plugin)?;
            self.container.rlimits.retain(|known| known.r#type != limit.r#type);
            self.container.rlimits.push(limit.clone());
            self.adjust.rlimits.push(limit);
        }
        Ok(())
    }

    fn devices(&mut self, asked: Vec<LinuxDevice>, plugin: &str) -> Result<()> {
        let id = self.container.id.clone();
        let (removed, added): (Vec<_>, Vec<LinuxDevice>) = asked.into_iter().partition(|d| d.path.starts_with('-'));
        for device in &removed {
            self.owners.clear(&id, Field::Devices, bare(&device.path));
        }
        for device in &added {
            self.owners.claim(&id, Field::Devices, &device.path, plugin)?;
        }
        let touched: BTreeSet<&str> = removed.iter().chain(&added).map(|device| bare(&device.path)).collect();
        let shown = &mut self.container.linux.get_or_insert_default().devices;
        shown.retain(|device| !touched.contains(device.path.as_str()));
        shown.extend(added.iter().cloned());
        let adjusted = &mut self.adjust.linux.get_or_insert_default().devices;
        adjusted.retain(|device| !touched.contains(bare(&device.path)));
        adjusted.extend(removed.iter().chain(&added).cloned());
        Ok(())
    }

    /// Takes what a plugin asks of containers that are there. What fails and may is left out.
    ///
    /// # Errors
    /// `FailedPrecondition` for what another one has set; `InvalidArgument` for the container that is being made.
    pub fn update(&mut self, asked: Vec<ContainerUpdate>, plugin: &str) -> Result<()> {
        for update in asked {
            let (id, may_fail) = (update.container_id.clone(), update.ignore_failure);
            let own = id == self.container.id && !id.is_empty();
            if own && self.resources.is_none() {
                return Err(Error::invalid(format!("NRI plugin {plugin} updates container {id} while it is made")));
            }
            let Some(resources) = update.linux.and_then(|linux| linux.resources) else { continue };
            let mut owners = self.owners.clone();
            if let Err(e) = claim_resources(&mut owners, &id, &resources, plugin) {
                if may_fail {
                    continue;
                }
                return Err(e);
            }
            self.owners = owners;
            if own {
                overlay(&resources, self.resources.get_or_insert_default());
                continue;
            }
            let known = self.updates.entry(id.clone()).or_insert_with(|| ContainerUpdate {
                container_id: id,
                linux: Some(LinuxContainerUpdate::default()),
                ignore_failure: true,
            });
            known.ignore_failure &= may_fail;
            overlay(&resources, known.linux.get_or_insert_default().resources.get_or_insert_default());
        }
        Ok(())
    }
}

impl Container {
    fn linux_mut(&mut self) -> &mut LinuxContainer {
        self.linux.get_or_insert_default()
    }
}

impl ContainerAdjustment {
    fn linux_mut(&mut self) -> &mut LinuxContainerAdjustment {
        self.linux.get_or_insert_default()
    }
}

/// A key without the mark of removal.
pub fn bare(key: &str) -> &str {
    key.strip_prefix('-').unwrap_or(key)
}

/// A path without `//`, `.` and a final slash: two ways to write one place are one place.
pub fn clean(path: &str) -> String {
    format!("/{}", path.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/"))
}

fn claim_resources(owners: &mut Owners, id: &str, asked: &LinuxResources, plugin: &str) -> Result<()> {
    let mut claims: Vec<(Field, &str)> = Vec::new();
    let mut claim = |set: bool, field: Field| claims.extend(set.then_some((field, "")));
    if let Some(memory) = &asked.memory {
        claim(memory.limit.is_some(), Field::MemLimit);
        claim(memory.reservation.is_some(), Field::MemReservation);
        claim(memory.swap.is_some(), Field::MemSwapLimit);
        claim(memory.kernel.is_some(), Field::MemKernelLimit);
        claim(memory.kernel_tcp.is_some(), Field::MemTcpLimit);
        claim(memory.swappiness.is_some(), Field::MemSwappiness);
        claim(memory.disable_oom_killer.is_some(), Field::MemDisableOomKiller);
        claim(memory.use_hierarchy.is_some(), Field::MemUseHierarchy);
    }
    if let Some(cpu) = &asked.cpu {
        claim(cpu.shares.is_some(), Field::CpuShares);
        claim(cpu.quota.is_some(), Field::CpuQuota);
        claim(cpu.period.is_some(), Field::CpuPeriod);
        claim(cpu.realtime_runtime.is_some(), Field::CpuRealtimeRuntime);
        claim(cpu.realtime_period.is_some(), Field::CpuRealtimePeriod);
        claim(!cpu.cpus.is_empty(), Field::CpuSetCpUs);
        claim(!cpu.mems.is_empty(), Field::CpuSetMems);
    }
    claim(asked.blockio_class.is_some(), Field::BlockioClass);
    claim(asked.rdt_class.is_some(), Field::RdtClass);
    claim(asked.pids.is_some(), Field::PidsLimit);
    claims.extend(asked.hugepage_limits.iter().map(|limit| (Field::HugepageLimits, limit.page_size.as_str())));
    claims.extend(asked.unified.keys().map(|file| (Field::CgroupsUnified, file.as_str())));
    claims.into_iter().try_for_each(|(field, key)| owners.claim(id, field, key, plugin))
}

/// Puts what is asked for over what is there.
fn overlay(asked: &LinuxResources, over: &mut LinuxResources) {
    fn put<T: Clone>(asked: &Option<T>, over: &mut Option<T>) {
        if asked.is_some() {
            over.clone_from(asked);
        }
    }
    if let Some(memory) = &asked.memory {
        let over: &mut LinuxMemory = over.memory.get_or_insert_default();
        put(&memory.limit, &mut over.limit);
        put(&memory.reservation, &mut over.reservation);
        put(&memory.swap, &mut over.swap);
        put(&memory.kernel, &mut over.kernel);
        put(&memory.kernel_tcp, &mut over.kernel_tcp);
        put(&memory.swappiness, &mut over.swappiness);
        put(&memory.disable_oom_killer, &mut over.disable_oom_killer);
        put(&memory.use_hierarchy, &mut over.use_hierarchy);
    }
    if let Some(cpu) = &asked.cpu {
        let over: &mut LinuxCpu = over.cpu.get_or_insert_default();
        put(&cpu.shares, &mut over.shares);
        put(&cpu.quota, &mut over.quota);
        put(&cpu.period, &mut over.period);
        put(&cpu.realtime_runtime, &mut over.realtime_runtime);
        put(&cpu.realtime_period, &mut over.realtime_period);
        for (asked, over) in [(&cpu.cpus, &mut over.cpus), (&cpu.mems, &mut over.mems)] {
            if !asked.is_empty() {
                over.clone_from(asked);
            }
        }
    }
    put(&asked.blockio_class, &mut over.blockio_class);
    put(&asked.rdt_class, &mut over.rdt_class);
    put(&asked.pids, &mut over.pids);
    for limit in &asked.hugepage_limits {
        over.hugepage_limits.retain(|known| known.page_size != limit.page_size);
        over.hugepage_limits.push(limit.clone());
    }
    over.unified.extend(asked.unified.clone());
    over.devices.extend(asked.devices.iter().cloned());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nriapi::{OptionalInt64, OptionalUInt64};

    fn made() -> Merge {
        let container = Container {
            id: "c1".into(),
            env: vec!["A=1".into(), "B=2".into()],
            args: vec!["sh".into()],
            mounts: vec![Mount { destination: "/proc".into(), ..Mount::default() }],
            ..Container::default()
        };
        Merge::new(container, None)
    }

    fn env(pairs: &[(&str, &str)]) -> ContainerAdjustment {
        let env = pairs.iter().map(|(key, value)| KeyValue { key: (*key).into(), value: (*value).into() }).collect();
        ContainerAdjustment { env, ..ContainerAdjustment::default() }
    }

    fn mount(destination: &str) -> ContainerAdjustment {
        let mounts = vec![Mount { destination: destination.into(), r#type: "tmpfs".into(), ..Mount::default() }];
        ContainerAdjustment { mounts, ..ContainerAdjustment::default() }
    }

    fn limit(container: &str, bytes: i64, may_fail: bool) -> ContainerUpdate {
        let memory = LinuxMemory { limit: Some(OptionalInt64 { value: bytes }), ..LinuxMemory::default() };
        let resources = LinuxResources { memory: Some(memory), ..LinuxResources::default() };
        ContainerUpdate {
            container_id: container.into(),
            linux: Some(LinuxContainerUpdate { resources: Some(resources) }),
            ignore_failure: may_fail,
        }
    }

    #[test]
    fn what_one_plugin_has_set_another_may_not() {
        let mut merge = made();
        merge.adjust(env(&[("A", "9")]), "00-a").expect("first");
        let e = merge.adjust(env(&[("A", "8")]), "10-b").expect_err("second");
        assert_eq!(e.to_string(), "NRI plugins 00-a and 10-b both set Env A of container c1");
        merge.adjust(mount("/data"), "00-a").expect("first");
        assert!(
            merge.adjust(mount("/data//"), "10-b").expect_err("the same place").to_string().contains("Mounts /data")
        );
        merge.adjust(env(&[("C", "3")]), "10-b").expect("another one");
        assert_eq!(merge.container.env, ["B=2", "A=9", "C=3"]);
    }

    #[test]
    fn what_is_removed_first_may_be_set_again() {
        let mut merge = made();
        merge.adjust(env(&[("A", "9")]), "00-a").expect("first");
        merge.adjust(env(&[("-A", ""), ("A", "8")]), "10-b").expect("removed and set");
        merge.adjust(env(&[("-B", "")]), "20-c").expect("removed");
        assert_eq!(merge.container.env, ["A=8"]);
        merge.adjust(mount("-/proc"), "20-c").expect("removed");
        assert!(merge.container.mounts.is_empty());
        let args = |words: &[&str]| ContainerAdjustment {
            args: words.iter().map(|word| (*word).to_owned()).collect(),
            ..ContainerAdjustment::default()
        };
        merge.adjust(args(&["true"]), "00-a").expect("first");
        assert!(merge.adjust(args(&["false"]), "10-b").is_err());
        merge.adjust(args(&["", "false"]), "10-b").expect("over it");
        assert_eq!(merge.container.args, ["false"]);
    }

    #[test]
    fn limits_of_others_are_put_together_and_a_conflict_that_may_fail_is_left_out() {
        let mut merge = made();
        merge.update(vec![limit("c2", 5, false)], "00-a").expect("first");
        merge.update(vec![limit("c2", 6, true)], "10-b").expect("left out");
        assert!(merge.update(vec![limit("c2", 7, false)], "10-b").is_err());
        let shares = LinuxCpu { shares: Some(OptionalUInt64 { value: 2 }), ..LinuxCpu::default() };
        let mut other = limit("c2", 0, true);
        other.linux = Some(LinuxContainerUpdate {
            resources: Some(LinuxResources { cpu: Some(shares), ..LinuxResources::default() }),
        });
        merge.update(vec![other], "10-b").expect("another field");
        let update = &merge.updates["c2"];
        let resources = update.linux.as_ref().and_then(|linux| linux.resources.as_ref()).expect("there");
        assert_eq!(resources.memory.as_ref().and_then(|m| m.limit).map(|l| l.value), Some(5));
        assert_eq!(resources.cpu.as_ref().and_then(|c| c.shares).map(|s| s.value), Some(2));
        assert!(!update.ignore_failure, "one of them may not fail");
    }

    #[test]
    fn the_container_that_is_made_is_adjusted_and_not_updated_and_one_that_is_updated_changes_its_own_request() {
        assert!(made().update(vec![limit("c1", 5, true)], "00-a").is_err());
        let container = Container { id: "c1".into(), ..Container::default() };
        let mut merge = Merge::new(container, Some(LinuxResources::default()));
        merge.update(vec![limit("c1", 5, false)], "00-a").expect("its own");
        let memory = merge.resources.and_then(|resources| resources.memory).expect("there");
        assert_eq!((memory.limit.map(|l| l.value), merge.updates.len()), (Some(5), 0));
    }
}
