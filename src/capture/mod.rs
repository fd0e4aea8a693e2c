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

/// Reads all of a capture and tells of each connection, once.
///
/// # Errors
/// Damage. All that was read before it has been told.
pub fn inspect(
    file: &mut CaptureFile,
    catalogue: &Catalogue,
    mut tell: impl FnMut(FlowRecord),
) -> Result<(), ReadError> {
    let mut flows = Flows::new(catalogue);
    let (mut fragments, mut whole) = (Fragments::default(), Vec::new());
    let end = loop {
        match file.next_packet() {
            Ok(Some(packet)) => {
                let transport = innermost(packet.link, packet.bytes, &mut fragments, &mut whole);
                flows.frame(transport);
                flows.closed().for_each(&mut tell);
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    flows.finish().for_each(tell);
    end
}
