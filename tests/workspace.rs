//! Rules of the workspace that no compiler holds: which crate sees which, licences, banned crates, one TLS stack, the size of files.
//!
//! Cargo itself is asked, so that nothing here parses manifests; `deny.toml` says the same to cargo-deny.
#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests fail the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use landfall_tests::tools::{repository, succeed};
use serde_json::Value;

/// What each crate of the workspace may see of the others: the arrows of the architecture, and nothing else.
const LAYERS: &[(&str, &[&str])] = &[
    ("landfall-model", &[]),
    ("landfall-keys", &["landfall-model"]),
    ("landfall-disk", &["landfall-model"]),
    ("landfall-nbd", &["landfall-model"]),
    ("landfall-qmp", &["landfall-model"]),
    ("landfall-track", &["landfall-model"]),
    ("landfall-settings", &["landfall-model"]),
    ("landfall-wire", &["landfall-model"]),
    (
        "landfall-agent",
        &[
            "landfall-model",
            "landfall-disk",
            "landfall-nbd",
            "landfall-qmp",
            "landfall-settings",
            "landfall-track",
            "landfall-wire",
        ],
    ),
    ("landfall-vault", &["landfall-model", "landfall-keys"]),
    (
        "landfall-gateway",
        &["landfall-model", "landfall-keys", "landfall-disk", "landfall-settings", "landfall-vault", "landfall-wire"],
    ),
    (
        "landfall-restore",
        &[
            "landfall-model",
            "landfall-keys",
            "landfall-disk",
            "landfall-nbd",
            "landfall-qmp",
            "landfall-settings",
            "landfall-vault",
        ],
    ),
];
/// May see everything: the command and the tests.
const TOP: [&str; 2] = ["landfall-cli", "landfall-tests"];

/// Dependencies that only some crates of the workspace may name.
const RESERVED: &[(&str, &[&str])] =
    &[("aes-gcm", &["landfall-keys"]), ("object_store", &["landfall-vault", "landfall-tests"])];

/// Crates that allow `unsafe` code in one module: their tables of lints are the workspace's but for that.
const UNSAFE: [&str; 1] = ["landfall-track"];

const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

const BANNED: &[(&str, &str)] = &[
    ("aws-sdk-ec2", "takes 9 GB of memory to build"),
    ("azure_storage_blobs", "no longer maintained"),
    ("boring-sys", "one TLS stack: rustls on aws-lc-rs"),
    ("native-tls", "one TLS stack: rustls on aws-lc-rs"),
    ("openssl-sys", "one TLS stack: rustls on aws-lc-rs"),
    ("ring", "one TLS stack: rustls on aws-lc-rs"),
];

/// Two of any of these in one program would be two TLS or HTTP stacks.
const ONE_VERSION: &[&str] = &["aws-lc-rs", "http", "hyper", "hyper-rustls", "reqwest", "rustls", "tokio"];

/// A file has one reason to change; a longer one has two.
const LINES_MAX: usize = 700;

struct Workspace {
    /// Packages of the workspace, by name.
    members: BTreeMap<String, Value>,
}

impl Workspace {
    fn read() -> Self {
        let text = cargo(&["metadata", "--format-version", "1", "--locked", "--no-deps"]);
        let metadata: Value = serde_json::from_str(&text).expect("cargo prints JSON");
        let members = metadata["packages"].as_array().expect("packages").iter();
        Self { members: members.map(|package| (text_of(package, "name").to_owned(), package.clone())).collect() }
    }

    /// Names of what a member depends on to be built; tests of its own may see more.
    fn dependencies(&self, member: &str) -> BTreeSet<String> {
        let dependencies = self.members[member]["dependencies"].as_array().expect("dependencies");
        let built = dependencies.iter().filter(|dependency| dependency["kind"] != "dev");
        built.map(|dependency| text_of(dependency, "name").to_owned()).collect()
    }
}

/// A package that is built for this machine, with every feature on.
///
/// From `cargo tree`: `cargo metadata` also names what is behind features that nobody turns on.
struct Package {
    name: String,
    version: String,
    licence: String,
}

