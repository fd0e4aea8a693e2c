//! The answering end of the control socket.

use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::protocol::{self, Answer, Question, Reply, What};
use crate::config::AdminSpec;
use crate::control::{Asker, Gone, Refusal};

/// Clients served at once; more wait to be accepted.
const CLIENTS_MAX: usize = 32;
/// A client that says nothing this long is left.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long the end waits for clients to read their last answers.
const SETTLE_MAX: Duration = Duration::from_millis(250);
/// After `accept` failed, such as for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Why the control socket can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "another tidegate runs: it answers on {0} (stop it with `tidegate stop --socket {0}`, or \
         give this one another `admin.socket`)"
    )]
    Taken(String),
    #[error("control socket {0}: a file that is no socket is in its place")]
    NotASocket(String),
    #[error("control socket {path}: its folder can't be made: {source}")]
    Folder { path: String, source: io::Error },
    #[error("control socket {path}: {source}")]
    Io { path: String, source: io::Error },
}

/// A bound control socket, removed when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    seats: Arc<Semaphore>,
}

impl ControlSocket {
    /// Binds `spec.socket` with its mode, taking the place of a socket that nobody answers on.
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// Somebody answers there, something else lies there, or the file system refuses.
    pub fn bind(spec: &AdminSpec) -> Result<ControlSocket, SocketError> {
        let path = spec.socket.as_path();
        let text = path.display().to_string();
        let failed = |source| SocketError::Io { path: text.clone(), source };
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NotASocket(text));
            }
            Ok(_) if is_answered(path) => return Err(SocketError::Taken(text)),
            Ok(_) => std::fs::remove_file(path).map_err(failed)?,
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
        // One level: such as /run/tidegate after each boot. A whole path would be a typing error.
        if let Some(folder) = path.parent()
            && let Err(source) = std::fs::create_dir(folder)
            && source.kind() != ErrorKind::AlreadyExists
        {
            return Err(SocketError::Folder { path: text, source });
        }
        let listener = bind_with_mode(path, spec.socket_mode).map_err(failed)?;
        let seats = Arc::new(Semaphore::new(CLIENTS_MAX));
        Ok(ControlSocket { listener, path: path.to_path_buf(), seats })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers questions for as long as it is polled.
    pub async fn serve(&self, asker: Asker) -> Infallible {
        loop {
            let Ok(seat) = Arc::clone(&self.seats).acquire_owned().await else {
                // Closed semaphores give no seats; this one is never closed.
                std::future::pending::<()>().await;
                continue;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let asker = asker.clone();
                    tokio::spawn(async move {
                        if let Err(error) = serve_client(stream, asker).await {
                            tracing::debug!(%error, "control client left");
                        }
                        drop(seat);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "control socket");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    /// Lets clients read their last answers: the end of a stop is one.
    pub async fn settle(&self) {
        let all = self.seats.acquire_many(CLIENTS_MAX as u32);
        let _ = tokio::time::timeout(SETTLE_MAX, all).await;
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether a process listens on this socket.
pub fn is_answered(path: &Path) -> bool {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => true,
        // Other failures, such as a full backlog, are no proof that nobody does.
        Err(e) => !matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound),
    }
}

/// Binds where only its owner can connect, then opens it as configured: at no moment can others.
fn bind_with_mode(path: &Path, mode: u32) -> io::Result<UnixListener> {
    // The umask is the whole process's; at boot no other thread makes files.
    let umask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    nix::sys::stat::umask(umask);
    let listener = bound?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

async fn serve_client(mut stream: UnixStream, asker: Asker) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let limit = protocol::QUESTION_BYTES_MAX as u64;
        let mut bounded = (&mut reader).take(limit);
        let read = bounded.read_until(b'\n', &mut line);
        let Ok(count) = tokio::time::timeout(IDLE_MAX, read).await else { return Ok(()) };
        if count? == 0 {
            return Ok(());
        }
        let whole = line.ends_with(b"\n");
        let answer = match whole {
            true => answer(&String::from_utf8_lossy(&line), &asker).await,
            false => Answer::Error(format!("a question of over {limit} bytes, or cut short")),
        };
        let mut reply = serde_json::to_vec(&Reply::new(answer))?;
        reply.push(b'\n');
        writer.write_all(&reply).await?;
        if !whole {
            return Ok(());
        }
    }
}

async fn answer(line: &str, asker: &Asker) -> Answer {
    match Question::parse(line) {
        Ok(question) => match done(question.ask, asker).await {
            Ok(answer) => answer,
            Err(gone) => Answer::Error(gone.to_string()),
        },
        Err(words) => Answer::Error(words),
    }
}

async fn done(ask: protocol::Ask, asker: &Asker) -> Result<Answer, Gone> {
    Ok(match ask {
        protocol::Ask::Ping => Answer::Ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
        })),
        protocol::Ask::Show { what: What::Flows, limit } => {
            let limit = limit.unwrap_or(protocol::FLOWS_MAX).min(protocol::FLOWS_MAX);
            ok(&asker.flows(limit).await?)
        }
        protocol::Ask::Show { what, .. } => {
            let o = asker.overview().await?;
            match what {
                What::Services => ok(&json!({ "services": o.services })),
                What::Backends => ok(&json!({ "backends": o.backends })),
                What::Pools => ok(&json!({ "pools": o.pools })),
                What::Neighbours => ok(&json!({ "neighbours": o.neighbours })),
                What::Qos => ok(&json!({ "classes": o.classes })),
                What::Limits => ok(&json!({ "limits": o.limits })),
                What::Latency => ok(&json!({ "latencies": o.latencies })),
                What::Shadow => ok(&json!({ "shadows": o.shadows })),
                What::Ports => ok(&super::show::PortsAnswer::of(&o)),
                What::Workers => ok(&super::show::workers::WorkersAnswer::of(&o)),
                What::Drops => ok(&super::show::DropsAnswer::of(&o)),
                What::Counters | What::Flows => ok(&super::show::CountersAnswer::of(o)),
            }
        }
        protocol::Ask::Compare => told(asker.compare().await?),
        protocol::Ask::Reload => told(asker.reload(None).await?),
        protocol::Ask::Try { within_secs } => {
            told(asker.reload(Some(Duration::from_secs(within_secs))).await?)
        }
        protocol::Ask::Confirm => match asker.confirm().await? {
            Ok(()) => Answer::Ok(json!({})),
            Err(Refusal { words, .. }) => Answer::Error(words),
        },
        protocol::Ask::Drain { target, drained, flush } => {
            told(asker.drain(target, drained, flush).await?)
        }
        protocol::Ask::Drained { target } => told(asker.drained(target).await?),
        protocol::Ask::Stop => {
            asker.stop().await?;
            Answer::Ok(json!({}))
        }
    })
}

fn told<T: Serialize>(result: Result<T, Refusal>) -> Answer {
    match result {
        Ok(done) => ok(&done),
        Err(Refusal { words, bad_config: true }) => Answer::Refused(words),
        Err(Refusal { words, .. }) => Answer::Error(words),
    }
}

fn ok<T: Serialize>(value: &T) -> Answer {
    match serde_json::to_value(value) {
        Ok(value) => Answer::Ok(value),
        Err(e) => Answer::Error(format!("the answer can't be written as JSON: {e}")),
    }
}
