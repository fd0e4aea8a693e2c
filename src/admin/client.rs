//! The asking end of the control socket.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::protocol::{Answer, Ask, Question, Reply};

/// Longest wait for an answer: a stop may take its whole drain limit.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no tidegate runs here: there is no control socket {0} (another place: --socket PATH)")]
    NoSocket(String),
    #[error("no tidegate runs here: nobody listens on {0} (left by a process that died)")]
    NobodyListens(String),
    #[error("not allowed to open the control socket {0}: its owner and mode say who may")]
    NotAllowed(String),
    #[error("control socket {path}: {reason}")]
    Broken { path: String, reason: String },
    /// The appliance's own words.
    #[error("{0}")]
    Refused(String),
    /// The same: its configuration is at fault.
    #[error("{0}")]
    BadConfig(String),
}

/// Asks one question of the appliance behind `socket`.
///
/// # Errors
/// Nobody there, or the question refused.
pub fn ask(socket: &Path, ask: Ask) -> Result<serde_json::Value, ClientError> {
    let path = socket.display().to_string();
    let stream = UnixStream::connect(socket).map_err(|e| match e.kind() {
        ErrorKind::NotFound => ClientError::NoSocket(path.clone()),
        ErrorKind::ConnectionRefused => ClientError::NobodyListens(path.clone()),
        ErrorKind::PermissionDenied => ClientError::NotAllowed(path.clone()),
        _ => ClientError::Broken { path: path.clone(), reason: e.to_string() },
    })?;
    let line = exchange(&stream, ask)
        .map_err(|e| ClientError::Broken { path: path.clone(), reason: e.to_string() })?;
    let reply: Reply = serde_json::from_str(&line).map_err(|e| {
        let reason = match line.is_empty() {
            true => "closed without an answer".to_string(),
            false => format!("an answer of another protocol version: {e}"),
        };
        ClientError::Broken { path, reason }
    })?;
    match reply.answer {
        Answer::Ok(value) => Ok(value),
        Answer::Error(words) => Err(ClientError::Refused(words)),
        Answer::Refused(words) => Err(ClientError::BadConfig(words)),
    }
}

fn exchange(stream: &UnixStream, ask: Ask) -> std::io::Result<String> {
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    let mut question = serde_json::to_string(&Question::new(ask))?;
    question.push('\n');
    let mut writer = stream;
    writer.write_all(question.as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}
