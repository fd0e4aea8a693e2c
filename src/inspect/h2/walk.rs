//! The frames of a client's stream by their heads alone: whether it waits for the server's
//! settings, and where it acknowledges them.

use super::PREFACE;
use super::frame::{HEAD_BYTES, Head, flag, kind};

/// An empty SETTINGS frame: all that a server must say before it can be asked (RFC 9113, section
/// 3.4). What it leaves out stays as every client may take it to be.
pub const SETTINGS: &[u8; HEAD_BYTES] = &[0, 0, 0, kind::SETTINGS, 0, 0, 0, 0, 0];

/// A walk over the heads of frames, from the preface on.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    /// Where the next head begins.
    next: u32,
    has_settings: bool,
    has_asked: bool,
    acknowledged: Option<u32>,
}

impl Default for Walk {
    fn default() -> Walk {
        let next = PREFACE.len() as u32;
        Walk { next, has_settings: false, has_asked: false, acknowledged: None }
    }
}

impl Walk {
    /// Goes on in a stream of which `len` bytes are there. `copy` fills in those that begin at the
    /// given place. Costs a step for each frame.
    pub fn go_on(&mut self, len: u32, copy: impl Fn(u32, &mut [u8; HEAD_BYTES])) {
        while self.next.saturating_add(HEAD_BYTES as u32) <= len {
            let mut bytes = [0; HEAD_BYTES];
            copy(self.next, &mut bytes);
            let head = Head::read(&bytes);
            match head.kind {
                kind::SETTINGS if head.has(flag::ACK) => {
                    let is_one = head.length == 0 && head.stream == 0;
                    self.acknowledged = self.acknowledged.or(is_one.then_some(self.next));
                }
                kind::SETTINGS => self.has_settings = true,
                _ => self.has_asked |= head.is_block(),
            }
            self.next = self.next.saturating_add(HEAD_BYTES as u32).saturating_add(head.length);
        }
    }

    /// Whether a stream of this length may be one that waits for the server's settings: all of
    /// its frames are whole, its own settings among them, and none asks for anything.
    pub fn may_wait(&self, len: u32) -> bool {
        self.has_settings && !self.has_asked && self.next == len
    }

    /// Where the first acknowledgement of settings begins, which has [`HEAD_BYTES`] bytes.
    pub fn acknowledged(&self) -> Option<u32> {
        self.acknowledged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u8, body: &[u8]) -> Vec<u8> {
        [&[0, 0, body.len() as u8, kind, flags, 0, 0, 0, stream], body].concat()
    }

    /// Walks on after each byte; where it may have waited.
    fn walk(stream: &[u8]) -> (Walk, Vec<u32>) {
        let mut walk = Walk::default();
        let mut waits = Vec::new();
        for len in 1..=stream.len() as u32 {
            walk.go_on(len, |at, head| {
                assert!(at + HEAD_BYTES as u32 <= len, "not there yet");
                head.copy_from_slice(&stream[at as usize..][..HEAD_BYTES]);
            });
            if walk.may_wait(len) {
                waits.push(len);
            }
        }
        (walk, waits)
    }

    #[test]
    fn clients_wait_behind_their_settings_until_they_ask() {
        let settings = frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]);
        let update = frame(kind::WINDOW_UPDATE, 0, 0, &[0, 1, 0, 0]);
        let mut stream = [PREFACE, &settings, &update].concat();
        let (_, waits) = walk(&stream);
        assert_eq!(waits, [24 + 15, 24 + 15 + 13]);
        stream.extend(frame(kind::SETTINGS, flag::ACK, 0, &[]));
        stream.extend(frame(kind::HEADERS, flag::END_HEADERS, 1, &[0x82]));
        stream.extend(frame(kind::SETTINGS, flag::ACK, 0, &[]));
        let (walk, waits) = walk(&stream);
        assert_eq!(walk.acknowledged(), Some(52), "the first");
        assert_eq!(waits, [39, 52, 61], "not behind a request");
    }

    #[test]
    fn what_is_no_acknowledgement_is_none() {
        let data = frame(kind::DATA, 0, 1, SETTINGS);
        let other = frame(kind::SETTINGS, flag::ACK, 1, &[]);
        let long = frame(kind::SETTINGS, flag::ACK, 0, &[0; 6]);
        let (walked, _) = walk(&[PREFACE, &data, &other, &long].concat());
        assert_eq!(walked.acknowledged(), None);
        let endless = [PREFACE, &[0xff; 60]].concat();
        assert_eq!(walk(&endless).0.acknowledged(), None);
    }
}
