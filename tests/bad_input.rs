//! Bad input gets a clear error, on one line, with the exit code of its kind, and nothing is lost by it.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use landfall_tests::disks;
use landfall_tests::landfall::{Ran, Site, exit, in_small_file_system, strs};
use landfall_tests::{need, tools};

const MIB: u64 = 1 << 20;

/// A vault with one machine "web", its disk "root" and one point.
fn with_one_point() -> (Site, PathBuf) {
    let site = Site::with_vault();
    let disk = site.disk("disk.img");
    disks::random(&disk, 2 * MIB, 1);
    site.replicate("web", &[("root", &disk)]);
    (site, disk)
}

// Keys.

#[test]
fn a_missing_site_key_is_named() {
    let (site, disk) = with_one_point();
    fs::rename(site.site_key(), site.folder().join("elsewhere")).unwrap();
    site.try_replicate("web", &[("root", &disk)], &[]).assert_refused(exit::KEY, &["site.key"]);
}

#[test]
fn no_key_at_all_is_told_with_the_option_that_is_missing() {
    let (site, disk) = with_one_point();
    let named = format!("root={}", disk.display());
    let ran =
        site.run(&["replicate", "--machine", "web", "--disk", &named, "--vault", site.url(), "--json", "--quiet"]);
    ran.assert_refused(exit::KEY, &["--site-key"]);
}

#[test]
fn a_site_key_of_another_vault_is_refused() {
    let (site, disk) = with_one_point();
    let other = Site::with_vault();
    fs::copy(other.site_key(), site.site_key()).unwrap();
    site.try_replicate("web", &[("root", &disk)], &[]).assert_refused(exit::KEY, &["vault", "key"]);
}

#[test]
fn a_recovery_key_of_another_vault_opens_nothing_and_makes_no_file() {
    let (site, _) = with_one_point();
    let other = Site::with_vault();
    fs::copy(other.recovery_key(), site.recovery_key()).unwrap();
    let back = site.disk("back.img");
    site.try_rehydrate("web", &[("root", &back)], &[]).assert_refused(exit::KEY, &["vault", "key"]);
    assert!(!back.exists());
}

#[test]
fn the_site_key_does_not_bring_a_disk_back() {
    let (site, _) = with_one_point();
    let back = site.disk("back.img");
    let named = format!("root={}", back.display());
    let ran = site.gateway(&["rehydrate", "--machine", "web", "--disk", &named]);
    ran.assert_refused(exit::KEY, &["recovery"]);
    assert!(!back.exists());
    fs::copy(site.site_key(), site.recovery_key()).unwrap();
    site.try_rehydrate("web", &[("root", &back)], &[]).assert_refused(exit::KEY, &["recovery.key"]);
    assert!(!back.exists());
}

#[test]
fn a_key_file_that_is_cut_short_or_mistyped_is_refused() {
    let (site, _) = with_one_point();
    let good = fs::read(site.recovery_key()).unwrap();
    let mut mistyped = good.clone();
    let at = mistyped.len() / 2;
    mistyped[at] ^= 1;
    for bad in [&good[..good.len() / 2], &mistyped, b"", b"not a key at all\n"] {
        fs::write(site.recovery_key(), bad).unwrap();
        let ran = site.try_rehydrate("web", &[("root", &site.disk("back.img"))], &[]);
        // Damaged, or simply another file: the contract has a code for each, and nobody can tell them apart for sure.
        let code = one_of(&ran, &[exit::KEY, exit::CORRUPT]);
        ran.assert_refused(code, &["recovery", "key"]);
    }
}

