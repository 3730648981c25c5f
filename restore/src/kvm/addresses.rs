//! Addresses, given to a guest that runs by its agent: found by hardware address, set by `ip` in the guest, and read back.
//!
//! What is set so holds until the guest boots again, or something in it sets them anew. What the agent says comes from whoever has the guest: it is parsed, bounded, and never becomes a part
//! of a command but as an address, a number, or a name of letters and digits.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use landfall_model::{Error, ErrorKind, Result};
use landfall_qmp::{GuestAgent, QmpError};
use serde_json::{Value, json};

use super::nics::{Address, Wired, is_interface};

/// How long one command of the agent may take, and one program in the guest.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How long the agent is waited for at a time.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(200);
/// How often a command of addresses is tried, and after how long again.
const IP_TRIES: u32 = 3;
const IP_RETRY: Duration = Duration::from_secs(1);
/// Interfaces of a guest, and addresses of one, that are looked at.
const INTERFACES_MAX: usize = 256;

/// An interface as the guest's agent tells it.
struct Seen {
    name: String,
    addresses: Vec<Address>,
}

fn seen(said: &Value, mac: &str) -> Option<Seen> {
    let all = said.as_array()?.iter().take(INTERFACES_MAX);
    // Bridges and VLANs of the guest have the hardware address of what they stand on: the first is that itself.
    let one =
        all.filter(|i| i["hardware-address"].as_str().is_some_and(|m| m.eq_ignore_ascii_case(mac))).find_map(|i| {
            let name = i["name"].as_str().filter(|name| is_interface(name))?;
            Some((name.to_owned(), i["ip-addresses"].as_array().cloned().unwrap_or_default()))
        });
    let (name, listed) = one?;
    let address = |a: &Value| {
        let ip = a["ip-address"].as_str()?.parse::<IpAddr>().ok()?;
        Some(Address { ip, prefix: u8::try_from(a["prefix"].as_u64()?).ok().filter(|p| *p <= 128)? })
    };
    Some(Seen { name, addresses: listed.iter().take(INTERFACES_MAX).filter_map(address).collect() })
}

/// One that an interface has of itself.
fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

struct Guest {
    agent: GuestAgent,
}

impl Guest {
    fn interfaces(&mut self) -> Result<Value> {
        Ok(self.agent.execute("guest-network-get-interfaces", Value::Null, COMMAND_LIMIT)?)
    }

    /// Runs a program in the guest to its end.
    fn run(&mut self, program: &str, arguments: &[&str]) -> Result<()> {
        let line = || format!("`{program} {}` in the guest", arguments.join(" "));
        let ran = self.agent.run(program, arguments, &[], true, COMMAND_LIMIT).map_err(|e| match e {
            QmpError::Refused { class, desc, .. } if class == "CommandNotFound" => {
                let why = format!("the guest's agent may not run programs ({desc}): allow guest-exec in its configuration, or set inject = \"seed\"");
                Error::new(ErrorKind::Unsupported, why)
            }
            other => Error::from(other).context(line()),
        })?;
        match ran.code {
            Some(0) => Ok(()),
            code => {
                let code = code.map_or_else(|| "a signal".to_owned(), |code| format!("code {code}"));
                Err(Error::new(ErrorKind::Unavailable, format!("{} ended with {code}: {}", line(), ran.said)))
            }
        }
    }

    /// Runs `ip` in the guest. What a guest that has just booted refuses it may take a moment later.
    fn ip(&mut self, arguments: &[&str]) -> Result<()> {
        let mut tries = 1;
        loop {
            match self.run("ip", arguments) {
                Err(error) if error.kind() == ErrorKind::Unavailable && tries < IP_TRIES => {
                    tracing::debug!(%error, "tried again");
                    tries += 1;
                    std::thread::sleep(IP_RETRY);
                }
                done => return done,
            }
        }
    }

    /// Gives an interface its addresses, unless it has them and no others.
    fn set(&mut self, nic: &Wired) -> Result<bool> {
        let missing = || Error::new(ErrorKind::NotFound, "the guest has no such interface");
        let before = seen(&self.interfaces()?, &nic.mac).ok_or_else(missing)?;
        let (wanted, dev) = (&nic.addresses.own, before.name.as_str());
        let others: Vec<&Address> =
            before.addresses.iter().filter(|a| !is_link_local(&a.ip) && !wanted.contains(a)).collect();
        if others.is_empty() && wanted.iter().all(|a| before.addresses.contains(a)) {
            return Ok(false);
        }
        self.ip(&["link", "set", "dev", dev, "up"])?;
        // First the old ones: with them go their routes, which may be those that are set now.
        for address in others {
            self.ip(&["addr", "del", &address.to_string(), "dev", dev])?;
        }
        for address in wanted.iter().filter(|a| !before.addresses.contains(a)) {
            self.ip(&["addr", "add", &address.to_string(), "dev", dev])?;
        }
        for gateway in &nic.addresses.gateways {
            let kind = if gateway.is_ipv4() { "-4" } else { "-6" };
            self.ip(&[kind, "route", "replace", "default", "via", &gateway.to_string(), "dev", dev])?;
        }
        self.name_servers(dev, &nic.addresses.dns)?;
        Ok(true)
    }