fn packages() -> Vec<Package> {
    let format = ["--prefix", "none", "--format", "{p}|{l}"];
    let text = cargo(&[&["tree", "--locked", "--workspace", "--all-features"][..], &format].concat());
    let lines: BTreeSet<&str> =
        text.lines().map(|line| line.trim_end_matches(" (*)")).filter(|l| !l.is_empty()).collect();
    let parsed = lines.into_iter().map(|line| {
        let (package, licence) = line.split_once('|').unwrap_or_else(|| panic!("cargo tree printed {line:?}"));
        let mut words = package.split(' ');
        let (name, version) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        Package { name: name.to_owned(), version: version.to_owned(), licence: licence.trim().to_owned() }
    });
    parsed.collect()
}

fn cargo(arguments: &[&str]) -> String {
    succeed(Command::new(env!("CARGO")).args(arguments).current_dir(repository()))
}

fn text_of<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("no text {name:?} in {value}"))
}

#[test]
fn crates_see_only_the_layers_below_them() {
    let workspace = Workspace::read();
    for member in workspace.members.keys().filter(|member| !TOP.contains(&member.as_str())) {
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| name == member) else {
            panic!("{member} is new: say in LAYERS what it may see");
        };
        for seen in workspace.dependencies(member) {
            let ours = workspace.members.contains_key(&seen);
            assert!(!ours || allowed.contains(&seen.as_str()), "{member} must not see {seen}");
        }
    }
}

#[test]
fn gateway_and_restore_do_not_see_each_other_by_any_way() {
    let workspace = Workspace::read();
    for (from, to) in [("landfall-gateway", "landfall-restore"), ("landfall-restore", "landfall-gateway")] {
        let (mut seen, mut ahead) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(member) = ahead.pop() {
            if seen.insert(member.clone()) {
                ahead.extend(workspace.dependencies(&member).into_iter().filter(|d| workspace.members.contains_key(d)));
            }
        }
        assert!(!seen.contains(to), "{from} sees {to}");
    }
}

#[test]
fn only_keys_names_the_cipher_and_only_vault_names_the_store() {
    let workspace = Workspace::read();
    for member in workspace.members.keys() {
        let dependencies = workspace.members[member]["dependencies"].as_array().expect("dependencies");
        for (reserved, owners) in RESERVED {
            let names_it = dependencies.iter().any(|dependency| dependency["name"] == *reserved);
            assert!(!names_it || owners.contains(&member.as_str()), "{member} must not name {reserved}");
        }
    }
}

#[test]
fn every_dependency_has_a_licence_that_we_accept() {
    let refused = packages().into_iter().filter(|package| !accepted(&package.licence));
    let refused: Vec<String> = refused.map(|p| format!("{} {}: {:?}", p.name, p.version, p.licence)).collect();
    assert!(refused.is_empty(), "not in the list of accepted licences: {refused:#?}");
}

#[test]
fn no_banned_crate_is_in_the_tree() {
    for package in packages() {
        let name = &package.name;
        if let Some((_, why)) = BANNED.iter().find(|(banned, _)| banned == name) {
            panic!("{name} is in the tree ({why}); 'cargo tree -i {name}' shows who brings it");
        }
    }
}

#[test]
fn there_is_one_tls_stack_and_one_http_stack() {
    let packages = packages();
    for name in ONE_VERSION {
        let versions: Vec<&str> = packages.iter().filter(|p| p.name == *name).map(|p| p.version.as_str()).collect();
        assert_eq!(versions.len(), 1, "versions of {name}: {versions:?}");
    }
}

#[test]
fn everything_comes_from_a_registry_or_this_repository() {
    let lock = fs::read_to_string(repository().join("Cargo.lock")).expect("Cargo.lock");
    for line in lock.lines().filter(|line| line.starts_with("source = ")) {
        assert!(line.starts_with("source = \"registry+"), "a dependency comes from elsewhere: {line}");
    }
}

