//! The pod agent: Pod manifests, with no API server. `check`, `run --dry-run` and `run` go the same way through:
//!
//! [`manifest::load`] -> [`convert::plan`] -> [`volume_files::prepare`] -> [`reconcile::decide`], round after round.
//!
//! Reading (`yaml`, `read`, `schema`, `decode*`, `names`, `quantity`, `validate`) tells everything that is wrong with a file, each
//! with line, column, field, value and remedy. Deciding (`resources`, `expand`, `volume`, `etc`, `convert`, `reconcile`) is pure.
//! `volume_files` makes what volumes hold, `node` reads what the host is. [`host`] runs pods by [`runner`], the loop that observes and acts;
//! [`service`] does it for commands that ask a daemon.
//!
//! What happens to a field is in [`schema`], for every field of core/v1 there is. In short:
//!
//! | field | here |
//! |---|---|
//! | livenessProbe, readinessProbe, startupProbe, lifecycle, restartPolicyRules | refused by name |
//! | restartPolicy of an init container | Always (a sidecar) is honoured, another refused |
//! | imagePullPolicy | as a kubelet's; but of what was imported no registry is asked: somebody of this host said what the name is |
//! | imagePullSecrets | Secrets of the same file; one that is not there is told when a registry refuses, as by a kubelet |
//! | emptyDir | on disk; `medium` and `sizeLimit` refused, for neither would be enforced |
//! | image (a volume) | read-only, pulled as its pullPolicy says; subPath is a directory of it |
//! | subPath, subPathExpr | in configMap, secret, downwardAPI, projected and image volumes; refused where a container may write |
//! | configMap, secret | resolved from documents of the same file; a kubelet refuses them for pods of files |
//! | hostPort | on the bridge and CNI; with hostNetwork it means nothing more; refused with network.mode none |
//! | seccompProfile | absent means RuntimeDefault, as for a kubelet with `seccompDefault: true`; Kubernetes' own default is none |
//! | appArmorProfile | absent means podwright's own where the host has AppArmor; named ones the host's administrator loads |
//! | seLinuxOptions | a container's instead of the pod's, all of them; the level is the pod's where none is given. Nothing where the host has no SELinux |
//! | seLinuxChangePolicy | accepted: volumes of the pod's own get its label, those of the host keep theirs |
//! | sysctls | of the pod's net and ipc namespaces; no list of "safe" ones, who writes the file owns the machine |
//! | dnsPolicy | no cluster DNS: ClusterFirst means the host's, as for a kubelet without clusterDNS |
//! | hostUsers: false | a user namespace of 65536 ids that no other pod has; every volume is seen through them |
//! | procMount: Unmasked | with hostUsers: false, as in Kubernetes |
//! | subdomain, setHostnameAsFQDN: true | refused |
//! | nodeName | refused if it is another node's; nodeSelector and affinity refused |
//! | runtimeClassName | a runtime handler of the configuration file: there is no API server to ask what a class means |
//! | overhead | counted into the pod's cgroup, as by a kubelet; refused without runtimeClassName, as by an API server |
//! | priority, priorityClassName, pod-level resources | refused |
//! | tolerations, schedulerName, enableServiceLinks, resizePolicy, preemptionPolicy | accepted: no effect |
//! | status, and what a server writes into metadata | accepted: no effect, so that `kubectl get -o yaml` can be run |
//! | terminationMessagePath | a file of each attempt, mounted there |
//! | uid | the file's, or FNV-1a of what the file says, node and salt: 32 hex digits |
//!
//! The names and numbers are the kubelet's, with its sources named where they are used.

pub mod problem;
pub mod yaml;
pub mod quantity;
pub mod names;
mod fnv;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod schema;
pub mod read;
pub mod pod;
pub mod objects;
mod decode;
mod decode_container;
mod decode_security;
mod decode_volume;
pub mod pull_secrets;
mod validate;
mod template;
pub mod manifest;
pub mod resources;
pub mod expand;
mod etc;
pub mod volume;
pub mod convert;
pub mod reconcile;
pub mod volume_files;
pub mod logs;
mod message;
pub mod runner;
pub mod node;
pub mod host;
pub mod service;
