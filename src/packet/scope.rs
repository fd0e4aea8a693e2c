//! Addresses that a router must not see or must not forward (RFC 1812 sections 4.2.3.1 and 5.3.7,
//! RFC 4291 section 2.5, RFC 6890).

use crate::base::Addr;

/// An address that no packet on the wire may come from.
#[inline(always)]
pub const fn is_martian_source(a: Addr) -> bool {
    if a.is_v4() {
        let top = a.v4_bits() >> 24;
        // 0/8, 127/8, multicast 224/4, reserved 240/4 with the limited broadcast.
        top == 0 || top == 127 || top >= 224
    } else {
        is_v4_compatible(a) || a.hi >> 56 == 0xff
    }
}

/// An address that no packet to be forwarded may go to. Multicast is not among them.
#[inline(always)]
pub const fn is_martian_destination(a: Addr) -> bool {
    if a.is_v4() {
        let top = a.v4_bits() >> 24;
        top == 0 || top == 127 || top >= 240
    } else {
        is_v4_compatible(a)
    }
}

/// `::/96`, which holds `::` and `::1`. (`::ffff:0:0/96` on the wire must not pass either: [`Addr`]
/// takes it for IPv4, so the parser asks for it apart.)
#[inline(always)]
const fn is_v4_compatible(a: Addr) -> bool {
    a.hi == 0 && a.lo >> 32 == 0
}

#[inline]
pub const fn is_multicast(a: Addr) -> bool {
    if a.is_v4() { a.v4_bits() >> 28 == 14 } else { a.hi >> 56 == 0xff }
}

/// 169.254/16 or fe80::/10: valid on its link, never forwarded (RFC 3927 section 7, RFC 4291
/// section 2.5.6).
#[inline]
pub const fn is_link_local(a: Addr) -> bool {
    if a.is_v4() { a.v4_bits() >> 16 == 0xa9fe } else { a.hi >> 54 == 0xfe80 >> 6 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(s: &str) -> Addr {
        s.parse().expect(s)
    }

    #[test]
    fn martians() {
        for s in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1"] {
            assert!(is_martian_source(addr(s)) && is_martian_destination(addr(s)), "{s}");
        }
        for s in ["224.0.0.1", "239.255.255.255", "ff02::1"] {
            assert!(is_martian_source(addr(s)) && !is_martian_destination(addr(s)), "{s}");
            assert!(is_multicast(addr(s)), "{s}");
        }
        for s in ["10.0.0.1", "126.255.255.255", "128.0.0.1", "223.255.255.255", "2001:db8::1"] {
            assert!(!is_martian_source(addr(s)) && !is_martian_destination(addr(s)), "{s}");
            assert!(!is_multicast(addr(s)) && !is_link_local(addr(s)), "{s}");
        }
        assert!(is_martian_source(addr("::7f00:1")), "IPv4-compatible");
    }

    #[test]
    fn link_local() {
        for s in ["169.254.0.1", "fe80::1", "febf::1"] {
            assert!(is_link_local(addr(s)), "{s}");
        }
        assert!(!is_link_local(addr("fec0::1")) && !is_link_local(addr("169.253.0.1")));
    }
}
