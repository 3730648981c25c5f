//! The command line as types. It is a contract: scripts are written against it.

mod drill;

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use landfall_model::{DiskName, DomainName, MachineName};
use landfall_vault::Selector;

pub(crate) use drill::{DrillCommand, DrillRun, DrillSchedule, Every};

/// Disaster recovery to object storage: replicate disks into a vault that only your key can read, and bring them back.
///
/// Exit codes: 0 done, 1 bug, 2 usage or config, 3 key missing or wrong, 4 corrupt or tampered, 5 fenced or conflicting,
/// 6 no space, 7 store or host unavailable (try again), 8 unsupported, 9 not found.
#[derive(Parser, Debug)]
#[command(name = "landfall", version, propagate_version = true, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command that touches a vault.
#[derive(Args, Debug)]
pub(crate) struct Common {
    /// The vault: file:///path, s3://bucket/prefix, az://container/prefix or gs://bucket/prefix. Credentials and endpoints come from
    /// AWS_*, AZURE_STORAGE_* and GOOGLE_* variables.
    #[arg(long, global = true, env = "LANDFALL_VAULT", value_name = "URL")]
    pub(crate) vault: Option<String>,
    /// The gateway's key: writes and verifies, reads no content.
    #[arg(long, global = true, env = "LANDFALL_SITE_KEY", value_name = "FILE")]
    pub(crate) site_key: Option<PathBuf>,
    /// Your key: content cannot be read without it.
    #[arg(long, global = true, env = "LANDFALL_RECOVERY_KEY", value_name = "FILE")]
    pub(crate) recovery_key: Option<PathBuf>,
    /// The passphrase of the recovery key, in the first line of a file.
    #[arg(long, global = true, env = "LANDFALL_PASSPHRASE_FILE", value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// What this site remembers between commands (dedup index, newest points seen). Holds no key and no content.
    #[arg(long, global = true, env = "LANDFALL_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// One JSON document on stdout.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// No progress, no warnings.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Make or show a vault.
    #[command(subcommand)]
    Vault(VaultCommand),
    /// Take a recovery point of a machine's disks: the first time everything, later only what changed.
    #[command(
        after_help = "Example:\n  landfall replicate --machine web-01 --disk root=/dev/vda --disk data=/srv/data.img"
    )]
    Replicate(Replicate),
    /// List a machine's recovery points.
    Points(Machine),
    /// Take a recovery point now.
    #[command(subcommand)]
    Point(PointCommand),
    /// List the machines in the vault.
    Machines,
    /// Bring disks back as of a recovery point.
    #[command(after_help = "Examples:\n  landfall rehydrate --machine web-01 --disk root=/restore/root.raw\n  \
        landfall rehydrate --machine web-01 --point 2026-11-21T09:30:00Z --disk root=/restore/root.qcow2 --format qcow2\n  \
        landfall rehydrate --machine web-01 --disk root=/dev/vdb --existing compare")]
    Rehydrate(Rehydrate),
    /// Serve the disks of a point over NBD, straight from the vault, until it is told to stop.
    #[command(after_help = "Examples:\n  landfall serve --machine web-01 --nbd unix:/run/web.sock\n  \
        landfall serve --machine web-01 --disk root --overlay /scratch/root.overlay --nbd 127.0.0.1:10809\n  \
        nbdcopy 'nbd+unix:///root?socket=/run/web.sock' root.raw\n\n\
        There is no password: whoever reaches the socket reads the disks. Prefer unix: in a folder of yours.")]
    Serve(Serve),
    /// Bring a machine up in the place of another, from a recovery point: at once, while its disks are still being copied.
    #[command(subcommand)]
    Failover(FailoverCommand),
    /// Failovers and what became of them, as the vault has it.
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples:\n  landfall jobs\n  landfall jobs show 5f1c...\n  landfall jobs resume 5f1c..."
    )]
    Jobs {
        #[command(subcommand)]
        command: Option<JobsCommand>,
    },
    /// Try whether machines come up from their points, beside their sources, and keep a signed report of it.
    #[command(subcommand)]
    Drill(DrillCommand),
    /// Check that everything that the points promise is there and is what it was.
    #[command(after_help = "Examples:\n  landfall verify\n  landfall verify --machine web-01 --deep")]
    Verify(Verify),
    /// Work with the recovery key.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Run the gateway: agents ship their changes to it, and it makes them recovery points.
    #[command(subcommand)]
    Gateway(GatewayCommand),
    /// Run the agent on a protected host.
    #[command(subcommand)]
    Agent(AgentCommand),
    /// How the gateway on this host and its machines are.
    #[command(after_help = "Examples:\n  landfall status\n  landfall status --machine web-01")]
    Status {
        #[command(flatten)]
        file: GatewayFile,
        /// One machine, in full: what it did in the last 12 hours too.
        #[arg(long, value_name = "M")]
        machine: Option<MachineName>,
    },
    /// Have a machine's agent send everything at its next cycle; only what differs is stored. Run beside the gateway.
    #[command(after_help = "Example:\n  landfall resync --machine web-01")]
    Resync {
        #[command(flatten)]
        file: GatewayFile,
        #[command(flatten)]
        machine: Machine,
    },
    /// Let a machine begin no cycle until it is resumed. One in flight is completed; points stay. Run beside the gateway.
    #[command(after_help = "Example:\n  landfall pause --machine web-01")]
    Pause {
        #[command(flatten)]
        file: GatewayFile,
        #[command(flatten)]
        machine: Machine,
    },
    /// Let a paused machine go on: its next cycle has everything since.
    #[command(after_help = "Example:\n  landfall resume --machine web-01")]
    Resume {
        #[command(flatten)]
        file: GatewayFile,
        #[command(flatten)]
        machine: Machine,
    },
    /// The whole story on this machine, with nothing but e2fsprogs: protect a disk, lose it, bring it back.
    Demo(Demo),
}

