//! What the network interfaces of a machine are connected to, and which addresses they are to have: from the target's file and the shape in the point.
//!
//! ```toml
//! [[nic]]
//! name = "eth0"                          # the source's; or mac = "52:54:00:00:00:01"
//! network = "bridge:br0"
//! addresses = ["10.1.2.3/24", "fd00::3/64"]
//! gateways = ["10.1.2.1"]
//! dns = ["10.1.2.53"]
//! model = "virtio"
//! test_network = "created:lab"           # and test_addresses, test_gateways, test_dns
//! ```
//! Nothing of a [[nic]] that is for a failover connects a test to what others are on: only `test_network` does.

use std::fmt;
use std::net::IpAddr;

use landfall_model::{Error, ErrorKind, Nic, PointMeta, Result};
use landfall_settings::{Source, Table};

use super::Plan;

/// Interfaces of a machine.
const NICS_MAX: usize = 32;
/// Addresses, gateways or name servers of an interface.
const LIST_MAX: usize = 16;
const KEYS: &[&str] = &[
    "name",
    "mac",
    "model",
    "network",
    "addresses",
    "gateways",
    "dns",
    "test_network",
    "test_addresses",
    "test_gateways",
    "test_dns",
];
const MODELS: &[&str] = &["virtio", "e1000", "e1000e", "rtl8139", "vmxnet3"];

/// What a network interface is connected to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Network {
    /// There is none.
    None,
    /// A network of its own, which reaches nothing.
    Isolated,
    /// Out by way of this host, and nobody in.
    User,
    /// A bridge of this host.
    Bridge(String),
    /// A bridge that is made for a test, in a network namespace of its own, and removed with it.
    Created(String),
}

impl Network {
    /// # Errors
    /// What to write instead.
    pub(crate) fn parse(text: &str) -> std::result::Result<Self, String> {
        let named = |kind: &str| text.strip_prefix(kind).filter(|name| is_interface(name)).map(str::to_owned);
        match text {
            "none" => return Ok(Self::None),
            "isolated" => return Ok(Self::Isolated),
            "user" => return Ok(Self::User),
            _ => {}
        }
        if let Some(name) = named("bridge:") {
            return Ok(Self::Bridge(name));
        }
        // What stands in the namespace besides is called so.
        match named("created:").filter(|name| name != "lo" && !name.starts_with("nic")) {
            Some(name) => Ok(Self::Created(name)),
            None => Err(format!("network {text:?}: it is none, isolated, user, bridge:NAME or created:NAME")),
        }
    }

    /// Others are on it, for whom a test must not be the source.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Bridge(_) | Self::User)
    }
}

/// It becomes a part of a script, and an argument.
pub(crate) fn is_interface(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
}

/// Six pairs of hex digits, and nothing else.
pub(crate) fn is_mac(text: &str) -> bool {
    let is_pair = |pair: &str| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
    text.split(':').count() == 6 && text.split(':').all(is_pair)
}

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Address {
    pub(crate) ip: IpAddr,
    pub(crate) prefix: u8,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl Address {
    fn parse(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("{text:?} is no address with a prefix: write \"10.1.2.3/24\" or \"fd00::3/64\"");
        let (ip, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let (ip, prefix) = (host(ip).map_err(|_| wrong())?, prefix.parse::<u8>().map_err(|_| wrong())?);
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        if prefix == 0 || prefix > longest {
            return Err(wrong());
        }
        Ok(Self { ip, prefix })
    }
}

/// The address of a host.
fn host(text: &str) -> std::result::Result<IpAddr, String> {
    let ip = text.parse::<IpAddr>().ok();
    ip.filter(|ip| !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback())
        .ok_or_else(|| format!("{text:?} is no address of a host: write for example \"10.1.2.1\""))
}

/// What an interface is to have.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Addresses {
    pub(crate) own: Vec<Address>,
    pub(crate) gateways: Vec<IpAddr>,
    pub(crate) dns: Vec<IpAddr>,
}

/// An interface in a failover, or in a test.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Side {
    network: Option<Network>,
    addresses: Addresses,
}

/// Which of the source's interfaces.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Which {
    Name(String),
    Mac(String),
}

impl Which {
    fn is(&self, nic: &Nic) -> bool {
        match self {
            Self::Name(name) => nic.name == *name,
            Self::Mac(mac) => nic.mac.eq_ignore_ascii_case(mac),
        }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(text) | Self::Mac(text) => f.write_str(text),
        }
    }
}

