//! Remembers what was changed on interfaces, so that it is undone: on drop, or after a crash by the
//! next start.
//!
//! One JSON file a process in the state directory. It is written before a change is made and names
//! the boot, the network namespace and the process, so that nobody restores what still is in use or
//! belongs to another interface of the same name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::companion;
use super::ethtool::{Ethtool, Offload};
use super::link;
use super::steer::{PROGRAM_NAME, program_name};

mod namespace;

/// Where the appliance keeps its state files.
pub const STATE_DIR: &str = "/run/tidegate";
const PREFIX: &str = "restore-";
const SUFFIX: &str = ".json";

/// One interface's changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    interface: String,
    index: u32,
    /// Were on and have been switched off.
    switched_off: Vec<Offload>,
    /// An XDP program is attached that outlives the process.
    program: bool,
    /// There is a veth pair beside it.
    #[serde(default)]
    companion: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    boot: String,
    /// Inode of the network namespace.
    namespace: u64,
    pid: u32,
    /// Start time of the process in clock ticks since boot: pids are used again.
    started: u64,
    changes: Vec<Change>,
}

/// What this process has changed. Dropping it changes everything back; see [`Changes::leave`].
#[derive(Debug)]
pub struct Changes {
    path: PathBuf,
    state: State,
    left: bool,
}

/// One interface that was set back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Restored {
    pub interface: String,
    pub switched_on: Vec<Offload>,
    /// A program of a process that is gone was detached.
    pub detached: bool,
    /// One is still there, and drops what that process served.
    pub left: bool,
    /// The veth pair beside it was removed.
    pub companion: bool,
}

impl Changes {
    /// Starts an empty record. The file appears with the first change.
    ///
    /// # Errors
    /// `/proc` not telling about this process, or the directory not to be had.
    pub fn new(state_dir: &Path) -> io::Result<Changes> {
        fs::create_dir_all(state_dir)?;
        let pid = std::process::id();
        let namespace = namespace::own()?;
        let started = start_time(pid).ok_or(io::ErrorKind::NotFound)?;
        let path = state_dir.join(format!("{PREFIX}{namespace}-{pid}{SUFFIX}"));
        let state = State { boot: boot()?, namespace, pid, started, changes: Vec::new() };
        Ok(Changes { path, state, left: false })
    }

    /// Switches off those of `offloads` that are on, and returns which those were.
    ///
    /// # Errors
    /// No such interface, no privileges, or the record not to be written.
    pub fn switch_off(
        &mut self,
        ethtool: &Ethtool,
        interface: &str,
        offloads: &[Offload],
    ) -> io::Result<Vec<Offload>> {
        let mut on = Vec::new();
        for &offload in offloads {
            if ethtool.offload(interface, offload)? == Some(true) {
                on.push(offload);
            }
        }
        if on.is_empty() {
            return Ok(on);
        }
        let change = self.change(interface)?;
        change.switched_off.extend(&on);
        self.write()?;
        ethtool.switch_off(interface, &on)
    }

    /// Notes that a program is about to be attached that outlives the process.
    ///
    /// # Errors
    /// No such interface, or the record not to be written.
    pub fn note_program(&mut self, interface: &str) -> io::Result<()> {
        self.change(interface)?.program = true;
        self.write()
    }

    /// Notes that a veth pair was made beside an interface; one that is not noted is found by who
    /// makes it again.
    ///
    /// # Errors
    /// No such interface, or the record not to be written.
    pub(super) fn note_companion(&mut self, interface: &str) -> io::Result<()> {
        self.change(interface)?.companion = true;
        self.write()
    }

    /// Changes one interface back, whose program is detached already.
    pub fn restore(&mut self, interface: &str) {
        let all = std::mem::take(&mut self.state.changes).into_iter();
        let (gone, kept): (Vec<_>, Vec<_>) = all.partition(|c| c.interface == interface);
        self.state.changes = kept;
        for change in &gone {
            undo(change, false);
        }
        if let Err(error) = self.write() {
            tracing::warn!(interface, %error, "the note of what was changed can't be written");
        }
    }

