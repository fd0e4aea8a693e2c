//! Who does a forwarder's work: a process of its own, threads of the kernel, or neither.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use tidegate::lab::{Namespace, Process, wait_for};

const START_LIMIT: Duration = Duration::from_secs(20);

/// Paused but while it is measured: those that poll would take the core from the others.
pub struct Work {
    pub process: Option<Process>,
    /// The kernel's threads that forward, where it has some of its own for that.
    pub kernel_threads: Vec<i32>,
}

#[allow(dead_code, reason = "not every bench pauses its forwarders")]
impl Work {
    /// All that works, as processes: of the kernel's ways only the one with threads.
    pub fn process_ids(&self) -> Vec<i32> {
        let process = self.process.as_ref().map(|p| p.id().cast_signed());
        process.into_iter().chain(self.kernel_threads.iter().copied()).collect()
    }

    /// # Errors
    /// The process has ended by itself.
    pub fn pause(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// # Errors
    /// The process has ended by itself.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        if !process.is_running() {
            bail!("its process has ended by itself");
        }
        Ok(process.signal(signal)?)
    }
}

/// Starts tidegate with `config`, to which `[admin]` is added, and waits until it answers. Its
/// control thread stays on `control_core`; its workers move to their own.
///
/// # Errors
/// It does not start: what it says of that.
pub fn start_tidegate(
    namespace: &Namespace,
    config: &str,
    dir: &Path,
    control_core: usize,
) -> anyhow::Result<Process> {
    let program = env!("CARGO_BIN_EXE_tidegate");
    let (file, socket) = (dir.join("tidegate.toml"), dir.join("tidegate.sock"));
    let socket = socket.display().to_string();
    let admin = format!("[admin]\nsocket = \"{socket}\"\nmetrics = false\n");
    fs::write(&file, format!("{config}\n{admin}")).with_context(|| file.display().to_string())?;
    let mut command = Command::new("taskset");
    command.args(["-c", &control_core.to_string(), program, "run", "-c"]).arg(&file);
    let process = namespace.spawn(command)?;
    let ask = ["show", "counters", "--socket", &socket];
    started(process, "tidegate", || namespace.run(program, &ask).is_ok())
}

/// Waits until `process` is ready.
///
/// # Errors
/// It ends, or is not ready within a limit: what it says of that.
pub fn started(
    mut process: Process,
    name: &str,
    mut ready: impl FnMut() -> bool,
) -> anyhow::Result<Process> {
    let up = wait_for(START_LIMIT, name, || !process.is_running() || ready());
    if up.is_err() || !process.is_running() {
        bail!("{name} did not start: {}", process.kill_and_read_stderr());
    }
    Ok(process)
}
