//! The hook for MySQL and MariaDB, with a client that is a stand-in: it does as it is told, and writes down what that was. The hook for
//! PostgreSQL is tested with one, in `tests/postgres.rs`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use landfall_tests::landfall::Site;
use landfall_tests::service::{GatewayHost, enrolled};
use landfall_tests::tools;
use tempfile::TempDir;

/// Reads statements; answers `SELECT 'word';`. Its session ends with it.
const CLIENT: &str = r#"#!/bin/sh
log=FOLDER/log
if [ -e FOLDER/down ]; then
    echo "ERROR 2002 (HY000): Can't connect to local MySQL server through socket '/run/mysqld/mysqld.sock' (2)" >&2
    exit 1
fi
echo "options $*" >>"$log"
echo $$ >FOLDER/client
trap 'echo unlocked >>"$log"' EXIT
trap 'exit 1' TERM
while read -r line; do
    echo "$line" >>"$log"
    case $line in
    FLUSH*) while [ -e FOLDER/busy ]; do sleep 0.05; done ;;
    SELECT*)
        word=${line#*\'}
        echo "${word%\'*}"
        ;;
    esac
done
"#;
/// What a session is told, and its end.
const SESSION: [&str; 6] = [
    "options --batch --skip-column-names --unbuffered --skip-reconnect",
    "SET SESSION lock_wait_timeout = 1;",
    "FLUSH TABLES WITH READ LOCK;",
    "SELECT 'landfall-locked';",
    "SELECT 'landfall-still-locked';",
    "unlocked",
];

/// A host with the hook, and a server that is a folder.
struct Hook {
    folder: TempDir,
}

impl Hook {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let client = folder.path().join("client.sh");
        fs::write(&client, CLIENT.replace("FOLDER", folder.path().to_str().unwrap())).unwrap();
        fs::set_permissions(&client, fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// As it stands in a configuration.
    fn command(&self) -> String {
        let (own, client) = (self.file("hook"), self.file("client.sh"));
        let hook = tools::repository().join("deploy/hooks/mysql");
        format!(
            "LANDFALL_HOOK_DIR='{}' LANDFALL_MYSQL='{}' LANDFALL_LOCK_WAIT_SECONDS=1 '{}'",
            own.display(),
            client.display(),
            hook.display()
        )
    }

    /// Runs it for a phase: whether it succeeded, and what it said.
    fn run(&self, phase: &str) -> (bool, String) {
        self.run_with(phase, "")
    }

    fn run_with(&self, phase: &str, variables: &str) -> (bool, String) {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("{variables} {}", self.command())]).env("LANDFALL_PHASE", phase);
        let out = tools::output(&mut shell);
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    }

    fn log(&self) -> Vec<String> {
        fs::read_to_string(self.file("log")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn wait_until_unlocked(&self) {
        let start = Instant::now();
        while self.log().last().is_none_or(|line| line != "unlocked") {
            assert!(start.elapsed() < Duration::from_secs(30), "it stays locked: {:?}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.file("busy"));
        self.run("thaw");
    }
}

#[test]
fn one_session_has_the_lock_from_before_the_cut_until_the_thaw() {
    let (site, hook) = (Site::with_vault(), Hook::new());
    let gateway = GatewayHost::started(&site, "gw");
    let more = format!("freeze_command = \"{}\"", hook.command());
    let (_disk, host) = enrolled(&site, &gateway, "web", 1 << 20, &more);
    for point in 1..3 {
        host.ship();
        host.wait_for_points(point);
        assert_eq!(site.points("web")[point - 1]["consistency"], "application");
        assert_eq!(hook.log(), SESSION.repeat(point));
    }
    // A server that hangs makes no point, and is asked for its lock no more.
    fs::write(hook.file("busy"), "").unwrap();
    let refused = host.try_ship();
    assert!(refused.code() != Some(0) && refused.stderr.contains("no lock"), "{}", refused.story());
    assert!(!refused.stderr.contains("frozen"), "the thaw had nothing to do\n{}", refused.story());
    fs::remove_file(hook.file("busy")).unwrap();
    hook.wait_until_unlocked();
    assert_eq!(site.point_count("web"), 2);
    host.ship();
    host.wait_for_points(3);
}

#[test]
fn a_lock_that_was_lost_before_the_thaw_is_noticed() {
    let hook = Hook::new();
    assert_eq!(hook.run("freeze"), (true, String::new()));
    let client = fs::read_to_string(hook.file("client")).unwrap();
    tools::succeed(Command::new("kill").arg(client.trim()));
    hook.wait_until_unlocked();
    let (done, said) = hook.run("thaw");
    assert!(!done && said.contains("the session was lost"), "{said}");
    // Nobody came to thaw either: the lock ends by itself.
    assert_eq!(hook.run_with("freeze", "LANDFALL_LOCK_SECONDS=1"), (true, String::new()));
    hook.wait_until_unlocked();
    assert!(!hook.run("thaw").0);
    // And what the one before has left is no obstacle.
    assert_eq!(hook.run("freeze"), (true, String::new()));
    assert_eq!(hook.run("freeze"), (true, String::new()));
    assert_eq!(hook.run("thaw"), (true, String::new()));
    assert_eq!(hook.log().iter().filter(|line| *line == "unlocked").count(), 4);
}

#[test]
fn a_server_that_is_down_is_no_reason_to_take_no_point() {
    let hook = Hook::new();
    fs::write(hook.file("down"), "").unwrap();
    let (done, said) = hook.run("freeze");
    assert!(done && said.contains("the server is not running"), "{said}");
    assert_eq!(hook.run("thaw"), (true, String::new()));
    let (done, said) = hook.run("neither");
    assert!(!done && said.contains("LANDFALL_PHASE"), "{said}");
}
