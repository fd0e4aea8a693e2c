//! The companion of a port whose program is attached by tc: a veth pair of ours, by which packets
//! come to the port's AF_XDP sockets without a program on its own interface.
//!
//! Packets go in by its entry, which makes frames of merged ones, checksums included, and come out
//! at its exit, which has the sockets. The ring in between has 256 places: a queue before it waits
//! for them (since Linux 6.16; before, what finds none is lost). Both ends have names made of the
//! port's interface number, and an alias that says whose they are. They have no addresses, and
//! nothing but the programs sends there.

use std::io;
use std::time::Duration;

use super::error::NicError;
use super::ethtool::{Ethtool, Offload};
use super::link;

/// What the aliases of both ends begin with.
const ALIAS: &str = "tidegate: companion of ";
/// Packets, merged or not, that wait for the ring at most.
const BACKLOG: u32 = 1_024;
/// How often a pair that looks used is looked at, and how soon again: half a second in all.
const TRIES: u32 = 50;
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// A pair that goes when this is dropped.
#[derive(Debug)]
pub(super) struct Companion {
    /// Interface numbers.
    pub(super) entry: u32,
    pub(super) exit: u32,
    /// The interface that sockets are bound to.
    pub(super) exit_name: String,
}

impl Companion {
    /// Makes the pair of the interface with this number, with as many queues as that receives by.
    ///
    /// # Errors
    /// No privileges, no veth devices, or a pair of a process that lives.
    pub(super) fn create(interface: &str, index: u32, queues: u32) -> Result<Self, NicError> {
        let mtu = link::mtu_of(index)
            .map_err(|e| NicError::from_io(format!("reading the MTU of {interface}"), e))?;
        let what = || format!("making the veth pair beside {interface}");
        let [entry_name, exit_name] = names(index);
        let make = || link::create_veth(&entry_name, &exit_name, queues, mtu);
        let mut made = make();
        if exists(&made) && remove(index) {
            made = make();
        }
        if exists(&made) {
            let interface = interface.to_owned();
            return Err(NicError::CompanionTaken { interface, companion: exit_name });
        }
        made.map_err(|e| NicError::from_io(what(), e))?;
        let index_of = |name: &str| link::index_of(name).unwrap_or(0);
        let (entry, exit) = (index_of(&entry_name), index_of(&exit_name));
        let pair = Companion { entry, exit, exit_name };
        let set_up = pair.set_up(interface, &entry_name);
        set_up.map_err(|e| NicError::from_io(what(), e))?;
        Ok(pair)
    }

    fn set_up(&self, interface: &str, entry_name: &str) -> io::Result<()> {
        let ethtool = Ethtool::open()?;
        // So that frames come out, with whole checksums.
        let merges = [Offload::Tso, Offload::Gso, Offload::TxChecksum];
        ethtool.switch_off(entry_name, &merges)?;
        ethtool.switch_off(&self.exit_name, &Offload::RECEIVE_MERGES)?;
        for end in [self.entry, self.exit] {
            link::set_alias(end, &format!("{ALIAS}{interface}"))?;
            link::forbid_addresses(end)?;
            link::set_up_without_arp(end)?;
        }
        link::set_fifo(self.entry, BACKLOG)
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        if let Err(error) = link::delete(self.entry) {
            tracing::warn!(interface = self.exit_name, %error, "not removed");
        }
    }
}

/// Removes what a process that is gone has left beside the interface with this number. Returns
/// whether there was anything.
pub(super) fn remove(index: u32) -> bool {
    let [entry, exit] = names(index);
    for _ in 0..TRIES {
        let Ok(end) = link::index_of(&exit) else { return false };
        if !is_ours(end) {
            return false;
        }
        // The program at the exit lives as long as its process, and a moment longer.
        if matches!(link::xdp_program_id(end), Ok(None)) {
            return link::index_of(&entry).is_ok_and(|end| link::delete(end).is_ok());
        }
        std::thread::sleep(TRY_AGAIN_AFTER);
    }
    false
}

/// The entry's and the exit's.
fn names(index: u32) -> [String; 2] {
    [format!("tge{index}"), format!("tgx{index}")]
}

fn exists<T>(made: &io::Result<T>) -> bool {
    made.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EEXIST))
}

fn is_ours(index: u32) -> bool {
    link::alias_of(index).ok().flatten().is_some_and(|alias| alias.starts_with(ALIAS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_an_interface_of_any_number() {
        for name in names(u32::MAX) {
            assert!(name.len() < libc::IFNAMSIZ, "{name}");
        }
    }
}
