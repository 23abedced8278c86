//! What the kernel must be told by /proc/sys: that this host forwards, and what holds on the bridge and in a pod. Only what is not so already is
//! written, and what of the host's own is changed is noted.

use crate::config::network::Subnet;
use crate::error::{Context, Error, Result};
use crate::state::paths::Paths;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

fn path(name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/{name}"))
}

fn get(name: &str) -> Result<String> {
    let path = path(name);
    let text = std::fs::read_to_string(&path).context(|| format!("read {}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// Sets it; what it was before, if it was something else.
fn set(name: &str, value: &str) -> Result<Option<String>> {
    let was = get(name)?;
    if was == value {
        return Ok(None);
    }
    let path = path(name);
    let file = OpenOptions::new().write(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(value.as_bytes()));
    let remedy = || format!("write {value} to {} (or set it yourself, or network.mode none)", path.display());
    written.context(remedy).map(|()| Some(was))
}

/// What the host and the bridge need for these subnets.
///
/// # Errors
/// `Internal` for one that cannot be written: /proc/sys is read-only in a container that is not privileged.
pub(super) fn prepare(paths: &Paths, bridge: &str, subnets: &[Subnet]) -> Result<()> {
    for subnet in subnets {
        if subnet.address.is_ipv4() {
            change(paths, "net/ipv4/ip_forward", "1")?;
            set(&format!("net/ipv4/conf/{bridge}/route_localnet"), "1")?; // table.rs says why, and what keeps it safe
        } else {
            // First, for what takes advertisements now is to take them when the host forwards.
            set(&format!("net/ipv6/conf/{bridge}/accept_ra"), "0")?;
            set(&format!("net/ipv6/conf/{bridge}/accept_dad"), "0")?;
            forward_ipv6(paths)?;
        }
    }
    Ok(())
}

/// A host that forwards takes no router advertisements any more unless it is told to (accept_ra = 2, ip-sysctl): without that it would lose its
/// own default route, and minutes later.
fn forward_ipv6(paths: &Paths) -> Result<()> {
    if get("net/ipv6/conf/all/forwarding")? == "1" {
        return Ok(());
    }
    let interfaces = std::fs::read_dir("/proc/sys/net/ipv6/conf").context(|| "list /proc/sys/net/ipv6/conf")?;
    for interface in interfaces.flatten() {
        let Ok(name) = interface.file_name().into_string() else { continue };
        let accept = format!("net/ipv6/conf/{name}/accept_ra");
        match get(&accept) {
            Ok(value) if value == "1" && name != "all" => change(paths, &accept, "2")?,
            _ => {} // it takes none, or the interface is just going
        }
    }
    change(paths, "net/ipv6/conf/all/forwarding", "1")
}

/// Sets one of the host's own, and notes it. It is not set back: nobody can know who relies on it by then.
fn change(paths: &Paths, name: &str, value: &str) -> Result<()> {
    let Some(was) = set(name, value)? else { return Ok(()) };
    tracing::info!("{name} was {was} and is {value} now, for pods are to reach others");
    let file = paths.sysctls();
    let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(&file);
    let noted = opened.and_then(|mut open| open.write_all(format!("{name} {was} {value}\n").as_bytes()));
    noted.map_err(|e| Error::internal(format!("write {}: {e}", file.display())))
}

/// In a pod's namespace, before it has an interface.
///
/// # Errors
/// `Internal` for one that cannot be written.
pub(super) fn prepare_pod() -> Result<()> {
    if super::has_ipv6() {
        set("net/ipv6/conf/default/accept_ra", "0")?;
        set("net/ipv6/conf/default/accept_dad", "0")?;
    }
    Ok(())
}
