//! Settings of the target `kvm`: what the shape in the point does not say, or is to be otherwise.
//!
//! ```toml
//! [kvm]
//! network = "bridge:br0"        # "none", "isolated" (a network of its own), "user" (out by this host's), "bridge:NAME"
//! test_network = "created:lab"  # of a test: the same, or a bridge that is made for it; default: as network
//! inject = "auto"               # how [[nic]] gives addresses: "seed" (cloud-init), "agent", "auto": both; "none"
//! cpus = 4                      # default: as in the point, or 2
//! memory = "8GiB"               # default: as in the point, or 2GiB
//! firmware = "uefi"             # or "bios"; default: as in the point, or "bios"
//! bus = "virtio"                # of the disks: "virtio", "scsi", "sata", "nvme"
//! accel = "auto"                # "kvm", "tcg" (emulation); "auto": KVM where this host has it
//! probe = "console:login:"      # up when this is on the first serial port; others: probe.rs; a list: when all pass; default: when it runs
//! probe_limit = "5min"          # the default
//! arguments = ["-device", "..."] # more arguments for QEMU
//!
//! ```
//! `[[nic]]`: see `nics.rs`; `[[disk]]`: see `empty.rs`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use landfall_model::{Error, ErrorKind, PointMeta, Result};
use landfall_settings::{Source, Table};

use super::empty::{self, Empty};
use super::nics::{self, Network, NicSettings, network_of};
use super::probe::{PROBES_MAX, Probe};

const KEYS: &[&str] = &[
    "network",
    "test_network",
    "inject",
    "cpus",
    "memory",
    "firmware",
    "bus",
    "accel",
    "cpu",
    "machine",
    "qemu",
    "kernel",
    "initrd",
    "append",
    "probe",
    "probe_limit",
    "arguments",
];
const PROBE_LIMIT: Duration = Duration::from_secs(300);

/// How the guest learns its addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Inject {
    /// By the seed disk, and by its agent where the seed did not do it.
    Auto,
    /// By a disk that cloud-init reads.
    Seed,
    /// By its agent.
    Agent,
    /// Not at all.
    None,
}

impl Inject {
    const ALL: [(&'static str, Self); 4] =
        [("auto", Self::Auto), ("seed", Self::Seed), ("agent", Self::Agent), ("none", Self::None)];

    pub(crate) fn by_seed(self) -> bool {
        matches!(self, Self::Auto | Self::Seed)
    }
}

/// The settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Settings {
    pub(crate) network: Option<Network>,
    pub(crate) test_network: Option<Network>,
    pub(crate) nics: Vec<NicSettings>,
    pub(crate) inject: Inject,
    pub(crate) cpus: Option<u32>,
    pub(crate) memory: Option<u64>,
    pub(crate) uefi: Option<bool>,
    pub(crate) bus: String,
    pub(crate) accel: String,
    pub(crate) cpu: Option<String>,
    pub(crate) machine: Option<String>,
    pub(crate) qemu: PathBuf,
    pub(crate) kernel: Option<PathBuf>,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) append: Option<String>,
    /// The machine is up when all of them have passed.
    pub(crate) probes: Vec<Probe>,
    pub(crate) probe_limit: Duration,
    pub(crate) arguments: Vec<String>,
    /// Disks that are not protected.
    pub(crate) empty: Vec<Empty>,
}

