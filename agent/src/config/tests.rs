//! What a configuration may say, and what its reader tells who wrote it.

use super::*;
use landfall_model::ErrorKind;

const GOOD: &str = r#"
[agent]
machine = "web-01"
gateways = ["gw-1.site:7443", "[fd00::1]:7443"]
interval = "30s"
state_dir = "/srv/agent"
freeze_command = "/etc/landfall/freeze"
freeze_max = "2min"

[[disk]]
name = "root"
path = "/dev/vda"
mounts = ["/", "/home"]

[[disk]]
name = "swap"
exclude = true
"#;

fn parse(text: &str) -> Result<AgentConfig> {
    AgentConfig::parse(text, Path::new("agent.toml"))
}

fn error(text: &str) -> String {
    let error = parse(text).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Usage);
    error.to_string()
}

#[test]
fn a_configuration_is_read() {
    let config = parse(GOOD).expect("a configuration");
    assert_eq!(config.machine.as_str(), "web-01");
    assert_eq!(config.gateways, ["gw-1.site:7443", "[fd00::1]:7443"]);
    assert_eq!((config.interval, config.freeze_max), (Duration::from_secs(30), Duration::from_secs(120)));
    assert_eq!(config.state_dir, PathBuf::from("/srv/agent"));
    assert_eq!(config.freeze_command.as_deref(), Some("/etc/landfall/freeze"));
    assert_eq!(config.disks.len(), 2);
    assert_eq!(config.disks[0].path, Some(PathBuf::from("/dev/vda")));
    assert_eq!(config.disks[0].mounts, [PathBuf::from("/"), PathBuf::from("/home")]);
    assert!(config.disks[1].exclude && config.disks[1].path.is_none());
    let freeze = Freeze::of(&config);
    assert!(freeze.all_mounts && freeze.mounts.len() == 2);
}

#[test]
fn what_is_not_said_has_its_default() {
    let text = "[agent]\nmachine = \"m\"\ngateways = [\"h:1\"]\n[[disk]]\nname = \"a\"\npath = \"/a\"\n";
    let config = parse(text).expect("a configuration");
    assert_eq!((config.interval, config.freeze_max), (INTERVAL, FREEZE_MAX));
    assert_eq!(config.state_dir, PathBuf::from("/var/lib/landfall-agent"));
    assert!(!Freeze::of(&config).all_mounts && !config.skip_swap);
}

#[test]
fn what_is_skipped_is_swap_or_nothing() {
    let with = |line: &str| GOOD.replacen("[agent]\n", &format!("[agent]\n{line}\n"), 1);
    assert!(parse(&with("skip = [\"swap\"]")).expect("a configuration").skip_swap);
    assert!(!parse(&with("skip = []")).expect("a configuration").skip_swap);
    let error = error(&with("skip = [\"swap\", \"tmp\"]"));
    assert!(error.contains("\"tmp\"") && error.contains("what can be skipped is \"swap\""), "{error}");
}

#[test]
fn unknown_keys_are_refused_with_their_line_and_the_nearest_known_one() {
    for (from, to, line, near) in [
        ("interval", "intervall", 5, "interval"),
        ("freeze_command", "freeze_comand", 7, "freeze_command"),
        ("mounts", "mount", 13, "mounts"),
        ("exclude", "excluded", 17, "exclude"),
        ("[agent]", "[agnet]", 2, "agent"),
    ] {
        let error = error(&GOOD.replacen(from, to, 1));
        let wanted = format!("agent.toml:{line}: unknown key");
        assert!(error.starts_with(&wanted) && error.contains(&format!("did you mean {near:?}?")), "{error}");
    }
}

