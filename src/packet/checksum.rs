//! The Internet checksum: sums (RFC 1071), incremental update (RFC 1624), pseudo-headers, and the
//! partial sums that local senders leave on virtual links.

use crate::base::Addr;
use crate::packet::field::{put_u16, u16_at};
use crate::packet::meta::PacketFlags;
use crate::packet::{PacketMeta, tcp, udp};

/// A ones-complement sum, not yet folded to 16 bits.
///
/// Words are summed as they lie in memory; only [`Sum::fold`] turns the result into a number. 2^16
/// and 2^64 are both 1 in this arithmetic, so eight bytes are added at a time with the carry added
/// back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The sum of `bytes`; an odd last byte counts as the upper half of a word.
    #[inline]
    pub fn of(bytes: &[u8]) -> Sum {
        Sum::default().bytes(bytes)
    }

    /// The sum of 32-bit words that the caller read from memory as native numbers, and added
    /// without overflow.
    #[inline(always)]
    pub(super) fn of_words(sum: u64) -> Sum {
        Sum(sum)
    }

    /// Adds bytes. All but the last slice added must be of even length.
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Sum {
        // Four chains of carries, so that one addition need not wait for the one before.
        let mut lanes = [self.0, 0, 0, 0];
        let (blocks, rest) = bytes.as_chunks::<32>();
        for block in blocks {
            let (words, _) = block.as_chunks::<8>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane = carry_add(*lane, u64::from_ne_bytes(*word));
            }
        }
        let mut sum = carry_add(carry_add(lanes[0], lanes[1]), carry_add(lanes[2], lanes[3]));
        let (words, tail) = rest.as_chunks::<8>();
        for word in words {
            sum = carry_add(sum, u64::from_ne_bytes(*word));
        }
        if !tail.is_empty() {
            let mut last = [0; 8];
            last[..tail.len()].copy_from_slice(tail);
            sum = carry_add(sum, u64::from_ne_bytes(last));
        }
        Sum(sum)
    }

    /// Adds a 16-bit number.
    #[inline(always)]
    #[must_use]
    pub fn word(self, v: u16) -> Sum {
        Sum(carry_add(self.0, u64::from(v.to_be())))
    }

    /// Adds a 32-bit number that stands at an even offset.
    #[inline(always)]
    #[must_use]
    pub fn dword(self, v: u32) -> Sum {
        Sum(carry_add(self.0, u64::from(v.to_be())))
    }

    /// Adds an address as its family has it on the wire.
    #[inline(always)]
    #[must_use]
    pub fn addr(self, a: Addr) -> Sum {
        if a.is_v4() { self.dword(a.v4_bits()) } else { self.v6(a) }
    }

    /// Adds the 16 bytes of an IPv6 address.
    #[inline(always)]
    pub(super) fn v6(self, a: Addr) -> Sum {
        Sum(carry_add(carry_add(self.0, a.hi.to_be()), a.lo.to_be()))
    }

    /// The sum in 16 bits. 0 only where every byte added was 0.
    #[inline(always)]
    pub fn fold(self) -> u16 {
        // A number added to itself with its halves swapped has in its upper half the sum of both,
        // the carry added back.
        let s = (self.0.wrapping_add(self.0.rotate_left(32)) >> 32) as u32;
        u16::from_be((s.wrapping_add(s.rotate_left(16)) >> 16) as u16)
    }

    /// What goes into the checksum field.
    #[inline(always)]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }

    /// Whether the bytes added, their checksum among them, are intact.
    #[inline(always)]
    pub fn verifies(self) -> bool {
        self.fold() == 0xffff
    }
}