impl Settings {
    /// Parses a target's file; errors name it.
    ///
    /// # Errors
    /// `Usage`, naming the line and what to do.
    pub(crate) fn parse(text: &str, file: &Path) -> Result<Self> {
        let source = Source::new(text, file);
        let document = source.parse()?;
        let root = source.root(&document);
        root.only(&["kvm", "nic", "disk"])?;
        let empty = Source::new("", file);
        let none = empty.parse()?;
        let kvm = match root.get("kvm") {
            Some(value) => source.table(value, "[kvm]")?,
            None => empty.root(&none),
        };
        kvm.only(KEYS)?;
        let one_of = |key: &str, known: &[&str], default: &str| match kvm.text(key)? {
            None => Ok(default.to_owned()),
            Some((_, text)) if known.contains(&text.as_str()) => Ok(text),
            Some((at, text)) => Err(source.wrong(at, format!("{key} {text:?}: it is one of {}", known.join(", ")))),
        };
        let inject = one_of("inject", &Inject::ALL.map(|(name, _)| name), "auto")?;
        let firmware = one_of("firmware", &["bios", "uefi", ""], "")?;
        let cpus = match kvm.get("cpus") {
            None => None,
            Some(value) => {
                let number = value.get_ref().as_integer().and_then(|n| n.as_str().parse::<u32>().ok());
                let wrong = || source.wrong(value.span().start, "cpus is a number from 1 on");
                Some(number.filter(|n| *n > 0).ok_or_else(wrong)?)
            }
        };
        let arguments = kvm.get("arguments").map(|value| source.texts(value)).transpose()?.unwrap_or_default();
        Ok(Self {
            network: network_of(&kvm, "network")?,
            test_network: network_of(&kvm, "test_network")?,
            nics: nics::parse(source, root.get("nic"))?,
            inject: Inject::ALL.into_iter().find(|(name, _)| *name == inject).map_or(Inject::Auto, |(_, how)| how),
            cpus,
            memory: kvm.size("memory")?,
            uefi: (!firmware.is_empty()).then_some(firmware == "uefi"),
            bus: one_of("bus", &["virtio", "scsi", "sata", "nvme"], "virtio")?,
            accel: one_of("accel", &["auto", "kvm", "tcg"], "auto")?,
            cpu: text_of(&kvm, "cpu")?,
            machine: text_of(&kvm, "machine")?,
            qemu: text_of(&kvm, "qemu")?.map_or_else(|| PathBuf::from(default_qemu()), PathBuf::from),
            kernel: kvm.path("kernel")?,
            initrd: kvm.path("initrd")?,
            append: text_of(&kvm, "append")?,
            probes: probes(source, &kvm)?,
            probe_limit: kvm.duration("probe_limit")?.unwrap_or(PROBE_LIMIT),
            arguments: arguments.into_iter().map(|(_, text)| text).collect(),
            empty: empty::parse(source, root.get("disk"))?,
        })
    }

    /// The network of an interface of a test that nothing else is said of. One that others are on is for a failover: only `test_network` connects a test to it.
    pub(crate) fn network_of_tests(&self) -> Option<&Network> {
        self.test_network.as_ref().or(self.network.as_ref().filter(|network| !network.is_shared()))
    }

    /// Probes that need a network must have one by which QEMU itself reaches the machine.
    ///
    /// # Errors
    /// `Usage`, naming the probe.
    pub(crate) fn reached_by_probes(&self, test: bool) -> Result<()> {
        let network = if test { self.network_of_tests() } else { self.network.as_ref() };
        let reached = matches!(network, None | Some(Network::Isolated | Network::User));
        match self.probes.iter().find(|probe| probe.needs_network() && !reached) {
            None => Ok(()),
            Some(probe) => {
                let key = if test { "test_network" } else { "network" };
                let why = format!(
                    "probe \"{probe}\": it reaches the machine by a network of QEMU's own: write {key} = \"isolated\" (or \"user\") in [kvm]"
                );
                Err(Error::new(ErrorKind::Usage, why))
            }
        }
    }

    /// Where the source is lost, what the machine is connected to is no matter of a default, and nothing that ends with a test.
    ///
    /// # Errors
    /// `Usage` where the file does not say it, or says a network that is made for a test.
    pub(crate) fn with_network(self) -> Result<Self> {
        let mut all = self.network.iter().chain(self.nics.iter().filter_map(NicSettings::network));
        if let Some(Network::Created(name)) = all.find(|network| matches!(network, Network::Created(_))) {
            let why = format!(
                "the network created:{name} ends with a test: give a failover network = \"bridge:NAME\", and write test_network = \"created:{name}\""
            );
            return Err(Error::new(ErrorKind::Usage, why));
        }
        let each = !self.nics.is_empty() && self.nics.iter().all(NicSettings::has_network);
        if self.network.is_some() || each {
            return Ok(self);
        }
        let why = "the network of the machine is not said: pass --target-file FILE with network = \"bridge:NAME\" (or \"user\", \"isolated\", \"none\") in [kvm] or in each [[nic]]";
        Err(Error::new(ErrorKind::Usage, why))
    }

    /// Refuses what is said of interfaces and disks that a point's machine has not.
    ///
    /// # Errors
    /// `Usage`.
    pub(crate) fn fitting(self, point: &PointMeta) -> Result<Self> {
        nics::check(&self.nics, point)?;
        empty::check(&self.empty, point)?;
        Ok(self)
    }
}

fn text_of(table: &Table<'_>, key: &str) -> Result<Option<String>> {
    Ok(table.text(key)?.map(|(_, text)| text))
}

