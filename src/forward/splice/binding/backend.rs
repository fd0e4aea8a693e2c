//! What backends answer, until the replay is over.

use super::{Binding, FromServer, Heard, Phase, Seen, reset};
use crate::base::Nanos;
use crate::forward::splice::emit::Out;
use crate::forward::splice::held::Held;
use crate::forward::splice::options::{MSS_DEFAULT, Offer};
use crate::forward::splice::replay::Replay;
use crate::forward::splice::translate::Translation;
use crate::packet::DropReason;
use crate::packet::tcp::flag::{ACK, FIN, RST, SYN};

/// A backend's reset is believed this far ahead of what was seen of it.
const RESET_AHEAD_MAX: u32 = 1 << 20;

impl Binding {
    /// The path to the backend takes no larger segments than this, options included.
    pub fn send_smaller(&mut self, mss: u16) {
        self.replay.limit(mss, self.agreed.timestamps);
    }

    /// A segment of the backend.
    pub fn server(
        &mut self,
        now: Nanos,
        heard: &Heard,
        (held, slot): (&mut Held, usize),
        out: &mut Out,
    ) -> FromServer {
        match self.phase {
            Phase::Waiting => FromServer::Refused(DropReason::NotExpected),
            Phase::Opening => {
                let stream = self.wanted(held, slot).wrapping_sub(self.at(0));
                self.server_while_opening(now, heard, stream, out)
            }
            Phase::Replaying => self.server_while_replaying(now, heard, (held, slot), out),
        }
    }

    fn server_while_opening(
        &mut self,
        now: Nanos,
        heard: &Heard,
        stream: u32,
        out: &mut Out,
    ) -> FromServer {
        let Heard { seen, offer, mss_max, stamp, .. } = heard;
        let answers_us = seen.flags & ACK != 0 && seen.acknowledgment == self.at(self.cut);
        if seen.flags & RST != 0 {
            // RFC 5961, section 3.2, for SYN-SENT.
            let refused = FromServer::Refused(DropReason::NotExpected);
            return if answers_us { FromServer::Unwilling } else { refused };
        }
        if !answers_us || seen.flags & SYN == 0 {
            if seen.flags & ACK != 0 {
                // An older connection between the same ports (RFC 9293, section 3.5.1).
                out.push(reset(seen.acknowledgment));
                return FromServer::Taken;
            }
            return FromServer::Refused(DropReason::NotExpected);
        }
        if self.agreed.timestamps && offer.stamps.is_none() {
            out.push(reset(self.at(self.cut)));
            return FromServer::Unwilling;
        }
        self.join(seen, offer, *stamp);
        self.phase = Phase::Replaying;
        let mss = offer.mss.unwrap_or(MSS_DEFAULT[0]).min(*mss_max);
        let shift = offer.window_scale.filter(|_| self.agreed.window_scale.is_some()).unwrap_or(0);
        self.replay = Replay::new(self.cut, stream);
        self.replay.begin(seen, mss, shift, self.agreed.timestamps);
        self.send_held(now, out);
        FromServer::Opened
    }

    /// From here on the two halves are one connection.
    fn join(&mut self, seen: &Seen, offer: &Offer, stamp: u32) {
        let stamps = offer.stamps.filter(|_| self.agreed.timestamps).unwrap_or_default();
        let theirs = offer.window_scale.filter(|_| self.agreed.window_scale.is_some());
        let clients = self.agreed.window_scale.unwrap_or(0) as i8;
        self.translation = Translation {
            // Before the backend's first byte the client has heard what we have said.
            sequence: self.our_next().wrapping_sub(seen.sequence.wrapping_add(1)),
            stamp: stamp.wrapping_sub(stamps.value),
            first_stamp: stamps.value,
            early_echoes: self.agreed.timestamps,
            window_to_client: theirs.unwrap_or(0) as i8 - self.promised_shift as i8,
            // A backend that does not scale reads the client's windows as they stand.
            window_to_server: if theirs.is_none() { clients } else { 0 },
        };
    }

    fn server_while_replaying(
        &mut self,
        now: Nanos,
        heard: &Heard,
        (held, slot): (&mut Held, usize),
        out: &mut Out,
    ) -> FromServer {
        let seen = &heard.seen;
        if seen.flags & RST != 0 {
            // The client looks closer.
            let ahead = seen.sequence.wrapping_sub(self.replay.server_next());
            let refused = FromServer::Refused(DropReason::NotExpected);
            return if ahead < RESET_AHEAD_MAX { FromServer::Done } else { refused };
        }
        if seen.flags & ACK == 0 {
            return FromServer::Refused(DropReason::NotExpected);
        }
        if seen.flags & SYN != 0 {
            // Our acknowledgement of it was lost.
            self.replay.rewind();
            self.send_held(now, out);
            return FromServer::Taken;
        }
        let acked = seen.acknowledgment.wrapping_sub(self.at(0));
        let space = heard.payload_len + u32::from(seen.flags & FIN != 0);
        self.replay.acknowledged(seen, acked, space);
        held.release(slot, self.replay.acked().min(held.len(slot)));
        if self.replay.is_over() {
            return FromServer::Done;
        }
        self.send_held(now, out);
        if space == 0 {
            return FromServer::Taken;
        }
        let window = self.client_window(self.replay.window_behind_stream());
        FromServer::PassAs { acknowledgment: self.wanted(held, slot), window }
    }
}
