//! Whether a TCP checksum is right (RFC 9293, section 3.1), as far as a capture tells.

use super::layers::{TCP, Transport};
use crate::packet::checksum::pseudo;
use crate::packet::tcp;

/// Right, or left for the sender's device: the pseudo-header's sum alone, without the length where
/// the device cuts the segment up, or 0.
pub(super) fn fits(transport: &Transport<'_>) -> bool {
    let Ok(len) = u16::try_from(transport.bytes.len()) else { return true };
    let at = tcp::offset::CHECKSUM;
    let Some(&[a, b]) = transport.bytes.get(at..at + 2) else { return true };
    let field = u16::from_be_bytes([a, b]);
    let sum = |len| pseudo(transport.src, transport.dst, TCP, len);
    let left = [sum(len).fold(), sum(0).fold(), 0];
    left.contains(&field) || sum(len).bytes(transport.bytes).verifies()
}
