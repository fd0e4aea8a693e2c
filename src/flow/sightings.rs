//! What was just read of datagrams whose flow is not in the table yet, for the stages behind the
//! one that read it.

use super::names::NAME_BYTES_MAX;
use crate::packet::batch::BATCH_MAX;

/// Bytes of an ALPN list that a sighting holds.
pub const ALPN_BYTES_MAX: usize = 128;
/// Bytes of a fingerprint.
pub const FINGERPRINT_BYTES: usize = 36;

/// What a ClientHello said.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// The place of its packet in the batch.
    packet: u16,
    sni_len: u8,
    alpn_len: u8,
    has_ja4: bool,
    sni: [u8; NAME_BYTES_MAX],
    alpn: [u8; ALPN_BYTES_MAX],
    ja4: [u8; FINGERPRINT_BYTES],
}

/// The sightings of one batch: one for each of its packets at most.
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

    /// The fingerprint as text.
    pub fn ja4(&self) -> Option<&[u8]> {
        self.has_ja4.then_some(&self.ja4)
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

    /// Tells of the packet at this place in the batch; what is longer than the field is left out,
    /// beyond a batch's worth nothing is kept.
    pub fn report(&mut self, at: usize, sni: Option<&[u8]>, alpn_wire: &[u8], ja4: Option<&[u8]>) {
        if self.list.len() == BATCH_MAX {
            return;
        }
        let sni = sni.filter(|name| name.len() <= NAME_BYTES_MAX).unwrap_or_default();
        let alpn = if alpn_wire.len() <= ALPN_BYTES_MAX { alpn_wire } else { &[] };
        let ja4 = ja4.and_then(|ja4| <[u8; FINGERPRINT_BYTES]>::try_from(ja4).ok());
        let mut sighting = Sighting {
            packet: at as u16,
            sni_len: sni.len() as u8,
            alpn_len: alpn.len() as u8,
            has_ja4: ja4.is_some(),
            sni: [0; NAME_BYTES_MAX],
            alpn: [0; ALPN_BYTES_MAX],
            ja4: ja4.unwrap_or([0; FINGERPRINT_BYTES]),
        };
        sighting.sni[..sni.len()].copy_from_slice(sni);
        sighting.alpn[..alpn.len()].copy_from_slice(alpn);
        self.list.push(sighting);
    }

    /// Takes out that of the packet at this place in the batch.
    #[inline]
    pub fn take(&mut self, at: usize) -> Option<Sighting> {
        let found = self.list.iter().position(|s| usize::from(s.packet) == at)?;
        Some(self.list.swap_remove(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sightings_last_until_the_next_batch_and_are_bounded() {
        let mut sightings = Sightings::default();
        for at in 0..BATCH_MAX + 3 {
            sightings.report(at, Some(b"a.test"), b"\x02h2", Some(&[b'x'; 36]));
        }
        let seen = sightings.take(5).expect("reported");
        assert_eq!((seen.sni(), seen.alpn_wire()), (Some(&b"a.test"[..]), &b"\x02h2"[..]));
        assert_eq!(seen.ja4(), Some(&[b'x'; 36][..]));
        assert!(sightings.take(BATCH_MAX).is_none());
        sightings.clear();
        sightings.report(1, None, &[0; ALPN_BYTES_MAX + 1], Some(b"short"));
        let none = sightings.take(1).expect("one");
        assert_eq!((none.sni(), none.alpn_wire(), none.ja4()), (None, &b""[..], None));
        assert!(sightings.take(5).is_none());
    }
}
