//! Clients that do what they like, past rules that refuse by what they say, and servers that may
//! not have heard what passes, or believe it in their own way.

use proptest::collection::vec;
use proptest::prelude::*;
use std::time::Duration;

use super::one_way::OneWay;
use super::*;
use crate::base::Nanos;

mod honest;
mod server;

use server::{Manners, Segment, Server};

const TEXTS: [&[u8]; 6] = [
    b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /secret/x HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\n",
    b"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    b"\x01\x02 is no HTTP, and never will be any",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
];

/// What ways there are: ports of services, or a router; and whether answers come by here.
const WAYS: [(Option<u16>, bool); 7] = [
    (Some(82), false),
    (Some(83), false),
    (Some(84), false),
    (None, false),
    (None, true),
    (Some(80), true),
    (Some(81), true),
];

/// Where a client's number is counted from.
#[derive(Clone, Copy, Debug)]
enum Base {
    /// What the server expects next.
    Server,
    /// Where the client went on last.
    Client,
    /// Where its stream begins, as is known of the flow.
    Flow,
    /// Where what it says now begins.
    Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Arrives,
    /// Behind what was looked at, as by its checksum.
    Lost,
    /// Until something lets it go on.
    Late,
}

#[derive(Clone, Debug)]
enum Deed {
    Send {
        base: Base,
        ahead: u32,
        flags: u8,
        text: usize,
        cut: (u8, u8),
        fate: Fate,
    },
    /// A SYN, the ACK of its answer, and all of a text.
    Open {
        base: Base,
        ahead: u32,
        text: usize,
    },
    /// A FIN or a RST where the server expects it.
    End {
        flags: u8,
        arrives: bool,
    },
    /// What is refused, where the server expects it.
    Strike {
        ahead: u32,
    },
    /// The next of what it says, in order.
    Say {
        text: usize,
        cut: u8,
        fate: Fate,
    },
    /// What is late arrives.
    Arrive,
    Wait {
        ms: u32,
    },
    /// The server closes, resets, or forgets a connection.
    Server {
        how: u8,
        heard: bool,
    },
}

struct World {
    edge: OneWay,
    two_way: bool,
    server: Server,
    late: Vec<Segment>,
    /// Where the client goes on, and where its text began.
    at: u32,
    text_at: u32,
    /// The last answer to a SYN that it has.
    ack: u32,
    /// Of the stream as it is looked at: bytes that went on and did not arrive, by number.
    gone: Vec<(u32, u8)>,
    /// The stream, and since when.
    stream: (Option<u32>, Nanos),
    /// The server keeps a connection for longer than it is protected.
    keeps: bool,
}

impl World {
    fn new((to, two_way): (Option<u16>, bool), manners: Manners, at: u32) -> World {
        let edge = OneWay::bare(to);
        let (server, gone) = (Server::new(manners), Vec::new());
        let stream = (None, edge.now());
        World {
            edge,
            two_way,
            server,
            late: Vec::new(),
            at,
            text_at: at,
            ack: 0,
            gone,
            stream,
            keeps: false,
        }
    }

    fn base(&self, base: Base) -> u32 {
        match base {
            Base::Server => self.server.next(),
            Base::Client => self.at,
            Base::Flow => self.stream.0.unwrap_or(self.at),
            Base::Text => self.text_at,
        }
    }

    /// What is known of the flow may have changed. A server whose connection lasts for longer than
    /// that is not protected, nor one that has it beside others for two minutes.
    fn follow(&mut self) {
        let first = self.edge.first_byte();
        if first != self.stream.0 {
            self.gone.clear();
            self.stream = (first, self.edge.now());
        }
        let beside = self.edge.now().since(self.stream.1) >= 120_000_000_000;
        let other = self.stream.0 != self.server.first();
        if !self.keeps && (!self.edge.has_flow() || beside && other) {
            self.server.forget();
            self.late.clear();
        }
    }