#[test]
fn a_wrong_passphrase_is_refused_and_the_right_one_works() {
    let site = Site::new();
    let [right, wrong] = ["right", "wrong"].map(|name| site.folder().join(name));
    fs::write(&right, "correct horse battery staple\n").unwrap();
    fs::write(&wrong, "incorrect horse\n").unwrap();
    let (recovery, key) = (site.recovery_key(), site.site_key());
    let create = ["vault", "create", "--vault", site.url(), "--json", "--quiet", "--passphrase-file", plain(&right)];
    site.run(&[&create[..], &["--recovery-key", plain(&recovery), "--site-key", plain(&key)]].concat()).json();
    let disk = site.disk("disk.img");
    disks::random(&disk, 300_000, 1);
    site.replicate("web", &[("root", &disk)]);

    let back = site.disk("back.img");
    let wrong = site.try_rehydrate("web", &[("root", &back)], &["--passphrase-file", plain(&wrong)]);
    wrong.assert_refused(exit::KEY, &["passphrase"]);
    site.try_rehydrate("web", &[("root", &back)], &[]).assert_refused(exit::KEY, &["--passphrase-file"]);
    assert!(!back.exists());
    site.try_rehydrate("web", &[("root", &back)], &["--passphrase-file", plain(&right)]).json();
    disks::assert_same(&disk, &back);
}

#[test]
fn key_files_are_for_their_owner_only() {
    let site = Site::with_vault();
    for key in [site.recovery_key(), site.site_key()] {
        let mode = fs::metadata(&key).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", key.display());
    }
}

// The vault.

#[test]
fn a_vault_that_exists_is_not_made_again() {
    let (site, disk) = with_one_point();
    let keys = [fs::read(site.recovery_key()).unwrap(), fs::read(site.site_key()).unwrap()];
    let (recovery, key) = (site.folder().join("r2"), site.folder().join("s2"));
    let create = ["vault", "create", "--vault", site.url(), "--json", "--quiet"];
    let ran = site.run(&[&create[..], &["--recovery-key", plain(&recovery), "--site-key", plain(&key)]].concat());
    ran.assert_refused(exit::CONFLICT, &[site.url(), "already"]);
    assert_eq!(keys, [fs::read(site.recovery_key()).unwrap(), fs::read(site.site_key()).unwrap()]);
    assert!(!recovery.exists() && !key.exists(), "no keys for a vault that was not made");
    site.assert_disk_is("web", "latest", "root", &disk);
}

#[test]
fn a_key_file_that_exists_is_not_overwritten() {
    let site = Site::new();
    fs::write(site.recovery_key(), "the only copy of something else").unwrap();
    let ran = site.try_create_vault();
    ran.assert_refused(exit::CONFLICT, &["recovery.key", "exists"]);
    assert_eq!(fs::read_to_string(site.recovery_key()).unwrap(), "the only copy of something else");
    assert!(!site.site_key().exists() && site.files("vault").is_empty(), "nothing half made");
}

#[test]
fn a_vault_that_is_not_there_is_not_found() {
    let (mut site, disk) = with_one_point();
    let elsewhere = format!("file://{}", site.folder().join("no-vault").display());
    site.set_env("LANDFALL_VAULT", &elsewhere);
    let (named, key) = (format!("root={}", disk.display()), site.site_key());
    let ran = site.run(&["replicate", "--machine", "web", "--disk", &named, "--site-key", plain(&key), "--quiet"]);
    ran.assert_refused(exit::NOT_FOUND, &["no-vault"]);
}

#[test]
fn a_vault_of_a_newer_format_is_unsupported() {
    let (site, disk) = with_one_point();
    let file = site.vault_folder().join("vault.json");
    let text = fs::read_to_string(&file).unwrap();
    let newer = text.replacen("\"format\":1", "\"format\":2", 1).replacen("\"format\": 1", "\"format\": 2", 1);
    assert_ne!(text, newer, "vault.json says its format: {text}");
    fs::write(&file, newer).unwrap();
    site.try_replicate("web", &[("root", &disk)], &[]).assert_refused(exit::UNSUPPORTED, &["format", "2"]);
    let ran = site.try_rehydrate("web", &[("root", &site.disk("back.img"))], &[]);
    ran.assert_refused(exit::UNSUPPORTED, &["format", "2"]);
    fs::write(&file, text).unwrap();
    site.assert_disk_is("web", "latest", "root", &disk);
}

#[test]
fn a_url_of_no_known_store_is_a_usage_error() {
    let site = Site::new();
    for url in ["ftp://host/vault", "vault", "file://relative/path", "s3://"] {
        let (recovery, key) = (site.recovery_key(), site.site_key());
        let create = ["vault", "create", "--vault", url, "--json", "--quiet"];
        let ran = site.run(&[&create[..], &["--recovery-key", plain(&recovery), "--site-key", plain(&key)]].concat());
        ran.assert_refused(exit::USAGE, &[url]);
        assert!(!recovery.exists() && !key.exists(), "{url}: no keys for a vault that was not made");
    }
}