#[inline(always)]
fn carry_add(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

/// The pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 section 3.1, RFC 768, RFC 8200 section 8.1).
/// `len` is that of transport header and payload. Both families sum to the same formula.
#[inline(always)]
pub fn pseudo(src: Addr, dst: Addr, proto: u8, len: u16) -> Sum {
    Sum::default().addr(src).addr(dst).word(u16::from(proto)).word(len)
}

/// A change of summed fields, collected once and applied to every checksum that covers them.
///
/// RFC 1624, equation 3: `HC' = ~(~HC + ~m + m')`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(Sum);

impl Delta {
    #[inline(always)]
    #[must_use]
    pub fn u16(self, old: u16, new: u16) -> Delta {
        Delta(self.0.word(!old).word(new))
    }

    /// A 32-bit field at an even offset.
    #[inline(always)]
    #[must_use]
    pub fn u32(self, old: u32, new: u32) -> Delta {
        Delta(self.0.dword(!old).dword(new))
    }

    /// An address; both must be of one family.
    #[inline(always)]
    #[must_use]
    pub fn addr(self, old: Addr, new: Addr) -> Delta {
        debug_assert_eq!(old.is_v4(), new.is_v4());
        if old.is_v4() {
            self.u32(old.v4_bits(), new.v4_bits())
        } else {
            Delta(self.0.addr(Addr { hi: !old.hi, lo: !old.lo }).addr(new))
        }
    }

    #[inline(always)]
    pub fn folded(self) -> FoldedDelta {
        FoldedDelta(self.0.fold().to_be())
    }

    /// The new checksum of an IPv4 header or a TCP, ICMP or ICMPv6 message.
    ///
    /// Never 0xffff: what is summed is never all zeroes, so the checksum made anew would be 0.
    #[inline(always)]
    pub fn apply(self, check: u16) -> u16 {
        let new = self.0.word(!check).checksum();
        if new == 0xffff { 0 } else { new }
    }
}

/// A [`Delta`] in 16 bits, as it lies in memory: to be kept and applied to many packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct FoldedDelta(u16);

impl FoldedDelta {
    /// One hop less to live: the word of an IPv4 header that holds the TTL, which is above 0, goes
    /// down by 0x100, whatever it was.
    pub const HOP: FoldedDelta = FoldedDelta((!0x0100u16).to_be());

    /// Nothing changes.
    pub const NONE: FoldedDelta = FoldedDelta(0);

    /// This change where `mask` is 0, its opposite where all bits of `mask` are set: in
    /// ones-complement arithmetic what is inverted is what takes the same away.
    #[inline(always)]
    #[must_use]
    pub fn inverted_by(self, mask: u16) -> FoldedDelta {
        FoldedDelta(self.0 ^ mask)
    }

    /// As the sum lies in memory, for others who apply it.
    pub fn to_memory(self) -> u16 {
        self.0
    }

    /// Both changes.
    #[inline(always)]
    #[must_use]
    pub fn and(self, other: FoldedDelta) -> FoldedDelta {
        FoldedDelta(self.plus(other.0))
    }

    /// As [`Delta::apply`], to a checksum where it stands.
    #[inline(always)]
    pub fn apply(self, check: &mut [u8; 2]) {
        let new = !self.plus(!u16::from_ne_bytes(*check));
        *check = (if new == 0xffff { 0 } else { new }).to_ne_bytes();
    }

    /// The same for a UDP datagram: 0 means that there is no checksum and stays so; one that comes
    /// out as 0 is sent as 0xffff (RFC 768).
    #[inline(always)]
    pub fn apply_udp(self, check: &mut [u8; 2]) {
        let old = u16::from_ne_bytes(*check);
        if old == 0 {
            return;
        }
        let new = !self.plus(!old);
        *check = (if new == 0 { 0xffff } else { new }).to_ne_bytes();
    }

    #[inline(always)]
    fn plus(self, other: u16) -> u16 {
        let (sum, carry) = self.0.overflowing_add(other);
        sum + u16::from(carry)
    }
}

/// The checksum after one 16-bit field went from `old` to `new`.
#[inline]
pub fn update16(check: u16, old: u16, new: u16) -> u16 {
    Delta::default().u16(old, new).apply(check)
}

/// The checksum after one 32-bit field at an even offset went from `old` to `new`.
#[inline]
pub fn update32(check: u16, old: u32, new: u32) -> u16 {
    Delta::default().u32(old, new).apply(check)
}

/// The checksum after an address went from `old` to `new`, both of one family.
#[inline]
pub fn update_addr(check: u16, old: Addr, new: Addr) -> u16 {
    Delta::default().addr(old, new).apply(check)
}

/// Whether a TCP or UDP checksum field holds no more than the sum of the pseudo-header, not even
/// complemented: what Linux leaves in `CHECKSUM_PARTIAL` for the device to complete, and what a
/// packet of a local sender still has when it arrives over veth.
///
/// One intact packet in 65,536 looks the same by chance; completing it gives the sum it had.
#[inline(always)]
pub fn is_partial(field: u16, pseudo: Sum) -> bool {
    field == pseudo.fold()
}

/// Completes a partial checksum in place and clears its flag. Nothing happens without the flag.
///
/// To be called before anything the sum covers is rewritten: the field holds the pseudo-header's
/// part.
#[inline(always)]
pub fn complete_checksum(bytes: &mut [u8], meta: &mut PacketMeta) {
    if meta.flags.has(PacketFlags::PARTIAL_CHECKSUM) {
        complete(bytes, meta);
    }
}

#[inline(never)]
fn complete(bytes: &mut [u8], meta: &mut PacketMeta) {
    let (l4, end) = (usize::from(meta.l4), usize::from(meta.end));
    let Some(segment) = bytes.get_mut(l4..end) else { return };
    match meta.key.proto {
        tcp::PROTOCOL if segment.len() >= tcp::HEADER_LEN => {
            let sum = Sum::of(segment).checksum();
            put_u16(segment, tcp::offset::CHECKSUM, sum);
        }
        udp::PROTOCOL if segment.len() >= udp::HEADER_LEN => {
            // Bytes beyond the UDP length are not summed (RFC 9868, section 8).
            let len = usize::from(u16_at(segment, udp::offset::LENGTH)).min(segment.len());
            let sum = Sum::of(&segment[..len]).checksum();
            put_u16(segment, udp::offset::CHECKSUM, if sum == 0 { 0xffff } else { sum });
        }
        _ => {}
    }
    meta.flags.clear(PacketFlags::PARTIAL_CHECKSUM);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 word by word.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn rfc_1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&bytes).fold(), 0xddf2);
        assert_eq!(Sum::of(&bytes).checksum(), 0x220d);
    }

    /// RFC 1624, section 4: the sum that the older equation got wrong.
    #[test]
    fn rfc_1624_example() {
        assert_eq!(update16(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    fn udp(delta: Delta, check: u16) -> u16 {
        let mut field = check.to_be_bytes();
        delta.folded().apply_udp(&mut field);
        u16::from_be_bytes(field)
    }

    #[test]
    fn a_hop_less() {
        for word in 0x100..=0xffff {
            let delta = Delta::default().u16(word, word - 0x100).folded();
            assert_eq!(delta, FoldedDelta::HOP, "{word:#x}");
        }
    }

    #[test]
    fn both_zeroes() {
        assert_eq!(update16(0xffff, 0xffff, 0x0000), 0, "never 0xffff");
        assert_eq!(update16(0x0000, 0x1234, 0x1234), 0);
        assert_eq!(udp(Delta::default().u16(1, 2), 0), 0, "no checksum stays none");
        assert_eq!(udp(Delta::default().u16(0x5555, 0x3285), 0xdd2f), 0xffff);
    }

    proptest! {
        #[test]
        fn sums_equal_the_plain_way(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Sum::of(&bytes).fold(), plain(&bytes));
            let cut = (bytes.len() / 2) & !1;
            prop_assert_eq!(Sum::of(&bytes[..cut]).bytes(&bytes[cut..]).fold(), plain(&bytes));
        }

        #[test]
        fn updates_equal_summing_anew(
            mut bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 40),
            new4 in any::<u32>(), new2 in prop_oneof![Just(0u16), Just(0xffff), any::<u16>()],
            new16 in any::<[u8; 16]>(),
        ) {
            bytes[0] = 0x45; // never all zeroes, as no header is
            let check = Sum::of(&bytes).checksum();
            let old = (u16_at(&bytes, 2), crate::packet::field::u32_at(&bytes, 4));
            let mut a = [0; 16];
            a.copy_from_slice(&bytes[8..24]);
            let (old_addr, new_addr) = (Addr::from_v6_bytes(a), Addr::from_v6_bytes(new16));
            prop_assume!(old_addr.is_v4() == new_addr.is_v4());
            put_u16(&mut bytes, 2, new2);
            crate::packet::field::put_u32(&mut bytes, 4, new4);
            bytes[8..24].copy_from_slice(&new16);
            let anew = Sum::of(&bytes).checksum();
            let steps = update32(update16(check, old.0, new2), old.1, new4);
            let steps = update_addr(steps, old_addr, new_addr);
            prop_assert_eq!(steps, anew);
            let delta = Delta::default().u16(old.0, new2).u32(old.1, new4).addr(old_addr, new_addr);
            prop_assert_eq!(delta.apply(check), anew);
            if check != 0 {
                let as_sent = if anew == 0 { 0xffff } else { anew };
                prop_assert_eq!(udp(delta, check), as_sent);
                prop_assert_eq!(udp(delta, if check == 0 { 0xffff } else { check }), as_sent);
            }
            let mut field = check.to_be_bytes();
            delta.folded().apply(&mut field);
            prop_assert_eq!(u16::from_be_bytes(field), anew);
        }
    }
}
