//! A network namespace and the thread that lives in it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns, unshare};

use super::{LabError, Process, Result};

type Job = Box<dyn FnOnce() + Send>;

/// An anonymous network namespace. A thread stays in it for as long as this value lives: programs
/// are started from that thread, so that its end (ours) is theirs.
pub struct Namespace {
    name: String,
    file: Arc<File>,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    /// Makes the namespace and brings its loopback up. `name` is for messages only.
    ///
    /// # Errors
    /// Without the privileges for it.
    pub fn new(name: &str) -> Result<Namespace> {
        let (ready_tx, ready_rx) = mpsc::channel();
        let (jobs, inbox) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new()
            .name(format!("ns-{name}"))
            .spawn(move || {
                let made =
                    unshare(CloneFlags::CLONE_NEWNET).map_err(LabError::Namespace).and_then(|()| {
                        File::open("/proc/thread-self/ns/net")
                            .map_err(|e| LabError::Io("/proc/thread-self/ns/net".into(), e))
                    });
                let failed = made.is_err();
                let _ = ready_tx.send(made);
                if failed {
                    return;
                }
                while let Ok(job) = inbox.recv() {
                    job();
                }
            })
            .map_err(|e| LabError::Io("thread".into(), e))?;
        let file = ready_rx.recv().map_err(|_| LabError::Gone(name.to_string()))??;
        let ns = Namespace {
            name: name.to_string(),
            file: Arc::new(file),
            jobs: Some(jobs),
            thread: Some(thread),
        };
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path by which programs of this machine can open the namespace while we live.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs `f` on the namespace's thread and waits for it. Short work only: calls queue up.
    ///
    /// # Errors
    /// [`LabError::Gone`] where `f` panicked, or an earlier one did.
    pub fn enter<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (tx, rx) = mpsc::channel();
        let gone = || LabError::Gone(self.name.clone());
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(Box::new(move || drop(tx.send(f())))).map_err(|_| gone())?;
        rx.recv().map_err(|_| gone())
    }

    /// Starts a thread of its own in the namespace: for servers and clients.
    ///
    /// # Errors
    /// No thread to be had. A failing `setns` ends the thread before `f`, with a panic.
    pub fn thread<T: Send + 'static>(
        &self,
        name: &str,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        let file = Arc::clone(&self.file);
        std::thread::Builder::new()
            .name(name.to_string())
            .spawn(move || {
                setns(&*file, CloneFlags::CLONE_NEWNET).expect("a namespace that we hold open");
                f()
            })
            .map_err(|e| LabError::Io("thread".into(), e))
    }

    /// Runs a program inside to its end.
    ///
    /// # Errors
    /// Not startable. An exit status other than 0 is the caller's to judge.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(program);
        command.args(args);
        let started = self.enter(move || command.output())?;
        started.map_err(|source| LabError::Spawn { program: program.to_string(), source })
    }

    /// Runs a program inside and insists on success; gives its standard output.
    ///
    /// # Errors
    /// Not startable, or an exit status other than 0: its standard error is in the message.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let out = self.output(program, args)?;
        if !out.status.success() {
            return Err(LabError::Command {
                command: format!("{program} {}", args.join(" ")),
                namespace: self.name.clone(),
                stderr: String::from_utf8_lossy(&out.stderr).trim().to_string(),
            });
        }
        Ok(super::stdout_text(&out))
    }

    /// `ip` with these words, which are split at blanks.
    ///
    /// # Errors
    /// As [`Namespace::run`].
    pub fn ip(&self, words: &str) -> Result<String> {
        self.run("ip", &words.split_whitespace().collect::<Vec<_>>())
    }

    /// Writes a value under `/proc/sys`, named with dots.
    ///
    /// # Errors
    /// No such setting in this kernel, or no permission.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        let (file, value) = (path.clone(), value.to_string());
        let written: io::Result<()> = self.enter(move || std::fs::write(file, value))?;
        written.map_err(|e| LabError::Io(path, e))
    }

    /// Starts a program inside and lets it run: it is killed when the [`Process`] is dropped, and
    /// by the kernel when we die.
    ///
    /// # Errors
    /// Not startable.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        let program = command.get_program().to_string_lossy().into_owned();
        let wrapped = Process::with_parent_death_signal(command);
        self.enter(move || Process::start(wrapped, program))?
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_its_own_links_and_ends_with_its_value() {
        let ns = Namespace::new("alone").expect("root");
        let links = ns.ip("-o link").expect("ip");
        assert_eq!(links.lines().count(), 1, "only loopback: {links}");
        let path = ns.path();
        assert!(File::open(&path).is_ok());
        drop(ns);
        assert!(File::open(&path).is_err());
    }

    #[test]
    fn failing_commands_say_why() {
        let ns = Namespace::new("errors").expect("root");
        let err = ns.ip("link set nosuch up").expect_err("no such link").to_string();
        assert!(err.contains("ip link set nosuch up") && err.contains("nosuch"), "{err}");
        let err = ns.run("no-such-program", &[]).expect_err("no program").to_string();
        assert!(err.contains("no-such-program"), "{err}");
    }
}
