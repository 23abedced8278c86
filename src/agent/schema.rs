//! The fields of core/v1 objects (Kubernetes 1.36, api/core/v1/types.go), and what podwright does with each.
//!
//! Facts only. Every field that the API knows stands here, so that a misspelt field, a field that this podwright does not honour,
//! and one that it honours are three different things to the reader of an error. How a field is read is in `decode`.

use Use::{Honoured as H, NoEffect as N, Refused as R};

/// What happens to a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It does what Kubernetes says (some of its values may still be refused, where it is read).
    Honoured,
    /// Accepted: on one node without an API server nothing follows from it, for this reason.
    NoEffect(&'static str),
    /// Refused by name. The text is what to do; empty: remove the field.
    Refused(&'static str),
}

/// An object type: its name and its fields.
#[derive(Debug)]
pub struct Object {
    pub name: &'static str,
    pub fields: &'static [(&'static str, Use)],
}

impl Object {
    /// What happens to the field called `name`; `None`: there is none.
    pub fn find(&self, name: &str) -> Option<Use> {
        self.fields.iter().find(|(field, _)| *field == name).map(|(_, used)| *used)
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.fields.iter().map(|(field, _)| *field)
    }
}

const SERVER: Use = N("an API server writes it");
const LATER: Use = R("");
const NO_API: Use = R("it needs an API server, and there is none");
const NO_PLUGIN: Use = R("use emptyDir, hostPath, configMap, secret, downwardAPI or projected");
const WINDOWS: Use = R("it is for Windows, and this is Linux");

pub static POD: Object =
    Object { name: "Pod", fields: &[("apiVersion", H), ("kind", H), ("metadata", H), ("spec", H), ("status", SERVER)] };

pub static LIST: Object =
    Object { name: "List", fields: &[("apiVersion", H), ("kind", H), ("metadata", SERVER), ("items", H)] };

pub static CONFIG_MAP: Object = Object {
    name: "ConfigMap",
    fields: &[
        ("apiVersion", H),
        ("kind", H),
        ("metadata", H),
        ("data", H),
        ("binaryData", H),
        ("immutable", N("nothing changes a document of a file")),
    ],
};

pub static SECRET: Object = Object {
    name: "Secret",
    fields: &[
        ("apiVersion", H),
        ("kind", H),
        ("metadata", H),
        ("data", H),
        ("stringData", H),
        ("type", N("only an API server looks at it")),
        ("immutable", N("nothing changes a document of a file")),
    ],
};

pub static METADATA: Object = Object {
    name: "ObjectMeta",
    fields: &[
        ("name", H),
        ("namespace", H),
        ("uid", H),
        ("labels", H),
        ("annotations", H),
        ("generateName", N("metadata.name is what counts")),
        ("creationTimestamp", SERVER),
        ("deletionTimestamp", SERVER),
        ("deletionGracePeriodSeconds", SERVER),
        ("finalizers", SERVER),
        ("generation", SERVER),
        ("managedFields", SERVER),
        ("ownerReferences", SERVER),
        ("resourceVersion", SERVER),
        ("selfLink", SERVER),
    ],
};

pub static POD_SPEC: Object = Object {
    name: "PodSpec",
    fields: &[
        ("activeDeadlineSeconds", H),
        ("affinity", LATER),
        ("automountServiceAccountToken", H),
        ("containers", H),
        ("dnsConfig", H),
        ("dnsPolicy", H),
        ("enableServiceLinks", N("without an API server there are no services")),
        ("ephemeralContainers", R("they are added to a running pod; use podwright exec")),
        ("hostAliases", H),
        ("hostIPC", H),
        ("hostNetwork", H),
        ("hostPID", H),
        ("hostUsers", H),
        ("hostname", H),
        ("hostnameOverride", H),
        ("imagePullSecrets", H),
        ("initContainers", H),
        ("nodeName", H),
        ("nodeSelector", LATER),
        ("os", H),
        ("overhead", H),
        ("preemptionPolicy", N("no pod is preempted here")),
        ("priority", LATER),
        ("priorityClassName", LATER),
        ("readinessGates", NO_API),
        ("resourceClaims", NO_API),
        ("resources", R("give each container its resources")),
        ("restartPolicy", H),
        ("runtimeClassName", H),
        ("schedulerName", N("there is one node and nothing to schedule")),
        ("schedulingGates", NO_API),
        ("schedulingGroup", NO_API),
        ("securityContext", H),
        ("serviceAccount", H),
        ("serviceAccountName", H),
        ("setHostnameAsFQDN", H),
        ("shareProcessNamespace", H),
        ("subdomain", R("there is no cluster domain; use hostAliases for further names")),
        ("terminationGracePeriodSeconds", H),
        ("tolerations", N("this node has no taints")),
        ("topologySpreadConstraints", LATER),
        ("volumes", H),
        ("workloadRef", NO_API),
    ],
};

