//! Guards against every way in which something could stay frozen.

use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

/// A stand-in for `fsfreeze` that keeps a log; it fails for mount points that are named so.
fn freeze(folder: &TempDir, mounts: &[&str], longest: Duration) -> Freeze {
    let program = folder.path().join("fsfreeze");
    let log = folder.path().join("log");
    let script = format!(
        "#!/bin/sh\necho \"$1\" \"$(basename \"$2\")\" >> {}\ncase $1$2 in -f*refuses) exit 1;; esac\n",
        log.display()
    );
    fs::write(&program, script).expect("a program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("executable");
    let mounts = mounts.iter().map(|m| {
        let path = folder.path().join(m);
        fs::create_dir_all(&path).expect("a folder");
        path
    });
    let mounts: Vec<PathBuf> = mounts.collect();
    Freeze {
        command: None,
        named: mounts.len(),
        by_copies: Vec::new(),
        mounts,
        unnamed: Vec::new(),
        all_mounts: true,
        longest,
        program,
        guest: None,
    }
}

fn log(folder: &TempDir) -> String {
    fs::read_to_string(folder.path().join("log")).unwrap_or_default()
}

/// Somewhere else than temporary files are, so that the state does not lie on what is frozen.
const ELSEWHERE: &str = "/dev/shm";
const LONG: Duration = Duration::from_secs(60);

fn hold(freeze: &Freeze) -> Result<Held> {
    freeze.hold(tempfile::tempdir_in(ELSEWHERE).expect("a folder").path(), true, &|| false)
}

#[test]
fn file_systems_are_frozen_in_order_and_thawed_in_reverse() {
    let folder = tempfile::tempdir().expect("a folder");
    let freeze = freeze(&folder, &["one", "two"], LONG);
    let held = hold(&freeze).expect("frozen");
    assert_eq!(log(&folder), "-f one\n-f two\n");
    held.thaw().expect("thawed");
    assert_eq!(log(&folder), "-f one\n-f two\n-u two\n-u one\n");
    assert_eq!(freeze.consistency(), Consistency::Filesystem);
}

#[test]
fn what_is_dropped_is_thawed() {
    let folder = tempfile::tempdir().expect("a folder");
    let freeze = freeze(&folder, &["one"], LONG);
    drop(hold(&freeze).expect("frozen"));
    assert_eq!(log(&folder), "-f one\n-u one\n");
}

#[test]
fn where_one_cannot_be_frozen_the_others_are_thawed() {
    let folder = tempfile::tempdir().expect("a folder");
    let freeze = freeze(&folder, &["one", "refuses", "three"], LONG);
    let error = hold(&freeze).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Usage);
    let log = log(&folder);
    assert!(log.starts_with("-f one\n-f refuses\n") && log.contains("-u one\n") && !log.contains("three"), "{log}");
}

#[test]
fn what_is_frozen_for_too_long_is_thawed_without_the_agent_and_no_point_is_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    let freeze = freeze(&folder, &["one"], Duration::from_secs(1));
    let held = hold(&freeze).expect("frozen");
    let start = Instant::now();
    while log(&folder) != "-f one\n-u one\n" {
        assert!(start.elapsed() < Duration::from_secs(30), "never thawed");
        std::thread::sleep(POLL);
    }
    let error = held.thaw().expect_err("too late");
    assert!(error.to_string().contains("thawed before all was read"), "{error}");
    assert_eq!(log(&folder), "-f one\n-u one\n", "once");
}

#[test]
fn a_guard_that_was_killed_is_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let freeze = freeze(&folder, &["one"], LONG);
    let mut held = hold(&freeze).expect("frozen");
    kill(&mut held.guards[0].child);
    let error = held.thaw().expect_err("nobody knows how long it held");
    assert!(error.to_string().contains("thawed before all was read"), "{error}");
    assert_eq!(log(&folder), "-f one\n-u one\n");
}

#[test]
fn a_command_that_does_not_return_is_ended_and_undone() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut freeze = freeze(&folder, &[], Duration::from_secs(1));
    let log_path = folder.path().join("log");
    let command = format!("echo $LANDFALL_PHASE >> {}; test $LANDFALL_PHASE = thaw || sleep 60", log_path.display());
    freeze.command = Some(command);
    let start = Instant::now();
    let error = hold(&freeze).err().expect("refused");
    assert!(start.elapsed() < Duration::from_secs(30), "{error}");
    assert_eq!(log(&folder), "freeze\nthaw\n");
    assert_eq!(freeze.consistency(), Consistency::Application);
}

#[test]
fn a_file_system_that_the_state_lies_on_is_not_frozen() {
    let folder = tempfile::tempdir().expect("a folder");
    let freeze = freeze(&folder, &["one"], LONG);
    let error = freeze.hold(folder.path(), true, &|| false).err().expect("refused");
    assert!(error.to_string().contains("state directory"), "{error}");
    assert_eq!(log(&folder), "");
}

#[test]
fn nothing_to_hold_is_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let freeze = freeze(&folder, &[], LONG);
    hold(&freeze).expect("held").thaw().expect("thawed");
    assert_eq!(freeze.consistency(), Consistency::Crash);
}

#[test]
fn what_a_killed_agent_froze_is_thawed_before_the_next_one_freezes() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = tempfile::tempdir_in(ELSEWHERE).expect("a folder");
    let mut freeze = freeze(&folder, &["one"], LONG);
    // A thaw that takes its time.
    let (program, slow) = (freeze.program.clone(), folder.path().join("slow"));
    let script = format!("#!/bin/sh\ntest \"$1\" != -u || sleep 1\nexec {} \"$@\"\n", program.display());
    fs::write(&slow, script).expect("a program");
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).expect("executable");
    freeze.program = slow;
    let mut held = freeze.hold(state.path(), true, &|| false).expect("frozen");
    // What the kernel does with a process that is killed: its ends of the pipes are closed, and its files.
    let mut guard = held.guards.pop().expect("a guard");
    drop(guard.child.stdin.take());
    guard.released = true;
    drop(held);
    let next = freeze.hold(state.path(), true, &|| false).expect("frozen");
    assert_eq!(log(&folder), "-f one\n-u one\n-f one\n");
    next.thaw().expect("nobody else thawed it");
    wait(&mut guard.child, LONG, &|| false).expect("it has ended");
}
