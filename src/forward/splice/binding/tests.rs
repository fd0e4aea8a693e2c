//! Single steps; whole lives are simulated in `tests/sim/binding.rs`.

use super::*;
use crate::packet::tcp::flag::PSH;

const ISN: u32 = u32::MAX - 1;
const COOKIE: u32 = 7_000;
const UNTIL: Nanos = Nanos::from_secs(10);

struct Rig {
    binding: Binding,
    held: Held,
    /// What the backend takes.
    mss: u16,
}

fn rig() -> Rig {
    let agreed = Agreed { mss: 1_000, window_scale: Some(3), sack: true, timestamps: false };
    let promise = Promise::default();
    let first = client_segment(0, ACK);
    let binding = Binding::accept(&first, agreed, &promise, 8_000, UNTIL);
    Rig { binding, held: Held::new(1, 8), mss: 500 }
}

fn client_segment(offset: u32, flags: u8) -> Seen {
    Seen {
        sequence: ISN.wrapping_add(1).wrapping_add(offset),
        acknowledgment: COOKIE + 1,
        flags,
        window: 512,
        stamps: None,
    }
}

fn server_segment(sequence: u32, acked: u32, flags: u8) -> Seen {
    let acknowledgment = ISN.wrapping_add(1).wrapping_add(acked);
    Seen { sequence, acknowledgment, flags, window: 30_000, stamps: None }
}

impl Rig {
    fn client(&mut self, seen: &Seen, payload: &[u8]) -> (FromClient, Vec<Segment>) {
        let mut out = Out::new(12);
        let from = self.binding.client(seen, payload, 0, (&mut self.held, 0), &mut out);
        (from, out.segments().to_vec())
    }

    fn server(&mut self, seen: &Seen, payload: u32) -> (FromServer, Vec<Segment>) {
        let mut out = Out::new(12);
        let offer = Offer { mss: Some(self.mss), window_scale: Some(7), sack: true, stamps: None };
        let heard = Heard { seen: *seen, offer, payload_len: payload, mss_max: 1_460, stamp: 0 };
        let from = self.binding.server(Nanos::ZERO, &heard, (&mut self.held, 0), &mut out);
        (from, out.segments().to_vec())
    }

    fn open(&mut self) -> Vec<Segment> {
        let mut out = Out::new(12);
        self.binding.open(Nanos::ZERO, &mut out);
        out.segments().to_vec()
    }

    fn timer(&mut self) -> (OnTimer, Vec<Segment>) {
        let mut out = Out::new(12);
        let on = self.binding.timer(UNTIL, 0, (&self.held, 0), &mut out);
        (on, out.segments().to_vec())
    }
}

#[test]
fn bytes_are_acknowledged_and_a_backend_gets_them() {
    let mut rig = rig();
    assert_eq!(rig.client(&client_segment(0, ACK), b"").0, FromClient::Taken);
    assert_eq!(rig.client(&client_segment(400, ACK), &[2; 300]).0, FromClient::Taken, "early");
    let (from, out) = rig.client(&client_segment(0, ACK), &[1; 400]);
    assert_eq!(from, FromClient::Grown(0));
    assert_eq!(out[0].acknowledgment, ISN.wrapping_add(701));
    assert_eq!((out[0].sequence, out[0].window), (COOKIE + 1, (8_000 - 700) >> 7));
    let syn = rig.open()[0];
    assert_eq!((syn.sequence, syn.flags, syn.toward), (ISN, SYN, Toward::Backend));
    assert_eq!(Offer::parse(syn.options.as_slice()).window_scale, Some(3), "the client's own");
    let (from, out) = rig.server(&server_segment(90, 0, SYN | ACK), 0);
    assert_eq!(from, FromServer::Opened);
    let sent: Vec<_> = out.iter().map(|s| (s.payload, s.acknowledgment)).collect();
    assert_eq!(sent, [((0, 500), 91), ((500, 200), 91)]);
    let translation = rig.binding.translation();
    assert_eq!(translation.sequence, COOKIE.wrapping_sub(90));
    assert_eq!((translation.window_to_client, translation.window_to_server), (0, 0));
    let (from, _) = rig.server(&server_segment(91, 500, ACK), 10);
    let acknowledgment = ISN.wrapping_add(701);
    let window = ((30_000u32 << 7) - 200) >> 7;
    assert_eq!(from, FromServer::PassAs { acknowledgment, window: window as u16 });
    assert_eq!(rig.client(&client_segment(700, ACK), b"more").0, FromClient::Pass);
    assert_eq!(rig.client(&client_segment(690, ACK), b"other bytes").0, FromClient::Taken);
    assert_eq!(rig.server(&server_segment(101, 700, ACK), 0).0, FromServer::Done);
}

#[test]
fn the_backends_bytes_are_not_acknowledged_before_the_client_has_them() {
    let mut rig = rig();
    rig.client(&client_segment(0, ACK), &[1; 600]);
    rig.open();
    rig.server(&server_segment(90, 0, SYN | ACK), 0);
    rig.server(&server_segment(91, 0, ACK), 300);
    let (on, out) = rig.timer();
    assert_eq!((on, out[0].acknowledgment), (OnTimer::Nothing, 91));
    let has = Seen { acknowledgment: COOKIE + 1 + 300, ..client_segment(600, ACK) };
    assert_eq!(rig.client(&has, b"").0, FromClient::Pass);
    assert_eq!(rig.timer().1[0].acknowledgment, 391);
}

