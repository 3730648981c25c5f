//! `landfall keys shares | combine`. Shares go in and out by files and streams, never by arguments.

use std::io::Read;
use std::path::PathBuf;

use landfall_keys::{combine as combine_shares, split};
use landfall_model::{Error, ErrorKind, Result};
use serde_json::json;

use crate::args::Common;
use crate::output;

/// Splits the recovery key.
pub(crate) fn shares(common: &Common, threshold: u8, shares: u8) -> Result<()> {
    let lines = split(&*common.recovery()?, threshold, shares)?;
    let value = json!({ "threshold": threshold, "shares": lines });
    output::document(common.json, &value, || lines.iter().map(|line| format!("{line}\n")).collect())
}

/// Makes the recovery key file again.
pub(crate) fn combine(common: &Common, files: &[PathBuf]) -> Result<()> {
    let target = common.recovery_key_path()?;
    let mut text = String::new();
    let failed =
        |what: String, e: std::io::Error| Error::with_source(ErrorKind::of_io(&e), format!("cannot read {what}"), e);
    if files.is_empty() {
        std::io::stdin().lock().read_to_string(&mut text).map_err(|e| failed("shares from stdin".to_owned(), e))?;
    }
    for file in files {
        let part = std::fs::read_to_string(file).map_err(|e| failed(file.display().to_string(), e))?;
        text.push_str(&part);
        text.push('\n');
    }
    let lines: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect();
    let recovery = combine_shares(&lines)?;
    recovery.write_new(target, common.passphrase()?.as_ref())?;
    let value = json!({ "vault_id": recovery.vault_id(), "recovery_key": target });
    output::document(common.json, &value, || {
        format!("The recovery key of vault {} is in {}.\n", recovery.vault_id(), target.display())
    })
}
