//! `landfall`: disaster recovery to object storage, from the command line.

mod args;
mod commands;
mod context;
mod interrupt;
mod output;
mod progress;

use std::process::ExitCode;

use clap::Parser;
use landfall_model::{Error, ErrorKind};

use crate::args::Cli;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) if !told.use_stderr() => told.exit(),
        Err(error) => {
            output::error_line(&usage_line(&error));
            return ExitCode::from(ErrorKind::Usage.exit_code());
        }
    };
    start_log(cli.common.quiet);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(commands::run(cli));
            // A blocked read of a dying disk must not keep the command from ending.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Error::with_source(ErrorKind::Bug, "cannot start", error)),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            output::error_line(&error.line());
            ExitCode::from(error.kind().exit_code())
        }
    }
}

/// What is wrong with the command, on one line, and where help is.
fn usage_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let told = text.split("\n\nUsage:").next().unwrap_or_default().split("\n\nFor more").next().unwrap_or_default();
    let told: Vec<&str> = told.split_whitespace().collect();
    format!("{}; see --help", told.join(" ").trim_start_matches("error: "))
}

/// Logs go to stderr; `LANDFALL_LOG` sets what is told (for example `debug` or `landfall_vault=trace`).
fn start_log(quiet: bool) {
    use std::io::IsTerminal;
    // Where a script reads stderr, an error is its one line.
    let level = if quiet || !std::io::stderr().is_terminal() { "error" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("LANDFALL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}
