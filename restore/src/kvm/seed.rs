//! The seed disk: what cloud-init in the guest reads its network from (data source NoCloud; documentation of cloud-init, "NoCloud", "Networking config version 2").
//!
//! A file system FAT with the label `cidata` and three files, of JSON, which YAML contains: nothing need be quoted by hand. It is the machine's last disk, read only, so that the places
//! of the others stay. Its instance id is the job's: cloud-init takes the machine for a new one and configures the network again; what else it does to new machines is switched off.

use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::net::IpAddr;
use std::path::Path;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use landfall_model::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

use super::Plan;
use super::nics::{Wired, wired};

const BYTES: usize = 1 << 20;
/// Padded to what FAT has room for.
const LABEL: [u8; 11] = *b"cidata     ";

/// What cloud-init is told of the network.
fn network_config(nics: &[Wired]) -> Value {
    let mut ethernets = Map::new();
    for (place, nic) in nics.iter().enumerate() {
        let own = &nic.addresses;
        if own.own.is_empty() {
            continue;
        }
        let any = |gateway: &IpAddr| if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        let routes: Vec<Value> = own.gateways.iter().map(|via| json!({ "to": any(via), "via": via })).collect();
        let mut settings = json!({
            "match": { "macaddress": nic.mac }, "dhcp4": false, "dhcp6": false,
            "addresses": own.own.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "routes": routes, "nameservers": { "addresses": own.dns },
        });
        if !nic.name.is_empty() {
            // What the guest's own files call it.
            settings["set-name"] = json!(nic.name);
        }
        let name = if nic.name.is_empty() { format!("nic{place}") } else { nic.name.clone() };
        ethernets.insert(name, settings);
    }
    json!({ "version": 2, "ethernets": ethernets })
}

/// The files, by their names. `instance`: another one for each machine that is to be configured.
fn files(instance: &str, nics: &[Wired]) -> [(&'static str, String); 3] {
    // It is no new machine: its host keys, name, users and file systems stay as they are.
    let user = json!({
        "ssh_deletekeys": false, "preserve_hostname": true, "users": [], "disable_root": false, "resize_rootfs": false,
        "growpart": { "mode": "off" }, "package_update": false, "package_upgrade": false,
    });
    [
        ("meta-data", format!("{}\n", json!({ "instance-id": instance }))),
        ("user-data", format!("#cloud-config\n{user}\n")),
        ("network-config", format!("{}\n", network_config(nics))),
    ]
}

/// The image of the disk.
fn image(files: &[(&str, String)]) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; BYTES];
    format_volume(Cursor::new(&mut bytes[..]), FormatVolumeOptions::new().volume_label(LABEL))?;
    let volume = FileSystem::new(Cursor::new(&mut bytes[..]), FsOptions::new())?;
    for (name, text) in files {
        volume.root_dir().create_file(name)?.write_all(text.as_bytes())?;
    }
    volume.unmount()?;
    Ok(bytes)
}

/// Makes the disk where the machine is to have one and it is not there yet.
///
/// # Errors
/// What the host says.
pub(crate) fn make(plan: &Plan) -> Result<()> {
    let path = plan.files.seed();
    if !is_wanted(plan) || path.exists() {
        return Ok(());
    }
    let write = || -> std::io::Result<()> {
        let image = image(&files(&plan.files.namespace(), &wired(plan)))?;
        let new = path.with_extension("new");
        File::create(&new).and_then(|mut file| file.write_all(&image).and_then(|()| file.sync_all()))?;
        fs::rename(&new, &path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(|e| Error::with_source(ErrorKind::of_io(&e), format!("cannot make {}", path.display()), e))
}

/// Whether the machine has such a disk.
pub(crate) fn is_wanted(plan: &Plan) -> bool {
    plan.settings.inject.by_seed() && wired(plan).iter().any(|nic| !nic.addresses.own.is_empty())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::kvm::nics::{Address, Addresses, Network};

    #[test]
    fn the_seed_is_a_fat_volume_of_the_label_that_cloud_init_looks_for_with_what_it_is_to_do() {
        let own = Address { ip: "10.1.2.3".parse().expect("an address"), prefix: 24 };
        let addresses = Addresses {
            own: vec![own],
            gateways: vec!["10.1.2.1".parse().expect("an address")],
            dns: vec!["fd00::53".parse().expect("an address")],
        };
        let nic = |name: &str, mac: &str, addresses: &Addresses| Wired {
            name: name.to_owned(),
            mac: mac.to_owned(),
            device: "virtio-net-pci",
            network: Network::Isolated,
            addresses: addresses.clone(),
        };
        let nics = [
            nic("eth0", "52:54:00:00:00:01", &addresses),
            nic("eth1", "52:54:00:00:00:02", &Addresses::default()),
            nic("", "52:54:00:00:00:03", &addresses),
        ];
        let image = image(&files("landfall-1", &nics)).expect("made");
        let volume = FileSystem::new(Cursor::new(image), FsOptions::new()).expect("a volume");
        assert_eq!(volume.volume_label(), "cidata");
        let read = |name: &str| {
            let mut text = String::new();
            volume.root_dir().open_file(name).expect("there").read_to_string(&mut text).expect("read");
            text
        };
        assert_eq!(read("meta-data"), "{\"instance-id\":\"landfall-1\"}\n");
        assert!(read("user-data").starts_with("#cloud-config\n{"), "cloud-init knows it by its first line");
        let config: Value = serde_json::from_str(&read("network-config")).expect("JSON");
        let wanted = json!({
            "match": { "macaddress": "52:54:00:00:00:01" }, "set-name": "eth0", "dhcp4": false, "dhcp6": false,
            "addresses": ["10.1.2.3/24"], "routes": [{ "to": "0.0.0.0/0", "via": "10.1.2.1" }],
            "nameservers": { "addresses": ["fd00::53"] },
        });
        assert_eq!((config["version"].as_u64(), &config["ethernets"]["eth0"]), (Some(2), &wanted));
        assert!(config["ethernets"]["eth1"].is_null() && config["ethernets"]["nic2"]["set-name"].is_null());
    }
}