    /// Where systemd-resolved runs, by it; else in the file that all others read.
    fn name_servers(&mut self, dev: &str, servers: &[IpAddr]) -> Result<()> {
        if servers.is_empty() {
            return Ok(());
        }
        let texts: Vec<String> = servers.iter().map(ToString::to_string).collect();
        let mut arguments = vec!["dns", dev];
        arguments.extend(texts.iter().map(String::as_str));
        if self.run("resolvectl", &arguments).is_ok() {
            return Ok(());
        }
        let text: String = texts.iter().map(|server| format!("nameserver {server}\n")).collect();
        let open = json!({ "path": "/etc/resolv.conf", "mode": "w" });
        let handle = self.agent.execute("guest-file-open", open, COMMAND_LIMIT)?;
        let write = json!({ "handle": handle, "buf-b64": BASE64.encode(text.as_bytes()) });
        let written = self.agent.execute("guest-file-write", write, COMMAND_LIMIT);
        let closed = self.agent.execute("guest-file-close", json!({ "handle": handle }), COMMAND_LIMIT);
        written?;
        closed?;
        Ok(())
    }

    /// Whether an interface has what it is to have, as its guest says.
    fn has(&mut self, nic: &Wired) -> Result<bool> {
        let has = seen(&self.interfaces()?, &nic.mac);
        Ok(has.is_some_and(|seen| nic.addresses.own.iter().all(|a| seen.addresses.contains(a))))
    }
}

/// Waits for the guest's agent. Blocks. None where there is none until `limit`.
fn connect(socket: &Path, limit: Duration) -> Option<Guest> {
    let deadline = Instant::now() + limit;
    loop {
        if let Ok(agent) = GuestAgent::connect(socket, CONNECT_LIMIT) {
            return Some(Guest { agent });
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// Gives the interfaces of a guest their addresses by its agent, and reads back that they have them. Blocks. Returns what was done, for people; none where no agent answered
/// until `limit`.
///
/// # Errors
/// Naming the interface: `NotFound` where the guest has none of that hardware address, `Unsupported` where its agent may not run programs, `Unavailable` with what a program said.
pub(crate) fn set(socket: &Path, nics: &[Wired], limit: Duration) -> Result<Option<String>> {
    let Some(mut guest) = connect(socket, limit) else { return Ok(None) };
    let mut done = Vec::new();
    for nic in nics.iter().filter(|nic| !nic.addresses.own.is_empty()) {
        let named = |error: Error| error.context(format!("addresses of interface {}", nic.title()));
        let changed = guest.set(nic).map_err(named)?;
        if !guest.has(nic).map_err(named)? {
            let why = "the guest does not have them, although it was told so: something in it sets others";
            return Err(named(Error::new(ErrorKind::Unavailable, why)));
        }
        let all: Vec<String> = nic.addresses.own.iter().map(ToString::to_string).collect();
        let how = if changed { "set until its next boot" } else { "there already" };
        done.push(format!("{}: {} {how}", nic.title(), all.join(", ")));
    }
    Ok(Some(done.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_found_by_its_hardware_address_and_only_plain_names_and_addresses_are_taken() {
        let address = |ip: &str, prefix: u64| json!({ "ip-address": ip, "ip-address-type": "ipv4", "prefix": prefix });
        let said = json!([
            { "name": "lo", "ip-addresses": [address("127.0.0.1", 8)] },
            { "name": "e; reboot", "hardware-address": "52:54:00:00:00:01", "ip-addresses": [] },
            { "name": "eth0", "hardware-address": "52:54:00:00:00:01",
              "ip-addresses": [address("10.0.0.1", 24), address("$(reboot)", 24), address("10.0.0.2", 999), 7] },
            { "name": "br0", "hardware-address": "52:54:00:00:00:01", "ip-addresses": [] },
        ]);
        let found = seen(&said, "52:54:00:00:00:01").expect("there");
        let wanted = Address { ip: "10.0.0.1".parse().expect("an address"), prefix: 24 };
        assert_eq!((found.name.as_str(), found.addresses), ("eth0", vec![wanted]));
        assert!(seen(&said, "52:54:00:00:00:02").is_none());
        assert!(seen(&json!({ "all": 1 }), "52:54:00:00:00:01").is_none());
    }
}