    /// Whether other bytes went on with these numbers that the server may not have.
    fn differs(&self, segment: &Segment) -> bool {
        let held = |&(at, byte): &(u32, u8)| {
            let place = at.wrapping_sub(segment.seq) as usize;
            segment.says.get(place).is_some_and(|&b| b != byte)
        };
        self.gone.iter().any(held)
    }

    fn send(&mut self, seq: u32, flags: u8, says: &[u8], fate: Fate) {
        let ack = if flags & ACK != 0 { self.ack } else { 0 };
        let segment = Segment { seq, ack, flags, says: says.to_vec() };
        if self.differs(&segment) {
            return;
        }
        let out = self.edge.send(seq, ack, flags, says);
        self.follow();
        let Some(became) = out else { return };
        let segment = match became == flags {
            true => segment,
            false => Segment { flags: became, says: Vec::new(), ..segment },
        };
        self.gone.extend(numbered(&segment));
        match fate {
            Fate::Arrives => self.arrive(&segment),
            Fate::Lost => {}
            Fate::Late => self.late.push(segment),
        }
    }

    fn arrive(&mut self, segment: &Segment) {
        let answers = self.server.hear(segment);
        let server = &self.server;
        self.gone.retain(|&(at, _)| !server.has(at));
        for answer in answers {
            self.answer(&answer, true);
        }
    }

    /// A server's answer on its way to the client.
    fn answer(&mut self, answer: &Segment, heard: bool) -> bool {
        let passes = !self.two_way || self.edge.answer(answer.seq, answer.ack, answer.flags);
        self.follow();
        if heard && passes && answer.flags & SYN != 0 {
            self.ack = answer.seq.wrapping_add(1);
        }
        passes
    }

    fn run(&mut self, deed: &Deed) {
        match *deed {
            Deed::Send { base, ahead, flags, text, cut, fate } => {
                let text = TEXTS[text];
                let (from, to) = (usize::from(cut.0) % text.len(), usize::from(cut.1));
                let says = &text[from..(from + to % (text.len() + 1)).min(text.len())];
                let seq = self.base(base).wrapping_add(ahead);
                self.send(seq, flags, says, fate);
            }
            Deed::Open { base, ahead, text } => {
                let first = self.base(base).wrapping_add(ahead);
                self.send(first.wrapping_sub(1), SYN, b"", Fate::Arrives);
                self.send(first, ACK, b"", Fate::Arrives);
                (self.at, self.text_at) = (first, first);
                self.say(TEXTS[text], Fate::Arrives);
            }
            Deed::End { flags, arrives } => {
                let fate = if arrives { Fate::Arrives } else { Fate::Lost };
                self.send(self.server.next(), flags, b"", fate);
            }
            Deed::Strike { ahead } => {
                self.send(self.server.next().wrapping_add(ahead), ACK, TEXTS[1], Fate::Arrives);
            }
            Deed::Say { text, cut, fate } => {
                let (early, late) = TEXTS[text].split_at(usize::from(cut) % TEXTS[text].len());
                self.text_at = self.at;
                self.say(early, fate);
                self.say(late, Fate::Arrives);
            }
            Deed::Arrive => {
                for segment in std::mem::take(&mut self.late) {
                    self.arrive(&segment);
                }
            }
            Deed::Wait { ms } => {
                let waits = Duration::from_millis(ms.into());
                for _ in 0..8 {
                    self.edge.pass(waits / 8);
                    self.follow();
                }
                self.server.wait(ms);
            }
            Deed::Server { how, heard } => {
                let says = self.server.act(how);
                if let Some(answer) = says {
                    self.answer(&answer, heard);
                }
            }
        }
    }

    fn say(&mut self, says: &[u8], fate: Fate) {
        if !says.is_empty() {
            self.send(self.at, ACK, says, fate);
            self.at = self.at.wrapping_add(says.len() as u32);
        }
    }
}

