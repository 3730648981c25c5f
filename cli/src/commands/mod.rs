//! One file a command.

mod demo;
mod keys;
mod points;
mod rehydrate;
mod replicate;
mod vault;
mod verify;

use std::process::ExitCode;

use landfall_model::Result;

use crate::args::{Cli, Command, KeysCommand, VaultCommand};

/// Runs the command.
pub(crate) async fn run(cli: Cli) -> Result<ExitCode> {
    let common = &cli.common;
    match cli.command {
        Command::Vault(VaultCommand::Create) => vault::create(common).await?,
        Command::Vault(VaultCommand::Info) => vault::info(common).await?,
        Command::Replicate(args) => replicate::run(common, args).await?,
        Command::Points(args) => points::points(common, &args.machine).await?,
        Command::Machines => points::machines(common).await?,
        Command::Rehydrate(args) => return rehydrate::run(common, args).await,
        Command::Verify(args) => return verify::run(common, args).await,
        Command::Keys(KeysCommand::Shares { threshold, shares }) => keys::shares(common, threshold, shares)?,
        Command::Keys(KeysCommand::Combine { files }) => keys::combine(common, &files)?,
        Command::Demo(args) => demo::run(common, &args).await?,
    }
    Ok(ExitCode::SUCCESS)
}
