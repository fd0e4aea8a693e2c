//! TCP's states as a middlebox can tell them from the flags that pass (RFC 9293, section 3.3.2).

use crate::packet::Direction;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const SYN_ACK: u8 = SYN | ACK;

/// Where a flow stands. Other protocols than TCP use [`TcpState::OneWay`] and
/// [`TcpState::Established`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TcpState {
    /// The slot holds no flow.
    Vacant,
    /// The client's SYN was seen.
    SynSent,
    /// And the server's SYN-ACK.
    SynReceived,
    /// Packets of one direction only were seen, and no handshake: a flow joined in the middle, or
    /// datagrams without an answer.
    OneWay,
    /// The handshake is complete, or both directions were seen.
    Established,
    /// The client has sent its FIN.
    FinForward,
    /// The server has sent its FIN.
    FinReply,
    /// Both have; what follows is the last acknowledgements.
    TimeWait,
    /// And one of the two came again: its acknowledgement, or it itself, was lost on the way.
    LastAck,
    /// A RST was seen.
    Reset,
    /// We have ended it: whoever sends more is told so.
    Cut,
}

/// Whose packets of a connection come by here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Both,
    /// Answers take another way (DSR).
    Client,
    /// What the client says takes another way, as far as has been seen.
    Server,
}

impl TcpState {
    /// The state of a flow that begins with these flags; `tcp` false for other protocols. One that
    /// begins with an answer to a SYN, which came another way, is as far as that.
    pub fn first(tcp: bool, flags: u8, direction: Direction) -> TcpState {
        match (tcp, flags & (SYN | ACK), direction) {
            (true, SYN, _) => TcpState::SynSent,
            (true, SYN_ACK, Direction::Reply) => TcpState::SynReceived,
            _ => TcpState::OneWay,
        }
    }

    /// Handshakes in progress: what a SYN flood fills.
    #[inline]
    pub fn is_half_open(self) -> bool {
        matches!(self, TcpState::SynSent | TcpState::SynReceived)
    }

    /// Both sides have closed, or one has reset.
    #[inline]
    pub fn has_ended(self) -> bool {
        matches!(self, TcpState::TimeWait | TcpState::LastAck | TcpState::Reset | TcpState::Cut)
    }

    /// The state after one more packet. Where only one side is seen, its ACK alone completes the
    /// handshake: a server says more than its answer once it has heard its client. Where both are,
    /// the client must tell, since a server's bare ACK may be about another SYN, and anybody can
    /// send two (RFC 9293, section 3.10.7.4).
    #[inline]
    pub fn after(self, tcp: bool, flags: u8, direction: Direction, seen: Seen) -> TcpState {
        use TcpState::*;
        if self == Cut {
            return Cut;
        }
        if !tcp {
            return match (self, direction) {
                (OneWay, Direction::Reply) => Established,
                (state, _) => state,
            };
        }
        if flags & RST != 0 {
            return Reset;
        }
        let forward = direction == Direction::Forward;
        let opening = flags & (SYN | ACK) == SYN;
        match self {
            // The client opens a new connection from the port of one that has ended, or that its
            // server has closed and may have forgotten.
            TimeWait | LastAck | Reset | FinReply if opening && forward => SynSent,
            // Whether its server has closed as well is not seen.
            FinForward if opening && forward && seen == Seen::Client => SynSent,
            TimeWait if flags & FIN != 0 => LastAck,
            Vacant | TimeWait | LastAck | Reset | Cut => self,
            SynSent if !forward && flags & (SYN | ACK) == SYN | ACK => SynReceived,
            SynSent if forward && seen == Seen::Client && flags & (SYN | ACK) == ACK => {
                Established.fin(flags, true)
            }
            SynReceived if (forward || seen == Seen::Server) && flags & (SYN | ACK) == ACK => {
                Established.fin(flags, forward)
            }
            SynSent | SynReceived => self,
            OneWay if !forward => Established.fin(flags, false),
            OneWay | Established | FinForward | FinReply => self.fin(flags, forward),
        }
    }

    /// What a packet that led from one state to another says of the server: whether it took the
    /// connection or not. `None`: nothing new.
    pub fn taken(self, after: TcpState, flags: u8, direction: Direction) -> Option<bool> {
        use TcpState::*;
        let opening = flags & (SYN | ACK) == SYN;
        match (self, after, direction) {
            (SynSent, Reset, Direction::Reply) => Some(false),
            // The SYN comes again: perhaps it was not answered.
            (SynSent, SynSent, Direction::Forward) if opening => Some(false),
            (SynSent, SynReceived | Established, _) | (OneWay, Established, _) => Some(true),
            // Its SYN was not seen.
            (SynReceived, Established, Direction::Reply) => Some(true),
            _ => None,
        }
    }

