//! Two TCP connections made one: what changes in each segment from one half to the other.
//!
//! Toward the backend we begin with the client's own initial sequence number and window scale, and
//! pass on the client's clock. So what the client counts stays as it is, and only what the server
//! counts is translated: its sequence numbers and what acknowledges them (SACK blocks too), its
//! clock and the echoes of it, and its window where its scale is not what the client was told.

use super::options::{TIMESTAMPS_LEN, kind, walk};
use crate::packet::Direction;
use crate::packet::checksum::Delta;
use crate::packet::field::{put_u16, put_u32, u16_at, u32_at};
use crate::packet::tcp::{self, flag, offset};

/// So many ticks after the server's first timestamp no segment from before it is under way any
/// more: 17 minutes of milliseconds, a second of microseconds.
const EARLY_MAX: i32 = 1 << 20;
/// Bytes of one SACK block: two sequence numbers.
const SACK_BLOCK_LEN: usize = 8;

/// The difference between the halves of one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    /// Added to the server's sequence numbers for the client.
    pub sequence: u32,
    /// Added to the server's timestamps for the client.
    pub stamp: u32,
    /// The server's first timestamp.
    pub first_stamp: u32,
    /// The client still echoes timestamps that we sent before the server did. The server must not
    /// see them: they lie before its first one, which stands for them.
    pub early_echoes: bool,
    /// Left shift of the server's window for the client; negative: right.
    pub window_to_client: i8,
    /// Left shift of the client's window for the server.
    pub window_to_server: i8,
}

/// What a [`Translation`] adds to the numbers of one direction's segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shift {
    pub sequence: u32,
    /// To what is acknowledged, SACK blocks too.
    pub acknowledgment: u32,
    /// To the timestamp.
    pub clock: u32,
    /// To the timestamp that is echoed.
    pub echo: u32,
    /// Left shift of the window; negative: right.
    pub window: i8,
    /// Echoes from before this one, as the segment has it, stand for others:
    /// [`Translation::early_echoes`].
    pub first_echo: Option<u32>,
}

impl Translation {
    /// The same as numbers.
    pub fn shift(&self, direction: Direction) -> Shift {
        let Translation { sequence, stamp, first_stamp, .. } = *self;
        match direction {
            Direction::Forward => Shift {
                acknowledgment: sequence.wrapping_neg(),
                echo: stamp.wrapping_neg(),
                window: self.window_to_server,
                first_echo: self.early_echoes.then(|| first_stamp.wrapping_add(stamp)),
                ..Shift::default()
            },
            Direction::Reply => {
                Shift { sequence, clock: stamp, window: self.window_to_client, ..Shift::default() }
            }
        }
    }

    /// Changes a segment of the server into what the client expects. `segment` begins with the TCP
    /// header, whose checksum is complete; what is too short to be one is left alone.
    #[inline]
    pub fn to_client(&self, segment: &mut [u8]) {
        let Some((header, options)) = split(segment) else { return };
        let old = u32_at(header, offset::SEQUENCE);
        let new = old.wrapping_add(self.sequence);
        put_u32(header, offset::SEQUENCE, new);
        let mut delta = Delta::default().u32(old, new);
        delta = shift_window(header, self.window_to_client, delta);
        if let Some(at) = stamps_at(options) {
            let old = u32_at(options, at);
            delta = put_word(options, at, old.wrapping_add(self.stamp), delta);
        }
        finish(header, delta);
    }

    /// Changes a segment of the client into what the server expects.
    #[inline]
    pub fn to_server(&mut self, segment: &mut [u8]) {
        let Some((header, options)) = split(segment) else { return };
        let mut delta = shift_window(header, self.window_to_server, Delta::default());
        if header[offset::FLAGS] & flag::ACK != 0 {
            let old = u32_at(header, offset::ACKNOWLEDGMENT);
            let new = old.wrapping_sub(self.sequence);
            put_u32(header, offset::ACKNOWLEDGMENT, new);
            delta = delta.u32(old, new);
            if let Some(at) = stamps_at(options) {
                let echo = self.echo(u32_at(options, at + 4));
                delta = put_word(options, at + 4, echo, delta);
            }
            if !options.is_empty() && !is_stamps_only(options) {
                delta = self.sack(options, delta);
            }
        }
        finish(header, delta);
    }

    #[inline]
    fn echo(&mut self, echo: u32) -> u32 {
        let echo = echo.wrapping_sub(self.stamp);
        if !self.early_echoes {
            return echo;
        }
        let ahead = echo.wrapping_sub(self.first_stamp) as i32;
        if ahead < 0 {
            return self.first_stamp;
        }
        self.early_echoes = ahead < EARLY_MAX;
        echo
    }

