//! Finding the programs that tests use, and the rule for when one is missing.
//!
//! On a developer's machine a test whose peer is missing is skipped with a line on stderr. Where `CI` is set it fails: a green run
//! that ran nothing would be worse than a red one. `make test` installs everything first, so that neither should happen.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Folders that hold administrators' programs and are not on the `PATH` of everybody.
const ADMIN_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_path_buf()
}

/// Where `tests/tools/setup.sh` puts the peers.
pub fn peers_folder() -> PathBuf {
    std::env::var_os("LANDFALL_PEERS").map_or_else(|| repository().join("target/peers"), PathBuf::from)
}

/// A program on the `PATH` or in an administrator's folder.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(ADMIN_FOLDERS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The program, or `None` after saying that the test is skipped.
///
/// # Panics
/// Where `CI` is set and the program is missing.
pub fn need(name: &str) -> Option<PathBuf> {
    let found = find(name);
    if found.is_none() {
        missing(&format!("the program '{name}'"));
    }
    found
}

/// Says that a test is skipped for want of something; fails it where `CI` is set.
///
/// # Panics
/// Where `CI` is set.
pub fn missing(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what} is missing: run tests/tools/setup.sh");
    eprintln!("SKIPPED: {what} is missing; run tests/tools/setup.sh, or 'make test', which does");
}

/// The value of an `Option`, or the end of the test: for peers and programs that may be missing.
#[macro_export]
macro_rules! need {
    ($found:expr) => {
        match $found {
            Some(found) => found,
            None => return,
        }
    };
}

/// Runs a command to its end.
///
/// # Panics
/// If it cannot be started.
pub fn output(command: &mut Command) -> Output {
    command.stdin(std::process::Stdio::null());
    command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

/// Runs a command that must succeed; gives its stdout.
///
/// # Panics
/// If it does not succeed, with everything that it printed.
pub fn succeed(command: &mut Command) -> String {
    let out = output(command);
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{command:?} ended with {}\n{stdout}{stderr}", out.status);
    stdout.into_owned()
}
