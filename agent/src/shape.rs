//! The shape of this machine, as it says so itself: what is needed to make it again elsewhere.
//!
//! Everything is read anew for each cycle from `/sys` and `/proc`, so that a changed machine is a changed shape. What cannot be read is left
//! out, never guessed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use landfall_model::{MachineShape, Nic};
use landfall_wire::NICS_MAX;

/// The shape; none where not even processors and memory can be told.
pub(crate) fn read() -> Option<MachineShape> {
    read_below(Path::new("/"), &addresses())
}

/// Addresses with prefix length, by interface; without those that every interface gives itself.
fn addresses() -> BTreeMap<String, Vec<String>> {
    let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for interface in if_addrs::get_if_addrs().unwrap_or_default() {
        let (prefix, own) = match &interface.addr {
            if_addrs::IfAddr::V4(v4) => (v4.prefixlen, v4.is_link_local()),
            if_addrs::IfAddr::V6(v6) => (v6.prefixlen, v6.is_link_local()),
        };
        if !own && !interface.is_loopback() {
            by_name.entry(interface.name.clone()).or_default().push(format!("{}/{prefix}", interface.ip()));
        }
    }
    by_name
}

fn read_below(root: &Path, addresses: &BTreeMap<String, Vec<String>>) -> Option<MachineShape> {
    let firmware = if root.join("sys/firmware/efi").exists() { "uefi" } else { "bios" };
    Some(MachineShape {
        firmware: firmware.to_owned(),
        cpus: text(&root.join("sys/devices/system/cpu/online")).and_then(|list| count(&list))?,
        memory_bytes: memory(root)?,
        nics: nics(&root.join("sys/class/net"), addresses),
    })
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Numbers in a list like `0-3,8`.
fn count(list: &str) -> Option<u32> {
    list.split(',').try_fold(0_u32, |sum, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// Memory as it is fitted; what the kernel has left of it where that is not told.
fn memory(root: &Path) -> Option<u64> {
    let blocks = || {
        let folder = root.join("sys/devices/system/memory");
        let block = u64::from_str_radix(&text(&folder.join("block_size_bytes"))?, 16).ok()?;
        let online = |e: &fs::DirEntry| text(&e.path().join("state")).is_some_and(|state| state == "online");
        let blocks = fs::read_dir(&folder).ok()?.flatten().filter(online).count() as u64;
        blocks.checked_mul(block).filter(|bytes| *bytes > 0)
    };
    let total = || {
        let info = text(&root.join("proc/meminfo"))?;
        let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    blocks().or_else(total)
}

/// Interfaces with a device behind them: with the addresses of bridges and bonds that stand on them.
fn nics(folder: &Path, addresses: &BTreeMap<String, Vec<String>>) -> Vec<Nic> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.path().join("device").exists())
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    names.truncate(NICS_MAX);
    let nic = |name: String| {
        let at = folder.join(&name);
        let driver = fs::read_link(at.join("device/driver")).ok();
        let driver = driver.as_deref().and_then(Path::file_name).map(|d| d.to_string_lossy().into_owned());
        let upper = fs::read_dir(&at).into_iter().flatten().flatten();
        let mut upper: Vec<String> =
            upper.filter_map(|e| e.file_name().to_str()?.strip_prefix("upper_").map(str::to_owned)).collect();
        upper.sort();
        let all = std::iter::once(&name).chain(&upper).filter_map(|n| addresses.get(n)).flatten();
        Nic {
            addresses: all.cloned().collect(),
            model: driver.map(|d| model(&d).to_owned()).unwrap_or_default(),
            mac: text(&at.join("address")).unwrap_or_default(),
            name,
        }
    };
    names.into_iter().map(nic).collect()
}

/// What hypervisors call the device of a driver.
fn model(driver: &str) -> &str {
    match driver {
        "virtio_net" => "virtio",
        "hv_netvsc" => "hyperv",
        "xen-netfront" | "vif" => "xen",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    #[test]
    fn a_machine_is_what_its_system_files_say() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        assert_eq!(read_below(root, &BTreeMap::new()), None, "nothing is guessed");
        write(root, "sys/devices/system/cpu/online", "0-3,8\n");
        write(root, "proc/meminfo", "MemFree: 1 kB\nMemTotal:        2048 kB\n");
        assert_eq!(read_below(root, &BTreeMap::new()).expect("a shape").memory_bytes, 2 << 20);
        write(root, "sys/devices/system/memory/block_size_bytes", "8000000\n");
        for (block, state) in [(0, "online"), (1, "online"), (2, "offline")] {
            write(root, &format!("sys/devices/system/memory/memory{block}/state"), state);
        }
        write(root, "sys/firmware/efi/fw_platform_size", "64");
        for name in ["eth1", "eth0", "lo"] {
            write(root, &format!("sys/class/net/{name}/address"), &format!("52:54:00:00:00:0{}\n", name.len()));
        }
        for name in ["eth0", "eth1"] {
            fs::create_dir(root.join("sys/class/net").join(name).join("device")).expect("made");
        }
        symlink("../../../bus/virtio/drivers/virtio_net", root.join("sys/class/net/eth0/device/driver"))
            .expect("linked");
        symlink("../br0", root.join("sys/class/net/eth0/upper_br0")).expect("linked");
        let addresses = [("br0", "10.0.0.2/24"), ("eth1", "fd00::2/64"), ("lo", "127.0.0.1/8")];
        let addresses = addresses.map(|(name, at)| (name.to_owned(), vec![at.to_owned()])).into();
        let nic = |name: &str, model: &str, address: &str| Nic {
            name: name.to_owned(),
            model: model.to_owned(),
            mac: "52:54:00:00:00:04".to_owned(),
            addresses: vec![address.to_owned()],
        };
        let wanted = MachineShape {
            firmware: "uefi".to_owned(),
            cpus: 5,
            memory_bytes: 256 << 20,
            nics: vec![nic("eth0", "virtio", "10.0.0.2/24"), nic("eth1", "", "fd00::2/64")],
        };
        assert_eq!(read_below(root, &addresses), Some(wanted));
    }

    #[test]
    fn this_machine_has_a_shape() {
        let shape = read().expect("a shape");
        assert!(shape.cpus > 0 && shape.memory_bytes > 1 << 20, "{shape:?}");
    }

    #[test]
    fn lists_of_processors() {
        for (list, wanted) in
            [("0", Some(1)), ("0-1", Some(2)), ("0,2-3", Some(3)), ("", None), ("3-1", None), ("0-4294967295", None)]
        {
            assert_eq!(count(list), wanted, "{list}");
        }
    }
}
