//! What was just read of flows, for the stages behind the one that read it.

use super::names::NAME_BYTES_MAX;
use crate::packet::FlowRef;
use crate::packet::batch::BATCH_MAX;

/// Bytes of an ALPN list that a sighting holds.
pub const ALPN_BYTES_MAX: usize = 128;

/// What a flow's ClientHello said.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// [`FlowRef::NONE`] where the hello came before its flow was in the table.
    pub flow: FlowRef,
    /// Of such a hello: the place of its packet in the batch.
    packet: u16,
    /// Code point of the packet that completed the hello.
    pub dscp: u8,
    sni_len: u8,
    alpn_len: u8,
    sni: [u8; NAME_BYTES_MAX],
    alpn: [u8; ALPN_BYTES_MAX],
}

/// The sightings of one batch: one for each of its packets at most. Unlike an interned name, a
/// sighting is never refused, so a full table of names changes no decision.
#[derive(Debug)]
pub struct Sightings {
    list: Vec<Sighting>,
}

impl Sighting {
    /// The server name as sent.
    pub fn sni(&self) -> Option<&[u8]> {
        (self.sni_len > 0).then(|| &self.sni[..usize::from(self.sni_len)])
    }

    /// The protocols offered as on the wire: each after its length byte.
    pub fn alpn_wire(&self) -> &[u8] {
        &self.alpn[..usize::from(self.alpn_len)]
    }
}

impl Default for Sightings {
    fn default() -> Sightings {
        Sightings { list: Vec::with_capacity(BATCH_MAX) }
    }
}

impl Sightings {
    /// A new batch begins.
    pub fn clear(&mut self) {
        self.list.clear();
    }

    /// Adds one; what is longer than the field is left out, beyond a batch's worth nothing is kept.
    pub fn report(&mut self, flow: FlowRef, dscp: u8, sni: Option<&[u8]>, alpn_wire: &[u8]) {
        self.add(flow, u16::MAX, dscp, sni, alpn_wire);
    }

    /// The same for the packet at this place in the batch, whose flow isn't in the table yet.
    pub fn report_packet(&mut self, at: usize, dscp: u8, sni: Option<&[u8]>, alpn_wire: &[u8]) {
        self.add(FlowRef::NONE, at as u16, dscp, sni, alpn_wire);
    }

    fn add(&mut self, flow: FlowRef, packet: u16, dscp: u8, sni: Option<&[u8]>, alpn_wire: &[u8]) {
        if self.list.len() == BATCH_MAX {
            return;
        }
        let sni = sni.filter(|name| name.len() <= NAME_BYTES_MAX).unwrap_or_default();
        let alpn = if alpn_wire.len() <= ALPN_BYTES_MAX { alpn_wire } else { &[] };
        let mut sighting = Sighting {
            flow,
            packet,
            dscp,
            sni_len: sni.len() as u8,
            alpn_len: alpn.len() as u8,
            sni: [0; NAME_BYTES_MAX],
            alpn: [0; ALPN_BYTES_MAX],
        };
        sighting.sni[..sni.len()].copy_from_slice(sni);
        sighting.alpn[..alpn.len()].copy_from_slice(alpn);
        self.list.push(sighting);
    }

    /// Those of flows.
    pub fn iter(&self) -> impl Iterator<Item = &Sighting> {
        self.list.iter().filter(|sighting| sighting.flow.is_some())
    }

    /// That of the packet at this place in the batch.
    #[inline]
    pub fn of_packet(&self, at: usize) -> Option<&Sighting> {
        self.list.iter().find(|s| !s.flow.is_some() && usize::from(s.packet) == at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sightings_last_until_the_next_batch_and_are_bounded() {
        let mut sightings = Sightings::default();
        for i in 0..BATCH_MAX as u32 + 3 {
            sightings.report(FlowRef(i), 46, Some(b"a.test"), b"\x02h2");
        }
        let all: Vec<_> = sightings.iter().collect();
        assert_eq!(all.len(), BATCH_MAX);
        assert_eq!((all[5].flow, all[5].dscp), (FlowRef(5), 46));
        assert_eq!((all[5].sni(), all[5].alpn_wire()), (Some(&b"a.test"[..]), &b"\x02h2"[..]));
        sightings.clear();
        sightings.report(FlowRef(1), 0, None, &[0; ALPN_BYTES_MAX + 1]);
        let none = sightings.iter().next().expect("one");
        assert_eq!((none.sni(), none.alpn_wire()), (None, &b""[..]));
        sightings.clear();
        sightings.report_packet(7, 1, Some(b"b.test"), b"");
        assert!(sightings.iter().next().is_none() && sightings.of_packet(1).is_none());
        assert_eq!(sightings.of_packet(7).and_then(Sighting::sni), Some(&b"b.test"[..]));
    }
}