pub static CONTAINER: Object = Object {
    name: "Container",
    fields: &[
        ("args", H),
        ("command", H),
        ("env", H),
        ("envFrom", H),
        ("image", H),
        ("imagePullPolicy", H),
        ("lifecycle", LATER),
        ("livenessProbe", LATER),
        ("name", H),
        ("ports", H),
        ("readinessProbe", LATER),
        ("resizePolicy", N("a file's pod is changed by replacing it")),
        ("resources", H),
        ("restartPolicy", H),
        ("restartPolicyRules", LATER),
        ("securityContext", H),
        ("startupProbe", LATER),
        ("stdin", H),
        ("stdinOnce", H),
        ("terminationMessagePath", H),
        ("terminationMessagePolicy", H),
        ("tty", H),
        ("volumeDevices", NO_API),
        ("volumeMounts", H),
        ("workingDir", H),
    ],
};

pub static RESOURCES: Object =
    Object { name: "ResourceRequirements", fields: &[("claims", NO_API), ("limits", H), ("requests", H)] };

pub static PORT: Object = Object {
    name: "ContainerPort",
    fields: &[("containerPort", H), ("hostIP", H), ("hostPort", H), ("name", H), ("protocol", H)],
};

pub static ENV: Object = Object { name: "EnvVar", fields: &[("name", H), ("value", H), ("valueFrom", H)] };

pub static ENV_SOURCE: Object = Object {
    name: "EnvVarSource",
    fields: &[
        ("configMapKeyRef", H),
        ("fieldRef", H),
        ("fileKeyRef", LATER),
        ("resourceFieldRef", H),
        ("secretKeyRef", H),
    ],
};

pub static KEY_REF: Object = Object { name: "KeySelector", fields: &[("key", H), ("name", H), ("optional", H)] };

pub static FIELD_REF: Object = Object { name: "ObjectFieldSelector", fields: &[("apiVersion", H), ("fieldPath", H)] };

pub static RESOURCE_REF: Object =
    Object { name: "ResourceFieldSelector", fields: &[("containerName", H), ("divisor", H), ("resource", H)] };

pub static ENV_FROM: Object =
    Object { name: "EnvFromSource", fields: &[("configMapRef", H), ("prefix", H), ("secretRef", H)] };

pub static NAME_REF: Object = Object { name: "LocalObjectReference", fields: &[("name", H), ("optional", H)] };

pub static LOCAL_REF: Object = Object { name: "LocalObjectReference", fields: &[("name", H)] };

pub static MOUNT: Object = Object {
    name: "VolumeMount",
    fields: &[
        ("mountPath", H),
        ("mountPropagation", H),
        ("name", H),
        ("readOnly", H),
        ("recursiveReadOnly", H),
        ("subPath", H),
        ("subPathExpr", H),
    ],
};

pub static VOLUME: Object = Object {
    name: "Volume",
    fields: &[
        ("awsElasticBlockStore", NO_PLUGIN),
        ("azureDisk", NO_PLUGIN),
        ("azureFile", NO_PLUGIN),
        ("cephfs", NO_PLUGIN),
        ("cinder", NO_PLUGIN),
        ("configMap", H),
        ("csi", NO_API),
        ("downwardAPI", H),
        ("emptyDir", H),
        ("ephemeral", NO_API),
        ("fc", NO_PLUGIN),
        ("flexVolume", NO_PLUGIN),
        ("flocker", NO_PLUGIN),
        ("gcePersistentDisk", NO_PLUGIN),
        ("gitRepo", NO_PLUGIN),
        ("glusterfs", NO_PLUGIN),
        ("hostPath", H),
        ("image", H),
        ("iscsi", NO_PLUGIN),
        ("name", H),
        ("nfs", NO_PLUGIN),
        ("persistentVolumeClaim", NO_API),
        ("photonPersistentDisk", NO_PLUGIN),
        ("portworxVolume", NO_PLUGIN),
        ("projected", H),
        ("quobyte", NO_PLUGIN),
        ("rbd", NO_PLUGIN),
        ("scaleIO", NO_PLUGIN),
        ("secret", H),
        ("storageos", NO_PLUGIN),
        ("vsphereVolume", NO_PLUGIN),
    ],
};

pub static EMPTY_DIR: Object = Object { name: "EmptyDirVolumeSource", fields: &[("medium", H), ("sizeLimit", LATER)] };

