//! Plain text and keys stay where they belong: on the disk, and in the key files.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "helpers of tests fail the test"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use landfall_keys::{ContentSealer, FrameAad, RecoveryKey, SiteKey};
use landfall_model::{ChunkRef, DomainId, EntryKind, EpochId, SegmentId, Source};
use landfall_tests::landfall::{Ran, Site, binary, exit, strs};
use landfall_tests::peers::{Kind, Peer, dead_address};
use landfall_tests::{disks, need, tools};
use landfall_vault::layout::{self, Name};
use landfall_vault::{Store, Vault, load_page, read_directory};
use support::{MIB, Needles, position, replicate_in};

const MARKER: &[u8] = b"TOP-SECRET marker 4711 of the disk";
const MACHINE: &str = "payroll-prod-7731";
const DISK: &str = "ledger-disk-9912";
const DOMAIN: &str = "tenant-zanzibar";

/// A disk on which the marker stands in every sector: in text that compresses, in noise that does not, and alone.
fn marked(path: &Path) {
    disks::sparse(path, 14 * MIB);
    let text: Vec<u8> = MARKER.iter().copied().cycle().take(3 * MIB as usize).collect();
    disks::write_at(path, 0, &text);
    let mut noise = disks::seeded_bytes(5, 6 * MIB as usize);
    for sector in noise.chunks_exact_mut(4096) {
        sector[1000..1000 + MARKER.len()].copy_from_slice(MARKER);
        sector[4096 - MARKER.len()..].copy_from_slice(MARKER);
    }
    disks::write_at(path, 4 * MIB, &noise);
    disks::write_at(path, 13 * MIB + 3, MARKER);
}