#[test]
fn an_endpoint_without_tls_is_refused_unless_it_is_allowed() {
    let mut site = Site::new();
    for (name, value) in [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_REGION", "eu-west-1")] {
        site.set_env(name, value);
    }
    // Nobody listens there: the error is of the address, not of the answer.
    site.set_env("AWS_ENDPOINT", "http://127.0.0.1:9");
    let (recovery, key) = (site.recovery_key(), site.site_key());
    let create = ["vault", "create", "--vault", "s3://bucket/dr", "--json", "--quiet"];
    let ran = site.run(&[&create[..], &["--recovery-key", plain(&recovery), "--site-key", plain(&key)]].concat());
    ran.assert_refused(exit::USAGE, &["http://127.0.0.1:9", "AWS_ALLOW_HTTP"]);
    assert!(!recovery.exists() && !key.exists(), "no keys for a vault that was not made");
}

// Sources.

#[test]
fn a_source_that_is_not_there_is_named_and_makes_no_point() {
    let (site, _) = with_one_point();
    let gone = site.disk("gone.img");
    let ran = site.try_replicate("web", &[("root", &gone)], &[]);
    let code = one_of(&ran, &[exit::USAGE, exit::UNAVAILABLE, exit::NOT_FOUND]);
    ran.assert_refused(code, &["gone.img"]);
    assert_eq!(site.points("web").len(), 1);
}

#[test]
fn a_source_that_is_a_folder_is_refused() {
    let (site, _) = with_one_point();
    let ran = site.try_replicate("web", &[("root", site.folder())], &[]);
    let code = one_of(&ran, &[exit::USAGE, exit::UNSUPPORTED]);
    ran.assert_refused(code, &[plain(site.folder())]);
}

#[test]
fn a_source_that_shrinks_while_it_is_read_makes_no_wrong_point() {
    let site = Site::with_vault();
    let disk = site.disk("disk.img");
    disks::random(&disk, 192 * MIB, 1);
    let arguments = site.as_gateway(&strs(&Site::replicate_arguments("web", &[("root", &disk)], &[])));
    let mut running = site.start(&strs(&arguments));
    // The first segment is stored: reading is under way, and most of the disk is still to come.
    let under_way = running.wait_until(|| !site.files("vault/segments").is_empty());
    assert!(under_way, "it ended before it had stored anything: {}", running.finish().story());
    disks::resize(&disk, 4 * MIB);
    let ran = running.finish();
    if ran.code() != Some(exit::DONE) {
        let code = one_of(&ran, &[exit::CONFLICT, exit::UNAVAILABLE]);
        ran.assert_refused(code, &["disk.img"]);
        assert_eq!(site.point_count("web"), 0, "a cycle that failed is no point");
    }
    // Whatever it was, the next cycle is right.
    site.replicate("web", &[("root", &disk)]);
    site.assert_disk_is("web", "latest", "root", &disk);
    site.assert_sound();
}

#[test]
fn a_disk_that_is_named_twice_is_a_usage_error() {
    let (site, disk) = with_one_point();
    let ran = site.try_replicate("web", &[("root", &disk), ("root", &disk)], &[]);
    ran.assert_refused(exit::USAGE, &["root"]);
    let (one, two) = (site.disk("one.img"), site.disk("two.img"));
    let ran = site.try_rehydrate("web", &[("root", &one), ("root", &two)], &[]);
    ran.assert_refused(exit::USAGE, &["root"]);
    assert!(!one.exists() && !two.exists());
    assert_eq!(site.points("web").len(), 1);
}

#[test]
fn one_file_under_two_names_of_a_rehydrate_is_a_usage_error() {
    let site = Site::with_vault();
    let (disk, target) = (site.disk("disk.img"), site.disk("target.img"));
    disks::random(&disk, 300_000, 1);
    site.replicate("web", &[("a", &disk), ("b", &disk)]);
    let ran = site.try_rehydrate("web", &[("a", &target), ("b", &target)], &[]);
    ran.assert_refused(exit::USAGE, &["target.img"]);
}

