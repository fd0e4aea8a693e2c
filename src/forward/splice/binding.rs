//! One connection that is being bound: the client's half, and the backend's until it is joined.

use super::cookie::{Agreed, Promise};
use super::emit::{Out, Segment, Toward};
use super::held::{Held, Put};
use super::options::{Offer, OptionBytes, Stamps};
use super::replay::{Replay, Stream};
use super::translate::{Translation, rescale};
use crate::base::Nanos;
use crate::packet::DropReason;
use crate::packet::tcp::flag::{ACK, FIN, RST, SYN};

/// Time for the answer to a first SYN; doubled with every further one.
pub const SYN_WAIT_NS: u64 = 300_000_000;
/// SYNs sent to one backend before the next is tried: 4.5 s in all.
pub const SYNS_MAX: u8 = 4;
/// A segment that found no room is sent this much later.
pub const OWED_NS: u64 = 1_000_000;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// What the client sends is held until it tells where to.
    #[default]
    Waiting,
    /// A backend has been sent a SYN.
    Opening,
    /// The backend is being sent what was held. Both sides' further segments pass already.
    Replaying,
}

/// A segment as it arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub sequence: u32,
    pub acknowledgment: u32,
    /// Of [`crate::packet::tcp::flag`].
    pub flags: u8,
    /// Not scaled.
    pub window: u16,
    pub stamps: Option<Stamps>,
}

/// A backend's segment, and what has to be known to take it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heard {
    pub seen: Seen,
    /// The options of a SYN-ACK.
    pub offer: Offer,
    pub payload_len: u32,
    /// Largest segment that the way to the backend takes.
    pub mss_max: u16,
    /// Our clock toward the client.
    pub stamp: u32,
}

/// What is to become of a client's segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromClient {
    /// It was for us.
    Taken,
    /// The held stream has grown beyond this length: what it had before.
    Grown(u32),
    /// Translate it and send it on.
    Pass,
    /// The client gave up, or closed before it had said where to. The backend, where there is one,
    /// was told.
    Gone,
    Refused(DropReason),
}

/// What is to become of a backend's segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromServer {
    /// It was for us.
    Taken,
    /// The backend has taken the connection; from now on [`Binding::translation`] holds.
    Opened,
    /// The backend does not take the connection, or not as the client was promised.
    Unwilling,
    /// Translate it, have it acknowledge and open this much, and send it on.
    PassAs {
        acknowledgment: u32,
        window: u16,
    },
    /// The replay is over: translate it and send it on, like all that follow.
    Done,
    Refused(DropReason),
}

/// What is to be done when the time of a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTimer {
    /// Nothing more than was put out.
    Nothing,
    /// The client has said nothing more for as long as [`Binding::listen`] was told.
    Quiet,
    /// The client has not said where to.
    TimedOut,
    /// The backend says nothing.
    Silent,
    /// The backend does not take what was held; both sides were told.
    Stuck,
}

/// One connection that is being bound.
#[derive(Clone, Debug, Default)]
pub struct Binding {
    phase: Phase,
    agreed: Agreed,
    /// Shift of the windows that the client is told.
    promised_shift: u8,
    client_isn: u32,
    our_isn: u32,
    /// The client's clock as last seen in order.
    client_stamp: u32,
    /// The newest acknowledgement of the client and the window that came with it, not scaled: they
    /// mean nothing apart.
    client_ack: u32,
    client_window: u16,
    /// The client has sent FIN behind what is held.
    finished: bool,
    /// Bytes that may be held.
    hold_max: u32,
    /// What the client has been told in the server's place, and how often.
    greeting: &'static [u8],
    greeted: u8,
    /// Bytes taken out of the client's stream, which begins so much later for the backend.
    cut: u32,
    /// The end of the time to tell where to.
    until: Nanos,
    syns: u8,
    due: Nanos,
    translation: Translation,
    replay: Replay,
}