    fn fin(self, flags: u8, forward: bool) -> TcpState {
        use TcpState::*;
        if flags & FIN == 0 {
            return self;
        }
        match (self, forward) {
            (FinReply, true) | (FinForward, false) => TimeWait,
            (_, true) => FinForward,
            (_, false) => FinReply,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Forward, Reply};
    use TcpState::*;

    #[test]
    fn servers_take_connections_or_do_not() {
        for (before, flags, direction, wanted) in [
            (SynSent, SYN | ACK, Reply, Some(true)),
            (SynSent, RST | ACK, Reply, Some(false)),
            (SynSent, RST, Forward, None),
            (SynSent, SYN, Forward, Some(false)),
            (OneWay, SYN | ACK, Reply, Some(true)),
            (SynReceived, ACK, Forward, None),
            (Established, RST, Reply, None),
            (TimeWait, SYN, Forward, None),
        ] {
            let after = before.after(true, flags, direction, Seen::Both);
            assert_eq!(before.taken(after, flags, direction), wanted, "{before:?} {flags:02x}");
        }
    }

    /// Flags and direction of each packet, and the state after it.
    type Life = &'static [(u8, Direction, TcpState)];

    const LIVES: &[(&str, Seen, Life)] = &[
        (
            "open, close by the client, reopen",
            Seen::Both,
            &[
                (SYN | ACK, Reply, SynReceived),
                (ACK, Forward, Established),
                (ACK, Reply, Established),
                (FIN | ACK, Forward, FinForward),
                (SYN, Forward, FinForward),
                (ACK, Reply, FinForward),
                (FIN | ACK, Reply, TimeWait),
                (ACK, Forward, TimeWait),
                (SYN, Forward, SynSent),
            ],
        ),
        (
            "close by the server",
            Seen::Both,
            &[
                (SYN | ACK, Reply, SynReceived),
                (ACK, Forward, Established),
                (FIN | ACK, Reply, FinReply),
                (FIN | ACK, Reply, FinReply),
                (FIN | ACK, Forward, TimeWait),
                (ACK, Reply, TimeWait),
                (FIN | ACK, Forward, LastAck),
                (ACK, Reply, LastAck),
                (SYN, Forward, SynSent),
            ],
        ),
        ("refused", Seen::Both, &[(RST | ACK, Reply, Reset), (ACK, Forward, Reset)]),
        ("the SYN again", Seen::Both, &[(SYN, Forward, SynSent), (SYN | ACK, Reply, SynReceived)]),
        (
            "answers elsewhere",
            Seen::Client,
            &[
                (ACK, Forward, Established),
                (FIN | ACK, Forward, FinForward),
                (SYN, Forward, SynSent),
                (ACK, Forward, Established),
            ],
        ),
        ("an ACK without its SYN-ACK proves nothing", Seen::Both, &[(ACK, Forward, SynSent)]),
    ];

    #[test]
    fn lives() {
        for (name, seen, life) in LIVES {
            let mut state = TcpState::first(true, SYN, Forward);
            assert_eq!(state, SynSent);
            for (i, (flags, direction, expected)) in life.iter().enumerate() {
                state = state.after(true, *flags, *direction, *seen);
                assert_eq!(state, *expected, "{name}, packet {i}");
            }
        }
    }

    #[test]
    fn joined_in_the_middle() {
        let state = TcpState::first(true, ACK, Forward);
        assert_eq!(state, OneWay);
        assert_eq!(state.after(true, ACK, Forward, Seen::Both), OneWay);
        assert_eq!(state.after(true, ACK, Reply, Seen::Both), Established);
    }

    #[test]
    fn joined_by_the_answer_to_a_syn() {
        let state = TcpState::first(true, SYN | ACK, Reply);
        assert_eq!(state, SynReceived);
        assert_eq!(state.after(true, SYN | ACK, Reply, Seen::Both), SynReceived);
        assert_eq!(state.after(true, ACK, Reply, Seen::Both), SynReceived);
        assert_eq!(state.after(true, SYN | ACK, Reply, Seen::Server), SynReceived);
        assert_eq!(state.after(true, ACK, Reply, Seen::Server), Established);
        assert_eq!(state.after(true, FIN | ACK, Reply, Seen::Server), FinReply);
        assert_eq!(TcpState::first(true, SYN | ACK, Forward), OneWay);
    }

    #[test]
    fn datagrams_are_established_by_an_answer() {
        let state = TcpState::first(false, 0, Forward);
        assert_eq!(state.after(false, 0, Forward, Seen::Both), OneWay);
        assert_eq!(state.after(false, 0, Reply, Seen::Both), Established);
    }
}
