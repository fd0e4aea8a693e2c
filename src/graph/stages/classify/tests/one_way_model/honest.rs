//! A client that does as all do, over ways that lose some of what is sent.

use super::*;
use crate::base::hash::Rng;

/// Passed so many times a second by the clock that hosts begin their streams by, as Linux does.
const CLOCK_HZ: u64 = 15_625_000;
/// Times that something is sent at most: after 1, 2, 4, 8 and then each 16 seconds.
const TIMES_MAX: u32 = 12;

struct Honest {
    world: World,
    rng: Rng,
    loss: f64,
    /// Number of its clock when the test began.
    clock: u32,
}

/// What comes back for what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Nothing,
    Taken,
    /// An acknowledgement of that number, of something else.
    Challenge(u32),
    Refused,
}

impl Honest {
    fn first(&self) -> u32 {
        let passed = self.world.edge.now().0 as u128 * u128::from(CLOCK_HZ) / 1_000_000_000;
        self.clock.wrapping_add(passed as u32)
    }

    /// Sends a segment; tells what the answer says of the numbers up to `until`.
    fn send(&mut self, seq: u32, flags: u8, says: &[u8], until: u32) -> Heard {
        if self.rng.chance(self.loss) {
            return Heard::Nothing;
        }
        let ack = if flags & ACK != 0 { self.world.ack } else { 0 };
        let out = self.world.edge.send(seq, ack, flags, says);
        if out != Some(flags) || self.rng.chance(self.loss) {
            return Heard::Nothing;
        }
        let segment = Segment { seq, ack, flags, says: says.to_vec() };
        let mut heard = Heard::Nothing;
        for answer in self.world.server.hear(&segment) {
            heard = self.hear(&answer, flags, until);
        }
        heard
    }

    fn hear(&mut self, answer: &Segment, sent: u8, until: u32) -> Heard {
        let lost = self.rng.chance(self.loss);
        if !self.world.answer(answer, !lost) || lost {
            return Heard::Nothing;
        }
        match answer.flags & (SYN | RST) {
            RST => Heard::Refused,
            SYN if answer.ack == until => Heard::Taken,
            0 if sent & SYN == 0 && answer.ack == until => Heard::Taken,
            0 if sent & SYN != 0 => Heard::Challenge(answer.ack),
            _ => Heard::Nothing,
        }
    }

    /// Sends it again until it is taken. `None`: it never was.
    fn insist(&mut self, seq: u32, flags: u8, says: &[u8], until: u32) -> Option<()> {
        for n in 0..TIMES_MAX {
            match self.send(seq, flags, says, until) {
                Heard::Taken => return Some(()),
                // What the server still has is ended, and asked for anew.
                Heard::Challenge(ack) => {
                    self.send(ack, RST, b"", ack);
                }
                Heard::Refused if flags & SYN == 0 => return None,
                Heard::Refused | Heard::Nothing => {}
            }
            self.world.edge.pass(Duration::from_secs(1 << n.min(4)));
            self.world.server.wait(1_000 << n.min(4));
        }
        None
    }

    /// One connection with some requests. `None`: one of them was never taken.
    fn connect(&mut self, requests: u32, end: u8) -> Option<()> {
        let first = self.first();
        self.insist(first.wrapping_sub(1), SYN, b"", first)?;
        self.send(first, ACK, b"", first);
        let mut at = first;
        for _ in 0..requests {
            let cut = self.rng.below(TEXTS[0].len() as u32) as usize;
            for says in [&TEXTS[0][..cut], &TEXTS[0][cut..]] {
                let until = at.wrapping_add(says.len() as u32);
                if !says.is_empty() {
                    self.insist(at, ACK, says, until)?;
                }
                at = until;
            }
        }
        if end & RST != 0 {
            self.send(at, end, b"", at);
            return Some(());
        }
        let server_first = self.rng.chance(0.3);
        if server_first {
            self.close();
        }
        let until = at.wrapping_add(1);
        self.insist(at, end, b"", until);
        if !server_first {
            self.close();
        }
        self.send(until, ACK, b"", until);
        Some(())
    }

    /// The server closes; its FIN comes as often as it needs to.
    fn close(&mut self) {
        if let Some(fin) = self.world.server.act(0) {
            self.world.answer(&fin, true);
        }
    }
}

proptest! {
    #[test]
    fn a_client_that_does_as_all_do_is_always_served(
        way in 0..WAYS.len(),
        manners in manners(),
        clock in any::<u32>(),
        seed in any::<u64>(),
        loss in prop::sample::select(vec![0.0, 0.01, 0.03]),
        lives in vec((0_u32..4, prop::sample::select(vec![RST, RST | ACK, FIN | ACK]),
            prop::sample::select(vec![1_u64, 20, 1_000, 5_000, 30_000, 70_000, 100_000])), 1..12),
    ) {
        let mut world = World::new(WAYS[way], manners, clock);
        world.keeps = true;
        let rng = Rng::new(crate::base::Seed(seed));
        let mut honest = Honest { world, rng, loss, clock };
        for (i, (requests, end, rests_ms)) in lives.into_iter().enumerate() {
            prop_assert!(honest.connect(requests, end).is_some(), "connection {i}");
            honest.world.edge.pass(Duration::from_millis(rests_ms));
            honest.world.server.wait(rests_ms as u32);
        }
    }
}