/// A `[[nic]]` of the target's file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NicSettings {
    which: Which,
    model: Option<String>,
    real: Side,
    test: Side,
}

/// The `[[nic]]`s of a target's file.
///
/// # Errors
/// `Usage`, naming the line.
pub(crate) fn parse<'a>(
    source: Source<'a>,
    value: Option<&'a landfall_settings::Value<'a>>,
) -> Result<Vec<NicSettings>> {
    let Some(value) = value else { return Ok(Vec::new()) };
    let at = value.span().start;
    let list = value.get_ref().as_array().ok_or_else(|| source.wrong(at, "nic is not a list: write [[nic]]"))?;
    if list.len() > NICS_MAX {
        return Err(source.wrong(at, format!("{} interfaces: at most {NICS_MAX}", list.len())));
    }
    let mut found: Vec<NicSettings> = Vec::new();
    for value in list.iter() {
        let table = source.table(value, "[[nic]]")?;
        table.only(KEYS)?;
        let which = match (table.text("name")?, table.text("mac")?) {
            (Some((_, name)), None) if !name.is_empty() => Which::Name(name),
            (None, Some((_, mac))) if is_mac(&mac) => Which::Mac(mac.to_ascii_lowercase()),
            (None, Some((at, mac))) => {
                return Err(source.wrong(at, format!("mac {mac:?}: write it as \"52:54:00:00:00:01\"")));
            }
            _ => {
                let why =
                    "a [[nic]] says which of the source's it is: add either name = \"eth0\" or mac = \"52:54:...\"";
                return Err(source.wrong(table.place(), why));
            }
        };
        if found.iter().any(|nic| nic.which == which) {
            return Err(source.wrong(table.place(), format!("there are two [[nic]] of {which}")));
        }
        let model = match table.text("model")? {
            Some((at, model)) if !MODELS.contains(&model.as_str()) => {
                return Err(source.wrong(at, format!("model {model:?}: it is one of {}", MODELS.join(", "))));
            }
            model => model.map(|(_, model)| model),
        };
        let (real, test) = (side(&table, ["network", "addresses", "gateways", "dns"])?, side(&table, TEST)?);
        found.push(NicSettings { which, model, real, test });
    }
    Ok(found)
}

const TEST: [&str; 4] = ["test_network", "test_addresses", "test_gateways", "test_dns"];

fn side(table: &Table<'_>, [network, own, gateways, dns]: [&str; 4]) -> Result<Side> {
    let addresses = Addresses {
        own: list(table, own, Address::parse)?,
        gateways: list(table, gateways, host)?,
        dns: list(table, dns, host)?,
    };
    for gateway in &addresses.gateways {
        if !addresses.own.iter().any(|own| own.ip.is_ipv4() == gateway.is_ipv4()) {
            let at = table.get(gateways).map_or(table.place(), |value| value.span().start);
            let why = format!("gateway {gateway} is of no use: the interface has no address of its kind in {own}");
            return Err(table.source().wrong(at, why));
        }
    }
    Ok(Side { network: network_of(table, network)?, addresses })
}

/// A network that a setting names.
///
/// # Errors
/// `Usage`, naming the line.
pub(crate) fn network_of(table: &Table<'_>, key: &str) -> Result<Option<Network>> {
    let text = table.text(key)?;
    text.map(|(at, text)| Network::parse(&text).map_err(|why| table.source().wrong(at, why))).transpose()
}

fn list<T>(table: &Table<'_>, key: &str, parse: fn(&str) -> std::result::Result<T, String>) -> Result<Vec<T>> {
    let Some(value) = table.get(key) else { return Ok(Vec::new()) };
    let (source, texts) = (table.source(), table.source().texts(value)?);
    if texts.len() > LIST_MAX {
        return Err(source.wrong(value.span().start, format!("{key}: at most {LIST_MAX}")));
    }
    texts.into_iter().map(|(at, text)| parse(&text).map_err(|why| source.wrong(at, why))).collect()
}

impl NicSettings {
    /// Whether a failover has its network from here.
    pub(crate) fn has_network(&self) -> bool {
        self.real.network.is_some()
    }

    /// Its network in a test, if it has one of its own there.
    pub(crate) fn network_of_tests(&self) -> Option<&Network> {
        self.test.network.as_ref()
    }

    /// Networks that a failover would have.
    pub(crate) fn network(&self) -> Option<&Network> {
        self.real.network.as_ref()
    }
}