#[test]
fn a_machine_name_that_is_no_name_is_a_usage_error() {
    let (site, disk) = with_one_point();
    for name in ["a/b", "", "..", "web 1", "büro"] {
        let ran = site.try_replicate(name, &[("root", &disk)], &[]);
        assert_eq!(ran.code(), Some(exit::USAGE), "{}", ran.story());
        assert!(ran.stderr.contains(&format!("{name:?}")), "{}", ran.story());
    }
}

#[test]
fn a_disk_option_without_a_name_is_a_usage_error() {
    let (site, disk) = with_one_point();
    let ran = site.gateway(&["replicate", "--machine", "web", "--disk", plain(&disk)]);
    assert_eq!(ran.code(), Some(exit::USAGE), "{}", ran.story());
    assert!(ran.stderr.contains("NAME=PATH"), "{}", ran.story());
}

// What is not there.

#[test]
fn an_unknown_machine_is_not_found() {
    let (site, _) = with_one_point();
    site.gateway(&["points", "--machine", "wbe"]).assert_refused(exit::NOT_FOUND, &["wbe"]);
    let ran = site.try_rehydrate("wbe", &[("root", &site.disk("back.img"))], &[]);
    ran.assert_refused(exit::NOT_FOUND, &["wbe"]);
}

#[test]
fn an_unknown_point_is_not_found() {
    let (site, _) = with_one_point();
    let back = site.disk("back.img");
    let ran = site.try_rehydrate("web", &[("root", &back)], &["--point", "99"]);
    ran.assert_refused(exit::NOT_FOUND, &["99"]);
    assert!(!back.exists());
}

#[test]
fn a_point_that_is_no_point_is_a_usage_error() {
    let (site, _) = with_one_point();
    let ran = site.try_rehydrate("web", &[("root", &site.disk("back.img"))], &["--point", "yesterday"]);
    assert_eq!(ran.code(), Some(exit::USAGE), "{}", ran.story());
    assert!(ran.stderr.contains("yesterday"), "{}", ran.story());
}

#[test]
fn an_unknown_disk_is_not_found_and_the_known_ones_are_named() {
    let (site, _) = with_one_point();
    let ran = site.try_rehydrate("web", &[("rot", &site.disk("back.img"))], &[]);
    ran.assert_refused(exit::NOT_FOUND, &["rot", "root"]);
}

// Targets.

#[test]
fn a_target_that_exists_is_left_alone_unless_told_what_to_do() {
    let (site, _) = with_one_point();
    let target = site.disk("target.img");
    for more in [&[][..], &["--existing", "refuse"]] {
        fs::write(&target, "somebody's data").unwrap();
        let ran = site.try_rehydrate("web", &[("root", &target)], more);
        ran.assert_refused(exit::CONFLICT, &["target.img", "--existing"]);
        assert_eq!(fs::read_to_string(&target).unwrap(), "somebody's data");
    }
}

#[test]
fn a_target_in_a_folder_that_is_not_there_is_named() {
    let (site, _) = with_one_point();
    let ran = site.try_rehydrate("web", &[("root", &site.folder().join("no-folder/target.img"))], &[]);
    let code = one_of(&ran, &[exit::USAGE, exit::NOT_FOUND]);
    ran.assert_refused(code, &["no-folder"]);
}

