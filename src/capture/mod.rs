//! Reads captures: files, links and tunnels, fragments, connections, and what they say.
//!
//! Offline: memory is allocated as needed, within the limits that each file names.

mod checksum;
mod file;
mod flows;
mod fragments;
mod layers;
mod link;
mod pcapng;
mod record;
mod tunnel;
mod watch;

pub use file::{CaptureFile, Captured, ReadError};
pub use flows::Flows;
pub use fragments::Fragments;
pub use layers::{Encap, Transport, innermost};
pub use link::Link;
pub use record::{FlowRecord, Seen};

use crate::policy::catalogue::Catalogue;

/// Link types that are told of by number.
const LINKS_TOLD_MAX: usize = 8;

/// Packets that were not looked into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Packets of the capture, these ones too.
    pub of_packets: u64,
    /// Those of links that are not known.
    pub packets: u64,
    /// The numbers of such link types, as found.
    pub links: Vec<u32>,
}

impl Skipped {
    fn count(&mut self, link: Link) {
        self.of_packets += 1;
        if link.is_known() {
            return;
        }
        self.packets += 1;
        if self.links.len() < LINKS_TOLD_MAX && !self.links.contains(&link.0) {
            self.links.push(link.0);
        }
    }
}

/// Reads all of a capture and tells of each connection, once. Returns what could not be looked
/// into, as its link type is not known.
///
/// # Errors
/// Damage. All that was read before it has been told.
pub fn inspect(
    file: &mut CaptureFile,
    catalogue: &Catalogue,
    mut tell: impl FnMut(FlowRecord),
) -> Result<Skipped, ReadError> {
    let mut skipped = Skipped::default();
    let mut flows = Flows::new(catalogue);
    let (mut fragments, mut whole) = (Fragments::default(), Vec::new());
    let end = loop {
        match file.next_packet() {
            Ok(Some(packet)) => {
                skipped.count(packet.link);
                let transport = innermost(packet.link, packet.bytes, &mut fragments, &mut whole);
                flows.frame(transport);
                flows.closed().for_each(&mut tell);
            }
            Ok(None) => break Ok(skipped),
            Err(error) => break Err(error),
        }
    };
    flows.finish().for_each(tell);
    end
}