impl Binding {
    /// A client has shown that it got our SYN-ACK: `first` is the segment that brought the cookie
    /// back. It is to have told where to by `until`.
    pub fn accept(
        first: &Seen,
        agreed: Agreed,
        promise: &Promise,
        hold_max: u32,
        until: Nanos,
    ) -> Binding {
        let shift = promise.window_scale.filter(|_| agreed.window_scale.is_some()).unwrap_or(0);
        Binding {
            agreed,
            promised_shift: shift,
            client_isn: first.sequence.wrapping_sub(1),
            our_isn: first.acknowledgment.wrapping_sub(1),
            client_stamp: first.stamps.map_or(0, |s| s.value),
            client_ack: first.acknowledgment,
            client_window: first.window,
            hold_max,
            until,
            due: until,
            ..Binding::default()
        }
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// When [`Binding::timer`] is to be called.
    pub fn due(&self) -> Nanos {
        self.due
    }

    /// Whether the client has closed its direction.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Our own initial sequence number toward the client.
    pub fn our_isn(&self) -> u32 {
        self.our_isn
    }

    /// Valid from [`FromServer::Opened`] on.
    pub fn translation(&self) -> Translation {
        self.translation
    }

    /// The next sequence number that we want of the client.
    fn wanted(&self, held: &Held, slot: usize) -> u32 {
        self.at(held.len(slot)).wrapping_add(u32::from(self.finished))
    }

    /// The sequence number of a byte of the client's stream.
    pub fn at(&self, offset: u32) -> u32 {
        self.client_isn.wrapping_add(1).wrapping_add(offset)
    }

    /// A segment of the client. `stamp` is our clock toward it.
    pub fn client(
        &mut self,
        seen: &Seen,
        payload: &[u8],
        stamp: u32,
        (held, slot): (&mut Held, usize),
        out: &mut Out,
    ) -> FromClient {
        let wanted = self.wanted(held, slot);
        let ahead = seen.sequence.wrapping_sub(wanted) as i32;
        if seen.flags & RST != 0 {
            return self.client_reset(ahead, stamp, (held, slot), out);
        }
        if seen.flags & ACK == 0 || seen.flags & SYN != 0 {
            // A SYN of an old or a new connection: whoever sent it will say (RFC 9293, 3.10.7.4).
            out.push(self.answer(stamp, held, slot));
            return FromClient::Taken;
        }
        let acked = seen.acknowledgment.wrapping_sub(self.our_isn.wrapping_add(1));
        if self.phase != Phase::Replaying && acked > self.greeting.len() as u32 {
            return FromClient::Refused(DropReason::NotExpected);
        }
        self.note_window(seen);
        if ahead <= 0
            && let Some(stamps) = seen.stamps.filter(|_| self.agreed.timestamps)
            && stamps.value.wrapping_sub(self.client_stamp) as i32 > 0
        {
            self.client_stamp = stamps.value;
        }
        if self.phase == Phase::Replaying {
            return self.client_while_replaying(seen, payload, ahead, stamp, (held, slot), out);
        }
        self.hear_out();
        let before = held.len(slot);
        let put = self.keep(seen, payload, (held, slot));
        let end = seen.sequence.wrapping_add(payload.len() as u32);
        if seen.flags & FIN != 0 && end == self.wanted(held, slot) && !self.finished {
            self.finished = true;
        }
        if payload.is_empty() && seen.flags & FIN == 0 && ahead == 0 {
            return FromClient::Taken; // an acknowledgement
        }
        out.push(self.answer(stamp, held, slot));
        match put {
            Put::Grown(_) => FromClient::Grown(before),
            Put::NoRoom => FromClient::Refused(DropReason::HoldFull),
            _ => FromClient::Taken,
        }
    }

    /// Of two segments that acknowledge the same, the larger window is the newer one: nobody may
    /// take back what he has offered (RFC 9293, section 3.8.6).
    fn note_window(&mut self, seen: &Seen) {
        match seen.acknowledgment.wrapping_sub(self.client_ack) as i32 {
            1.. => (self.client_ack, self.client_window) = (seen.acknowledgment, seen.window),
            0 => self.client_window = self.client_window.max(seen.window),
            _ => {}
        }
    }

    fn keep(&self, seen: &Seen, payload: &[u8], (held, slot): (&mut Held, usize)) -> Put {
        // Nothing follows a FIN.
        let fresh = !payload.is_empty() && !self.finished;
        let offset = seen.sequence.wrapping_sub(self.at(0)) as i32;
        let old = usize::try_from(-i64::from(offset.min(0))).unwrap_or(usize::MAX);
        match payload.get(old..).filter(|p| fresh && !p.is_empty()) {
            Some(payload) => held.put(slot, offset.max(0) as u32, payload, self.hold_max),
            None => Put::Old,
        }
    }

    /// RFC 5961, section 3: only the very next number counts, others are asked about.
    fn client_reset(
        &mut self,
        ahead: i32,
        stamp: u32,
        (held, slot): (&mut Held, usize),
        out: &mut Out,
    ) -> FromClient {
        if ahead != 0 {
            if ahead > 0 && ahead < self.hold_max as i32 {
                out.push(self.answer(stamp, held, slot));
            }
            return FromClient::Taken;
        }
        if self.phase != Phase::Waiting {
            out.push(self.reset_backend());
        }
        FromClient::Gone
    }

    fn client_while_replaying(
        &mut self,
        seen: &Seen,
        payload: &[u8],
        ahead: i32,
        stamp: u32,
        (held, slot): (&mut Held, usize),
        out: &mut Out,
    ) -> FromClient {
        let acknowledged = seen.acknowledgment.wrapping_sub(self.translation.sequence);
        self.replay.client_acknowledged(acknowledged);
        // The backend gets these bytes from us and from nobody else: what was read is what arrives.
        if ahead < 0 && (!payload.is_empty() || seen.flags & FIN != 0) {
            out.push(self.answer(stamp, held, slot));
            return FromClient::Taken;
        }
        FromClient::Pass
    }

    /// Begins with a backend. Called again for the next one.
    pub fn open(&mut self, now: Nanos, out: &mut Out) {
        self.phase = Phase::Opening;
        self.syns = 0;
        self.send_syn(now, out);
    }

    fn send_syn(&mut self, now: Nanos, out: &mut Out) {
        let stamps = Stamps { value: self.client_stamp, echo: 0 };
        let offer = Offer {
            mss: Some(self.agreed.mss),
            window_scale: self.agreed.window_scale,
            sack: self.agreed.sack,
            stamps: self.agreed.timestamps.then_some(stamps),
        };
        let scale = self.agreed.window_scale.unwrap_or(0);
        let sent = out.push(Segment {
            toward: Toward::Backend,
            sequence: self.client_isn.wrapping_add(self.cut),
            flags: SYN,
            window: rescale(self.client_window, scale as i8),
            options: offer.bytes(),
            ..Segment::default()
        });
        let wait = if sent { SYN_WAIT_NS << self.syns.min(SYNS_MAX) } else { OWED_NS };
        self.syns += u8::from(sent);
        self.due = now.saturating_add(wait);
    }

    fn send_held(&mut self, now: Nanos, out: &mut Out) {
        let ours = Stamps { value: self.client_stamp, echo: self.replay.server_stamp() };
        let stamps = self.agreed.timestamps.then_some(ours);
        let window = rescale(self.client_window, self.translation.window_to_server);
        let what = Stream { first: self.at(0), finished: self.finished, window, stamps };
        self.due = self.replay.send(now, &what, out);
    }

    /// The time has come that [`Binding::due`] told. `stamp` is our clock toward the client.
    pub fn timer(
        &mut self,
        now: Nanos,
        stamp: u32,
        (held, slot): (&Held, usize),
        out: &mut Out,
    ) -> OnTimer {
        match self.phase {
            Phase::Waiting if now < self.until => match self.greeting {
                [] => OnTimer::Quiet,
                _ => {
                    self.greet_again(now, stamp, (held, slot), out);
                    OnTimer::Nothing
                }
            },
            Phase::Waiting => {
                out.push(self.reset_client(held, slot));
                OnTimer::TimedOut
            }
            Phase::Opening if self.syns >= SYNS_MAX => OnTimer::Silent,
            Phase::Opening => {
                self.send_syn(now, out);
                OnTimer::Nothing
            }
            Phase::Replaying if self.replay.gives_up() => {
                out.push(self.reset_client(held, slot));
                out.push(self.reset_backend());
                OnTimer::Stuck
            }
            Phase::Replaying => {
                self.replay.timeout();
                self.send_held(now, out);
                OnTimer::Nothing
            }
        }
    }

    /// Ends the client's half: no backend took it.
    pub fn reset_client(&self, held: &Held, slot: usize) -> Segment {
        Segment {
            toward: Toward::Client,
            sequence: match self.phase {
                // A reset counts where it is the very next: behind what is known to have come.
                Phase::Waiting => self.client_ack,
                _ => self.client_sees(self.our_next()),
            },
            acknowledgment: self.wanted(held, slot),
            flags: RST | ACK,
            ..Segment::default()
        }
    }

    fn reset_backend(&self) -> Segment {
        match self.phase {
            Phase::Replaying => reset(self.at(self.replay.sent())),
            _ => reset(self.at(self.cut)),
        }
    }

    /// An acknowledgement of all that is held.
    fn answer(&self, stamp: u32, held: &Held, slot: usize) -> Segment {
        let stamp = match self.phase {
            Phase::Replaying => self.replay.server_stamp().wrapping_add(self.translation.stamp),
            _ => stamp,
        };
        let stamps = Stamps { value: stamp, echo: self.client_stamp };
        let room = match self.phase {
            Phase::Replaying => self.replay.window_behind_stream(),
            _ => self.hold_max.saturating_sub(held.len(slot)),
        };
        Segment {
            toward: Toward::Client,
            sequence: self.client_sees(self.our_next()),
            acknowledgment: self.wanted(held, slot),
            flags: ACK,
            window: self.client_window(room),
            options: OptionBytes::of_segment(self.agreed.timestamps.then_some(stamps)),
            ..Segment::default()
        }
    }

    /// The server's next sequence number, or ours while there is none: in the server's numbers.
    fn our_next(&self) -> u32 {
        match self.phase {
            Phase::Replaying => self.replay.server_next(),
            _ => self.our_isn.wrapping_add(1).wrapping_add(self.greeting.len() as u32),
        }
    }

    fn client_sees(&self, sequence: u32) -> u32 {
        match self.phase {
            Phase::Replaying => sequence.wrapping_add(self.translation.sequence),
            _ => sequence,
        }
    }

    /// A window as the client reads it.
    fn client_window(&self, bytes: u32) -> u16 {
        (bytes >> self.promised_shift).min(u32::from(u16::MAX)) as u16
    }
}

/// Says that there is no such connection, to a backend whose next segment acknowledges `sequence`.
pub fn reset(sequence: u32) -> Segment {
    Segment { toward: Toward::Backend, sequence, flags: RST, ..Segment::default() }
}

/// The answer to a SYN: the cookie, and what we promise in the name of all backends.
pub fn syn_ack(
    seen: &Seen,
    cookie: u32,
    agreed: &Agreed,
    promise: &Promise,
    stamp: u32,
    hold_max: u32,
) -> Segment {
    let echo = seen.stamps.map_or(0, |s| s.value);
    let offer = Offer {
        mss: Some(promise.mss),
        window_scale: promise.window_scale.filter(|_| agreed.window_scale.is_some()),
        sack: agreed.sack,
        stamps: agreed.timestamps.then_some(Stamps { value: stamp, echo }),
    };
    Segment {
        toward: Toward::Client,
        sequence: cookie,
        acknowledgment: seen.sequence.wrapping_add(1),
        flags: SYN | ACK,
        window: hold_max.min(u32::from(u16::MAX)) as u16,
        options: offer.bytes(),
        ..Segment::default()
    }
}

mod backend;
mod greeting;
#[cfg(test)]
mod tests;