/// Rehydrates into a file system that is too small; gives the run and whether anything was left in it.
fn rehydrate_without_space(site: &Site, names: &[&str], bytes: u64) -> Option<(Ran, bool)> {
    let (small, list) = (site.folder().join("small"), site.folder().join("list"));
    fs::create_dir_all(&small).unwrap();
    let mut arguments = site.as_customer(&["rehydrate", "--machine", "web"]);
    for name in names {
        arguments.extend(["--disk".to_owned(), format!("{name}={}", small.join(format!("{name}-back.img")).display())]);
    }
    // What the small file system holds is seen only from inside.
    let mut inner = Command::new("sh");
    inner.args(["-c", "\"$@\"; code=$?; ls -A \"$SMALL\" >\"$LIST\"; exit $code", "sh"]);
    inner.arg(landfall_tests::landfall::binary()).args(&arguments);
    let mut command = site.environment(in_small_file_system(&small, bytes, &inner)?, &site.new_state());
    command.env("SMALL", &small).env("LIST", &list);
    let out = tools::output(&mut command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let ran = Ran { arguments, status: out.status, stdout: text(&out.stdout), stderr: text(&out.stderr) };
    let left = !fs::read_to_string(&list).unwrap().trim().is_empty();
    Some((ran, left))
}

#[test]
fn a_target_without_space_is_found_before_anything_is_written() {
    let (site, disk) = with_one_point();
    let (ran, left) = need!(rehydrate_without_space(&site, &["root"], MIB));
    ran.assert_refused(exit::NO_SPACE, &["root-back.img"]);
    assert!(!left, "nothing was written");
    site.assert_disk_is("web", "latest", "root", &disk);
}

#[test]
fn several_images_on_one_file_system_share_its_room() {
    let site = Site::with_vault();
    let (root, data) = (site.disk("root.img"), site.disk("data.img"));
    disks::random(&root, 5 * MIB, 1);
    disks::random(&data, 5 * MIB, 2);
    site.replicate("web", &[("root", &root), ("data", &data)]);
    // Each of them fits, both do not.
    let (ran, left) = need!(rehydrate_without_space(&site, &["root", "data"], 8 * MIB));
    ran.assert_refused(exit::NO_SPACE, &["back.img"]);
    assert!(!left, "nothing was written");
    for name in ["root", "data"] {
        let (ran, _) = need!(rehydrate_without_space(&site, &[name], 8 * MIB));
        ran.json();
    }
}

#[test]
fn a_sparse_disk_fits_where_its_data_fits() {
    let site = Site::with_vault();
    let disk = site.disk("sparse.img");
    assert!(disks::sparse(&disk, 512 * MIB));
    disks::write_at(&disk, 100 * MIB, &disks::seeded_bytes(1, 1_000_000));
    site.replicate("web", &[("thin", &disk)]);
    let (ran, _) = need!(rehydrate_without_space(&site, &["thin"], 8 * MIB));
    ran.json();
}

#[test]
fn a_vault_without_space_fails_the_cycle_and_keeps_its_points() {
    let site = Site::new();
    let (small, disk, fits) = (site.folder().join("small"), site.disk("disk.img"), site.disk("fits.img"));
    fs::create_dir(&small).unwrap();
    disks::random(&disk, 24 * MIB, 1);
    disks::random(&fits, MIB, 2);
    // One shell inside, so that the vault outlives one command.
    let script = r#"
        set -u
        o="--vault file://$SMALL/vault --site-key $SITE/site.key --json --quiet"
        "$L" vault create $o --recovery-key "$SITE/recovery.key" || exit 100
        "$L" replicate --machine web --disk root="$FITS" $o || exit 101
        "$L" replicate --machine web --disk root="$DISK" $o
        code=$?
        LANDFALL_STATE_DIR="$SITE/fresh" "$L" rehydrate --machine web --disk root="$SITE/back.img" \
            --vault "file://$SMALL/vault" --recovery-key "$SITE/recovery.key" --json --quiet || exit 102
        exit $code"#;
    let mut inner = Command::new("sh");
    inner.args(["-c", script]);
    let mut command = site.environment(need!(in_small_file_system(&small, 12 * MIB, &inner)), &site.new_state());
    command.env("SMALL", &small).env("SITE", site.folder()).env("L", landfall_tests::landfall::binary());
    command.env("DISK", &disk).env("FITS", &fits);
    let out = tools::output(&mut command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let ran = Ran {
        arguments: vec!["replicate".to_owned()],
        status: out.status,
        stdout: text(&out.stdout),
        stderr: text(&out.stderr),
    };
    ran.assert_refused(exit::NO_SPACE, &["vault"]);
    disks::assert_same(&fits, &site.folder().join("back.img"));
}

// Time, and people.

#[test]
fn a_clock_that_went_backwards_loses_no_point_and_mixes_up_none() {
    let faketime = need!(tools::need("faketime"));
    let (site, _) = with_one_point();
    let disk = site.disk("later.img");
    disks::random(&disk, 2 * MIB, 2);
    let arguments = site.as_gateway(&strs(&Site::replicate_arguments("web", &[("root", &disk)], &[])));
    let mut command = Command::new(faketime);
    command.args(["-f", "-3d"]).arg(landfall_tests::landfall::binary()).args(&arguments);
    let mut command = site.environment(command, &site.folder().join("state"));
    let out = tools::output(command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1"));
    let stderr = String::from_utf8_lossy(&out.stderr);
    if !out.status.success() {
        assert!(stderr.contains("clock"), "refused, but not because of the clock: {stderr}");
    }
    site.replicate("web", &[("root", &disk)]);
    let points = site.points("web");
    let times: Vec<&str> = points.iter().filter_map(|point| point["time"].as_str()).collect();
    assert_eq!(times.len(), points.len());
    assert!(times.is_sorted(), "points are in the order of their times: {times:?}");
    site.assert_disk_is("web", "1", "root", &site.disk("disk.img"));
    site.assert_disk_is("web", "latest", "root", &disk);
    site.assert_sound();
}

#[test]
fn ctrl_c_stops_a_cycle_cleanly_and_the_next_one_goes_on_from_there() {
    let site = Site::with_vault();
    let disk = site.disk("disk.img");
    disks::random(&disk, 192 * MIB, 1);
    let arguments = site.as_gateway(&strs(&Site::replicate_arguments("web", &[("root", &disk)], &[])));
    let mut running = site.start(&strs(&arguments));
    let under_way = running.wait_until(|| !site.files("vault/segments").is_empty());
    assert!(under_way, "it ended before it had stored anything: {}", running.finish().story());
    running.interrupt();
    let ran = running.finish();
    assert_eq!(ran.signal(), None, "it stops by itself\n{}", ran.story());
    let interrupted = ran.code() != Some(exit::DONE);
    assert!(site.files("tmp").is_empty(), "nothing is left in the temporary folder");
    let stored: u64 = site.files("vault/segments").iter().map(|segment| disks::size(segment)).sum();

    let point = site.replicate("web", &[("root", &disk)]);
    let sent = landfall_tests::landfall::number(&point, "uploaded_bytes");
    if interrupted {
        assert!(sent + stored < 200 * MIB, "{stored} bytes were stored before, {sent} were sent again");
    }
    site.assert_disk_is("web", "latest", "root", &disk);
    site.assert_sound();
}

#[test]
fn ctrl_c_stops_a_rehydrate_and_leaves_no_half_disk_under_its_name() {
    let site = Site::with_vault();
    let (disk, back) = (site.disk("disk.img"), site.disk("back.img"));
    disks::random(&disk, 192 * MIB, 1);
    site.replicate("web", &[("root", &disk)]);
    let named = format!("root={}", back.display());
    let arguments = site.as_customer(&["rehydrate", "--machine", "web", "--disk", &named]);
    let mut running = site.start_in(&site.new_state(), &strs(&arguments));
    running.wait_until(|| fs::read_dir(site.folder().join("disks")).is_ok_and(|files| files.count() > 1));
    running.interrupt();
    let ran = running.finish();
    assert_eq!(ran.signal(), None, "it stops by itself\n{}", ran.story());
    if ran.code() == Some(exit::DONE) {
        disks::assert_same(&disk, &back);
    } else {
        assert!(!back.exists(), "a disk that is not whole has its name\n{}", ran.story());
        site.rehydrate("web", "latest", &[("root", &back)]);
        disks::assert_same(&disk, &back);
    }
}

#[test]
fn an_unknown_command_is_a_usage_error() {
    let site = Site::new();
    for arguments in [&["replicat"][..], &["vault"], &["points", "--machin", "x"], &[]] {
        let ran = site.run(arguments);
        assert_eq!(ran.code(), Some(exit::USAGE), "{}", ran.story());
        assert!(ran.stdout.is_empty() && !ran.stderr.is_empty(), "help for a mistake goes to stderr\n{}", ran.story());
    }
}

fn plain(path: &Path) -> &str {
    path.to_str().unwrap_or("temporary folders have plain names")
}

/// The exit code, where the contract leaves a choice.
#[track_caller]
fn one_of(ran: &Ran, codes: &[i32]) -> i32 {
    let code = ran.code().unwrap_or(-1);
    assert!(codes.contains(&code), "exit code is none of {codes:?}\n{}", ran.story());
    code
}
