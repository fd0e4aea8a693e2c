//! What was seen of flows, beside what their entries hold: for whoever lists them.

use super::entry::{Details, NONE_U16};
use crate::packet::{ClassId, FlowKey, FlowRef};

/// Bytes of a path that are shown.
pub const PATH_BYTES_MAX: usize = 160;

/// What was seen of a flow.
#[derive(Clone, Debug, Default)]
pub struct Note {
    /// Whose it is.
    owner: Option<FlowRef>,
    /// Name of the protocol; empty where it is not known.
    pub app: &'static str,
    /// Why it is not known.
    pub unknown: &'static str,
    /// The tenant's number; [`NONE_U16`] without one.
    pub tenant: u16,
    /// Version of TLS that the server chose; 0 where it was not seen.
    pub tls_version: u16,
    /// Requests of HTTP seen.
    pub requests: u32,
    /// Status of the last answer seen; 0 for none.
    pub status: u16,
    /// Status of the last gRPC call whose end was seen.
    pub grpc_status: Option<u32>,
    /// The last answer comes as a stream of events.
    pub event_stream: bool,
    /// Protocols that were offered by ALPN, each after its length.
    pub alpn: Text<64>,
    /// The protocol that the server chose.
    pub alpn_chosen: Text<32>,
    pub ja4: Text<36>,
    pub hello: HelloNote,
    /// Copies of the same bytes differed.
    pub conflicts: bool,
    /// Of the last request.
    pub method: Text<24>,
    pub authority: Text<96>,
    pub path: Text<PATH_BYTES_MAX>,
}

/// What else a ClientHello says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HelloNote {
    /// Versions of TLS offered, in order; 0 behind the last.
    pub versions: [u16; 8],
    /// Post-quantum and hybrid groups that key shares were sent for; 0 behind the last.
    pub groups: [u16; 4],
    /// Version of QUIC; 0 for TLS over TCP.
    pub quic_version: u32,
    /// The name is the outer one: `1` with ECH, `2` with ESNI; 0 where it is the server's, and
    /// [`None`] where no hello was read.
    pub encrypted: Option<u8>,
    /// An earlier session is to go on.
    pub resumed: bool,
    /// Data comes before the server's answer: 0-RTT.
    pub early_data: bool,
}

/// What was decided about a flow's first packet, for when the flow is in the table.
#[derive(Clone, Copy, Debug)]
pub struct Fate {
    pub key: FlowKey,
    /// The key's, with the table's seed.
    pub hash: u64,
    /// As in [`Flow`].
    pub class: ClassId,
    pub treatment: u8,
    /// Held: whoever takes the fate lets go of them.
    pub steps: u8,
    /// As in [`Note`].
    pub tenant: u16,
    /// Code point that the packet came with.
    pub dscp: u8,
}

/// A flow that belongs to another class from now on.
#[derive(Clone, Copy, Debug)]
pub struct Reclassed {
    /// Of what the client sends and of what it gets, by the table's seed.
    pub hashes: [u64; 2],
    pub from: ClassId,
    pub to: ClassId,
}

/// The beginning of a text.
#[derive(Clone, Debug)]
pub struct Text<const N: usize> {
    len: u8,
    bytes: [u8; N],
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Text<N> {
        const { assert!(N <= u8::MAX as usize) };
        Text { len: 0, bytes: [0; N] }
    }
}

impl<const N: usize> Text<N> {
    /// Keeps as much of it as there is room for.
    pub fn set(&mut self, text: &[u8]) {
        let len = text.len().min(N);
        self.bytes[..len].copy_from_slice(&text[..len]);
        self.len = len as u8;
    }

    pub fn get(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// A fixed number of notes. The oldest gives way to a new one: they are for showing only, and
/// nothing is decided by them.
#[derive(Debug)]
pub struct Notes {
    notes: Vec<Note>,
    next: usize,
}

impl Notes {
    pub fn new(notes: usize) -> Notes {
        Notes { notes: vec![Note::default(); notes], next: 0 }
    }

    /// The flow's note, as long as it has one.
    pub fn get(&self, at: FlowRef, flow: &Details) -> Option<&Note> {
        self.notes.get(flow.note as usize).filter(|note| note.owner == Some(at))
    }

    /// The flow's note, a new one where it has none; `None` where there are no notes at all.
    pub fn of(&mut self, at: FlowRef, flow: &mut Details) -> Option<&mut Note> {
        let place = flow.note as usize;
        if self.notes.get(place).is_some_and(|note| note.owner == Some(at)) {
            return self.notes.get_mut(place);
        }
        flow.note = self.next as u32;
        let count = self.notes.len();
        let note = self.notes.get_mut(self.next)?;
        self.next = (self.next + 1) % count;
        *note = Note { owner: Some(at), tenant: NONE_U16, ..Note::default() };
        Some(note)
    }

    /// A flow that is gone leaves its note, as long as it has it, to another.
    pub fn pass_on(&mut self, from: FlowRef, place: u32, (at, flow): (FlowRef, &mut Details)) {
        let note = self.notes.get_mut(place as usize).filter(|note| note.owner == Some(from));
        if let Some(note) = note {
            note.owner = Some(at);
            flow.note = place;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_note_gives_way_and_is_not_taken_for_anothers() {
        let mut notes = Notes::new(2);
        let mut flows = [Details::NONE; 3];
        for (i, flow) in flows.iter_mut().enumerate() {
            let note = notes.of(FlowRef(i as u32), flow).expect("room");
            note.requests = i as u32;
            note.path.set(&[b'x'; 500]);
        }
        let seen = |i: usize| notes.get(FlowRef(i as u32), &flows[i]).map(|note| note.requests);
        assert_eq!([seen(0), seen(1), seen(2)], [None, Some(1), Some(2)]);
        assert_eq!(notes.get(FlowRef(1), &flows[1]).expect("kept").path.get().len(), 160);
        // Another flow in the same place has no note before it is given one.
        assert!(notes.get(FlowRef(1), &Details::NONE).is_none());
        let mut flow = flows[1];
        assert_eq!(notes.of(FlowRef(1), &mut flow).expect("its own").requests, 1);
        assert!(Notes::new(0).of(FlowRef(0), &mut { Details::NONE }).is_none());
    }
}