/// A segment's bytes with their numbers.
fn numbered(segment: &Segment) -> impl Iterator<Item = (u32, u8)> {
    (0..).map(|i| segment.seq.wrapping_add(i)).zip(segment.says.clone())
}

fn aheads() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => Just(0_u32),
        4 => (0_u32..6).prop_map(|n| n.wrapping_sub(3)),
        3 => (0_u32..300).prop_map(|n| n.wrapping_sub(150)),
        1 => prop::sample::select(vec![
            5_000, 70_000, 1 << 20, 1 << 29, 1 << 30, (1 << 30) + 1, (1 << 31) - 1, 1 << 31,
            0_u32.wrapping_sub(5_000), 0_u32.wrapping_sub(1 << 30),
        ]),
        1 => any::<u32>(),
    ]
}

fn bases() -> impl Strategy<Value = Base> {
    prop::sample::select(vec![Base::Server, Base::Server, Base::Client, Base::Flow, Base::Text])
}

fn deeds() -> impl Strategy<Value = Deed> {
    const FATES: [Fate; 5] = [Fate::Arrives, Fate::Arrives, Fate::Arrives, Fate::Lost, Fate::Late];
    const WAITS_MS: [u32; 9] = [1, 50, 1_000, 3_000, 11_000, 31_000, 61_000, 125_000, 300_000];
    let fates = || prop::sample::select(&FATES[..]);
    let flags =
        prop::sample::select(vec![ACK, ACK, ACK, SYN, SYN, RST, RST | ACK, FIN | ACK, SYN | ACK]);
    let texts = || 0..TEXTS.len();
    let cuts = (any::<(u8, u8)>(), any::<bool>());
    let send = (bases(), aheads(), flags, texts(), cuts, fates()).prop_map(
        |(base, ahead, flags, text, (cut, whole), fate)| {
            let cut = match flags & (SYN | RST) == 0 || cut.0 > 250 {
                true if whole => (0, TEXTS[text].len() as u8),
                true => cut,
                false => (0, 0),
            };
            Deed::Send { base, ahead, flags, text, cut, fate }
        },
    );
    let ends = prop::sample::select(vec![RST, RST | ACK, FIN | ACK]);
    let open = (bases(), aheads(), texts());
    let say = (texts(), any::<u8>(), fates());
    prop_oneof![
        6 => send,
        3 => open.prop_map(|(base, ahead, text)| Deed::Open { base, ahead, text }),
        3 => (ends, any::<bool>()).prop_map(|(flags, arrives)| Deed::End { flags, arrives }),
        2 => prop::sample::select(vec![0, u32::MAX]).prop_map(|ahead| Deed::Strike { ahead }),
        4 => say.prop_map(|(text, cut, fate)| Deed::Say { text, cut, fate }),
        1 => Just(Deed::Arrive),
        2 => prop::sample::select(&WAITS_MS[..]).prop_map(|ms| Deed::Wait { ms }),
        2 => (0_u8..3, any::<bool>()).prop_map(|(how, heard)| Deed::Server { how, heard }),
    ]
}

fn manners() -> impl Strategy<Value = Manners> {
    any::<[bool; 5]>().prop_map(|[old_rst, old_syn, fin_in_order, lingers, closes]| Manners {
        old_rst,
        old_syn,
        fin_in_order,
        lingers,
        closes,
    })
}

proptest! {
    #[test]
    fn no_server_is_asked_for_what_its_clients_are_refused(
        way in 0..WAYS.len(),
        manners in manners(),
        first in prop_oneof![Just(1_000_000_u32), Just(u32::MAX - 20), any::<u32>()],
        deeds in vec(deeds(), 1..30),
    ) {
        let mut world = World::new(WAYS[way], manners, first);
        world.run(&Deed::Open { base: Base::Client, ahead: 0, text: 0 });
        for (i, deed) in deeds.iter().enumerate() {
            world.run(deed);
            prop_assert!(!world.server.was_asked_for_secrets(), "by deed {i}: {deed:?}");
        }
    }
}