    /// Dropping it changes nothing: all that is left to the next start.
    pub fn leave(&mut self) {
        self.left = true;
    }

    fn change(&mut self, interface: &str) -> io::Result<&mut Change> {
        let index = link::index_of(interface)?;
        let changes = &mut self.state.changes;
        let at = changes.iter().position(|c| c.index == index).unwrap_or_else(|| {
            changes.push(Change {
                interface: interface.to_owned(),
                index,
                switched_off: Vec::new(),
                program: false,
                companion: false,
            });
            changes.len() - 1
        });
        Ok(&mut changes[at])
    }

    fn write(&self) -> io::Result<()> {
        write(&self.path, &self.state, "partial")
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        // The programs are detached by their owner, which drops before this.
        for change in &self.state.changes {
            undo(change, false);
        }
        let _ = fs::remove_file(&self.path);
    }
}

/// Undoes what processes that are gone have left changed in this network namespace. Called at start
/// and by `tidegate doctor`.
///
/// # Errors
/// The directory or the interfaces not to be read. An absent directory means nothing to do.
pub fn restore_leftovers(state_dir: &Path) -> io::Result<Vec<Restored>> {
    restore(state_dir, true)
}

/// As [`restore_leftovers`], but leaves the XDP programs of `on_failure = "drop"` in place: to look
/// at a box is no reason to open it to traffic.
///
/// # Errors
/// As [`restore_leftovers`].
pub fn restore_offloads(state_dir: &Path) -> io::Result<Vec<Restored>> {
    restore(state_dir, false)
}

fn restore(state_dir: &Path, programs: bool) -> io::Result<Vec<Restored>> {
    let entries = match fs::read_dir(state_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let (boot, namespace) = (boot()?, namespace::own()?);
    let mut restored = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if !name.starts_with(PREFIX) || !name.ends_with(SUFFIX) {
            continue;
        }
        let text = match fs::read(&path) {
            Ok(text) => text,
            // Its process has just ended in order, or another looks for leftovers beside us.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let Ok(state) = serde_json::from_slice::<State>(&text) else {
            tracing::warn!(path = %path.display(), "not a state file of ours, left alone");
            continue;
        };
        let is_alive = state.boot == boot && start_time(state.pid) == Some(state.started);
        if is_alive {
            continue;
        }
        if state.boot == boot && state.namespace == namespace {
            restored.extend(state.changes.iter().filter_map(|c| undo(c, programs)));
            keep_programs(&path, state, programs)?;
        } else if state.boot != boot || !namespace::is_held(state.namespace) {
            // The interfaces are gone too.
            let _ = fs::remove_file(&path);
        }
    }
    Ok(restored)
}

/// What remains to be noted of a process that is gone: programs that were left in place.
fn keep_programs(path: &Path, mut state: State, programs: bool) -> io::Result<()> {
    state.changes.retain(|c| !programs && c.program && is_ours(c.index));
    if state.changes.is_empty() {
        let _ = fs::remove_file(path);
        return Ok(());
    }
    for change in &mut state.changes {
        change.switched_off.clear();
        change.companion = false;
    }
    // By a name of its own: others may look for leftovers at the same time.
    write(path, &state, &format!("partial-{}", std::process::id()))
}

/// Replaces the file in one step: a crash leaves the old or the new one, and who reads it meanwhile
/// gets one of them whole.
fn write(path: &Path, state: &State, extension: &str) -> io::Result<()> {
    let partial = path.with_extension(extension);
    fs::write(&partial, serde_json::to_vec_pretty(state)?)?;
    fs::rename(&partial, path)
}