/// Every source file of the workspace.
fn sources() -> Vec<std::path::PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![repository()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let skipped = name == "target" || name.to_string_lossy().starts_with('.');
            if path.is_dir() && !skipped {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn every_test_that_the_specification_names_exists() {
    let code: String = sources().iter().map(|f| fs::read_to_string(f).expect("a source file")).collect();
    let spec = fs::read_to_string(repository().join("docs/SPEC.md")).expect("docs/SPEC.md");
    let named: BTreeSet<&str> = spec
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|quoted| quoted.rsplit_once("::"))
        .map(|(_, name)| name)
        .filter(|name| {
            name.contains('_') && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        })
        .collect();
    assert!(named.len() > 200, "only {} tests are named: is SPEC.md read rightly?", named.len());
    let missing: Vec<&&str> = named.iter().filter(|name| !code.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "docs/SPEC.md names tests that do not exist: {missing:#?}");
}

#[test]
fn members_share_version_edition_and_lints() {
    let workspace = Workspace::read();
    let root = fs::read_to_string(repository().join("Cargo.toml")).expect("the workspace's manifest");
    let tables = root.split("\n[").filter(|table| table.starts_with("workspace.lints."));
    let lints: Vec<&str> = tables.flat_map(str::lines).filter(|line| line.contains(" = ")).collect();
    assert!(lints.len() > 10, "lints of the workspace: {lints:?}");
    for (name, package) in &workspace.members {
        let manifest = fs::read_to_string(text_of(package, "manifest_path")).expect("a manifest");
        for wanted in ["version.workspace = true", "edition.workspace = true", "license.workspace = true"] {
            assert!(manifest.contains(wanted), "{name} does not say '{wanted}'");
        }
        let own_lints = UNSAFE.contains(&name.as_str());
        assert_eq!(manifest.contains("[lints]\nworkspace = true"), !own_lints, "{name} has lints of its own, or none");
        if own_lints {
            assert!(manifest.contains("unsafe_code = \"deny\""), "{name} allows unsafe code everywhere");
            for lint in lints.iter().filter(|lint| !lint.starts_with("unsafe_code")) {
                assert!(manifest.contains(lint), "{name} does not say '{lint}'");
            }
        }
        assert!(!manifest.contains("\nversion = "), "{name} has a version of its own");
    }
}

#[test]
fn no_source_file_is_too_long() {
    let root = repository();
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"]).current_dir(&root);
    let mut long = Vec::new();
    for file in succeed(&mut git).lines() {
        // Listed, but deleted and not yet committed.
        let Ok(text) = fs::read_to_string(root.join(file)) else { continue };
        let lines = text.lines().count();
        if lines > LINES_MAX {
            long.push(format!("{file}: {lines} lines"));
        }
    }
    assert!(long.is_empty(), "files of more than {LINES_MAX} lines: {long:#?}");
}

/// Whether a licence expression can be met with accepted licences alone.
fn accepted(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let answer = any_of(&mut words);
    answer && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>) -> bool {
    let mut answer = all_of(words);
    while words.next_if_eq(&"OR").is_some() {
        answer |= all_of(words);
    }
    answer
}

fn all_of(words: &mut Words<'_>) -> bool {
    let mut answer = one(words);
    while words.next_if_eq(&"AND").is_some() {
        answer &= one(words);
    }
    answer
}

fn one(words: &mut Words<'_>) -> bool {
    let Some(word) = words.next() else { return false };
    if word == "(" {
        let answer = any_of(words);
        return words.next() == Some(")") && answer;
    }
    match words.next_if_eq(&"WITH").and_then(|_| words.next()) {
        Some(exception) => LICENCES.contains(&format!("{word} WITH {exception}").as_str()),
        None => LICENCES.contains(&word),
    }
}

#[test]
fn licence_expressions_are_read_as_spdx_means_them() {
    for good in [
        "MIT",
        "MIT OR Apache-2.0",
        "MIT/Apache-2.0",
        "GPL-3.0 OR MIT",
        "Apache-2.0 WITH LLVM-exception OR MIT",
        "(MIT OR GPL-2.0) AND Unicode-3.0",
        "ISC AND (Apache-2.0 OR ISC)",
        "GPL-2.0 AND ISC OR MIT",
    ] {
        assert!(accepted(good), "{good}");
    }
    for bad in [
        "",
        "GPL-3.0",
        "MPL-2.0",
        "MIT AND GPL-2.0",
        "MIT AND (GPL-2.0 OR MPL-2.0)",
        "(MIT",
        "MIT MIT",
        "GPL-2.0 WITH Classpath-exception-2.0",
    ] {
        assert!(!accepted(bad), "{bad}");
    }
}