/// Runs the binary at its most talkative; what it says must have none of the needles in it.
fn talk(site: &Site, arguments: &[&str]) -> Ran {
    let mut command = site.command(&site.folder().join("state"));
    command.env("LANDFALL_LOG", "trace").env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full").args(arguments);
    let out = tools::output(&mut command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let arguments = arguments.iter().map(ToString::to_string).collect();
    Ran { arguments, status: out.status, stdout: text(&out.stdout), stderr: text(&out.stderr) }
}

#[test]
fn what_is_on_a_disk_and_in_a_key_is_found_nowhere_else() {
    let site = Site::new();
    let (recovery, key) = (site.recovery_key(), site.site_key());
    let (recovery, key, vault) = (recovery.to_str().unwrap(), key.to_str().unwrap(), ["--vault", site.url()]);
    let (disk, other, back) = (site.disk("disk.img"), site.disk("other.img"), site.disk("back.img"));
    marked(&disk);
    disks::write_at(&disk, 12 * MIB, b"only on this one");
    marked(&other);
    let all = |command: &[&str], key: &[&str]| -> Vec<String> {
        [command, &vault, key].concat().iter().map(ToString::to_string).collect()
    };
    let (as_site, as_customer) = (["--site-key", key], ["--recovery-key", recovery]);
    let mut said = vec![talk(&site, &strs(&all(&["vault", "create"], &[&as_site[..], &as_customer].concat())))];

    let named = [format!("root={}", disk.display()), format!("data={}", other.display())];
    let replicate = ["replicate", "--machine", "web", "--disk", &named[0], "--disk", &named[1]];
    said.push(talk(&site, &strs(&all(&replicate, &as_site))));
    // A small cycle, whose frames stand in the point, and one more by text and not JSON.
    disks::write_at(&disk, 4 * MIB + 100, &MARKER.repeat(40));
    said.push(talk(&site, &strs(&all(&replicate, &[&as_site[..], &["--json"]].concat()))));
    for command in [&["points", "--machine", "web"][..], &["machines"], &["verify"], &["vault", "info"]] {
        said.push(talk(&site, &strs(&all(command, &as_site))));
    }
    said.push(talk(&site, &strs(&all(&["verify", "--deep"], &as_customer))));
    let target = format!("root={}", back.display());
    let rehydrate = ["rehydrate", "--machine", "web", "--disk", &target];
    said.push(talk(&site, &strs(&all(&rehydrate, &as_customer))));
    disks::assert_same(&disk, &back);
    disks::write_at(&back, 5 * MIB, &disks::seeded_bytes(1, 100_000));
    said.push(talk(&site, &strs(&all(&[&rehydrate[..], &["--existing", "compare"]].concat(), &as_customer))));
    disks::assert_same(&disk, &back);
    for ran in &said {
        assert_eq!(ran.code(), Some(exit::DONE), "{}", ran.story());
    }
    // Shares are pieces of the key, and go to stdout; the log is no place for them.
    let split = talk(&site, &strs(&all(&["keys", "shares", "--threshold", "2", "--shares", "3"], &as_customer)));
    let shares: Vec<&str> = split.stdout.lines().filter(|line| line.starts_with("LF1-")).collect();
    assert_eq!(shares.len(), 3, "{}", split.story());
    let (file, again) = (site.folder().join("shares"), site.folder().join("again.key"));
    fs::write(&file, split.stdout.as_bytes()).unwrap();
    let combined = talk(&site, &["keys", "combine", "--recovery-key", again.to_str().unwrap(), file.to_str().unwrap()]);
    assert_eq!(combined.code(), Some(exit::DONE), "{}", combined.story());
    // Damage, of which much is said.
    let segment = site.files("vault/segments").remove(0);
    let mut bytes = fs::read(&segment).unwrap();
    bytes[5000] ^= 1;
    fs::write(&segment, bytes).unwrap();
    fs::remove_file(&back).unwrap();
    let failed = talk(&site, &strs(&all(&[&rehydrate[..], &["--point", "1"]].concat(), &as_customer)));
    let salvaged = talk(&site, &strs(&all(&[&rehydrate[..], &["--point", "1", "--salvage"]].concat(), &as_customer)));
    let verified = talk(&site, &strs(&all(&["verify", "--deep"], &as_customer)));
    for ran in [&failed, &salvaged, &verified] {
        assert_eq!(ran.code(), Some(exit::CORRUPT), "{}", ran.story());
    }
    assert!(verified.stderr.contains("finding"), "nothing is logged, so the test shows nothing\n{}", verified.story());

    let mut needles = Needles::keys_of(&site);
    needles.add("the marker", MARKER);
    needles.add("half the marker", &MARKER[..16]);
    for ran in said.iter().chain([&combined, &failed, &salvaged, &verified]) {
        needles.assert_not_in(&format!("stdout of {:?}", ran.arguments), ran.stdout.as_bytes());
        needles.assert_not_in(&format!("stderr of {:?}", ran.arguments), ran.stderr.as_bytes());
    }
    needles.assert_not_in("stderr of keys shares", split.stderr.as_bytes());
    for group in shares.iter().flat_map(|share| share.split('-')).filter(|group| group.len() == 5) {
        assert!(!split.stderr.contains(group) && !combined.stderr.contains(group), "the log shows a piece of a share");
    }
    assert!(needles.assert_not_below(&site.vault_folder()) > 8);
    assert!(needles.assert_not_below(&site.folder().join("state")) > 2);
    assert_eq!(site.files("tmp"), Vec::<PathBuf>::new());
    assert_eq!(site.files("home"), Vec::<PathBuf>::new());
    // The search finds what is there.
    assert!(position(&fs::read(&disk).unwrap(), MARKER).is_some());
}

#[test]
fn at_its_most_talkative_a_run_shows_no_credential_of_a_cloud_store() {
    for kind in [Kind::S3, Kind::Azure, Kind::Gcs] {
        let peer = need!(Peer::start(kind));
        let (dead, _held) = dead_address();
        for (at, works) in [(peer.address(), true), (dead, false)] {
            let mut env = peer.env_at(at);
            if kind == Kind::S3 {
                // moto takes any.
                env.retain(|(name, _)| name != "AWS_SECRET_ACCESS_KEY");
                env.push(("AWS_SECRET_ACCESS_KEY".to_owned(), "a-secret-access-key-of-this-test".to_owned()));
                env.push(("AWS_SESSION_TOKEN".to_owned(), "a-session-token-of-this-test".to_owned()));
            }
            let mut needles = Needles::default();
            for (name, value) in &env {
                match name.as_str() {
                    "AWS_SECRET_ACCESS_KEY" | "AWS_SESSION_TOKEN" | "AZURE_STORAGE_ACCOUNT_KEY" => {
                        needles.add(name, value.as_bytes());
                    }
                    "GOOGLE_SERVICE_ACCOUNT_KEY" => {
                        let key: serde_json::Value = serde_json::from_str(value).unwrap();
                        let pem = key["private_key"].as_str().unwrap();
                        let line = pem.lines().find(|line| !line.starts_with('-') && line.len() > 8);
                        needles.add("a line of the private key", line.unwrap_or("no private key here").as_bytes());
                    }
                    _ => {}
                }
            }
            let mut site = Site::at_url(peer.url("vault"), env);
            site.set_env("LANDFALL_STORE_RETRY_SECONDS", "1");
            let (recovery, key) = (site.recovery_key(), site.site_key());
            let keys = ["--recovery-key", recovery.to_str().unwrap(), "--site-key", key.to_str().unwrap()];
            let created = talk(&site, &[&["vault", "create", "--vault", site.url()][..], &keys].concat());
            let expected = if works { exit::DONE } else { exit::UNAVAILABLE };
            assert_eq!(created.code(), Some(expected), "{}", created.story());
            let mut said = vec![created];
            if works {
                let disk = site.disk("disk.img");
                disks::random(&disk, 3 * MIB, 1);
                let named = format!("root={}", disk.display());
                let more = ["replicate", "--machine", "web", "--disk", &named];
                said.push(talk(&site, &strs(&site.as_gateway(&more))));
                said.push(talk(&site, &strs(&site.as_customer(&["verify", "--deep"]))));
                assert!(said.iter().all(|ran| ran.code() == Some(exit::DONE)), "{}", said[1].story());
            }
            for ran in &said {
                needles.assert_not_in("a log", format!("{}{}", ran.stdout, ran.stderr).as_bytes());
            }
            needles.assert_not_below(&site.folder().join("state"));
        }
    }
}

#[test]
fn names_of_machines_disks_and_domains_are_not_in_the_vault() {
    let site = Site::with_vault();
    let disk = site.disk("disk.img");
    disks::random(&disk, 3 * MIB, 1);
    let state = site.folder().join("state");
    for write in 0..3 {
        disks::write_at(&disk, 1000 * write, b"x");
        replicate_in(&site, &state, MACHINE, &[(DISK, &disk)], &["--domain", DOMAIN]);
    }
    let mut names = Needles::default();
    for name in [MACHINE, DISK, DOMAIN, "disk.img"] {
        names.add(name, name.as_bytes());
        names.add(&format!("{name} in UTF-16"), &name.bytes().flat_map(|b| [b, 0]).collect::<Vec<u8>>());
        names.add(&format!("{name} in hex"), name.bytes().map(|b| format!("{b:02x}")).collect::<String>().as_bytes());
    }
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if host.trim().len() >= 8 {
        names.add("the name of this host", host.trim().as_bytes());
    }
    assert!(names.assert_not_below(&site.vault_folder()) > 6);
    site.assert_disk_is(MACHINE, "latest", DISK, &disk);
}

// What opens what.

/// A content frame as the vault holds it, and what a reader of the maps knows of it.
struct Frame {
    aad: FrameAad,
    bytes: Vec<u8>,
    domain: DomainId,
}

/// Every content frame that the site key can find: in segments, and inline in points.
async fn content_frames(vault: &Vault, folder: &Path, domain: DomainId) -> Vec<Frame> {
    let frame = |chunk: &ChunkRef, bytes: &[u8]| Frame {
        aad: FrameAad {
            vault: vault.config().vault_id,
            epoch: chunk.location.epoch,
            id: chunk.id,
            raw_len: chunk.location.raw_len,
            codec: chunk.location.codec.byte(),
        },
        bytes: bytes[chunk.location.offset as usize..][..chunk.location.stored_len as usize].to_vec(),
        domain,
    };
    let mut frames = Vec::new();
    for object in vault.store().list(layout::SEGMENTS).await.unwrap() {
        let Some(Name::Segment(id)) = layout::parse(&object.name) else { panic!("{}", object.name) };
        let bytes = fs::read(folder.join(&object.name)).unwrap();
        let chunks = read_directory(vault, SegmentId::from_bytes(*id.as_bytes()), object.size).await.unwrap();
        frames.extend(chunks.iter().filter(|c| c.location.epoch != EpochId::INDEX).map(|c| frame(c, &bytes)));
    }
    let machine = vault.machine(&"web".parse().unwrap());
    for key in machine.line().await.unwrap() {
        let point = machine.point(key).await.unwrap();
        let bytes = fs::read(folder.join(layout::point(machine.id(), key.timeline, key.seq))).unwrap();
        let inline = &bytes[usize::try_from(point.header.inline_start()).unwrap()..];
        for page in point.body.disks.iter().flat_map(BTreeMap::values) {
            for entry in load_page(&machine, page).await.unwrap().iter() {
                if let EntryKind::Data { chunk, .. } = entry.kind
                    && chunk.location.source == Source::Point(key.timeline, key.seq)
                {
                    frames.push(frame(&chunk, inline));
                }
            }
        }
    }
    frames
}

/// Everything of 32 bytes that who has the site key and the vault can come by.
fn known_keys(site: &Site, frames: &[Frame]) -> Vec<(String, [u8; 32])> {
    let file: serde_json::Value = serde_json::from_slice(&fs::read(site.site_key()).unwrap()).unwrap();
    let mut known = vec![("zeroes".to_owned(), [0; 32])];
    for field in ["index_key", "fingerprint_key", "signing_seed", "root_public"] {
        known.push((field.to_owned(), support::unhex(file[field].as_str().unwrap()).try_into().unwrap()));
    }
    for file in site.files("vault/epochs").into_iter().chain(site.files("vault/keys")) {
        let bytes = fs::read(&file).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        // The ephemeral public key and the ciphertext of the wrapped key, taken for the key.
        known.push((format!("enc of {name}"), bytes[80..112].try_into().unwrap()));
        known.push((format!("ciphertext of {name}"), bytes[112..144].try_into().unwrap()));
        known.push((format!("id of {name}"), bytes[32..64].try_into().unwrap()));
    }
    for frame in frames.iter().take(3) {
        known.push(("a ChunkId".to_owned(), *frame.aad.id.as_bytes()));
    }
    let key = SiteKey::read(&site.site_key()).unwrap();
    let names = key.fingerprinter(key.domain_id(&"default".parse().unwrap()));
    known.push(("a fingerprint of nothing".to_owned(), *names.chunk_id(&[]).as_bytes()));
    known.push(("a page's fingerprint".to_owned(), *key.page_fingerprinter().chunk_id(&[]).as_bytes()));
    let cut = key.cut_secret(key.domain_id(&"default".parse().unwrap()));
    known.extend(cut.as_bytes().chunks_exact(32).map(|part| ("the cut secret".to_owned(), part.try_into().unwrap())));
    known
}

/// A key file like `file` with other bytes in a field.
fn forged(folder: &Path, file: &Path, field: &str, key: &[u8; 32]) -> PathBuf {
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    json[field] = key.iter().map(|b| format!("{b:02x}")).collect::<String>().into();
    let path = folder.join("forged.key");
    fs::write(&path, serde_json::to_vec(&json).unwrap()).unwrap();
    path
}

/// Tries everything that a site key can open on a frame.
#[track_caller]
fn assert_opens_nothing(site_key: &SiteKey, frame: &Frame, how: &str) {
    let mut as_page = frame.aad;
    as_page.epoch = EpochId::INDEX;
    let pages = site_key.index_sealer();
    for aad in [frame.aad, as_page] {
        assert!(pages.open_page(&aad, &frame.bytes).is_err(), "{how} opens chunk {} as a page", frame.aad.id);
        for aad in [&aad.to_bytes()[..], &[]] {
            assert!(site_key.open_record(aad, &frame.bytes).is_err(), "{how} opens a chunk as a record");
            assert!(site_key.open_directory(aad, &frame.bytes).is_err(), "{how} opens a chunk as a directory");
        }
    }
}

#[tokio::test]
async fn who_has_the_site_key_and_the_whole_vault_opens_no_content() {
    let site = Site::with_vault();
    let (disk, data) = (site.disk("disk.img"), site.disk("data.img"));
    marked(&disk);
    disks::random(&data, 300_000, 3);
    site.replicate("web", &[("root", &disk), ("data", &data)]);
    disks::write_at(&disk, MIB, &disks::seeded_bytes(4, 50_000));
    site.replicate("web", &[("root", &disk), ("data", &data)]);

    let key = SiteKey::read(&site.site_key()).unwrap();
    let domain = key.domain_id(&"default".parse().unwrap());
    let vault = Vault::open_with_site_key(Store::open(site.url()).unwrap(), key).await.unwrap();
    let frames = content_frames(&vault, &site.vault_folder(), domain).await;
    let inline = frames.iter().filter(|f| f.bytes.len() < 60_000).count();
    assert!(frames.len() > 40 && inline > 0, "{} frames: not what the disks have", frames.len());

    // So that what fails below fails for the key, and not because it was asked wrongly.
    let recovery = RecoveryKey::read(&site.recovery_key(), None).unwrap();
    for frame in &frames {
        let opener = vault.open_epoch(&recovery, frame.domain, frame.aad.epoch).await.unwrap();
        assert!(
            opener.open_in_place(&frame.aad, &mut frame.bytes.clone()).is_ok(),
            "the recovery key opens everything"
        );
    }

    let own = SiteKey::read(&site.site_key()).unwrap();
    frames.iter().for_each(|frame| assert_opens_nothing(&own, frame, "the site key"));
    let known = known_keys(&site, &frames);
    let folder = site.folder().to_owned();
    let epochs: Vec<Vec<u8>> = site.files("vault/epochs").iter().map(|file| fs::read(file).unwrap()).collect();
    let wraps: Vec<Vec<u8>> = site.files("vault/keys").iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(epochs.len() >= 2 && wraps.len() == 1);
    for (name, bytes) in &known {
        // As the key that seals maps ...
        let other = SiteKey::read(&forged(&folder, &site.site_key(), "index_key", bytes)).unwrap();
        frames.iter().for_each(|frame| assert_opens_nothing(&other, frame, name));
        // ... and as the recovery key.
        let Ok(other) = RecoveryKey::read(&forged(&folder, &site.recovery_key(), "seed", bytes), None) else {
            continue;
        };
        for epoch in &epochs {
            assert!(other.unwrap_epoch(epoch, &own.public()).is_err(), "{name} as recovery key opens an epoch");
        }
        for wrap in &wraps {
            assert!(other.unwrap_site_key(wrap, &own.public()).is_err(), "{name} as recovery key opens the site key");
        }
    }
    // With a recovery key and an epoch of one's own: the site key may make both, and they open only what they sealed.
    let mine = RecoveryKey::generate(own.vault_id()).unwrap();
    let sealer = ContentSealer::open_epoch(&own, domain).unwrap();
    let wrapped = sealer.wrapped_for(&own, &mine.recipient()).unwrap();
    let opener = mine.unwrap_epoch(&wrapped, &own.public()).unwrap();
    for frame in &frames {
        let mut aad = frame.aad;
        assert!(opener.open_in_place(&aad, &mut frame.bytes.clone()).is_err());
        aad.epoch = sealer.epoch();
        assert!(opener.open_in_place(&aad, &mut frame.bytes.clone()).is_err());
    }
    for epoch in &epochs {
        // Addressed to one's own recovery key, the signature no longer fits.
        let mut readdressed = epoch.clone();
        readdressed[32..40].copy_from_slice(mine.recipient().id().as_bytes());
        for object in [epoch, &readdressed] {
            assert!(mine.unwrap_epoch(object, &own.public()).is_err());
        }
    }
}

#[test]
fn the_command_does_not_bring_a_disk_back_with_the_site_key_for_a_recovery_key() {
    let site = Site::with_vault();
    let (disk, back) = (site.disk("disk.img"), site.disk("back.img"));
    disks::random(&disk, 300_000, 1);
    site.replicate("web", &[("root", &disk)]);
    fs::remove_file(site.recovery_key()).unwrap();
    let named = format!("root={}", back.display());
    let site_key = site.site_key();
    let command = ["rehydrate", "--machine", "web", "--disk", &named];
    for more in [&[][..], &["--recovery-key", site_key.to_str().unwrap()]] {
        let ran = site.gateway(&[&command[..], more].concat());
        ran.assert_refused(exit::KEY, &["recovery key"]);
        assert!(!back.exists());
    }
}

// The machine that it runs on.

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn key_files_and_images_are_their_owners_alone_whatever_the_umask() {
    let site = Site::new();
    let (recovery, key, again) = (site.recovery_key(), site.site_key(), site.folder().join("again.key"));
    let (disk, back, shares) = (site.disk("disk.img"), site.disk("back.img"), site.folder().join("shares"));
    let state = site.folder().join("state");
    disks::random(&disk, 300_000, 1);
    let run = |arguments: &[&str]| {
        let mut lax = Command::new("sh");
        lax.args(["-c", "umask 000 && exec \"$@\"", "sh"]).arg(binary()).args(arguments).arg("--quiet");
        tools::succeed(&mut site.environment(lax, &state))
    };
    let (recovery_name, key_name) = (recovery.to_str().unwrap(), key.to_str().unwrap());
    let vault = ["--vault", site.url()];
    run(&[&["vault", "create", "--recovery-key", recovery_name, "--site-key", key_name][..], &vault].concat());
    let (from, to) = (format!("root={}", disk.display()), format!("root={}", back.display()));
    run(&[&["replicate", "--machine", "web", "--disk", &from, "--site-key", key_name][..], &vault].concat());
    run(&[&["rehydrate", "--machine", "web", "--disk", &to, "--recovery-key", recovery_name][..], &vault].concat());
    let text = run(&["keys", "shares", "--threshold", "2", "--shares", "2", "--recovery-key", recovery_name]);
    fs::write(&shares, text).unwrap();
    run(&["keys", "combine", "--recovery-key", again.to_str().unwrap(), shares.to_str().unwrap()]);
    for file in [&recovery, &key, &again, &back] {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    // What chunks the vault has is told to nobody.
    let open_to_all = site.files("state").into_iter().filter(|file| {
        let folders = file.ancestors().take_while(|folder| **folder != state);
        folders.chain([state.as_path()]).all(|part| mode(part) & 0o007 != 0)
    });
    let index: Vec<PathBuf> = open_to_all.filter(|file| file.ends_with("index.redb")).collect();
    assert_eq!(index, Vec::<PathBuf>::new(), "the index of chunks can be read by everybody");
}

#[test]
fn no_secret_is_in_the_arguments_or_the_environment_of_a_process() {
    let passphrase = "a passphrase that nobody may see in ps";
    let mut site = Site::new();
    let (file, disk, back) = (site.folder().join("passphrase"), site.disk("disk.img"), site.disk("back.img"));
    fs::write(&file, format!("{passphrase}\n")).unwrap();
    site.set_env("LANDFALL_PASSPHRASE_FILE", file.to_str().unwrap());
    site.create_vault();
    disks::random(&disk, 30 * MIB, 1);
    let mut needles = Needles::keys_of(&site);
    needles.add("the passphrase", passphrase.as_bytes());

    // What a command of the operator's gets, and what its parent shows.
    let seen = site.folder().join("seen");
    let hook = format!(
        "{{ env; tr '\\0' '\\n' </proc/$PPID/environ; tr '\\0' '\\n' </proc/$PPID/cmdline; ls -l /proc/$$/fd; }} >>'{}'",
        seen.display()
    );
    let ran = site.try_replicate("web", &[("root", &disk)], &["--consistency-cmd", &hook]);
    ran.json();
    let seen = fs::read_to_string(seen).unwrap();
    assert!(seen.contains("LANDFALL_PHASE=freeze") && seen.contains("LANDFALL_PHASE=thaw"), "{seen}");
    needles.assert_not_in("what a hook sees", seen.as_bytes());
    for held in [".key", "index.redb", "disk.img ", "/vault/"] {
        let inherited = seen.lines().filter(|line| line.contains(" -> ")).any(|line| line.contains(held));
        assert!(!inherited, "the hook has an open file of ours ({held})\n{seen}");
    }

    let named = format!("root={}", back.display());
    let arguments = site.as_customer(&["rehydrate", "--machine", "web", "--disk", &named]);
    let mut command = site.command(&site.new_state());
    command.args(&arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut looks = 0;
    while child.try_wait().unwrap().is_none() {
        for what in ["cmdline", "environ"] {
            let shown = fs::read(format!("/proc/{}/{what}", child.id())).unwrap_or_default();
            looks += usize::from(!shown.is_empty());
            needles.assert_not_in(what, &shown);
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success() && looks > 4, "{looks} looks");
    disks::assert_same(&disk, &back);
    assert!(needles.assert_not_below(&site.vault_folder()) > 0);
    needles.assert_not_below(&site.folder().join("state"));
}