#[derive(Subcommand, Debug)]
pub(crate) enum VaultCommand {
    /// Make a vault and both its key files (mode 0600). Overwrites nothing.
    #[command(
        after_help = "Example:\n  landfall vault create --vault s3://bucket/dr --recovery-key recovery.key --site-key site.key"
    )]
    Create,
    /// Show what a vault is and what it holds.
    Info,
}

#[derive(Subcommand, Debug)]
pub(crate) enum KeysCommand {
    /// Split the recovery key into shares, so that any K of N bring it back. One line each on stdout.
    #[command(after_help = "Example:\n  landfall keys shares --threshold 3 --shares 5 --recovery-key recovery.key")]
    Shares {
        /// How many are needed.
        #[arg(long, value_name = "K")]
        threshold: u8,
        /// How many are made.
        #[arg(long, value_name = "N")]
        shares: u8,
    },
    /// Make the recovery key file again from shares: one line each, in files or on stdin.
    #[command(
        after_help = "Example:\n  cat share-1 share-4 share-5 | landfall keys combine --recovery-key recovery.key"
    )]
    Combine {
        /// Files with one share a line; without any, stdin.
        files: Vec<PathBuf>,
    },
}

/// A gateway's configuration file.
#[derive(Args, Debug)]
pub(crate) struct GatewayFile {
    /// The gateway's configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/landfall/gateway.toml", env = "LANDFALL_GATEWAY_CONFIG")]
    pub(crate) config: PathBuf,
}

/// An agent's configuration file.
#[derive(Args, Debug)]
pub(crate) struct AgentFile {
    /// The agent's configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/landfall/agent.toml", env = "LANDFALL_AGENT_CONFIG")]
    pub(crate) config: PathBuf,
}

