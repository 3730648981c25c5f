//! The format lives without us: a reader in another language, written from docs/FORMAT.md alone, restores every point of a vault
//! with nothing but the vault and the recovery key.

#![expect(clippy::expect_used, reason = "helpers of tests fail the test")]

use std::path::{Path, PathBuf};
use std::process::Command;

use landfall_keys::RecoveryKey;
use landfall_keys::SiteKey;
use landfall_model::{
    Digest, DrillMeta, DrillPicture, DrillProbe, DrillResult, JobId, JobKind, JobMeta, JobState, Timestamp,
};
use landfall_tests::landfall::{Site, exit};
use landfall_tests::{disks, tools};
use landfall_vault::{Store, Vault};

/// Cycles after which a machine of small changes has a checkpoint.
const CYCLES: u64 = 80;

struct Reader {
    python: PathBuf,
    script: PathBuf,
}

impl Reader {
    /// `None`, said loudly, where its Python packages are not installed.
    fn find() -> Option<Self> {
        let python = tools::peers_folder().join("reader/bin/python");
        if !python.is_file() {
            tools::missing("the Python packages of the reader (run tests/tools/setup.sh)");
            return None;
        }
        Some(Self { python, script: tools::repository().join("tests/reader/landfall_reader.py") })
    }

    fn run(&self, site: &Site, arguments: &[&str]) -> String {
        let mut command = Command::new(&self.python);
        command.arg("-B").arg(&self.script).args(arguments);
        command.arg("--vault").arg(site.vault_folder()).arg("--recovery-key").arg(site.recovery_key());
        tools::succeed(&mut command)
    }

    fn assert_restores(&self, site: &Site, machine: &str, seq: u64, disk: &str, wanted: &Path) {
        let out = site.disk(&format!("reader-{machine}-{seq}-{disk}.img"));
        let (seq, path) = (seq.to_string(), out.display().to_string());
        self.run(site, &["restore", "--machine", machine, "--seq", &seq, "--disk", disk, "--out", &path]);
        disks::assert_same(&out, wanted);
        std::fs::remove_file(out).expect("the restored disk");
    }
}

#[test]
fn a_reader_written_from_the_format_alone_restores_segments_inline_frames_and_sizes_that_change() {
    let Some(reader) = Reader::find() else { return };
    let site = Site::with_vault();
    let (root, data) = (site.disk("root.img"), site.disk("data.img"));
    disks::random(&root, 40 * 1024 * 1024, 1);
    disks::write_at(&root, 8 * 1024 * 1024, &vec![0; 3 * 1024 * 1024]);
    disks::write_at(&root, 20 * 1024 * 1024, &b"a line that compresses well\n".repeat(50_000));
    disks::random(&data, 70_001, 2);
    let mut kept = Vec::new();
    for step in 0..4_u64 {
        match step {
            1 => disks::write_at(&root, 12_345_678, b"a small change that stands inline"),
            2 => disks::resize(&data, 1000),
            3 => disks::resize(&data, 150 * 1024 * 1024 + 77),
            _ => {}
        }
        site.replicate("web", &[("root", &root), ("data", &data)]);
        let copies = [site.disk(&format!("root-{step}")), site.disk(&format!("data-{step}"))];
        disks::copy(&root, &copies[0]);
        disks::copy(&data, &copies[1]);
        kept.push(copies);
    }
    assert!(!site.files("vault/segments").is_empty(), "the first copy fills a segment");
    let listed = reader.run(&site, &["list"]);
    assert!(listed.contains("web"), "{listed}");
    for (seq, [root, data]) in (1..).zip(&kept) {
        reader.assert_restores(&site, "web", seq, "root", root);
        reader.assert_restores(&site, "web", seq, "data", data);
    }
}

#[test]
fn a_reader_written_from_the_format_alone_uses_checkpoints() {
    let Some(reader) = Reader::find() else { return };
    let site = Site::with_vault();
    let disk = site.disk("disk.img");
    disks::random(&disk, 600_000, 3);
    let mut kept = Vec::new();
    for cycle in 0..CYCLES {
        disks::write_at(&disk, cycle * 4096, &disks::seeded_bytes(cycle, 3000));
        site.replicate("busy", &[("disk", &disk)]);
        if cycle == CYCLES / 2 || cycle + 1 == CYCLES {
            let copy = site.disk(&format!("kept-{cycle}"));
            disks::copy(&disk, &copy);
            kept.push((cycle + 1, copy));
        }
    }
    let checkpoints =
        site.files("vault/machines").iter().filter(|f| f.display().to_string().contains("/checkpoints/")).count();
    assert!(checkpoints > 0, "{CYCLES} cycles make a checkpoint");
    for (seq, copy) in kept {
        reader.assert_restores(&site, "busy", seq, "disk", &copy);
    }
}

