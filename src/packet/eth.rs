//! Ethernet II with up to two VLAN tags (IEEE 802.3, 802.1Q, 802.1ad).

use crate::packet::DropReason;
use crate::packet::field::{mac_at, put_u16, u16_at};

/// Where the fields stand. With tags, EtherType is that of the first tag.
pub mod offset {
    pub const DESTINATION: usize = 0;
    pub const SOURCE: usize = 6;
    pub const ETHERTYPE: usize = 12;
}

pub const HEADER_LEN: usize = 14;
/// Bytes of one VLAN tag: TPID and TCI.
pub const TAG_LEN: usize = 4;
/// Tags that are looked through: a service tag and a customer tag.
pub const TAGS_MAX: usize = 2;
/// A frame is padded to this many bytes (64 on the wire, FCS included).
pub const FRAME_LEN_MIN: usize = 60;

pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const IPV6: u16 = 0x86dd;
    /// A customer tag (802.1Q).
    pub const VLAN: u16 = 0x8100;
    /// A service tag (802.1ad).
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

/// Whether an EtherType announces a VLAN tag.
#[inline(always)]
pub const fn is_tag(ethertype: u16) -> bool {
    ethertype == ethertype::VLAN || ethertype == ethertype::SERVICE_VLAN
}

/// One VLAN tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    /// [`ethertype::VLAN`] or [`ethertype::SERVICE_VLAN`].
    pub tpid: u16,
    /// Priority (3 bits), drop eligibility (1), VLAN id (12).
    pub tci: u16,
}

/// A frame whose header and tags are complete.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    bytes: &'a [u8],
    header_len: usize,
}

impl<'a> View<'a> {
    /// # Errors
    /// `Truncated` within the header or a tag; `NotIp` on more than [`TAGS_MAX`] tags.
    pub fn new_checked(bytes: &'a [u8]) -> Result<View<'a>, DropReason> {
        let mut header_len = HEADER_LEN;
        for _ in 0..=TAGS_MAX {
            if bytes.len() < header_len {
                return Err(DropReason::Truncated);
            }
            if !is_tag(u16_at(bytes, header_len - 2)) {
                return Ok(View { bytes, header_len });
            }
            header_len += TAG_LEN;
        }
        Err(DropReason::NotIp)
    }

    pub fn destination(&self) -> [u8; 6] {
        mac_at(self.bytes, offset::DESTINATION)
    }

    pub fn source(&self) -> [u8; 6] {
        mac_at(self.bytes, offset::SOURCE)
    }

    /// The tags, outermost first.
    pub fn tags(&self) -> impl Iterator<Item = Tag> + use<'a> {
        let bytes = self.bytes;
        (HEADER_LEN..self.header_len)
            .step_by(TAG_LEN)
            .map(move |at| Tag { tpid: u16_at(bytes, at - 2), tci: u16_at(bytes, at) })
    }

    /// What the frame carries, behind all tags.
    pub fn ethertype(&self) -> u16 {
        u16_at(self.bytes, self.header_len - 2)
    }

    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// What follows the header, padding included.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header_len..]
    }
}

/// A header to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repr {
    pub destination: [u8; 6],
    pub source: [u8; 6],
    /// Outermost first.
    pub tags: [Option<Tag>; TAGS_MAX],
    pub ethertype: u16,
}

impl Repr {
    /// # Errors
    /// As [`View::new_checked`].
    pub fn parse(bytes: &[u8]) -> Result<Repr, DropReason> {
        let view = View::new_checked(bytes)?;
        let mut tags = [None; TAGS_MAX];
        for (slot, tag) in tags.iter_mut().zip(view.tags()) {
            *slot = Some(tag);
        }
        Ok(Repr {
            destination: view.destination(),
            source: view.source(),
            tags,
            ethertype: view.ethertype(),
        })
    }

    /// Bytes that [`Repr::emit`] writes.
    pub fn len(&self) -> usize {
        HEADER_LEN + TAG_LEN * self.tags.iter().flatten().count()
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    /// # Panics
    /// On fewer bytes than [`Repr::len`].
    pub fn emit(&self, bytes: &mut [u8]) {
        bytes[..6].copy_from_slice(&self.destination);
        bytes[6..12].copy_from_slice(&self.source);
        let mut at = offset::ETHERTYPE;
        for tag in self.tags.iter().flatten() {
            put_u16(bytes, at, tag.tpid);
            put_u16(bytes, at + 2, tag.tci);
            at += TAG_LEN;
        }
        put_u16(bytes, at, self.ethertype);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_with_none_one_and_two_tags() {
        let outer = Tag { tpid: ethertype::SERVICE_VLAN, tci: 0x6064 };
        let inner = Tag { tpid: ethertype::VLAN, tci: 7 };
        for tags in [[None, None], [Some(inner), None], [Some(outer), Some(inner)]] {
            let repr = Repr {
                destination: [2, 0, 0, 0, 0, 1],
                source: [2, 0, 0, 0, 0, 2],
                tags,
                ethertype: ethertype::IPV6,
            };
            let mut bytes = vec![0; repr.len()];
            repr.emit(&mut bytes);
            assert_eq!(Repr::parse(&bytes), Ok(repr));
            for cut in 0..bytes.len() {
                assert_eq!(Repr::parse(&bytes[..cut]), Err(DropReason::Truncated), "{cut}");
            }
        }
    }

    #[test]
    fn a_third_tag_is_not_followed() {
        let mut bytes = [0; 30];
        for at in [12, 16, 20] {
            put_u16(&mut bytes, at, ethertype::VLAN);
        }
        assert_eq!(Repr::parse(&bytes), Err(DropReason::NotIp));
    }
}