#[derive(Subcommand, Debug)]
pub(crate) enum GatewayCommand {
    /// Serve agents until it is told to stop.
    #[command(after_help = "Example:\n  landfall gateway run --config /etc/landfall/gateway.toml")]
    Run(GatewayFile),
    /// Make a token with which one machine can enrol, once.
    #[command(after_help = "Example:\n  landfall gateway token --machine web-01 --valid 1h")]
    Token {
        #[command(flatten)]
        file: GatewayFile,
        #[command(flatten)]
        machine: Machine,
        /// How long it can be used, for example 30min or 24h.
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = landfall_settings::duration)]
        valid: std::time::Duration,
    },
    /// Revoke the certificates of a machine: its links end, and it must enrol again.
    Revoke {
        #[command(flatten)]
        file: GatewayFile,
        #[command(flatten)]
        machine: Machine,
    },
    /// Say whether a configuration file is right, without doing anything.
    CheckConfig(GatewayFile),
}

#[derive(Subcommand, Debug)]
pub(crate) enum AgentCommand {
    /// Get a certificate for this machine with a token of a gateway.
    #[command(
        after_help = "Example:\n  landfall agent enroll --gateway gw-1.site:7443 --token LFT1-... --config /etc/landfall/agent.toml"
    )]
    Enroll {
        #[command(flatten)]
        file: AgentFile,
        /// The gateway: HOST:PORT.
        #[arg(long, value_name = "HOST:PORT")]
        gateway: String,
        /// The token, or `-` to read it from stdin, where no other user sees it.
        #[arg(long, value_name = "TOKEN")]
        token: String,
    },
    /// Ship changes to a gateway until it is told to stop.
    #[command(after_help = "Example:\n  landfall agent run --config /etc/landfall/agent.toml")]
    Run {
        #[command(flatten)]
        file: AgentFile,
        /// Ship one cycle, and end when a gateway has it.
        #[arg(long)]
        once: bool,
    },
    /// What the agent did last.
    Status(AgentFile),
    /// How each disk will be captured on this host, why so, and what that guarantees and costs. Tries it, and changes nothing.
    #[command(after_help = "Example:\n  landfall agent check --config /etc/landfall/agent.toml")]
    Check(AgentFile),
    /// Say whether a configuration file is right, without doing anything.
    CheckConfig(AgentFile),
    /// Let go what an agent that died holds still of a virtual machine. Guards run it.
    #[command(hide = true)]
    Release {
        /// Lets the machine go on: QEMU's socket.
        #[arg(long, value_name = "SOCKET")]
        qmp: Option<PathBuf>,
        /// Thaws its file systems: the socket of its agent.
        #[arg(long, value_name = "SOCKET")]
        guest_agent: Option<PathBuf>,
        /// A hook that the guest's agent runs then.
        #[arg(last = true)]
        after: Vec<String>,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum PointCommand {
    /// Take a recovery point now: its gateway and agent are told by way of the vault.
    #[command(
        after_help = "Examples:\n  landfall point take --machine web-01\n  landfall point take --machine db-01 --consistency application\n\n\
        A point that guarantees less than was asked for stays, and the exit code is 8."
    )]
    Take(PointTake),
}

#[derive(Args, Debug)]
pub(crate) struct PointTake {
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// What it is to guarantee at least.
    #[arg(long, value_name = "WHAT", default_value = "crash")]
    pub(crate) consistency: AtLeast,
}

/// What a point is to guarantee.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum AtLeast {
    /// As after a power cut.
    Crash,
    /// File systems were frozen.
    Filesystem,
    /// Applications were quiet, by their hooks.
    Application,
}

