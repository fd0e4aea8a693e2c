//! Fields at fixed offsets, in network byte order.
//!
//! They index: the caller has checked the length before, once for the whole header.

use crate::base::Addr;

/// `N` bytes. One load: made byte by byte, the compiler may keep them apart.
#[inline(always)]
pub fn bytes_at<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&b[at..at + N]);
    bytes
}

#[inline(always)]
pub fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes_at(b, at))
}

#[inline(always)]
pub fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes_at(b, at))
}

/// The IPv4 address at `at`.
#[inline(always)]
pub fn addr4_at(b: &[u8], at: usize) -> Addr {
    Addr::v4(u32_at(b, at))
}

/// The IPv6 address at `at`.
#[inline(always)]
pub fn addr6_at(b: &[u8], at: usize) -> Addr {
    Addr::from_v6_bytes(bytes_at(b, at))
}

#[inline(always)]
pub fn mac_at(b: &[u8], at: usize) -> [u8; 6] {
    bytes_at(b, at)
}

#[inline(always)]
pub fn put_u16(b: &mut [u8], at: usize, v: u16) {
    b[at..at + 2].copy_from_slice(&v.to_be_bytes());
}

#[inline(always)]
pub fn put_u32(b: &mut [u8], at: usize, v: u32) {
    b[at..at + 4].copy_from_slice(&v.to_be_bytes());
}

/// Writes the address as its family has it: 4 or 16 bytes.
#[inline(always)]
pub fn put_addr(b: &mut [u8], at: usize, a: Addr) {
    if a.is_v4() {
        put_u32(b, at, a.v4_bits());
    } else {
        b[at..at + 16].copy_from_slice(&a.to_bytes());
    }
}
