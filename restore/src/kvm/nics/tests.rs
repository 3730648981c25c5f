use std::path::Path;

use landfall_model::{Consistency, Counters, GatewayId, MachineShape, Timestamp};

use super::*;
use crate::kvm::{Files, Settings};

fn parse(text: &str) -> Result<Settings> {
    Settings::parse(text, Path::new("t"))
}

fn point(nics: &[(&str, &str)]) -> PointMeta {
    let nic = |(name, mac): &(&str, &str)| Nic {
        name: (*name).to_owned(),
        model: "e1000".to_owned(),
        mac: (*mac).to_owned(),
        addresses: vec!["192.0.2.7/24".to_owned()],
    };
    let shape = MachineShape {
        firmware: "bios".to_owned(),
        cpus: 1,
        memory_bytes: 1 << 30,
        nics: nics.iter().map(nic).collect(),
    };
    PointMeta {
        machine: "web".parse().expect("a name"),
        domain: "default".parse().expect("a name"),
        source_time: Timestamp::from_millis(0),
        store_time: Timestamp::from_millis(0),
        consistency: Consistency::Crash,
        gateway: GatewayId::from_bytes([0; 16]),
        shape: Some(shape),
        disks: Vec::new(),
        counters: Counters::default(),
        pinned: false,
        cycle: None,
        group: None,
        hooks: Vec::new(),
    }
}

const TWO: [(&str, &str); 2] = [("eth0", "AA:bb:cc:00:00:01"), ("eth1", "aa:bb:cc:00:00:02")];

fn made(text: &str, point: PointMeta, test: bool) -> Vec<Wired> {
    let settings = parse(text).expect("right").fitting(&point).expect("fits");
    wired(&Plan { files: Files::of(Path::new("/run/job")), settings, point, test, title: "web-1".to_owned() })
}

fn own(nic: &Wired) -> Vec<String> {
    nic.addresses.own.iter().map(ToString::to_string).collect()
}

const BOTH: &str = "[kvm]\nnetwork = \"user\"\n\
    [[nic]]\nname = \"eth0\"\nnetwork = \"bridge:br0\"\naddresses = [\"10.1.2.3/24\", \"fd00::3/64\"]\ngateways = [\"10.1.2.1\"]\n\
    dns = [\"10.1.2.53\"]\nmodel = \"virtio\"\ntest_network = \"created:lab\"\n\
    [[nic]]\nmac = \"aa:bb:cc:00:00:02\"\nnetwork = \"none\"";

#[test]
fn each_interface_is_connected_as_the_file_says_by_its_name_or_hardware_address() {
    let nics = made(BOTH, point(&TWO), false);
    assert_eq!((&nics[0].network, &nics[1].network), (&Network::Bridge("br0".to_owned()), &Network::None));
    assert_eq!((nics[0].mac.as_str(), nics[0].device), ("aa:bb:cc:00:00:01", "virtio-net-pci"));
    assert_eq!(own(&nics[0]), ["10.1.2.3/24", "fd00::3/64"]);
    assert_eq!(nics[1].device, "e1000", "as the source has it");
    // One that the file does not say has what the machine has.
    let one = made("[kvm]\nnetwork = \"user\"\n[[nic]]\nname = \"eth1\"\nnetwork = \"none\"", point(&TWO), false);
    assert_eq!((&one[0].network, &one[1].network), (&Network::User, &Network::None));
}

#[test]
fn nothing_that_is_for_a_failover_connects_a_test_to_what_others_are_on() {
    let test = made(BOTH, point(&TWO), true);
    assert_eq!((&test[0].network, &test[1].network), (&Network::Created("lab".to_owned()), &Network::Isolated));
    assert_eq!(own(&test[0]), ["10.1.2.3/24", "fd00::3/64"], "where nobody else is, it has its addresses");
    let without = BOTH.replace("test_network = \"created:lab\"\n", "");
    assert_eq!(made(&without, point(&TWO), true)[0].network, Network::Isolated);
    let shared = BOTH.replace("created:lab", "bridge:br1");
    let nic = &made(&shared, point(&TWO), true)[0];
    assert!(nic.addresses.own.is_empty() && nic.mac.starts_with("52:54:00:"), "it would be the source: {nic:?}");
    let given = shared.replace("test_network", "test_addresses = [\"10.9.0.3/24\"]\ntest_network");
    let nic = &made(&given, point(&TWO), true)[0];
    assert_eq!((own(nic), nic.addresses.gateways.len()), (vec!["10.9.0.3/24".to_owned()], 0));
}

#[test]
fn where_the_point_does_not_say_its_interfaces_the_file_makes_them() {
    let mut point = point(&[]);
    point.shape = None;
    let text = "[[nic]]\nmac = \"52:54:00:00:00:09\"\ntest_network = \"created:lab\"\n[[nic]]\nname = \"eth1\"";
    let nics = made(text, point.clone(), true);
    assert_eq!((nics.len(), nics[0].mac.as_str(), nics[1].name.as_str()), (2, "52:54:00:00:00:09", "eth1"));
    assert_eq!(made("", point, true).len(), 1);
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let nic = |more: &str| format!("[[nic]]\nname = \"eth0\"\n{more}");
    for (text, words) in [
        ("[[nic]]\nnetwork = \"user\"".to_owned(), "add either name"),
        ("[[nic]]\nname = \"a\"\nmac = \"52:54:00:00:00:01\"".to_owned(), "add either name"),
        ("[[nic]]\nmac = \"52:54:00:00:00:01,romfile=/etc/shadow\"".to_owned(), "2: mac"),
        (nic("network = \"bridge:br0;reboot\""), "3: network"),
        (nic("network = \"bridge:-br0\""), "3: network"),
        (nic("test_network = \"created:lo\""), "3: network"),
        (nic("test_network = \"created:nic0\""), "3: network"),
        (nic("model = \"e1000,romfile=x\""), "3: model"),
        (nic("addresses = [\"10.1.2.3\"]"), "3: \"10.1.2.3\""),
        (nic("addresses = [\"10.1.2.3/33\"]"), "3: "),
        (nic("addresses = [\"10.1.2.3/24 dev lo\"]"), "3: "),
        (nic("addresses = [\"127.0.0.1/8\"]"), "3: "),
        (nic("addresses = [\"10.1.2.3/24\"]\ngateways = [\"fd00::1\"]"), "4: gateway"),
        (nic("dns = [\"example.org\"]"), "3: "),
        (nic("[[nic]]\nname = \"eth0\""), "two [[nic]]"),
    ] {
        let error = parse(&text).expect_err(&text);
        assert!(error.kind() == ErrorKind::Usage && error.to_string().contains(words), "{text}: {error}");
    }
    let lost = parse("[[nic]]\nname = \"eth9\"").expect("right").fitting(&point(&TWO)).expect_err("not there");
    assert!(lost.to_string().contains("eth9") && lost.to_string().contains("eth0, eth1"), "{lost}");
}

#[test]
fn a_failover_says_what_each_interface_is_connected_to_and_nothing_that_ends_with_a_test() {
    let each = "[[nic]]\nname = \"eth0\"\nnetwork = \"isolated\"";
    assert!(parse(each).expect("right").with_network().is_ok());
    assert!(parse("[[nic]]\nname = \"eth0\"").expect("right").with_network().is_err());
    for text in ["[kvm]\nnetwork = \"created:lab\"", "[[nic]]\nname = \"eth0\"\nnetwork = \"created:lab\""] {
        let error = parse(text).expect("right").with_network().expect_err(text);
        assert!(error.to_string().contains("created:lab ends with a test"), "{error}");
    }
}