/// Sets one interface back, as far as it is still there.
fn undo(change: &Change, with_program: bool) -> Option<Restored> {
    let interface = &change.interface;
    let companion = change.companion && companion::remove(change.index);
    if link::index_of(interface).ok() != Some(change.index) {
        // Gone, or another interface of that name.
        let (interface, switched_on) = (interface.clone(), Vec::new());
        let restored = Restored { interface, switched_on, detached: false, left: false, companion };
        return companion.then_some(restored);
    }
    let mut switched_on = Vec::new();
    if let Ok(ethtool) = Ethtool::open() {
        for &offload in &change.switched_off {
            match ethtool.set_offload(interface, offload, true) {
                Ok(()) => switched_on.push(offload),
                Err(error) => tracing::warn!(%interface, %offload, %error, "not restored"),
            }
        }
    }
    let detached = with_program && change.program && detach_ours(interface, change.index);
    let left = !detached && change.program && is_ours(change.index);
    Some(Restored { interface: interface.clone(), switched_on, detached, left, companion })
}

/// Whether the program on a link is one of ours.
fn is_ours(index: u32) -> bool {
    let id = link::xdp_program_id(index).ok().flatten();
    id.and_then(program_name).as_deref() == Some(PROGRAM_NAME)
}

fn detach_ours(interface: &str, index: u32) -> bool {
    if !is_ours(index) {
        return false;
    }
    link::detach(index)
        .inspect_err(|error| tracing::warn!(interface, %error, "program not detached"))
        .is_ok()
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Field 22 of `/proc/PID/stat` (proc(5)); `None` where there is no such process, or only what its
/// parent has not asked about yet.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold blanks and parentheses: count from the last one.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_ended_is_none_though_nobody_asked_about_it() {
        assert!(start_time(std::process::id()).is_some());
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("cat");
        assert!(start_time(child.id()).is_some());
        child.kill().expect("a signal");
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while start_time(child.id()).is_some() {
            assert!(std::time::Instant::now() < limit, "still there");
            std::thread::yield_now();
        }
        child.wait().expect("its end");
    }

    fn state(pid: u32, started: u64) -> State {
        let change = Change {
            interface: "lo".to_owned(),
            index: u32::MAX,
            switched_off: vec![Offload::Gro],
            program: true,
            companion: true,
        };
        State {
            boot: boot().expect("boot id"),
            namespace: namespace::own().expect("namespace"),
            pid,
            started,
            changes: vec![change],
        }
    }

    #[test]
    fn only_files_of_the_dead_are_used() {
        let dir = tempfile::tempdir().expect("directory");
        let write = |name: &str, state: &State| {
            let path = dir.path().join(name);
            fs::write(&path, serde_json::to_vec(state).expect("JSON")).expect("write");
            path
        };
        let me = std::process::id();
        let alive = write("restore-1.json", &state(me, start_time(me).expect("alive")));
        let dead = write("restore-2.json", &state(me, 1));
        let other_boot = write("restore-3.json", &State { boot: "x".into(), ..state(me, 1) });
        let elsewhere = write("restore-4.json", &State { namespace: 1, ..state(me, 1) });
        let alive_there = State { namespace: 1, ..state(me, start_time(me).expect("alive")) };
        let alive_there = write("restore-6.json", &alive_there);
        fs::write(dir.path().join("restore-5.json"), "not json").expect("write");
        // As one that is listed and then removed by its owner.
        std::os::unix::fs::symlink("gone", dir.path().join("restore-7.json")).expect("a link");
        // The interface has another index than recorded: nothing is touched.
        assert_eq!(restore_leftovers(dir.path()).expect("readable"), []);
        assert!(alive.exists() && alive_there.exists());
        assert!(!dead.exists() && !other_boot.exists());
        assert_eq!(elsewhere.exists(), namespace::is_held(1), "of a namespace that is gone");
        assert_eq!(restore_leftovers(&dir.path().join("absent")).expect("absent"), []);
    }

    #[test]
    fn the_file_comes_with_a_change_and_goes_with_the_record() {
        let dir = tempfile::tempdir().expect("directory");
        let mut changes = Changes::new(dir.path()).expect("record");
        assert!(!changes.path.exists());
        changes.note_program("lo").expect("note");
        let path = changes.path.clone();
        let state: State = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
        assert!(state.changes[0].program);
        drop(changes);
        assert!(!path.exists());
    }
}