pub static IMAGE_VOLUME: Object = Object { name: "ImageVolumeSource", fields: &[("pullPolicy", H), ("reference", H)] };

pub static HOST_PATH: Object = Object { name: "HostPathVolumeSource", fields: &[("path", H), ("type", H)] };

pub static CONFIG_MAP_VOLUME: Object =
    Object { name: "ConfigMapVolumeSource", fields: &[("defaultMode", H), ("items", H), ("name", H), ("optional", H)] };

pub static SECRET_VOLUME: Object = Object {
    name: "SecretVolumeSource",
    fields: &[("defaultMode", H), ("items", H), ("optional", H), ("secretName", H)],
};

pub static DOWNWARD_VOLUME: Object =
    Object { name: "DownwardAPIVolumeSource", fields: &[("defaultMode", H), ("items", H)] };

pub static PROJECTED_VOLUME: Object =
    Object { name: "ProjectedVolumeSource", fields: &[("defaultMode", H), ("sources", H)] };

pub static PROJECTION: Object = Object {
    name: "VolumeProjection",
    fields: &[
        ("clusterTrustBundle", NO_API),
        ("configMap", H),
        ("downwardAPI", H),
        ("podCertificate", NO_API),
        ("secret", H),
        ("serviceAccountToken", NO_API),
    ],
};

pub static PROJECTED_MAP: Object =
    Object { name: "ConfigMapProjection", fields: &[("items", H), ("name", H), ("optional", H)] };

pub static PROJECTED_DOWNWARD: Object = Object { name: "DownwardAPIProjection", fields: &[("items", H)] };

pub static KEY_TO_PATH: Object = Object { name: "KeyToPath", fields: &[("key", H), ("mode", H), ("path", H)] };

pub static DOWNWARD_FILE: Object = Object {
    name: "DownwardAPIVolumeFile",
    fields: &[("fieldRef", H), ("mode", H), ("path", H), ("resourceFieldRef", H)],
};

pub static POD_SECURITY: Object = Object {
    name: "PodSecurityContext",
    fields: &[
        ("appArmorProfile", H),
        ("fsGroup", H),
        ("fsGroupChangePolicy", N("every volume that fsGroup is for is new when the pod starts")),
        ("runAsGroup", H),
        ("runAsNonRoot", H),
        ("runAsUser", H),
        ("seLinuxChangePolicy", H),
        ("seLinuxOptions", H),
        ("seccompProfile", H),
        ("supplementalGroups", H),
        ("supplementalGroupsPolicy", H),
        ("sysctls", H),
        ("windowsOptions", WINDOWS),
    ],
};

pub static SECURITY: Object = Object {
    name: "SecurityContext",
    fields: &[
        ("allowPrivilegeEscalation", H),
        ("appArmorProfile", H),
        ("capabilities", H),
        ("privileged", H),
        ("procMount", H),
        ("readOnlyRootFilesystem", H),
        ("runAsGroup", H),
        ("runAsNonRoot", H),
        ("runAsUser", H),
        ("seLinuxOptions", H),
        ("seccompProfile", H),
        ("windowsOptions", WINDOWS),
    ],
};

pub static CAPABILITIES: Object = Object { name: "Capabilities", fields: &[("add", H), ("drop", H)] };

pub static APPARMOR: Object = Object { name: "AppArmorProfile", fields: &[("localhostProfile", H), ("type", H)] };

pub static SELINUX: Object =
    Object { name: "SELinuxOptions", fields: &[("level", H), ("role", H), ("type", H), ("user", H)] };

pub static SECCOMP: Object = Object { name: "SeccompProfile", fields: &[("localhostProfile", H), ("type", H)] };

pub static SYSCTL: Object = Object { name: "Sysctl", fields: &[("name", H), ("value", H)] };

pub static HOST_ALIAS: Object = Object { name: "HostAlias", fields: &[("hostnames", H), ("ip", H)] };

pub static DNS: Object =
    Object { name: "PodDNSConfig", fields: &[("nameservers", H), ("options", H), ("searches", H)] };

pub static DNS_OPTION: Object = Object { name: "PodDNSConfigOption", fields: &[("name", H), ("value", H)] };

pub static OS: Object = Object { name: "PodOS", fields: &[("name", H)] };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_once_and_found() {
        for object in [&POD_SPEC, &CONTAINER, &VOLUME, &POD_SECURITY, &SECURITY, &METADATA] {
            let mut names: Vec<_> = object.names().collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), object.fields.len(), "{}", object.name);
        }
        assert_eq!(CONTAINER.find("livenessProbe"), Some(LATER));
        assert_eq!(CONTAINER.find("livenessprobe"), None);
    }
}