/// An interface as the machine is to have it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Wired {
    /// What the source calls it; empty where that is not known.
    pub(crate) name: String,
    pub(crate) mac: String,
    /// QEMU's device.
    pub(crate) device: &'static str,
    pub(crate) network: Network,
    pub(crate) addresses: Addresses,
}

impl Wired {
    /// What people call it.
    pub(crate) fn title(&self) -> String {
        if self.name.is_empty() { self.mac.clone() } else { format!("{} ({})", self.name, self.mac) }
    }
}

/// QEMU's device for what the source called its model.
fn device(model: &str) -> &'static str {
    match model {
        "e1000" => "e1000",
        "e1000e" => "e1000e",
        "rtl8139" => "rtl8139",
        "vmxnet3" => "vmxnet3",
        _ => "virtio-net-pci",
    }
}

/// The source's interfaces; where the point does not say them, one for each `[[nic]]`, or one.
fn interfaces(point: &PointMeta, settings: &[NicSettings]) -> Vec<Nic> {
    let nic = |name: &str, mac: &str| Nic {
        name: name.to_owned(),
        model: String::new(),
        mac: mac.to_owned(),
        addresses: Vec::new(),
    };
    let known = point.shape.as_ref().map(|shape| shape.nics.as_slice()).unwrap_or_default();
    match (known, settings) {
        ([], []) => vec![nic("", "")],
        ([], settings) => settings
            .iter()
            .map(|s| match &s.which {
                Which::Name(name) => nic(name, ""),
                Which::Mac(mac) => nic("", mac),
            })
            .collect(),
        (known, _) => known.iter().take(NICS_MAX).cloned().collect(),
    }
}

/// Refuses settings that are of no interface of the point.
///
/// # Errors
/// `Usage`, naming those that there are.
pub(crate) fn check(settings: &[NicSettings], point: &PointMeta) -> Result<()> {
    let there = interfaces(point, settings);
    match settings.iter().find(|s| !there.iter().any(|nic| s.which.is(nic))) {
        None => Ok(()),
        Some(lost) => {
            let names: Vec<&str> = there.iter().map(|nic| nic.name.as_str()).collect();
            let why = format!(
                "the target's file has a [[nic]] of {}, which the machine has not: it has {}",
                lost.which,
                names.join(", ")
            );
            Err(Error::new(ErrorKind::Usage, why))
        }
    }
}

/// The interfaces of a machine, as it is to be made.
pub(crate) fn wired(plan: &Plan) -> Vec<Wired> {
    let settings = &plan.settings;
    let all = settings.network.as_ref();
    let mut out = Vec::new();
    for (place, nic) in interfaces(&plan.point, &settings.nics).into_iter().enumerate() {
        let found = settings.nics.iter().find(|s| s.which.is(&nic));
        let (real, test) = (found.map(|s| &s.real), found.map(|s| &s.test));
        let network = if plan.test {
            // Its own network is for a failover: nothing else connects a test to it.
            let own = real.and_then(|side| side.network.as_ref());
            let fallback = if own.is_some() { settings.test_network.as_ref() } else { settings.network_of_tests() };
            test.and_then(|side| side.network.as_ref()).or(fallback)
        } else {
            real.and_then(|side| side.network.as_ref()).or(all)
        };
        let network = network.cloned().unwrap_or(Network::Isolated);
        let alone = !(plan.test && network.is_shared());
        let empty = Addresses::default();
        let said = test.map_or(&empty, |side| &side.addresses);
        let addresses = match real {
            // The addresses of a failover, in a test, are for a network where nobody else has them.
            Some(real) if !plan.test || (alone && said.own.is_empty()) => &real.addresses,
            _ => said,
        };
        let model = found.and_then(|s| s.model.as_deref()).unwrap_or(&nic.model);
        out.push(Wired {
            mac: mac(plan, &network, place, &nic),
            device: device(model),
            addresses: if network == Network::None { Addresses::default() } else { addresses.clone() },
            name: if is_interface(&nic.name) { nic.name } else { String::new() },
            network,
        });
    }
    out
}

/// The address of an interface: the source's, but never in a test that shares a bridge with others.
fn mac(plan: &Plan, network: &Network, place: usize, nic: &Nic) -> String {
    let shared = matches!(network, Network::Bridge(_)) && plan.test;
    if !shared && is_mac(&nic.mac) {
        return nic.mac.to_ascii_lowercase();
    }
    let hash = blake3::hash(format!("{}/{place}", plan.title).as_bytes());
    let [a, b, c, ..] = *hash.as_bytes();
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}

#[cfg(test)]
mod tests;
