//! What `deploy/` gives to operators is right: examples of configurations, units, the container's file, alerts and the dashboard.
#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests fail the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use landfall_tests::landfall::{Ran, Site, binary};
use landfall_tests::service::GatewayHost;
use landfall_tests::tls::TlsFront;
use landfall_tests::{http, need, tools};
use serde_json::Value;

fn text(path: &str) -> String {
    fs::read_to_string(tools::repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

// Configurations.

/// Checks configurations, with what they name in a folder of its own.
struct Checker {
    site: Site,
    checked: std::cell::Cell<u32>,
}

impl Checker {
    fn new() -> Self {
        let site = Site::new();
        let etc = site.folder().join("etc");
        fs::create_dir(&etc).expect("own folder");
        fs::write(etc.join("proxy"), "user:password\n").expect("own folder");
        fs::write(etc.join("webhook.secret"), "secret\n").expect("own folder");
        let front = TlsFront::start("127.0.0.1:9".parse().expect("an address"), &["store.site"]);
        fs::copy(front.authority(), etc.join("own-ca.pem")).expect("own folder");
        Self { site, checked: std::cell::Cell::new(0) }
    }

    fn run(&self, who: &str, config: &str) -> Ran {
        let folder = self.site.folder();
        let config = config.replace("/etc/landfall/", &format!("{}/", folder.join("etc").display()));
        let config = config.replace("file:///srv", &format!("file://{}", folder.display()));
        self.checked.set(self.checked.get() + 1);
        let file = folder.join(format!("{who}-{}.toml", self.checked.get()));
        fs::write(&file, config).expect("own folder");
        self.site.run(&[who, "check-config", "--config", file.to_str().expect("plain"), "--json"])
    }

    #[track_caller]
    fn assert_right(&self, who: &str, config: &str) -> Value {
        let ran = self.run(who, config);
        assert_eq!(ran.code(), Some(0), "{}\n{config}", ran.story());
        ran.json()
    }
}

/// An example with all its settings: `# key = value` and `# [section]` without their `# `.
fn with_all_settings(example: &str) -> String {
    let setting = |line: &str| {
        let bare = line.trim_start_matches('[');
        let word = bare.len() - bare.trim_start_matches(|c: char| c.is_ascii_lowercase() || c == '_').len();
        let rest = &bare[word..];
        word > 0 && (rest.starts_with(" = ") || (bare.len() < line.len() && rest.starts_with(']')))
    };
    let line = |line: &str| line.strip_prefix("# ").filter(|l| setting(l)).unwrap_or(line).to_owned();
    example.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The keys of all `KEYS` lists in the sources below a folder or in a file.
fn keys_of(sources: &[&str]) -> BTreeSet<String> {
    let mut files = Vec::new();
    for source in sources {
        let path = tools::repository().join(source);
        match fs::read_dir(&path) {
            Ok(entries) => files.extend(entries.flatten().map(|entry| entry.path())),
            Err(_) => files.push(path),
        }
    }
    let mut keys = BTreeSet::new();
    for file in files {
        let source = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for list in source.split("KEYS: &[&str] =").skip(1) {
            let list = list.trim_start().strip_prefix("&[").and_then(|l| l.split(']').next()).expect("a list");
            keys.extend(list.split('"').skip(1).step_by(2).map(str::to_owned));
        }
    }
    keys
}

#[test]
fn the_examples_are_right_as_they_are_and_with_everything_that_is_commented_out() {
    let checker = Checker::new();
    for (who, name) in [("gateway", "gateway"), ("agent", "agent"), ("agent", "agent-qemu")] {
        let example = text(&format!("deploy/{name}.toml"));
        checker.assert_right(who, &example);
        let all = with_all_settings(&example);
        assert_ne!(all, example, "nothing is commented out: are the comments read rightly?");
        checker.assert_right(who, &all);
    }
    let all = with_all_settings(&text("deploy/gateway.toml"));
    let checked = checker.assert_right("gateway", &all);
    assert_eq!(checked["proxy"], "http://proxy.site-a.example:3128");
    assert!(checked["metrics"].is_string(), "{checked}");
}

#[test]
fn the_examples_name_every_key_that_there_is() {
    for (names, sources) in [
        (&["gateway"][..], &["gateway/src/config.rs", "gateway/src/config", "gateway/src/group_config.rs"][..]),
        (&["agent", "agent-qemu"][..], &["agent/src/config.rs", "agent/src/qemu/config.rs"][..]),
        (&["target"][..], &["restore/src/kvm/settings.rs", "restore/src/kvm/nics.rs", "restore/src/kvm/empty.rs"][..]),
    ] {
        let keys = keys_of(sources);
        assert!(keys.len() >= 10, "only {keys:?} were found in {sources:?}");
        let examples = names.iter().map(|name| with_all_settings(&text(&format!("deploy/{name}.toml"))));
        let example: String = examples.collect();
        let said: BTreeSet<&str> =
            example.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key.trim()).collect();
        let missing: Vec<&String> = keys.iter().filter(|key| !said.contains(key.as_str())).collect();
        assert!(missing.is_empty(), "the examples {names:?} do not say what these are for: {missing:?}");
    }
}

/// The blocks of a language in a page.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let opening = format!("```{language}\n");
    page.split(opening.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn the_configurations_in_the_readme_are_right() {
    let checker = Checker::new();
    let mut of = BTreeMap::new();
    for page in ["README.md", "deploy/README.md"] {
        for block in blocks(&text(page), "toml") {
            let who = if block.contains("[agent]") { "agent" } else { "gateway" };
            // A part of a page need not say again what stands before it.
            let needed = "[gateway]\nvault = \"s3://b/v\"\nsite_key = \"/k\"\n";
            let whole = match block.split_once("[gateway]\n") {
                _ if block.contains("[agent]") || block.contains("vault = ") => block.clone(),
                Some((before, after)) => format!("{before}{needed}{after}"),
                None => format!("{needed}{block}"),
            };
            checker.assert_right(who, &whole);
            *of.entry(who).or_insert(0) += 1;
        }
    }
    assert!(of.get("agent").is_some_and(|n| *n >= 1) && of.get("gateway").is_some_and(|n| *n >= 2), "{of:?}");
}

// Metrics.

/// Every word in a text that looks like a metric of ours.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("landfall_")).map(str::to_owned).collect()
}

/// The metrics that a running gateway serves.
fn served() -> BTreeSet<String> {
    let site = Site::with_vault();
    let mut gateway = GatewayHost::new(&site, "gw", "metrics = \"127.0.0.1:0\"");
    gateway.start();
    let at = gateway.metrics_address().parse().expect("an address");
    let answer = http::request(at, "GET", "/metrics").expect("a gateway that serves metrics");
    assert_eq!(answer.status, 200, "{}", answer.text);
    let types = answer.text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    types.map(str::to_owned).collect()
}

#[test]
fn alerts_and_dashboard_use_what_is_served_and_the_page_explains_all_of_it() {
    let served = served();
    assert!(served.len() >= 11, "{served:?}");
    for file in ["deploy/prometheus-rules.yml", "deploy/grafana-dashboard.json"] {
        let used = metrics_in(&text(file));
        let unknown: Vec<&String> = used.difference(&served).collect();
        assert!(!used.is_empty() && unknown.is_empty(), "{file} uses what no gateway serves: {unknown:?}");
    }
    let page = text("deploy/README.md");
    let row = |line: &str| line.strip_prefix("| `").and_then(|rest| rest.split('`').next()).map(str::to_owned);
    let explained: BTreeSet<String> = page.lines().filter_map(row).filter(|w| w.starts_with("landfall_")).collect();
    assert_eq!(explained, served, "the table of metrics in deploy/README.md and what a gateway serves");
}

#[test]
fn the_dashboard_is_one() {
    let dashboard: Value = serde_json::from_str(&text("deploy/grafana-dashboard.json")).expect("JSON");
    let variables: Vec<&str> = dashboard["templating"]["list"]
        .as_array()
        .expect("variables")
        .iter()
        .filter_map(|v| v["name"].as_str())
        .collect();
    let panels = dashboard["panels"].as_array().expect("panels");
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}: its id is another panel's");
        assert!(panel["description"].is_string(), "{title}: what is it?");
        let number = |key: &str| panel["gridPos"][key].as_u64().expect("a place");
        assert!(number("x") + number("w") <= 24, "{title} does not fit");
        for x in number("x")..number("x") + number("w") {
            for y in number("y")..number("y") + number("h") {
                assert!(places.insert((x, y)), "{title} lies over another panel");
            }
        }
        let targets = panel["targets"].as_array().expect("queries");
        assert!(!targets.is_empty(), "{title} asks nothing");
        for target in targets {
            let query = target["expr"].as_str().expect("a query");
            assert!(!metrics_in(query).is_empty(), "{title}: {query}");
            assert_eq!(
                query.matches(['(', '{', '[']).count(),
                query.matches([')', '}', ']']).count(),
                "{title}: {query}"
            );
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}: a data source of one site");
            for variable in query.split('$').skip(1) {
                let end = variable.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(variable.len());
                let known = variables.contains(&&variable[..end]) || variable.starts_with("__rate_interval");
                assert!(known, "{title}: no variable ${}", &variable[..end]);
            }
        }
    }
    for wanted in ["rpo_seconds", "backlog_seconds", "uploaded_bytes", "spool_bytes", "health", "cycles", "failures"] {
        assert!(panels.iter().any(|p| p["targets"].to_string().contains(wanted)), "no panel shows {wanted}");
    }
}

