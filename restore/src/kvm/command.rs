//! The command line of QEMU, from a machine's shape and its settings. Pure.

use landfall_model::DiskMeta;
use serde_json::{Value, json};

use super::nics::{Network, wired};
use super::{Plan, seed};

/// How long a machine waits for the vault's disks to be served again before it gets I/O errors, in seconds.
const RECONNECT_DELAY_SECONDS: u64 = 3600;
const CPUS: u32 = 2;
const MEMORY_BYTES: u64 = 2 << 30;

/// What of this host is known to whoever makes the command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    /// It has KVM that runs guests.
    pub(crate) kvm: bool,
}

/// The name of the block node of a disk, by its place in the point.
pub(crate) fn node(place: usize) -> String {
    format!("disk{place}")
}

/// Whether it boots by UEFI.
pub(crate) fn is_uefi(plan: &Plan) -> bool {
    let shape = plan.point.shape.as_ref();
    plan.settings.uefi.unwrap_or_else(|| shape.is_some_and(|s| s.firmware == "uefi"))
}

/// The name of the block node behind it: the vault's disk.
pub(crate) fn vault_node(place: usize) -> String {
    format!("vault{place}")
}

/// The block nodes of a disk, those first that others stand on.
fn blockdevs(plan: &Plan, place: usize, disk: &DiskMeta, needs_vault: bool) -> Vec<Value> {
    if disk.excluded {
        let path = plan.files.empty_disk(&disk.name);
        let file = json!({ "driver": "file", "filename": path });
        return vec![json!({ "driver": "raw", "node-name": node(place), "discard": "unmap", "file": file })];
    }
    let mut overlay = json!({ "driver": "qcow2", "node-name": node(place), "discard": "unmap", "backing": null,
        "file": { "driver": "file", "filename": plan.files.disk(&disk.name) } });
    if !needs_vault {
        return vec![overlay];
    }
    let vault = vault_node(place);
    overlay["backing"] = json!(vault);
    let vault = json!({ "driver": "nbd", "node-name": vault, "read-only": true, "export": disk.name,
        "server": { "type": "unix", "path": plan.files.nbd() }, "reconnect-delay": RECONNECT_DELAY_SECONDS });
    vec![vault, overlay]
}

fn disk_device(bus: &str, place: usize, sector_size: u32) -> String {
    // The first place is that of a kernel that is given to QEMU.
    let (node, turn) = (node(place), place + 1);
    // What reads its partitions counts in these.
    let sectors = match sector_size {
        4096 => ",logical_block_size=4096,physical_block_size=4096",
        _ => "",
    };
    match bus {
        "scsi" => format!("scsi-hd,bus=scsi.0,drive={node},id=dev-{node},bootindex={turn}{sectors}"),
        // It has sectors of 512 bytes only.
        "sata" => format!("ide-hd,bus=sata.{place},drive={node},id=dev-{node},bootindex={turn}"),
        "nvme" => format!("nvme,drive={node},serial={node},id=dev-{node},bootindex={turn}{sectors}"),
        _ => format!("virtio-blk-pci,drive={node},id=dev-{node},bootindex={turn}{sectors}"),
    }
}

fn network(plan: &Plan) -> Vec<String> {
    let mut out = Vec::new();
    for (place, nic) in wired(plan).into_iter().enumerate() {
        let netdev = match &nic.network {
            Network::None => continue,
            Network::Bridge(_) | Network::Created(_) => {
                format!("tap,id=net{place},script={},downscript=no", plan.files.wire_script(place).display())
            }
            Network::User => format!("user,id=net{place}"),
            Network::Isolated => format!("user,id=net{place},restrict=on"),
        };
        let device = format!("{},netdev=net{place},mac={}", nic.device, nic.mac);
        out.extend(["-netdev".to_owned(), netdev, "-device".to_owned(), device]);
    }
    if out.is_empty() { vec!["-nic".to_owned(), "none".to_owned()] } else { out }
}

/// The disk that cloud-init reads: behind all else, so that nothing has another place for it.
fn seed_disk(plan: &Plan) -> Vec<String> {
    if !seed::is_wanted(plan) {
        return Vec::new();
    }
    // A disk of SATA is one that can be written to, or none.
    let read_only = plan.settings.bus != "sata";
    let file = json!({ "driver": "file", "filename": plan.files.seed(), "read-only": read_only });
    let node = json!({ "driver": "raw", "node-name": "seed", "read-only": read_only, "file": file });
    let device = match plan.settings.bus.as_str() {
        "scsi" => "scsi-hd,bus=scsi.0,drive=seed".to_owned(),
        "sata" => format!("ide-hd,bus=sata.{},drive=seed", plan.point.disks.len()),
        "nvme" => "nvme,drive=seed,serial=seed".to_owned(),
        _ => "virtio-blk-pci,drive=seed".to_owned(),
    };
    vec!["-blockdev".to_owned(), node.to_string(), "-device".to_owned(), device]
}