impl From<AtLeast> for landfall_model::Consistency {
    fn from(what: AtLeast) -> Self {
        match what {
            AtLeast::Crash => Self::Crash,
            AtLeast::Filesystem => Self::Filesystem,
            AtLeast::Application => Self::Application,
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Machine {
    /// The machine.
    #[arg(long, value_name = "M")]
    pub(crate) machine: MachineName,
}

#[derive(Args, Debug)]
pub(crate) struct Replicate {
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// A disk: its name in the machine, and the file or block device to read.
    #[arg(long, value_name = "NAME=PATH", required = true)]
    pub(crate) disk: Vec<NamedPath>,
    /// A disk that is known but not protected.
    #[arg(long, value_name = "NAME")]
    pub(crate) exclude: Vec<DiskName>,
    /// A shell command that holds the application still: run with LANDFALL_PHASE=freeze before the disks are read and LANDFALL_PHASE=thaw after.
    #[arg(long, value_name = "CMD")]
    pub(crate) consistency_cmd: Option<String>,
    /// Chunks are shared by the machines of one dedup domain.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(crate) domain: DomainName,
    /// Go on although this host's clock stands before the newest point.
    #[arg(long)]
    pub(crate) accept_clock: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Rehydrate {
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Which point: latest, a sequence number, or a time (the newest point not later).
    #[arg(long, value_name = "POINT", default_value = "latest")]
    pub(crate) point: PointArg,
    /// A disk of the point, and the image or device to write.
    #[arg(long, value_name = "NAME=PATH", required = true)]
    pub(crate) disk: Vec<NamedPath>,
    /// What to write: raw, qcow2 or vhd (fixed).
    #[arg(long, value_name = "FORMAT", default_value = "raw")]
    pub(crate) format: landfall_disk::Format,
    /// A target that exists: refuse it, overwrite it, or compare and write only what differs.
    #[arg(long, value_name = "HOW", default_value = "refuse")]
    pub(crate) existing: landfall_disk::Existing,
    /// Write everything that can be had although some cannot; what cannot is listed, and the exit code is 4.
    #[arg(long)]
    pub(crate) salvage: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum FailoverCommand {
    /// Beside the source, for a while: neither the source nor its replication is touched, and nothing is left of it afterwards.
    #[command(after_help = "Examples:\n  landfall failover test --machine web-01 --target kvm\n  \
        landfall failover test --machine web-01 --point 2026-11-21T09:30:00Z --target kvm --target-file lab.toml --lease 1h\n  \
        landfall failover cleanup JOB\n\n\
        The machine runs on this host (QEMU), by default in a network of its own. Its screen: a VNC client on screen.sock in the job's folder.")]
    Test(Failover),
    /// The source is lost: fences it, and brings the machine up in its place.
    #[command(
        after_help = "Examples:\n  landfall failover unplanned --machine web-01 --target kvm --target-file site-b.toml\n  \
        landfall failover commit JOB\n  landfall failover cancel JOB --apply\n\n\
        From then on no gateway writes the machine's points, until the failover is cancelled.\n\n\
        The target's file says at least:\n  [kvm]\n  network = \"bridge:br0\""
    )]
    Unplanned {
        #[command(flatten)]
        args: Failover,
        /// The source is gone: it is not asked to stop, which takes 20 s where nobody answers.
        #[arg(long)]
        source_is_lost: bool,
    },
    /// The source is stopped and its last changes are sent; then the machine comes up in its place with nothing lost.
    #[command(
        after_help = "Examples:\n  landfall failover planned --machine web-01 --target kvm --target-file site-b.toml\n  \
        landfall failover commit JOB\n  landfall failover cancel JOB --apply\n\n\
        The source is stopped by its agent: a guest of QEMU is shut down, a host runs its stop_command. Then all its disks are compared with the\n\
        last point, byte for byte, before anything is started: that reads them once there, and the point once here. `cancel` starts the source again."
    )]
    Planned {
        #[command(flatten)]
        args: Failover,
        /// The disks are not compared: faster, and what was marked as written is all that is known to be there.
        #[arg(long)]
        no_proof: bool,
    },
    /// Make a failover final.
    Commit(JobArg),
    /// Take a failover back: ends the machine, removes its disks, and lets the source go on. Without --apply it only says so.
    Cancel {
        #[command(flatten)]
        job: JobArg,
        /// Do it.
        #[arg(long)]
        apply: bool,
        /// The host where the machine ran is gone for good, and its disks with it: nothing is looked for there.
        #[arg(long)]
        host_is_lost: bool,
        /// The source is gone: it is not told to go on, which takes minutes where nobody answers.
        #[arg(long)]
        source_is_lost: bool,
    },
    /// End a test, and remove all of it.
    Cleanup(JobArg),
    /// Does a job in the background.
    #[command(hide = true)]
    Supervise(Work),
    /// Has a test supervised, and cleans up after a supervisor that was killed.
    #[command(hide = true)]
    Keep(Work),
    /// Becomes another program, which ends with the process that started this one.
    #[command(hide = true)]
    Become {
        #[arg(long)]
        parent: u32,
        #[arg(last = true, required = true)]
        command: Vec<std::ffi::OsString>,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum JobsCommand {
    /// One in full.
    Show(JobArg),
    /// Go on with one whose process was killed, or that failed.
    Resume(Work),
}

/// A job that is to be worked on by this host.
#[derive(Args, Debug)]
pub(crate) struct Work {
    #[command(flatten)]
    pub(crate) job: JobArg,
    /// Folders of jobs are below this one.
    #[arg(long, value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
    /// The target's file, where the job was begun on another host, or is to be gone on with by another one.
    #[arg(long, value_name = "FILE")]
    pub(crate) target_file: Option<PathBuf>,
}

/// A job.
#[derive(Args, Debug)]
pub(crate) struct JobArg {
    /// The job, as `landfall jobs` lists it.
    #[arg(value_name = "JOB")]
    pub(crate) job: landfall_model::JobId,
}

/// Where a machine is brought up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum TargetKind {
    /// A machine in QEMU on this host.
    Kvm,
}

#[derive(Args, Debug)]
pub(crate) struct Failover {
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Which point: latest, a sequence number, or a time (the newest point not later).
    #[arg(long, value_name = "POINT", default_value = "latest")]
    pub(crate) point: String,
    /// Where: kvm.
    #[arg(long, value_name = "TARGET")]
    pub(crate) target: TargetKind,
    /// What the machine is to be like there, where it is not as in the point (TOML).
    #[arg(long, value_name = "FILE")]
    pub(crate) target_file: Option<PathBuf>,
    /// Folders of jobs, with the machines' disks, are made below this one. Default: failover in the state directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
    /// A test ends after so long.
    #[arg(long, value_name = "TIME", default_value = "4h", value_parser = landfall_settings::duration)]
    pub(crate) lease: std::time::Duration,
}

#[derive(Args, Debug)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Which point: latest, a sequence number, or a time (the newest point not later).
    #[arg(long, value_name = "POINT", default_value = "latest")]
    pub(crate) point: PointArg,
    /// Where to listen: HOST:PORT, or unix:PATH.
    #[arg(long, value_name = "ADDR")]
    pub(crate) nbd: landfall_nbd::Address,
    /// Only this disk; without, all of the point, each as an export of its name.
    #[arg(long, value_name = "NAME")]
    pub(crate) disk: Option<DiskName>,
    /// Take writes, and keep them in this file (and FILE.blocks beside it). For one disk.
    #[arg(long, value_name = "FILE")]
    pub(crate) overlay: Option<PathBuf>,
    /// Memory for what was read, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    pub(crate) cache_mib: u64,
}

#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// Only this machine.
    #[arg(long, value_name = "M")]
    pub(crate) machine: Option<MachineName>,
    /// Fetch and open every frame; needs the recovery key.
    #[arg(long)]
    pub(crate) deep: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// Work in this directory and keep it.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Size of the disk in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    pub(crate) size_mib: u64,
}

/// `NAME=PATH`.
#[derive(Clone, Debug)]
pub(crate) struct NamedPath {
    pub(crate) name: DiskName,
    pub(crate) path: PathBuf,
}

impl FromStr for NamedPath {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = text.split_once('=').ok_or("expected NAME=PATH, for example root=/dev/vda")?;
        if path.is_empty() {
            return Err("the path is empty".to_owned());
        }
        Ok(Self { name: name.parse().map_err(|e: landfall_model::NameError| e.to_string())?, path: path.into() })
    }
}

/// A point as it is given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PointArg(pub(crate) Selector);

impl FromStr for PointArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|e: landfall_model::Error| e.to_string())
    }
}
