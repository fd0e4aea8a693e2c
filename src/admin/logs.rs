//! What is logged, and in what form. Logs go to standard error; answers of commands to standard
//! output.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// Starts logging. `level` takes the place of `RUST_LOG`; without either `info` and above are
/// logged.
///
/// # Errors
/// A level or filter that can't be understood.
pub fn start(level: Option<&str>, format: LogFormat) -> Result<(), String> {
    let from_environment = std::env::var("RUST_LOG").ok();
    let directives = level.or(from_environment.as_deref()).unwrap_or("info");
    let filter = EnvFilter::builder()
        .parse(directives)
        .map_err(|e| format!("log level `{directives}`: {e}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let set = match format {
        LogFormat::Text => {
            let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(colours).with_target(false).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    // A second start, as in tests, keeps the first one's settings.
    let _ = set;
    Ok(())
}
