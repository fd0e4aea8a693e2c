//! ARP for IPv4 over Ethernet (RFC 826), to look at only: the kernel answers it.

use crate::base::Addr;
use crate::packet::DropReason;
use crate::packet::field::{addr4_at, mac_at, u16_at, u32_at};

/// Where the fields stand.
pub mod offset {
    pub const OPERATION: usize = 6;
    pub const SENDER_MAC: usize = 8;
    pub const SENDER_ADDR: usize = 14;
    pub const TARGET_MAC: usize = 18;
    pub const TARGET_ADDR: usize = 24;
}

pub const LEN: usize = 28;
/// Hardware type 1 (Ethernet), protocol 0x0800.
const ETHERNET_IPV4: u32 = 0x0001_0800;
/// Address lengths 6 and 4.
const LENGTHS: u16 = 0x0604;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Request,
    Reply,
    Other(u16),
}

/// A complete ARP message.
#[derive(Clone, Copy, Debug)]
pub struct View<'a>(&'a [u8]);

impl<'a> View<'a> {
    /// # Errors
    /// `Truncated`; `NotIp` where it does not resolve IPv4 over Ethernet.
    pub fn new_checked(bytes: &'a [u8]) -> Result<View<'a>, DropReason> {
        if bytes.len() < LEN {
            return Err(DropReason::Truncated);
        }
        if u32_at(bytes, 0) != ETHERNET_IPV4 || u16_at(bytes, 4) != LENGTHS {
            return Err(DropReason::NotIp);
        }
        Ok(View(bytes))
    }

    pub fn operation(&self) -> Operation {
        match u16_at(self.0, offset::OPERATION) {
            1 => Operation::Request,
            2 => Operation::Reply,
            other => Operation::Other(other),
        }
    }

    pub fn sender(&self) -> ([u8; 6], Addr) {
        (mac_at(self.0, offset::SENDER_MAC), addr4_at(self.0, offset::SENDER_ADDR))
    }

    pub fn target(&self) -> ([u8; 6], Addr) {
        (mac_at(self.0, offset::TARGET_MAC), addr4_at(self.0, offset::TARGET_ADDR))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: [u8; LEN] = [
        0, 1, 8, 0, 6, 4, 0, 1, // Ethernet, IPv4, request
        2, 0, 0, 0, 0, 9, 10, 0, 0, 1, // sender
        0, 0, 0, 0, 0, 0, 10, 0, 0, 2, // target
    ];

    #[test]
    fn a_request_is_read() {
        let view = View::new_checked(&REQUEST).expect("valid");
        assert_eq!(view.operation(), Operation::Request);
        assert_eq!(view.sender(), ([2, 0, 0, 0, 0, 9], Addr::v4(0x0a00_0001)));
        assert_eq!(view.target(), ([0; 6], Addr::v4(0x0a00_0002)));
    }

    #[test]
    fn other_hardware_and_short_messages_are_refused() {
        for cut in 0..LEN {
            assert_eq!(View::new_checked(&REQUEST[..cut]).err(), Some(DropReason::Truncated));
        }
        let mut token_ring = REQUEST;
        token_ring[1] = 6;
        assert_eq!(View::new_checked(&token_ring).err(), Some(DropReason::NotIp));
    }
}
