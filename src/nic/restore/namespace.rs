//! Network namespaces by their inode: which is ours, and which are gone.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The inode of the network namespace that this thread is in.
///
/// # Errors
/// `/proc` not telling.
pub(super) fn own() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

/// Whether something still holds a network namespace: a thread in it, a descriptor or a mount.
/// `true` too where that can't be told, such as without privileges.
pub(super) fn is_held(inode: u64) -> bool {
    let name = format!("net:[{inode}]");
    let mounted = fs::read_to_string("/proc/self/mountinfo").map(|text| text.contains(&name));
    mounted.unwrap_or(true) || processes_hold(&name).unwrap_or(true)
}

fn processes_hold(name: &str) -> io::Result<bool> {
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        let is_pid = |n: &str| n.bytes().all(|byte| byte.is_ascii_digit());
        if !process.file_name().and_then(|n| n.to_str()).is_some_and(is_pid) {
            continue;
        }
        for thread in listed(&process.join("task"))? {
            if leads_to(&thread.join("ns/net"), name)? {
                return Ok(true);
            }
        }
        for descriptor in listed(&process.join("fd"))? {
            if leads_to(&descriptor, name)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// What is in a folder of `/proc`; nothing where its process has just ended.
fn listed(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder).and_then(|all| all.map(|entry| Ok(entry?.path())).collect()) {
        Err(e) if has_ended(&e) => Ok(Vec::new()),
        listed => listed,
    }
}

fn leads_to(link: &Path, name: &str) -> io::Result<bool> {
    match fs::read_link(link) {
        Ok(target) => Ok(target.as_os_str() == name),
        Err(e) if has_ended(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_is_held_and_another_may_not_be() {
        assert!(is_held(own().expect("a namespace")));
        // No namespace has this inode: the kernel's begin at 0xf0000000. Who may not look says so.
        let can_look = processes_hold("net:[1]").is_ok();
        assert_eq!(is_held(1), !can_look);
    }
}
