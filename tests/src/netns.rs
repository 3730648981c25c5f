//! Hosts with networks of their own: network namespaces of this machine, joined by bridges, whose cables can be pulled. Needs root.
//!
//! ```text
//!   agent        gateway a     gateway b      the test, and the store behind it
//!     |            |    |        |    |            |
//!     '---- lan ---+----|--------'    |            |
//!                       '--- wan -----+------------'
//! ```
//! Both bridges stand in a namespace of their own, so that no filter of the machine sees what they carry. Everything goes when the network is
//! dropped; what a test that was killed has left behind goes when the next one begins.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::tools;

/// What namespaces of ours are called: then come the number of the process, of the network in it, and the host.
const PREFIX: &str = "landfall-test-";
/// The namespace of the bridges.
const HUB: &str = "hub";
/// Addresses that are for tests of networks, and stand in nobody's configuration (RFC 2544).
const LAN: &str = "198.19.0";
const WAN: &str = "198.18";

/// One of the two networks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cable {
    /// Agents and gateways.
    Lan,
    /// Gateways and the store.
    Wan,
}

impl Cable {
    fn name(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Wan => "wan",
        }
    }
}

/// A host `agent` and two gateways, `a` and `b`.
#[derive(Debug)]
pub struct Network {
    ip: PathBuf,
    prefix: String,
    /// The cable of the test's own namespace.
    own: String,
    wan: String,
}

/// Hosts, the last part of their addresses, and whether they have a cable to the store.
const HOSTS: [(&str, u32, bool); 3] = [("agent", 10, false), ("a", 11, true), ("b", 12, true)];

impl Network {
    /// All hosts, joined. `None` after saying that this machine does not allow it.
    ///
    /// # Panics
    /// If it allows namespaces and then fails.
    pub fn new() -> Option<Self> {
        static NETWORKS: AtomicU32 = AtomicU32::new(0);
        let ip = tools::need("ip")?;
        let (process, number) = (std::process::id(), NETWORKS.fetch_add(1, Ordering::SeqCst));
        remove_leftovers(&ip);
        let wan = format!("{WAN}.{}", 1 + (process.wrapping_mul(8) + number) % 250);
        let network =
            Self { ip, prefix: format!("{PREFIX}{process}-{number}-"), own: format!("lf{process}w{number}"), wan };
        if let Err(why) = network.try_ip(&["netns", "add", &network.namespace(HUB)]) {
            eprintln!("SKIPPED: this machine does not let us make network namespaces (root can): {why}");
            return None;
        }
        network.join();
        Some(network)
    }

    fn join(&self) {
        let hub = self.namespace(HUB);
        for bridge in ["lan", "wan"] {
            self.ip(&["-n", &hub, "link", "add", bridge, "type", "bridge"]);
            self.ip(&["-n", &hub, "link", "set", bridge, "up"]);
        }
        for (host, part, with_store) in HOSTS {
            let namespace = self.namespace(host);
            self.ip(&["netns", "add", &namespace]);
            self.ip(&["-n", &namespace, "link", "set", "lo", "up"]);
            let lan = (Cable::Lan, format!("{LAN}.{part}"));
            let wan = with_store.then(|| (Cable::Wan, format!("{}.{part}", self.wan)));
            for (cable, address) in [Some(lan), wan].into_iter().flatten() {
                let (end, name) = (format!("{host}-{}", cable.name()), cable.name());
                self.ip(&["-n", &hub, "link", "add", &end, "type", "veth", "peer", "name", name, "netns", &namespace]);
                self.ip(&["-n", &hub, "link", "set", &end, "master", name, "up"]);
                self.ip(&["-n", &namespace, "addr", "add", &format!("{address}/24"), "dev", name]);
                self.ip(&["-n", &namespace, "link", "set", name, "up"]);
            }
        }
        self.ip(&["-n", &hub, "link", "add", "own-wan", "type", "veth", "peer", "name", &self.own]);
        let here = std::process::id().to_string();
        self.ip(&["-n", &hub, "link", "set", &self.own, "netns", &here]);
        self.ip(&["-n", &hub, "link", "set", "own-wan", "master", "wan", "up"]);
        self.ip(&["addr", "add", &format!("{}/24", self.store_address()), "dev", &self.own]);
        self.ip(&["link", "set", &self.own, "up"]);
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}{host}", self.prefix)
    }

    fn try_ip(&self, arguments: &[&str]) -> Result<(), String> {
        let out = tools::output(Command::new(&self.ip).args(arguments));
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()) }
    }

    #[track_caller]
    fn ip(&self, arguments: &[&str]) {
        self.try_ip(arguments).unwrap_or_else(|why| panic!("ip {}: {why}", arguments.join(" ")));
    }

    /// What comes before a command line that is to run on a host.
    pub fn on(&self, host: &str) -> Vec<String> {
        let ip = self.ip.to_str().expect("a plain name").to_owned();
        vec![ip, "netns".to_owned(), "exec".to_owned(), self.namespace(host)]
    }

    /// A gateway's address for agents.
    ///
    /// # Panics
    /// If there is no such host.
    pub fn gateway_address(&self, host: &str) -> String {
        let (_, part, _) = HOSTS.iter().find(|(name, ..)| *name == host).expect("a host of the network");
        format!("{LAN}.{part}:7443")
    }

    /// The address of this test for gateways.
    pub fn store_address(&self) -> String {
        format!("{}.1", self.wan)
    }

    /// Pulls a cable of a host.
    pub fn cut(&self, host: &str, cable: Cable) {
        self.set(host, cable, "down");
    }

    /// Puts it back.
    pub fn heal(&self, host: &str, cable: Cable) {
        self.set(host, cable, "up");
    }

    fn set(&self, host: &str, cable: Cable, state: &str) {
        self.ip(&["-n", &self.namespace(HUB), "link", "set", &format!("{host}-{}", cable.name()), state]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in HOSTS.iter().map(|(host, ..)| *host).chain([HUB]) {
            // Where one was never made there is nothing to remove.
            let _ = self.try_ip(&["netns", "del", &self.namespace(host)]);
        }
        let _ = self.try_ip(&["link", "del", &self.own]);
    }
}

/// Removes the namespaces of tests that are no more.
fn remove_leftovers(ip: &Path) {
    let listed = tools::output(Command::new(ip).args(["netns", "list"]));
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let Some(name) = line.split_whitespace().next() else { continue };
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            tools::output(Command::new(ip).args(["netns", "del", name]));
        }
    }
}
