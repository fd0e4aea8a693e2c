//! What a client is told in the server's place, where it waits for the server to speak before it
//! says where to; and how what it answers to that is kept from the backend.

use super::{Binding, Phase, SYN_WAIT_NS};
use crate::base::Nanos;
use crate::forward::splice::emit::{Out, Segment};
use crate::forward::splice::held::Held;
use crate::packet::tcp::flag::PSH;

/// The wait for an acknowledgement of a greeting grows up to so many times the first one.
const DOUBLINGS_MAX: u8 = 4;

impl Binding {
    /// Has [`super::OnTimer::Quiet`] told at this time, unless something is said before.
    pub fn listen(&mut self, until: Nanos) {
        if self.phase == Phase::Waiting && self.greeting.is_empty() {
            self.due = until.min(self.until);
        }
    }

    /// Tells the client this, again and again until it is acknowledged. Once a connection.
    pub fn greet(
        &mut self,
        now: Nanos,
        greeting: &'static [u8],
        stamp: u32,
        held: (&Held, usize),
        out: &mut Out,
    ) {
        if self.phase == Phase::Waiting && self.greeting.is_empty() {
            self.greeting = greeting;
            self.greet_again(now, stamp, held, out);
        }
    }

    pub(super) fn greet_again(
        &mut self,
        now: Nanos,
        stamp: u32,
        (held, slot): (&Held, usize),
        out: &mut Out,
    ) {
        let answer = self.answer(stamp, held, slot);
        out.push(Segment {
            sequence: self.our_isn.wrapping_add(1),
            flags: answer.flags | PSH,
            greeting: self.greeting,
            ..answer
        });
        let wait = SYN_WAIT_NS << self.greeted.min(DOUBLINGS_MAX);
        self.greeted = self.greeted.saturating_add(1);
        self.due = now.saturating_add(wait).min(self.until);
    }

    /// Nothing has to be said again where it has come.
    pub(super) fn hear_out(&mut self) {
        if self.phase == Phase::Waiting && self.has_greeted() && self.is_heard() {
            self.due = self.until;
        }
    }

    pub fn has_greeted(&self) -> bool {
        !self.greeting.is_empty()
    }

    /// Whether the client has all that it was told.
    pub fn is_heard(&self) -> bool {
        self.client_ack == self.our_next()
    }

    /// Keeps `count` bytes of the client's stream from the backend. Once a connection, before a
    /// backend is opened, and once the client has heard the greeting that they answer.
    pub fn cut(&mut self, at: u32, count: u32, (held, slot): (&mut Held, usize)) {
        if self.phase == Phase::Waiting && self.cut == 0 {
            held.cut(slot, at, count);
            self.cut = count;
        }
    }

    /// Where the client's stream begins for the backend, in what is held.
    pub fn beginning(&self) -> u32 {
        self.cut
    }
}
