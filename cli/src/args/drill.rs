//! The command line of `landfall drill`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use landfall_model::MachineName;

use super::{JobArg, TargetKind};

#[derive(Subcommand, Debug)]
pub(crate) enum DrillCommand {
    /// Boot a machine from its point beside the source, ask whether it is up, take a picture, end it, and store a signed report.
    #[command(after_help = "Examples:\n  landfall drill run --machine web-01 --target-file drill.toml\n  \
        landfall drill run --machine web-01 --app --target-file drill.toml --picture web-01.png\n  \
        landfall drill run --all --target-file drill.toml --json\n\n\
        The target's file says what is asked of the machine:\n  [kvm]\n  probe = [\"agent\", \"tcp:22\"]\n\n\
        Exit code 0 where every machine came up; else that of what the first one failed by: 7 where it was not up in time.\n\
        Ctrl-C ends the drill in order, with a report. Killed, it goes on by itself and stores its report.")]
    Run(DrillRun),
    /// List drills, the newest first.
    #[command(after_help = "Examples:\n  landfall drill list\n  landfall drill list --machine web-01 --json")]
    List {
        /// Only of this machine.
        #[arg(long, value_name = "M")]
        machine: Option<MachineName>,
    },
    /// Show the report of a drill.
    #[command(after_help = "Example:\n  landfall drill show 5f1c... --picture screen.png")]
    Show {
        #[command(flatten)]
        job: JobArg,
        /// Write the picture of the screen into this new file; needs the recovery key.
        #[arg(long, value_name = "FILE")]
        picture: Option<PathBuf>,
    },
    /// Which machines came up in a drill of the last days, and which did not.
    #[command(after_help = "Example:\n  landfall drill coverage --days 7")]
    Coverage {
        /// So many days back.
        #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
    /// Print a systemd service and timer that do drills again and again. Installs nothing.
    #[command(
        after_help = "Example:\n  landfall drill schedule --every 7d --all --target-file /etc/landfall/drill.toml \\\n    \
        --vault s3://bucket/prefix --recovery-key /etc/landfall/recovery.key\n\n\
        Credentials of the store go into /etc/landfall/drill.env. The host of drills has the recovery key: let it not be the gateway's."
    )]
    Schedule(DrillSchedule),
}

/// Which machines.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// The machine.
    #[arg(long, value_name = "M")]
    pub(crate) machine: Option<MachineName>,
    /// Every machine that has points, one after another.
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Args, Debug)]
pub(crate) struct DrillRun {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Which point: latest, a sequence number, or a time (the newest point not later).
    #[arg(long, value_name = "POINT", default_value = "latest", conflicts_with = "app")]
    pub(crate) point: String,
    /// The newest point at which applications were quiesced.
    #[arg(long)]
    pub(crate) app: bool,
    /// Where: kvm.
    #[arg(long, value_name = "TARGET", default_value = "kvm")]
    pub(crate) target: TargetKind,
    /// What the machine is to be like there, and what is asked of it (TOML). Of a folder: MACHINE.toml in it, or default.toml.
    #[arg(long, value_name = "FILE")]
    pub(crate) target_file: Option<PathBuf>,
    /// Folders of jobs, with the machines' disks, are made below this one. Default: failover in the state directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
    /// Write the picture of the screen into this new file.
    #[arg(long, value_name = "FILE", conflicts_with = "all")]
    pub(crate) picture: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct DrillSchedule {
    #[command(flatten)]
    pub(crate) which: Which,
    /// How often: 1d, 7d or 30d (each day, each Monday, the first of each month).
    #[arg(long, value_name = "TIME", default_value = "7d")]
    pub(crate) every: Every,
    /// Of the newest point at which applications were quiesced.
    #[arg(long)]
    pub(crate) app: bool,
    /// The target's file, or the folder of them, on the host of the drills.
    #[arg(long, value_name = "FILE")]
    pub(crate) target_file: PathBuf,
}

/// How often: what a calendar can say, so that a timer holds it over restarts of its host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Every {
    /// Each day.
    Day,
    /// Each week.
    Week,
    /// Each month.
    Month,
}

impl FromStr for Every {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "1d" | "daily" => Ok(Self::Day),
            "7d" | "weekly" => Ok(Self::Week),
            "30d" | "monthly" => Ok(Self::Month),
            _ => Err("expected 1d, 7d or 30d; for another time write OnCalendar= of the timer yourself".to_owned()),
        }
    }
}