// Units.

/// A copy of all units, with the binary of the tests, which is there; that of the units need not be.
fn units(folder: &Path) -> Vec<PathBuf> {
    let mut copies = Vec::new();
    for entry in fs::read_dir(tools::repository().join("deploy/systemd")).expect("units").flatten() {
        if entry.path().is_dir() {
            continue;
        }
        let unit = fs::read_to_string(entry.path()).expect("a unit");
        let copy = folder.join(entry.file_name());
        fs::write(&copy, unit.replace("/usr/local/bin/landfall", &binary().display().to_string())).expect("own folder");
        copies.push(copy);
    }
    copies.sort();
    copies
}

#[test]
fn systemd_accepts_the_units() {
    let analyze = need!(tools::need("systemd-analyze"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let units = units(folder.path());
    assert!(units.len() >= 4, "{units:?}");
    // What is added to one is read with it.
    let (more, name) = (folder.path().join("landfall-agent.service.d"), "landfall-agent.service.d/watch.conf");
    fs::create_dir(&more).expect("own folder");
    fs::write(more.join("watch.conf"), text(&format!("deploy/systemd/{name}"))).expect("own folder");
    let out = tools::output(Command::new(analyze).args(["verify", "--man=no"]).args(&units));
    let said = String::from_utf8_lossy(&out.stderr);
    let of_ours: Vec<&str> = said.lines().filter(|line| line.contains("landfall")).collect();
    assert!(out.status.success() && of_ours.is_empty(), "{} {said}", out.status);
}

/// 2.0, as `--threshold` wants it.
const EXPOSURE_MAX: &str = "20";

#[test]
fn the_services_are_exposed_as_little_as_the_page_says() {
    let analyze = need!(tools::need("systemd-analyze"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let services: Vec<PathBuf> =
        units(folder.path()).into_iter().filter(|unit| unit.extension().is_some_and(|e| e == "service")).collect();
    assert!(services.len() >= 3, "{services:?}");
    for service in services {
        let mut command = Command::new(&analyze);
        command.args(["security", "--offline=yes", "--no-pager", "--threshold", EXPOSURE_MAX]).arg(&service);
        let out = tools::output(&mut command);
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(said.contains("Overall exposure level"), "{said}{}", String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{}: {:?}", service.display(), said.lines().last());
    }
}

// The container.

/// One instruction of a Containerfile: its word, and what follows it.
fn instructions(file: &str) -> Vec<(String, String)> {
    let lines = file.lines().filter(|line| !line.trim_start().starts_with('#') && !line.trim().is_empty());
    let joined = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let split = |line: &str| line.split_once(' ').map(|(word, rest)| (word.to_owned(), rest.trim().to_owned()));
    joined.lines().map(|line| split(line).unwrap_or_else(|| panic!("no instruction: {line}"))).collect()
}

#[test]
fn the_container_is_one_binary_without_root() {
    let all = instructions(&text("deploy/Containerfile"));
    let known = [
        "FROM",
        "WORKDIR",
        "COPY",
        "RUN",
        "LABEL",
        "USER",
        "ENV",
        "VOLUME",
        "EXPOSE",
        "STOPSIGNAL",
        "ENTRYPOINT",
        "CMD",
    ];
    for (word, rest) in &all {
        assert!(known.contains(&word.as_str()), "{word} {rest}: this is fetched, deprecated, or not thought of here");
    }
    let stages: Vec<usize> = all.iter().enumerate().filter(|(_, (word, _))| word == "FROM").map(|(n, _)| n).collect();
    let [build, last] = stages[..] else { panic!("two stages: one builds, one runs; here are {}", stages.len()) };
    let rust = text("Cargo.toml").lines().find_map(|line| line.strip_prefix("rust-version = ").map(str::to_owned));
    let rust = rust.expect("a version").trim_matches('"').to_owned();
    assert_eq!(all[build].1, format!("rust:{rust}-bookworm AS build"), "Rust of the workspace, and no registry's host");
    assert_eq!(all[last].1, "scratch", "nothing but what is copied");

    let (building, running) = (&all[build + 1..last], &all[last + 1..]);
    let copied = |from: &[(String, String)]| -> Vec<String> {
        from.iter().filter(|(word, _)| word == "COPY").map(|(_, rest)| rest.clone()).collect()
    };
    // What is built is what is here, and all of it.
    let mut sources = BTreeSet::new();
    for line in copied(building) {
        let words: Vec<&str> = line.split_whitespace().collect();
        sources.extend(words[..words.len() - 1].iter().map(ToString::to_string));
    }
    for source in &sources {
        assert!(tools::repository().join(source).exists(), "COPY {source}: there is no such file");
    }
    let members =
        text("Cargo.toml").lines().find_map(|l| l.strip_prefix("members = ").map(str::to_owned)).expect("members");
    for member in members.split('"').skip(1).step_by(2).chain(["Cargo.toml", "Cargo.lock", "Makefile"]) {
        assert!(sources.contains(member), "{member} is not copied");
    }
    assert!(building.iter().any(|(word, rest)| word == "RUN" && rest.contains("make static")));
    for line in copied(running) {
        assert!(line.starts_with("--from=build "), "COPY {line}: only what was built");
    }
    // Nobody's shell, and not root.
    assert!(!running.iter().any(|(word, _)| word == "RUN"), "there is no shell to run anything");
    let value = |wanted: &str| {
        let found: Vec<&String> = running.iter().filter(|(word, _)| word == wanted).map(|(_, rest)| rest).collect();
        assert_eq!(found.len(), 1, "{wanted}: {found:?}");
        found[0].clone()
    };
    let user = value("USER");
    let ids: Vec<u32> = user.split(':').map(|id| id.parse().unwrap_or_else(|_| panic!("{user}: by number"))).collect();
    assert!(ids.len() == 2 && ids.iter().all(|id| *id > 0), "{user}: not root");
    assert!(copied(running).iter().any(|line| line.contains(&format!("--chown={user}"))), "the state's owner");
    for list in ["VOLUME", "ENTRYPOINT", "CMD"] {
        let words: Vec<String> = serde_json::from_str(&value(list)).expect("a list: there is no shell to split it");
        assert!(!words.is_empty(), "{list}");
    }
    assert_eq!(value("VOLUME"), "[\"/var/lib/landfall\"]");
    for (word, rest) in all.iter().filter(|(word, _)| word == "ENV") {
        let rest = rest.to_uppercase();
        assert!(
            !["KEY", "SECRET", "PASSWORD", "TOKEN"].iter().any(|w| rest.contains(w)),
            "{word} {rest}: a secret in an image"
        );
    }
}