    /// Blocks of data received out of order (RFC 2018, section 3).
    fn sack(&self, options: &mut [u8], mut delta: Delta) -> Delta {
        let sack = walk(options).find(|o| o.kind == kind::SACK).map(|o| (o.at, o.body.len()));
        let Some((at, len)) = sack else { return delta };
        for edge in (0..len / SACK_BLOCK_LEN * 2).map(|i| at + 4 * i) {
            let new = u32_at(options, edge).wrapping_sub(self.sequence);
            delta = put_word(options, edge, new, delta);
        }
        delta
    }
}

/// Has a segment of the server acknowledge `ack` and open `window` instead of what it says, and say
/// nothing of data out of order: while we still replay what the client believes has arrived.
pub fn acknowledge(segment: &mut [u8], ack: u32, window: u16) {
    let Some((header, options)) = split(segment) else { return };
    let delta = Delta::default()
        .u32(u32_at(header, offset::ACKNOWLEDGMENT), ack)
        .u16(u16_at(header, offset::WINDOW), window);
    put_u32(header, offset::ACKNOWLEDGMENT, ack);
    put_u16(header, offset::WINDOW, window);
    let delta = blank_sack(options, delta);
    finish(header, delta);
}

fn blank_sack(options: &mut [u8], mut delta: Delta) -> Delta {
    let sack = walk(options).find(|o| o.kind == kind::SACK).map(|o| (o.at - 2, o.body.len() + 2));
    let Some((at, len)) = sack else { return delta };
    for i in at..at + len {
        let word = |options: &[u8]| u16::from_be_bytes([options[i & !1], options[i | 1]]);
        // Whole options are whole words, so the other byte of the word is there.
        let old = word(options);
        options[i] = kind::NOP;
        delta = delta.u16(old, word(options));
    }
    delta
}

/// The header without options, and the options.
#[inline(always)]
fn split(segment: &mut [u8]) -> Option<(&mut [u8; tcp::HEADER_LEN], &mut [u8])> {
    let (header, rest) = segment.split_first_chunk_mut::<{ tcp::HEADER_LEN }>()?;
    let len = (usize::from(header[offset::DATA_OFFSET] >> 4) * 4).checked_sub(tcp::HEADER_LEN)?;
    Some((header, rest.get_mut(..len)?))
}

#[inline(always)]
fn finish(header: &mut [u8; tcp::HEADER_LEN], delta: Delta) {
    let check = u16_at(header, offset::CHECKSUM);
    put_u16(header, offset::CHECKSUM, delta.apply(check));
}

/// How nearly all timestamps begin (RFC 7323, appendix A).
const USUAL_STAMPS: [u8; 4] = [kind::NOP, kind::NOP, kind::TIMESTAMPS, 10];

/// What nearly all segments with options have: then there is nothing else to look for.
#[inline(always)]
fn is_stamps_only(options: &[u8]) -> bool {
    options.len() == TIMESTAMPS_LEN && options.starts_with(&USUAL_STAMPS)
}

/// Where the timestamps' first word stands.
#[inline(always)]
fn stamps_at(options: &[u8]) -> Option<usize> {
    if options.len() >= TIMESTAMPS_LEN && options.starts_with(&USUAL_STAMPS) {
        return Some(4);
    }
    if options.is_empty() {
        return None;
    }
    walk(options).find(|o| o.kind == kind::TIMESTAMPS && o.body.len() == 8).map(|o| o.at)
}

/// A window of a SYN is never scaled (RFC 7323, section 2.2).
#[inline(always)]
fn shift_window(header: &mut [u8; tcp::HEADER_LEN], shift: i8, delta: Delta) -> Delta {
    if shift == 0 || header[offset::FLAGS] & flag::SYN != 0 {
        return delta;
    }
    let old = u16_at(header, offset::WINDOW);
    let new = rescale(old, shift);
    put_u16(header, offset::WINDOW, new);
    delta.u16(old, new)
}

/// A window in another scale, rounded down and cut to what the field holds.
#[inline(always)]
pub fn rescale(window: u16, shift: i8) -> u16 {
    let window = u32::from(window);
    let scaled = match shift {
        0.. => window << shift.min(15),
        _ => window >> shift.unsigned_abs().min(16),
    };
    scaled.min(u32::from(u16::MAX)) as u16
}

/// Writes a word of the options. At an odd place its bytes belong to other halves of the sum's
/// words; a rotation brings them there.
#[inline(always)]
fn put_word(options: &mut [u8], at: usize, new: u32, delta: Delta) -> Delta {
    let old = u32_at(options, at);
    put_u32(options, at, new);
    if at.is_multiple_of(2) {
        delta.u32(old, new)
    } else {
        delta.u32(old.rotate_left(8), new.rotate_left(8))
    }
}

#[cfg(test)]
mod tests;
