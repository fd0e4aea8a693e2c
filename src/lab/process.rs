//! A program running inside a namespace, ended with the value that stands for it.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Output};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::{LabError, Result, wait_for};

/// A started program. Dropping it kills the program and waits for its end.
#[derive(Debug)]
pub struct Process {
    child: Option<Child>,
    program: String,
}

impl Process {
    /// The same command under `setpriv`, which asks the kernel to kill it when its parent thread
    /// ends.
    pub(super) fn with_parent_death_signal(command: Command) -> Command {
        let mut outer = Command::new("setpriv");
        outer.args(["--pdeathsig", "KILL", "--"]);
        outer.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(v) => outer.env(key, v),
                None => outer.env_remove(key),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            outer.current_dir(dir);
        }
        outer
    }

    /// Starts it with both outputs piped.
    pub(super) fn start(mut command: Command, program: String) -> Result<Process> {
        use std::os::unix::process::CommandExt;
        use std::process::Stdio;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that what the program starts ends with it.
        command.process_group(0);
        let child = command
            .spawn()
            .map_err(|source| LabError::Spawn { program: program.clone(), source })?;
        Ok(Process { child: Some(child), program })
    }

    fn child(&mut self) -> Result<&mut Child> {
        self.child.as_mut().ok_or_else(|| LabError::Gone(self.program.clone()))
    }

    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// True until the program has ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child().map(Child::try_wait), Ok(Ok(None)))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The program has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.id().cast_signed());
        kill(pid, signal).map_err(|e| LabError::Io(self.program.clone(), e.into()))
    }

    /// Waits for the end, `limit` at most, and gives the exit status. Keep `limit` short where the
    /// program writes more than a pipe holds; [`Process::finish`] reads along.
    ///
    /// # Errors
    /// [`LabError::Timeout`]; the program goes on.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("`{}` to end", self.program);
        let mut status = None;
        wait_for(limit, &what, || {
            status = self.child().ok().and_then(|c| c.try_wait().ok().flatten());
            status.is_some()
        })?;
        status.ok_or_else(|| LabError::Gone(self.program.clone()))
    }

    /// Waits for the end and gives all output.
    ///
    /// # Errors
    /// Reading fails.
    pub fn finish(mut self) -> Result<Output> {
        let child = self.child.take().ok_or_else(|| LabError::Gone(self.program.clone()))?;
        child.wait_with_output().map_err(|e| LabError::Io(self.program.clone(), e))
    }

    /// Kills the program and gives what it had written to standard error.
    pub fn kill_and_read_stderr(mut self) -> String {
        let mut text = String::new();
        if let Some(mut child) = self.child.take() {
            end_group(&mut child);
            if let Some(mut err) = child.stderr.take() {
                let _ = err.read_to_string(&mut text);
            }
            let _ = child.wait();
        }
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            end_group(child);
            let _ = child.wait();
        }
    }
}

/// Kills the program and all that it started.
fn end_group(child: &mut Child) {
    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
    let _ = child.kill();
}

#[cfg(test)]
mod tests {
    use super::super::Namespace;
    use super::*;

    #[test]
    fn a_dropped_process_is_gone() {
        let ns = Namespace::new("sleeper").expect("root");
        let mut sleep = Command::new("sleep");
        sleep.arg("60");
        let mut p = ns.spawn(sleep).expect("sleep");
        let pid = Pid::from_raw(p.id().cast_signed());
        assert!(p.is_running());
        drop(p);
        assert!(kill(pid, None).is_err());
    }

    #[test]
    fn a_program_ends_with_its_namespace() {
        let ns = Namespace::new("parent").expect("root");
        let mut sleep = Command::new("sleep");
        sleep.arg("60");
        let mut p = ns.spawn(sleep).expect("sleep");
        // Let setpriv reach its exec: a signal asked for before that is what we test.
        std::thread::sleep(Duration::from_millis(50));
        drop(ns);
        p.wait(Duration::from_secs(5)).expect("killed with its parent");
    }
}
