//! IP addresses and prefixes as the packet path keeps them: 16 bytes for both families.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An IPv4 or IPv6 address in 16 bytes, IPv4 as `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2).
///
/// Two native words instead of a `u128`, which would force 16-byte alignment on every struct that
/// holds one. `hi` and `lo` are the big-endian halves as native integers, so they order as
/// addresses do.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Addr {
    pub hi: u64,
    pub lo: u64,
}

const V4_MAPPED: u64 = 0x0000_ffff_0000_0000;

impl Addr {
    pub const UNSPECIFIED: Addr = Addr { hi: 0, lo: 0 };

    #[inline]
    pub const fn v4(bits: u32) -> Addr {
        Addr { hi: 0, lo: V4_MAPPED | bits as u64 }
    }

    #[inline]
    pub const fn from_v6_bytes(b: [u8; 16]) -> Addr {
        let v = u128::from_be_bytes(b);
        Addr { hi: (v >> 64) as u64, lo: v as u64 }
    }

    #[inline]
    pub const fn is_v4(self) -> bool {
        self.hi == 0 && self.lo >> 32 == 0xffff
    }

    /// The IPv4 address as a native integer; meaningless unless [`Addr::is_v4`].
    #[inline]
    pub const fn v4_bits(self) -> u32 {
        self.lo as u32
    }

    #[inline]
    pub const fn to_bytes(self) -> [u8; 16] {
        (((self.hi as u128) << 64) | self.lo as u128).to_be_bytes()
    }

    /// The address with all but the first `len128` of its 128 bits cleared.
    #[inline]
    pub fn masked(self, len128: u8) -> Addr {
        let (hi, lo) = mask(len128);
        Addr { hi: self.hi & hi, lo: self.lo & lo }
    }

    pub fn is_unspecified(self) -> bool {
        self == Addr::UNSPECIFIED || self == Addr::v4(0)
    }

    pub fn to_ip(self) -> IpAddr {
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::from(self.v4_bits()))
        } else {
            IpAddr::V6(Ipv6Addr::from(self.to_bytes()))
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Addr {
        match ip {
            IpAddr::V4(a) => Addr::v4(u32::from(a)),
            IpAddr::V6(a) => Addr::from_v6_bytes(a.octets()),
        }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Addr {
        Addr::v4(u32::from(ip))
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Addr {
        Addr::from_v6_bytes(ip.octets())
    }
}

impl FromStr for Addr {
    type Err = String;
    fn from_str(s: &str) -> Result<Addr, String> {
        s.parse::<IpAddr>()
            .map(Addr::from)
            .map_err(|_| format!("`{s}` is not an IPv4 or IPv6 address"))
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

/// An address prefix. `len` counts from the family's own start: 0 to 32 for IPv4, 0 to 128 for
/// IPv6.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    addr: Addr,
    len: u8,
    v4: bool,
}

impl Prefix {
    /// Cuts the host bits off.
    ///
    /// # Errors
    /// `len` beyond the family's width.
    pub fn new(addr: Addr, len: u8) -> Result<Prefix, String> {
        let v4 = addr.is_v4();
        let max = if v4 { 32 } else { 128 };
        if len > max {
            return Err(format!("prefix length {len} is over {max} for {addr}"));
        }
        let (hi, lo) = mask(if v4 { len + 96 } else { len });
        Ok(Prefix { addr: Addr { hi: addr.hi & hi, lo: addr.lo & lo }, len, v4 })
    }

    pub fn host(addr: Addr) -> Prefix {
        Prefix { addr, len: if addr.is_v4() { 32 } else { 128 }, v4: addr.is_v4() }
    }

    pub fn addr(self) -> Addr {
        self.addr
    }

    pub fn len(self) -> u8 {
        self.len
    }

    /// A default route's prefix.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    pub fn is_v4(self) -> bool {
        self.v4
    }

    /// The length within the 128 bits of [`Addr`]: IPv4 prefixes are 96 longer.
    pub fn len128(self) -> u8 {
        if self.v4 { self.len + 96 } else { self.len }
    }

    #[inline]
    pub fn contains(self, a: Addr) -> bool {
        let (hi, lo) = mask(self.len128());
        self.v4 == a.is_v4() && a.hi & hi == self.addr.hi && a.lo & lo == self.addr.lo
    }
}

/// The two halves of a 128-bit mask of `len` leading ones.
#[inline]
fn mask(len: u8) -> (u64, u64) {
    match len {
        0 => (0, 0),
        1..=63 => (!0 << (64 - len), 0),
        64 => (!0, 0),
        65..=127 => (!0, !0 << (128 - len)),
        _ => (!0, !0),
    }
}

impl FromStr for Prefix {
    type Err = String;
    /// `a.b.c.d/len`, `x::/len`, or a bare address for one host.
    fn from_str(s: &str) -> Result<Prefix, String> {
        let (a, l) = match s.split_once('/') {
            Some((a, l)) => (a, Some(l)),
            None => (s, None),
        };
        let addr: Addr = a.parse()?;
        match l {
            None => Ok(Prefix::host(addr)),
            Some(l) => {
                let len = l.parse().map_err(|_| format!("`{l}` is not a prefix length"))?;
                Prefix::new(addr, len)
            }
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        for s in ["0.0.0.0", "192.0.2.7", "255.255.255.255", "::1", "2001:db8::7"] {
            let a: Addr = s.parse().expect(s);
            assert_eq!(a.to_string(), s);
            assert_eq!(Addr::from_v6_bytes(a.to_bytes()), a);
        }
        assert!("300.1.1.1".parse::<Addr>().is_err());
    }

    #[test]
    fn prefixes_contain_their_family_only() {
        let all4: Prefix = "0.0.0.0/0".parse().expect("literal");
        let all6: Prefix = "::/0".parse().expect("literal");
        let a4: Addr = "10.1.2.3".parse().expect("literal");
        let a6: Addr = "2001:db8::1".parse().expect("literal");
        assert!(all4.contains(a4) && !all4.contains(a6));
        assert!(all6.contains(a6) && !all6.contains(a4));
        let p: Prefix = "10.1.2.3/20".parse().expect("literal");
        assert_eq!(p.to_string(), "10.1.0.0/20");
        assert!(p.contains("10.1.15.255".parse().expect("literal")));
        assert!(!p.contains("10.1.16.0".parse().expect("literal")));
        let q: Prefix = "2001:db8::/65".parse().expect("literal");
        assert!(q.contains("2001:db8::7fff:0:0:1".parse().expect("literal")));
        assert!(!q.contains("2001:db8::8000:0:0:1".parse().expect("literal")));
        assert!("10.0.0.0/33".parse::<Prefix>().is_err());
    }
}
