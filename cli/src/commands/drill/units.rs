//! A systemd service and timer that do drills: printed, for whoever runs the host to read and to install.

use std::path::Path;

use landfall_model::{Error, ErrorKind, Result};
use serde_json::json;

use crate::args::{Common, DrillSchedule, Every};
use crate::output;

/// Where the program is, in the units of `deploy/`.
const PROGRAM: &str = "/usr/local/bin/landfall";
const FOLDER: &str = "/etc/systemd/system";

/// Prints both units.
pub(super) fn print(common: &Common, args: &DrillSchedule) -> Result<()> {
    let (name, of) = match &args.which.machine {
        Some(machine) => (format!("landfall-drill-{machine}"), format!("drill of {machine}")),
        None => ("landfall-drill".to_owned(), "drills of all machines".to_owned()),
    };
    let (service, timer) = (service(common, args, &of)?, timer(args.every, &of));
    let value = json!({ "service": { "name": format!("{name}.service"), "text": service }, "timer": { "name": format!("{name}.timer"), "text": timer } });
    output::document(common.json, &value, || {
        format!(
            "# {FOLDER}/{name}.service\n{service}\n# {FOLDER}/{name}.timer\n{timer}\n\
             # Then: systemctl daemon-reload && systemctl enable --now {name}.timer\n"
        )
    })
}

/// A word of `ExecStart=`, so that systemd reads what was meant.
fn word(text: &str) -> Result<String> {
    if text.chars().any(char::is_control) {
        let why = format!("{text:?} has a character that does not fit into a unit: give it another name");
        return Err(Error::new(ErrorKind::Usage, why));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=+@,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    Ok(format!("\"{escaped}\""))
}

/// A file as it is found wherever the unit runs. In settings other than `ExecStart=` there are no quotes.
fn file(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| path.is_absolute() && word(text).is_ok_and(|word| word == *text));
    let wrong = || {
        let why = format!("{}: a unit names a file by its whole path, of plain letters: write it so", path.display());
        Error::new(ErrorKind::Usage, why)
    };
    text.map(str::to_owned).ok_or_else(wrong)
}

fn service(common: &Common, args: &DrillSchedule, of: &str) -> Result<String> {
    let key = common.recovery_key.as_deref().unwrap_or(Path::new("/etc/landfall/recovery.key"));
    let mut credentials =
        format!("LoadCredential=recovery.key:{}\nEnvironment=LANDFALL_RECOVERY_KEY=%d/recovery.key\n", file(key)?);
    if let Some(passphrase) = &common.passphrase_file {
        let line = "Environment=LANDFALL_PASSPHRASE_FILE=%d/passphrase";
        credentials += &format!("LoadCredential=passphrase:{}\n{line}\n", file(passphrase)?);
    }
    let mut command = vec![PROGRAM.to_owned(), "drill".to_owned(), "run".to_owned()];
    match &args.which.machine {
        Some(machine) => command.extend(["--machine".to_owned(), machine.to_string()]),
        None => command.push("--all".to_owned()),
    }
    if args.app {
        command.push("--app".to_owned());
    }
    command.extend(["--target-file".to_owned(), file(&args.target_file)?]);
    if let Some(vault) = &common.vault {
        command.extend(["--vault".to_owned(), word(vault)?]);
    }
    let command = command.join(" ");
    Ok(format!(
        "# Landfall: {of}, as `landfall drill schedule` prints it. This host holds the recovery key: let it not be the gateway's.

[Unit]
Description=Landfall: {of}
Documentation=https://github.com/landfall-dr/landfall
Wants=network-online.target
After=network-online.target local-fs.target

[Service]
Type=oneshot
# LANDFALL_VAULT, where the command does not name it, and the credentials of the store
EnvironmentFile=-/etc/landfall/drill.env
# The service sees copies in memory, not the files
{credentials}ExecStart={command}
# A drill takes as long as it takes. One that fails makes this unit failed: that is the alarm
TimeoutStartSec=infinity
# SIGTERM ends it in order, with a report
TimeoutStopSec=120

# Who it is: a user of its own, which may use KVM
DynamicUser=yes
User=landfall-drill
SupplementaryGroups=kvm
StateDirectory=landfall-drill
StateDirectoryMode=0700
UMask=0077
# No core dump: keys and content are in memory
LimitCORE=0

# Behind what the host itself does
Nice=10
IOSchedulingClass=best-effort
IOSchedulingPriority=7

# What it may touch: KVM, its state directory, the store. QEMU's emulation writes code: no MemoryDenyWriteExecute
DevicePolicy=closed
DeviceAllow=/dev/kvm rw
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"
    ))
}

fn timer(every: Every, of: &str) -> String {
    let calendar = match every {
        Every::Day => "daily",
        Every::Week => "weekly",
        Every::Month => "monthly",
    };
    format!(
        "# Landfall: {of}, {calendar}. One that still runs is not started twice.

[Unit]
Description=Landfall: {of}, {calendar}
Documentation=https://github.com/landfall-dr/landfall

[Timer]
OnCalendar={calendar}
RandomizedDelaySec=1h
# What was missed while the host was off is made up for
Persistent=true

[Install]
WantedBy=timers.target
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_one_word_of_the_unit_and_nothing_else() {
        for (text, wanted) in [
            ("s3://bucket/prefix", "s3://bucket/prefix"),
            ("/a b", "\"/a b\""),
            ("/a%h", "\"/a%%h\""),
            ("/a\"; $x \\", "\"/a\\\"; $$x \\\\\""),
            ("", "\"\""),
        ] {
            assert_eq!(word(text).expect("a word"), wanted);
        }
        assert!(word("/a\nExecStartPre=/bin/evil").is_err());
        for wrong in ["relative", "/a b", "/a%h", "/a\nb"] {
            assert!(file(Path::new(wrong)).is_err(), "{wrong}");
        }
    }
}