/// But no smaller than anybody may have them be.
#[test]
fn a_path_that_takes_less_gets_what_is_missing_in_smaller_segments() {
    let mut rig = Rig { mss: 1_000, ..rig() };
    rig.client(&client_segment(0, ACK), &[1; 900]);
    rig.open();
    let (_, out) = rig.server(&server_segment(90, 0, SYN | ACK), 0);
    assert_eq!(out[0].payload, (0, 900));
    for (told, sent) in [(600, 600), (1_000, 600), (60, 512)] {
        rig.binding.send_smaller(told);
        let (on, out) = rig.timer();
        assert_eq!((on, out[0].payload), (OnTimer::Nothing, (0, sent)), "{told}");
    }
}

#[test]
fn unwilling_and_silent_backends() {
    let mut rig = rig();
    rig.client(&client_segment(0, ACK), b"hello");
    rig.open();
    let stray = server_segment(0, 9, RST | ACK);
    assert_eq!(rig.server(&stray, 0).0, FromServer::Refused(DropReason::NotExpected));
    assert_eq!(rig.server(&server_segment(0, 0, RST | ACK), 0).0, FromServer::Unwilling);
    rig.open();
    let (from, out) = rig.server(&server_segment(5, 77, ACK), 0);
    assert_eq!((from, out[0].flags), (FromServer::Taken, RST), "an older connection");
    assert_eq!(out[0].sequence, ISN.wrapping_add(78));
    for again in 1..SYNS_MAX {
        let (on, out) = rig.timer();
        assert_eq!((on, out[0].flags), (OnTimer::Nothing, SYN), "SYN {again} again");
    }
    assert_eq!(rig.timer(), (OnTimer::Silent, vec![]));
}

#[test]
fn clients_that_give_up_and_those_that_say_nothing() {
    let mut rig = rig();
    assert_eq!(rig.client(&client_segment(9, RST), b"").0, FromClient::Taken, "not the next");
    let (on, out) = rig.timer();
    assert_eq!((on, out[0].flags, out[0].sequence), (OnTimer::TimedOut, RST | ACK, COOKIE + 1));
    assert_eq!(rig.client(&client_segment(0, RST), b"").0, FromClient::Gone);
    let mut rig = self::rig();
    let (from, _) = rig.client(&client_segment(0, ACK | FIN), b"all");
    assert_eq!((from, rig.binding.is_finished()), (FromClient::Grown(0), true));
    rig.open();
    let (_, out) = rig.server(&server_segment(90, 0, SYN | ACK), 0);
    assert_eq!((out[0].flags & FIN, out[0].payload), (FIN, (0, 3)));
    assert_eq!(rig.server(&server_segment(91, 3, ACK), 0).0, FromServer::Taken);
    assert_eq!(rig.server(&server_segment(91, 4, ACK), 0).0, FromServer::Done);
}

#[test]
fn a_backend_without_the_promised_timestamps_is_unsuitable() {
    let mut rig = rig();
    rig.binding.agreed.timestamps = true;
    rig.client(&client_segment(0, ACK), b"hello");
    rig.open();
    let (from, out) = rig.server(&server_segment(90, 0, SYN | ACK), 0);
    assert_eq!((from, out[0].flags), (FromServer::Unwilling, RST));
}

/// What is said in the server's place is said until it is heard; the answer to it goes no further,
/// and the backend counts neither.
#[test]
fn a_greeting_and_its_answer_are_between_the_client_and_us() {
    let mut rig = rig();
    rig.client(&client_segment(0, ACK), b"begin");
    rig.binding.listen(Nanos::from_secs(1));
    assert_eq!(rig.binding.due(), Nanos::from_secs(1));
    let mut out = Out::new(12);
    let now = Nanos::from_secs(1);
    assert_eq!(rig.binding.timer(now, 0, (&rig.held, 0), &mut out), OnTimer::Quiet);
    rig.binding.greet(now, b"hail", 0, (&rig.held, 0), &mut out);
    let said = out.segments()[0];
    assert_eq!((said.sequence, said.greeting, said.flags), (COOKIE + 1, &b"hail"[..], ACK | PSH));
    assert_eq!(rig.binding.due(), Nanos(now.0 + SYN_WAIT_NS));
    let mut out = Out::new(12);
    assert_eq!(rig.binding.timer(now, 0, (&rig.held, 0), &mut out), OnTimer::Nothing);
    assert_eq!(out.segments(), [said], "again");
    let wrong = Seen { acknowledgment: COOKIE + 6, ..client_segment(5, ACK) };
    assert_eq!(rig.client(&wrong, b"").0, FromClient::Refused(DropReason::NotExpected));
    assert!(!rig.binding.is_heard());
    let heard = |offset| Seen { acknowledgment: COOKIE + 5, ..client_segment(offset, ACK) };
    let (from, out) = rig.client(&heard(5), b"thanks, ask");
    assert_eq!((from, out[0].sequence), (FromClient::Grown(5), COOKIE + 5));
    assert!(rig.binding.is_heard());
    assert_eq!(rig.binding.due(), UNTIL);
    rig.binding.cut(5, 8, (&mut rig.held, 0));
    let syn = rig.open()[0];
    assert_eq!(syn.sequence, ISN.wrapping_add(8));
    let (from, out) = rig.server(&server_segment(90, 8, SYN | ACK), 0);
    assert_eq!(from, FromServer::Opened);
    let mut sent = [0; 8];
    rig.held.copy(0, out[0].payload.0, &mut sent);
    assert_eq!((out[0].payload, &sent), ((8, 8), b"beginask"));
    assert_eq!(out[0].sequence, ISN.wrapping_add(9));
    assert_eq!(rig.binding.translation().sequence, (COOKIE + 4).wrapping_sub(90));
    assert_eq!(rig.server(&server_segment(91, 16, ACK), 0).0, FromServer::Done);
}
