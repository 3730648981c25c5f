//! Networks of this host: what connects an interface of the machine to a bridge, and networks that are made for a test.
//!
//! All created networks of a test stand in one network namespace, `landfall-<job>`: a bridge for each, with the addresses of the gateways of its interfaces. No cable leads out
//! of it. A deleted namespace takes everything in it along, so there is one thing to remove. To look at a machine in there: `ip netns exec landfall-<job> ping 10.1.2.3`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use landfall_model::{Error, ErrorKind, Result};

use super::nics::{Network, Wired, wired};
use super::{Files, Plan};

/// Where `ip` keeps the names of namespaces.
const NAMESPACES: &str = "/run/netns";
/// What our namespaces are called: the job's id follows.
const PREFIX: &str = "landfall-";

impl Files {
    /// The namespace of the networks that are made for the job.
    pub(crate) fn namespace(&self) -> String {
        let job = self.folder.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        format!("{PREFIX}{job}")
    }
}

/// Runs `ip` with these arguments.
///
/// # Errors
/// `Unsupported` where it is not there; `Unavailable` with what it says.
fn ip(arguments: &[&str]) -> Result<()> {
    let done = Command::new("ip").args(arguments).output().map_err(|e| {
        let why = "cannot start ip: install iproute2, or put it on the PATH";
        Error::with_source(ErrorKind::Unsupported, why, e)
    })?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let why = format!("`ip {}` failed: {}", arguments.join(" "), said.trim());
    Err(Error::new(ErrorKind::Unavailable, why))
}

/// Makes what the interfaces of a machine are connected to, as far as it is made for them, and what connects them. To be called before the machine starts.
///
/// # Errors
/// What `ip` says: only root may make networks.
pub(crate) fn make(plan: &Plan) -> Result<()> {
    let nics = wired(plan);
    let namespace = plan.files.namespace();
    if nics.iter().any(|nic| matches!(nic.network, Network::Created(_))) {
        // From an earlier start of ours that came to nothing: no machine runs.
        remove(&plan.files)?;
        let made = create(&namespace, &nics);
        made.map_err(|e| e.context("cannot make the network of the test: it takes root"))?;
    }
    for (place, nic) in nics.iter().enumerate() {
        let script = match &nic.network {
            Network::Bridge(bridge) => format!("exec ip link set dev \"$1\" master {bridge} up\n"),
            // Named anew: the next one that QEMU makes outside has the same name.
            Network::Created(bridge) => format!(
                "ip link set dev \"$1\" netns {namespace} name nic{place} && exec ip -n {namespace} link set dev nic{place} master {bridge} up\n"
            ),
            _ => continue,
        };
        let path = plan.files.wire_script(place);
        let written = fs::write(&path, format!("#!/bin/sh\n{script}"));
        let written = written.and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o700)));
        written.map_err(|e| Error::with_source(ErrorKind::of_io(&e), "cannot write the script for a network", e))?;
    }
    Ok(())
}

fn create(namespace: &str, nics: &[Wired]) -> Result<()> {
    ip(&["netns", "add", namespace])?;
    ip(&["-n", namespace, "link", "set", "lo", "up"])?;
    let mut made: Vec<&str> = Vec::new();
    let mut given: Vec<(&str, String)> = Vec::new();
    for nic in nics {
        let Network::Created(bridge) = &nic.network else { continue };
        if !made.contains(&bridge.as_str()) {
            ip(&["-n", namespace, "link", "add", bridge, "type", "bridge"])?;
            ip(&["-n", namespace, "link", "set", bridge, "up"])?;
            made.push(bridge);
        }
        for gateway in &nic.addresses.gateways {
            let prefix =
                nic.addresses.own.iter().find(|own| own.ip.is_ipv4() == gateway.is_ipv4()).map(|own| own.prefix);
            let Some(address) = prefix.map(|prefix| format!("{gateway}/{prefix}")) else { continue };
            // That two of them have one gateway is what is usual.
            if !given.contains(&(bridge, address.clone())) {
                let nodad: &[&str] = if gateway.is_ipv6() { &["nodad"] } else { &[] };
                ip(&[&["-n", namespace, "addr", "add", &address, "dev", bridge], nodad].concat())?;
                given.push((bridge, address));
            }
        }
    }
    Ok(())
}

/// Removes the networks that were made for the job of a folder. That there are none is no error.
///
/// # Errors
/// What `ip` says.
pub(crate) fn remove(files: &Files) -> Result<()> {
    let namespace = files.namespace();
    if !Path::new(NAMESPACES).join(&namespace).exists() {
        return Ok(());
    }
    ip(&["netns", "del", &namespace]).map_err(|e| e.context("cannot remove the network of a test"))
}