#[test]
fn errors_name_the_line_and_what_to_do() {
    for (from, to, line, part) in [
        ("\"30s\"", "\"0s\"", 5, "not from \"1s\""),
        ("\"30s\"", "\"25h\"", 5, "not from \"1s\""),
        ("\"30s\"", "\"30\"", 5, "write for example"),
        ("\"30s\"", "\"30 s\"", 5, "write for example"),
        ("\"30s\"", "\"99999999999999999999s\"", 5, "write for example"),
        ("\"30s\"", "\"9999999999999999999h\"", 5, "write for example"),
        ("\"30s\"", "30", 5, "write it in quotes"),
        ("\"web-01\"", "\"web 01\"", 3, "is not 1 to 64"),
        ("machine = \"web-01\"\n", "", 2, "add machine"),
        ("\"gw-1.site:7443\"", "\"gw-1.site\"", 4, "HOST:PORT"),
        ("\"gw-1.site:7443\"", "\"fd00::1:7443\"", 4, "HOST:PORT"),
        ("\"gw-1.site:7443\"", "7443", 4, "list of texts"),
        ("[\"gw-1.site:7443\", \"[fd00::1]:7443\"]", "[]", 2, "at least one"),
        ("\"/dev/vda\"", "\"vda\"", 12, "is relative"),
        ("\"/home\"", "\"home\"", 13, "is relative"),
        ("path = \"/dev/vda\"\n", "", 10, "add path"),
        ("exclude = true", "exclude = \"yes\"", 17, "true or false"),
        ("name = \"swap\"", "name = \"root\"", 15, "named twice"),
        ("machine = \"web-01\"", "machine = ", 3, ""),
    ] {
        let error = error(&GOOD.replacen(from, to, 1));
        assert!(error.starts_with(&format!("agent.toml:{line}: ")) && error.contains(part), "{from} -> {to}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    assert!(error("[agent]\nmachine = \"m\"\ngateways = [\"h:1\"]\n").contains("no disk to protect"));
    assert!(error("").contains("add a section [agent]"));
}

const VIRTUAL: &str = r#"
[agent]
machine = "web-01"
gateways = ["gw-1.site:7443"]
[qemu]
qmp = "/run/web.qmp"
guest_agent = "/run/web.qga"
scratch_dir = "/var/scratch"

[[disk]]
name = "root"
device = "drive0"
"#;

#[test]
fn the_disks_of_a_virtual_machine_are_devices_of_its_qemu() {
    let config = parse(VIRTUAL).expect("a configuration");
    let qemu = config.qemu.as_ref().expect("a section");
    assert_eq!((&*qemu.qmp, &*qemu.scratch_dir), (Path::new("/run/web.qmp"), Path::new("/var/scratch")));
    assert_eq!(config.disks[0].device.as_deref(), Some("drive0"));
    assert!(Freeze::of(&config).guest.is_some());
    for (from, to, line, part) in [
        ("qmp = \"/run/web.qmp\"\n", "", 5, "add qmp"),
        ("scratch_dir = \"/var/scratch\"\n", "", 5, "add scratch_dir"),
        ("\"/run/web.qga\"", "\"web.qga\"", 7, "is relative"),
        ("guest_agent", "guest_agnet", 7, "guest_agent"),
        ("device = \"drive0\"", "path = \"/dev/vda\"", 5, "write device"),
        ("device = \"drive0\"", "device = \"drive0\"\npath = \"/dev/vda\"", 5, "has a path"),
        ("device = \"drive0\"", "device = \"drive0\"\nsource = \"ebpf\"", 5, "leave it out"),
        ("device = \"drive0\"", "device = \"drive0\"\nmounts = [\"/\"]", 5, "has mounts"),
    ] {
        let error = error(&VIRTUAL.replacen(from, to, 1));
        assert!(error.starts_with(&format!("agent.toml:{line}: ")) && error.contains(part), "{from} -> {to}: {error}");
    }
    let error = error(&GOOD.replacen("path = \"/dev/vda\"", "device = \"drive0\"", 1));
    assert!(error.contains("add a section [qemu]"), "{error}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = AgentConfig::read(Path::new("/nowhere/agent.toml")).expect_err("not there");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("/nowhere/agent.toml"));
}

#[test]
fn the_example_in_the_documentation_is_a_configuration() {
    let source = include_str!("../config.rs");
    let example = source.lines().skip_while(|l| *l != "//! ```toml").skip(1).take_while(|l| *l != "//! ```");
    let text: String = example.map(|l| format!("{}\n", l.trim_start_matches("//!").trim_start())).collect();
    assert_eq!(parse(&text).expect("a configuration").disks.len(), 2);
    // The second is of a virtual machine.
    let second = source.lines().skip_while(|l| *l != "//! ```toml").skip(1).skip_while(|l| *l != "//! ```toml").skip(1);
    let second = second.take_while(|l| *l != "//! ```");
    let text: String = second.map(|l| format!("{}\n", l.trim_start_matches("//!").trim_start())).collect();
    let text = format!("[agent]\nmachine = \"m\"\ngateways = [\"h:1\"]\n{text}");
    assert!(parse(&text).expect("a configuration").qemu.is_some());
}