#[tokio::test]
async fn a_reader_written_from_the_format_alone_reads_jobs() {
    let Some(reader) = Reader::find() else { return };
    let site = Site::with_vault();
    let disk = site.disk("root.img");
    disks::random(&disk, 70_001, 2);
    site.replicate("web", &[("root", &disk)]);
    let key = SiteKey::read(&site.site_key()).expect("the gateway's key");
    let vault = Vault::open_with_site_key(Store::open(site.url()).expect("a store"), key).await.expect("a vault");
    let (job, machine) = (JobId::from_bytes([0xab; 16]), "web".parse().expect("a name"));
    let place = ("here", "/run/job");
    let meta = JobMeta::begun(job, JobKind::Unplanned, machine, "latest", place, Timestamp::from_millis(1));
    let first = vault.put_job(meta.clone(), None).await.expect("stored");
    vault.put_job(JobMeta { state: JobState::Up, ..meta.clone() }, Some(&first)).await.expect("stored");
    let machine = vault.machine(&meta.machine);
    machine.fence(&meta.machine, meta.job, landfall_vault::now).await.expect("fenced");
    let listed = reader.run(&site, &["list"]);
    assert!(listed.contains(&format!("job {}  unplanned web  up", meta.job)), "{listed}");
    assert!(listed.contains("generation 2"), "the fence: {listed}");
    site.assert_sound();
    // One that was taken out of the row is missed, by the reader and by us where it is the newest that is false.
    let second = site.vault_folder().join(format!("control/jobs/{}/{:016x}", meta.job, 2));
    std::fs::copy(second.with_file_name(format!("{:016x}", 1)), &second).expect("a replay");
    let verified = site.gateway(&["verify"]);
    assert_eq!(verified.code(), Some(exit::CORRUPT), "{}", verified.story());
    assert!(verified.stdout.contains(&format!("control/jobs/{}", meta.job)), "{}", verified.story());
}

#[tokio::test]
async fn a_reader_written_from_the_format_alone_reads_reports_of_drills_and_their_pictures() {
    let Some(reader) = Reader::find() else { return };
    let site = Site::with_vault();
    let key = SiteKey::read(&site.site_key()).expect("the gateway's key");
    let recovery = RecoveryKey::read(&site.recovery_key(), None).expect("the customer's key");
    let vault = Vault::open_with_site_key(Store::open(site.url()).expect("a store"), key).await.expect("a vault");
    let picture = disks::seeded_bytes(1, 5000);
    let probe = DrillProbe { probe: "tcp:22".to_owned(), passed_ms: Some(4200), why: None };
    let meta = DrillMeta {
        job: JobId::from_bytes([0xcd; 16]),
        machine: "web".parse().expect("a name"),
        target: "kvm".to_owned(),
        asked: "latest".to_owned(),
        point: None,
        consistency: None,
        host: "here".to_owned(),
        begun: "2026-11-22T06:00:00.123Z".parse().expect("a time"),
        ended: Timestamp::from_millis(2),
        rto_ms: Some(4200),
        steps: Vec::new(),
        probes: vec![probe],
        fetched_bytes: 1,
        result: DrillResult::Passed,
        why: None,
        code: 0,
        version: "0".to_owned(),
        picture: Some(DrillPicture {
            format: "png".to_owned(),
            bytes: 5000,
            blake3: Digest::from_bytes(*blake3::hash(&picture).as_bytes()),
        }),
        no_picture: None,
    };
    vault.put_drill(&meta, Some((&picture, &recovery))).await.expect("stored");
    let plain = DrillMeta { job: JobId::from_bytes([0xce; 16]), picture: None, ..meta.clone() };
    vault.put_drill(&plain, None).await.expect("stored");
    let listed = reader.run(&site, &["list"]);
    let line = |id: JobId, bytes: usize| format!("drill {id}  web  passed  rto 4200  tcp:22=4200  picture {bytes}");
    assert!(listed.contains(&line(meta.job, 5000)) && listed.contains(&line(plain.job, 0)), "{listed}");
    site.assert_sound();
}
