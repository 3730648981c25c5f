//! One file a command.

mod agent;
mod demo;
mod drill;
mod failover;
mod gateway;
mod jobs;
mod keys;
mod point;
mod points;
mod rehydrate;
mod replicate;
mod serve;
mod status;
mod vault;
mod verify;

use std::process::ExitCode;

use landfall_model::Result;

use crate::args::{AgentCommand, Cli, Command, GatewayCommand, KeysCommand, PointCommand, VaultCommand};

/// Runs the command.
pub(crate) async fn run(cli: Cli) -> Result<ExitCode> {
    let common = &cli.common;
    match cli.command {
        Command::Vault(VaultCommand::Create) => vault::create(common).await?,
        Command::Vault(VaultCommand::Info) => vault::info(common).await?,
        Command::Replicate(args) => replicate::run(common, args).await?,
        Command::Points(args) => points::points(common, &args.machine).await?,
        Command::Point(PointCommand::Take(args)) => return point::take(common, args).await,
        Command::Machines => points::machines(common).await?,
        Command::Rehydrate(args) => return rehydrate::run(common, args).await,
        Command::Serve(args) => return serve::run(common, args).await,
        Command::Failover(command) => return failover::run(common, command).await,
        Command::Jobs { command } => return jobs::run(common, command).await,
        Command::Drill(command) => return drill::run(common, command).await,
        Command::Verify(args) => return verify::run(common, args).await,
        Command::Keys(KeysCommand::Shares { threshold, shares }) => keys::shares(common, threshold, shares)?,
        Command::Keys(KeysCommand::Combine { files }) => keys::combine(common, &files)?,
        Command::Gateway(GatewayCommand::Run(file)) => gateway::run(common, &file).await?,
        Command::Gateway(GatewayCommand::Token { file, machine, valid }) => {
            gateway::token(common, &file, &machine, valid)?;
        }
        Command::Gateway(GatewayCommand::Revoke { file, machine }) => gateway::revoke(common, &file, &machine).await?,
        Command::Gateway(GatewayCommand::CheckConfig(file)) => gateway::check_config(common, &file)?,
        Command::Agent(AgentCommand::Enroll { file, gateway, token }) => {
            agent::enroll(common, &file, &gateway, &token).await?;
        }
        Command::Agent(AgentCommand::Run { file, once }) => agent::run(&file, once).await?,
        Command::Agent(AgentCommand::Status(file)) => agent::status(common, &file)?,
        Command::Agent(AgentCommand::Check(file)) => agent::check(common, &file)?,
        Command::Agent(AgentCommand::Release { qmp, guest_agent, after }) => {
            agent::release(qmp.as_deref(), guest_agent.as_deref(), &after)?
        }
        Command::Agent(AgentCommand::CheckConfig(file)) => agent::check_config(common, &file)?,
        Command::Resync { file, machine } => gateway::resync(common, &file, &machine)?,
        Command::Pause { file, machine } => gateway::pause(common, &file, &machine)?,
        Command::Resume { file, machine } => gateway::resume(common, &file, &machine)?,
        Command::Status { file, machine } => status::run(common, &file, machine.as_ref())?,
        Command::Demo(args) => demo::run(common, &args).await?,
    }
    Ok(ExitCode::SUCCESS)
}
