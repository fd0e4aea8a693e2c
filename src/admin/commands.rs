//! What each command does, and the exit code that it ends with.

use std::io::{self, ErrorKind, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};

use super::cli::{Cli, Command, SocketArgs};
use super::client::{self, ClientError};
use super::protocol::{Ask, What};
use super::{check, demo, difference, doctor, drain, inspect, logs, pktgen, run, show, simulate};
use crate::control::view::ReloadView;

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 1.
    Failed(String),
    /// Bad usage or configuration: exit code 2.
    Usage(String),
    /// All is said already.
    Told(u8),
}

impl From<anyhow::Error> for Failure {
    /// With all causes; errors of the argument parser are bad usage.
    fn from(error: anyhow::Error) -> Failure {
        match error.downcast::<clap::Error>() {
            Ok(error) => {
                let _ = error.print();
                Failure::Told(2)
            }
            Err(error) => Failure::Failed(format!("{error:#}")),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        match error {
            ClientError::BadConfig(words) => Failure::Usage(words),
            error => Failure::Failed(error.to_string()),
        }
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors", too: they go to standard output with code 0.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    ExitCode::from(ended(|| execute(cli)))
}

/// Does the work, says why it did not succeed, and returns the exit code. A panic has said by then
/// where it came from, and what it unwound through is set back.
pub(super) fn ended(work: impl FnOnce() -> Result<(), Failure>) -> u8 {
    let bug = || Failure::Failed("it panicked, as said above: a bug; please report it".into());
    let (code, words) = match catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(bug())) {
        Ok(()) => return 0,
        Err(Failure::Told(code)) => return code,
        Err(Failure::Failed(words)) => (1, words),
        Err(Failure::Usage(words)) => (2, words),
    };
    let _ = writeln!(std::io::stderr(), "tidegate: {words}");
    code
}

fn execute(cli: Cli) -> Result<(), Failure> {
    logs::start(cli.log_level.as_deref(), cli.log_format).map_err(Failure::Usage)?;
    match cli.command {
        Command::Run(args) => run::run(&args.config),
        Command::Check { config, against: None, output } => {
            check::check(&config.config, output.json)
        }
        Command::Check { config, against: Some(old), output } => {
            difference::between(&old, &config.config, output.json)
        }
        Command::Show { what, limit, socket, output } => {
            show_what(what, limit, &socket, output.json)
        }
        Command::Reload { diff: true, socket, output, .. } => {
            difference::of_reload(&socket.socket, output.json)
        }
        Command::Reload { confirm, socket, output, .. } => {
            reload(&socket.socket, confirm, output.json)
        }
        Command::Confirm { socket } => {
            client::ask(&socket.socket, Ask::Confirm)?;
            print_text("confirmed\n")
        }
        Command::Drain { what, flush, wait, socket, output } => {
            let target = drain::target(what).map_err(Failure::Usage)?;
            drain::run(&socket.socket, target, true, (wait, flush), output.json)
        }
        Command::Undrain { what, socket, output } => {
            let target = drain::target(what).map_err(Failure::Usage)?;
            drain::run(&socket.socket, target, false, (false, false), output.json)
        }
        Command::Stop { socket } => {
            client::ask(&socket.socket, Ask::Stop)?;
            Ok(())
        }
        Command::Doctor { interface, restore, output } => examine(&interface, restore, output.json),
        Command::Inspect { file, catalogue, config, output } => {
            let catalogue = inspect::catalogue(catalogue.as_deref(), config.as_deref())?;
            inspect::run(&file, &catalogue, output.json)
        }
        Command::Simulate(args) => simulate::run(&args),
        Command::Pktgen(args) => print_text(&pktgen::run(&args)?),
        Command::Demo(args) => {
            let (text, errors) = demo::run(&args)?;
            print_text(&text)?;
            match errors {
                0 => Ok(()),
                n => Err(Failure::Failed(format!("{n} interactive requests failed"))),
            }
        }
    }
}

fn show_what(what: What, limit: usize, socket: &SocketArgs, json: bool) -> Result<(), Failure> {
    let limit = (what == What::Flows).then_some(limit);
    let answer = client::ask(&socket.socket, Ask::Show { what, limit })?;
    if json {
        return print_json(&answer);
    }
    let text = show::print(what, answer)
        .map_err(|e| Failure::Failed(format!("the appliance is of another version: {e}")))?;
    print_text(&text)
}

fn reload(socket: &Path, confirm: Option<Duration>, json: bool) -> Result<(), Failure> {
    let ask = match confirm {
        Some(within) => Ask::Try { within_secs: within.as_secs() },
        None => Ask::Reload,
    };
    let answer = ask_for(socket, ask, json)?;
    if json {
        return print_json(&answer);
    }
    let done: ReloadView = serde_json::from_value(answer)
        .map_err(|e| Failure::Failed(format!("the appliance is of another version: {e}")))?;
    for warning in &done.warnings {
        let _ = writeln!(std::io::stderr(), "{warning}");
    }
    print_text(&match done.unchanged {
        true => format!("{}: unchanged\n", done.config),
        false => format!(
            "{}: taken over: pipeline {}, {} services, {} backends, {} rules\n",
            done.config, done.pipeline, done.services, done.backends, done.rules
        ),
    })?;
    for (what, ports) in [("closed", &done.ports_closed), ("opened", &done.ports_opened)] {
        if !ports.is_empty() {
            print_text(&format!("ports {what}: {}\n", ports.join(", ")))?;
        }
    }
    if let Some(secs) = done.confirm_within_secs {
        print_text(&format!("undone in {secs} s, unless `tidegate confirm` comes first\n"))?;
    }
    Ok(())
}

/// Asks for what depends on a configuration. Programs are told of its faults in JSON as well.
pub(super) fn ask_for(socket: &Path, ask: Ask, json: bool) -> Result<Value, Failure> {
    match client::ask(socket, ask) {
        Err(ClientError::BadConfig(words)) if json => Err(refused(&words, 2)?),
        Err(ClientError::Refused(words)) if json => Err(refused(&words, 1)?),
        answer => Ok(answer?),
    }
}

/// Tells programs why, a line each; the end with this code.
fn refused(words: &str, code: u8) -> Result<Failure, Failure> {
    let errors: Vec<&str> = words.lines().collect();
    print_json(&json!({ "ok": false, "errors": errors }))?;
    Ok(Failure::Told(code))
}

fn examine(interfaces: &[String], restore: bool, json: bool) -> Result<(), Failure> {
    let report = doctor::examine(interfaces, restore);
    match json {
        true => print_json(&serde_json::to_value(&report).unwrap_or_default())?,
        false => print_text(&doctor::print(&report))?,
    }
    if report.ready { Ok(()) } else { Err(Failure::Told(1)) }
}

/// Writes to standard output. A reader that has gone, such as `head`, is no error; a full disk is.
pub(super) fn print_text(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// What became of writing to standard output.
pub(super) fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("standard output: {e}")))
        }
        _ => Ok(()),
    }
}

pub(super) fn print_json(value: &Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::Failed(e.to_string()))?;
    print_text(&(text + "\n"))
}