/// The arguments. `needs_vault`: of each disk of the point, whether its overlay still has the vault behind it; `firmware`: of a UEFI machine.
pub(crate) fn arguments(plan: &Plan, host: Host, needs_vault: &[bool], firmware: Option<&str>) -> Vec<String> {
    let settings = &plan.settings;
    let shape = plan.point.shape.as_ref();
    let kvm = match settings.accel.as_str() {
        "kvm" => true,
        "tcg" => false,
        _ => host.kvm,
    };
    let uefi = is_uefi(plan);
    let machine = settings.machine.clone().unwrap_or_else(|| if uefi { "q35" } else { "pc" }.to_owned());
    let cpu = settings.cpu.clone().unwrap_or_else(|| if kvm { "host" } else { "max" }.to_owned());
    let cpus = settings.cpus.or(shape.map(|s| s.cpus)).unwrap_or(CPUS).max(1);
    let memory = settings.memory.or(shape.map(|s| s.memory_bytes)).unwrap_or(MEMORY_BYTES).div_ceil(1 << 20).max(1);
    let mut out: Vec<String> = Vec::new();
    let mut add = |name: &str, value: String| out.extend([name.to_owned(), value]);
    add("-name", format!("guest={}", plan.title));
    add("-machine", format!("{machine},accel={}", if kvm { "kvm" } else { "tcg" }));
    add("-cpu", cpu);
    add("-smp", cpus.to_string());
    add("-m", format!("{memory}M"));
    add("-display", "none".to_owned());
    add("-vga", "std".to_owned());
    add("-vnc", format!("unix:{}", plan.files.screen().display()));
    add("-chardev", format!("socket,id=qmp,path={},server=on,wait=off", plan.files.qmp().display()));
    add("-mon", "chardev=qmp,mode=control".to_owned());
    add("-pidfile", plan.files.pid().display().to_string());
    add("-serial", format!("file:{}", plan.files.console().display()));
    add("-chardev", format!("socket,id=agent,path={},server=on,wait=off", plan.files.agent().display()));
    add("-device", "virtio-serial-pci".to_owned());
    add("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0".to_owned());
    if let Some(code) = firmware {
        add("-drive", format!("if=pflash,format=raw,unit=0,readonly=on,file={code}"));
        add("-drive", format!("if=pflash,format=raw,unit=1,file={}", plan.files.variables().display()));
    }
    match settings.bus.as_str() {
        "scsi" => add("-device", "virtio-scsi-pci,id=scsi".to_owned()),
        "sata" => add("-device", "ahci,id=sata".to_owned()),
        _ => {}
    }
    for (place, disk) in plan.point.disks.iter().enumerate() {
        let behind = needs_vault.get(place).copied().unwrap_or(false);
        blockdevs(plan, place, disk, behind).iter().for_each(|node| add("-blockdev", node.to_string()));
        add("-device", disk_device(&settings.bus, place, disk.sector_size));
    }
    if let Some(kernel) = &settings.kernel {
        add("-kernel", kernel.display().to_string());
        settings.initrd.iter().for_each(|initrd| add("-initrd", initrd.display().to_string()));
        settings.append.iter().for_each(|append| add("-append", append.clone()));
    }
    out.extend(["-nodefaults".to_owned(), "-no-user-config".to_owned()]);
    out.extend(network(plan));
    out.extend(seed_disk(plan));
    out.extend(settings.arguments.iter().cloned());
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use landfall_model::{Consistency, Counters, GatewayId, MachineShape, Nic, PointMeta, Seq, Timestamp};

    use super::*;
    use crate::kvm::{Files, Settings};

    fn plan(settings: &str, shape: Option<MachineShape>, test: bool) -> Plan {
        let disk = |name: &str, excluded| DiskMeta {
            name: name.parse().expect("a name"),
            size: 1 << 30,
            sector_size: 512,
            boot: name == "root",
            excluded,
            source: "image".to_owned(),
            identity: String::new(),
            base_seq: Seq(1),
        };
        let point = PointMeta {
            machine: "web".parse().expect("a name"),
            domain: "default".parse().expect("a name"),
            source_time: Timestamp::from_millis(0),
            store_time: Timestamp::from_millis(0),
            consistency: Consistency::Crash,
            gateway: GatewayId::from_bytes([0; 16]),
            shape,
            disks: vec![disk("root", false), disk("swap", true), disk("data", false)],
            counters: Counters::default(),
            pinned: false,
            cycle: None,
            group: None,
            hooks: Vec::new(),
        };
        let settings = Settings::parse(settings, Path::new("t")).expect("right");
        Plan { files: Files::of(Path::new("/run/job")), settings, point, test, title: "landfall-web-1".to_owned() }
    }

    fn shape() -> MachineShape {
        let nic = |mac: &str, model: &str| Nic {
            name: "eth".to_owned(),
            model: model.to_owned(),
            mac: mac.to_owned(),
            addresses: Vec::new(),
        };
        let nics = vec![nic("aa:bb:cc:00:00:01", "virtio"), nic("aa:bb:cc:00:00:02", "e1000")];
        MachineShape { firmware: "uefi".to_owned(), cpus: 3, memory_bytes: 5 << 30, nics }
    }

    fn text(plan: &Plan, kvm: bool) -> String {
        arguments(plan, Host { kvm }, &[true, false, false], None).join(" ")
    }

    #[test]
    fn the_machine_is_as_its_shape_says() {
        let text = text(&plan("", Some(shape()), false), true);
        for part in [
            "-smp 3",
            "-m 5120M",
            "q35,accel=kvm",
            "-cpu host",
            "virtio-net-pci,netdev=net0,mac=aa:bb:cc:00:00:01",
            "e1000,netdev=net1,mac=aa:bb:cc:00:00:02",
            "restrict=on",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn settings_come_before_the_shape_and_without_either_there_is_a_small_machine() {
        let small = text(&plan("", None, false), false);
        assert!(small.contains("-smp 2") && small.contains("-m 2048M") && small.contains("pc,accel=tcg"), "{small}");
        let given = "[kvm]\ncpus = 8\nmemory = \"1GiB\"\nfirmware = \"bios\"\naccel = \"tcg\"\nnetwork = \"none\"\nbus = \"scsi\"\narguments = [\"-S\"]";
        let given = text(&plan(given, Some(shape()), false), true);
        for part in ["-smp 8", "-m 1024M", "pc,accel=tcg", "-nic none", "scsi-hd,bus=scsi.0,drive=disk0", "-S"] {
            assert!(given.contains(part), "{part}: {given}");
        }
    }

    #[test]
    fn disks_stand_in_their_order_and_only_those_that_need_it_have_the_vault_behind_them() {
        let plan = plan("", None, false);
        let arguments = arguments(&plan, Host { kvm: false }, &[true, false, false], None);
        let disks: Vec<Value> = arguments
            .windows(2)
            .filter(|w| w[0] == "-blockdev")
            .map(|w| serde_json::from_str(&w[1]).expect("JSON"))
            .collect();
        assert_eq!((&disks[0]["export"], &disks[0]["node-name"]), (&json!("root"), &disks[1]["backing"]));
        assert_eq!(disks[2]["file"]["filename"], "/run/job/disk-swap.raw");
        assert_eq!((&disks[3]["driver"], &disks[3]["backing"]), (&json!("qcow2"), &Value::Null));
    }

    #[test]
    fn what_a_protected_machine_says_of_itself_is_no_argument_of_qemu() {
        let mut evil = shape();
        evil.nics[0].mac = "52:54:00:00:00:01,romfile=/etc/shadow".to_owned();
        evil.nics[1].model = "e1000,romfile=/etc/shadow".to_owned();
        let text = text(&plan("", Some(evil), false), false);
        assert!(!text.contains("romfile") && !text.contains("shadow"), "{text}");
    }

    #[test]
    fn disks_have_the_sectors_of_the_source() {
        let mut plan = plan("", None, false);
        plan.point.disks[2].sector_size = 4096;
        let text = text(&plan, false);
        assert!(text.contains("drive=disk2,id=dev-disk2,bootindex=3,logical_block_size=4096"), "{text}");
        assert!(!text.contains("bootindex=1,logical"), "{text}");
    }

    #[test]
    fn a_test_on_a_shared_network_does_not_take_the_addresses_of_the_source() {
        let settings = "[kvm]\nnetwork = \"bridge:br0\"\ntest_network = \"bridge:br0\"";
        let test = text(&plan(settings, Some(shape()), true), false);
        assert!(!test.contains("aa:bb:cc") && test.contains("mac=52:54:00:"), "{test}");
        assert!(text(&plan(settings, Some(shape()), false), false).contains("aa:bb:cc:00:00:01"));
        // Nothing that is said for a failover connects a test to others.
        for network in ["bridge:br0", "user"] {
            let test = text(&plan(&format!("[kvm]\nnetwork = \"{network}\""), Some(shape()), true), false);
            assert!(test.contains("restrict=on") && !test.contains("tap"), "{test}");
        }
    }
}