fn default_qemu() -> String {
    format!("qemu-system-{}", std::env::consts::ARCH)
}

/// One, or a list of them.
fn probes(source: Source<'_>, kvm: &Table<'_>) -> Result<Vec<Probe>> {
    let Some(value) = kvm.get("probe") else { return Ok(Vec::new()) };
    let texts = match value.get_ref().as_str() {
        Some(text) => vec![(value.span().start, text.to_owned())],
        None => source.texts(value)?,
    };
    if texts.len() > PROBES_MAX {
        return Err(source.wrong(value.span().start, format!("probe: at most {PROBES_MAX} are asked")));
    }
    let one = |(at, text): (usize, String)| text.parse::<Probe>().map_err(|why| source.wrong(at, why));
    texts.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings> {
        Settings::parse(text, Path::new("target.toml"))
    }

    #[test]
    fn a_probe_that_needs_a_network_has_one_in_tests_or_is_refused() {
        let of = |networks: &str| parse(&format!("[kvm]\n{networks}\nprobe = [\"agent\", \"tcp:22\"]")).expect("right");
        assert!(of("").reached_by_probes(true).is_ok());
        let both = of("network = \"bridge:br0\"\ntest_network = \"isolated\"");
        assert!(both.reached_by_probes(true).is_ok());
        for (settings, test, key) in [
            (both, false, "network = "),
            (of("network = \"none\""), true, "test_network"),
            (of("test_network = \"created:lab\""), true, "test_network"),
        ] {
            let error = settings.reached_by_probes(test).expect_err(key);
            assert!(error.kind() == ErrorKind::Usage && error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn a_file_says_what_it_says_and_the_rest_is_left_to_the_point() {
        let none = parse("").expect("nothing need be said");
        assert_eq!((none.cpus, none.memory, none.uefi, &none.network), (None, None, None, &None));
        assert!(none.with_network().expect_err("but the network").to_string().contains("network"));
        let text = "[kvm]\nnetwork = \"bridge:br0\"\ncpus = 4\nmemory = \"8GiB\"\nfirmware = \"uefi\"\nprobe = \"console:login:\"\n\
                    [[disk]]\nname = \"swap\"\nformat = \"swap\"\n";
        let some = parse(text).expect("right");
        assert_eq!((some.cpus, some.memory, some.uefi), (Some(4), Some(8 << 30), Some(true)));
        assert_eq!(some.network, Some(Network::Bridge("br0".to_owned())));
        assert_eq!(some.probes, [Probe::Console("login:".to_owned())]);
        let several = parse("[kvm]\nprobe = [\"agent\", \"tcp:22\"]").expect("isolated, as nothing else is said");
        assert_eq!(several.probes, [Probe::Agent, Probe::Tcp(22)]);
        assert_eq!(some.empty.len(), 1);
    }

    #[test]
    fn the_example_is_right_as_it_is_and_with_everything_that_is_commented_out() {
        let example = include_str!("../../../deploy/target.toml");
        assert_eq!(parse(example).expect("right").network, Some(Network::Bridge("br0".to_owned())));
        let setting =
            |line: &str| line.starts_with("[[") || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
        let all: Vec<&str> =
            example.lines().map(|line| line.strip_prefix("# ").filter(|l| setting(l)).unwrap_or(line)).collect();
        let all = parse(&all.join("\n")).expect("right with everything");
        assert_eq!((all.cpus, all.probes.as_slice(), all.arguments.len()), (Some(4), &[Probe::Agent][..], 2));
        assert_eq!((all.nics.len(), all.test_network), (2, Some(Network::Created("lab".to_owned()))));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, words) in [
            ("[kvm]\nnetwork = \"bridge:$(reboot)\"", "2: network"),
            ("[kvm]\n\nbus = \"floppy\"", "3: bus"),
            ("[kvm]\ncpus = 0", "2: cpus"),
            ("[kvm]\nprobe = \"console:\"", "2: probe"),
            ("[kvm]\nprobe = [\"agent\",\n\"tcp:0\"]", "3: probe"),
            ("[kvm]\nprobe = 7", "2: expected a list"),
            ("[kvm]\nmemroy = \"1GiB\"", "memory"),
            ("[[disk]]\nname = \"a\"\nformat = \"zfs\"", "3: format"),
            ("[vmware]\n", "kvm"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.kind() == ErrorKind::Usage && error.to_string().contains(words), "{text}: {error}");
        }
    }
}
