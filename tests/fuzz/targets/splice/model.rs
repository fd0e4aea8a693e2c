//! What both ends of a connection said and heard: streams whose bytes tell where they belong.

use tidegate::base::Addr;
use tidegate::inspect::h2::{PREFACE, SETTINGS};

use super::services::NAMED;
use crate::targets::speech::{data, hello, http1, http2};

/// Numbers beyond these belong to another connection between the same ends: those that are made up
/// here lie further apart.
pub const FAR: u32 = 1 << 20;
/// Bytes that a backend says at most.
pub const ANSWER_BYTES: u32 = 6_000;

const ACKNOWLEDGMENT: [u8; 9] = [0, 0, 0, 4, 1, 0, 0, 0, 0];

/// The parts of a stream that were sent.
#[derive(Default)]
pub struct Parts {
    bytes: Vec<bool>,
    /// All before this byte.
    pub next: u32,
    /// With the FIN behind the last byte.
    pub finished: bool,
}

impl Parts {
    pub fn add(&mut self, from: u32, len: u32) {
        let end = (from + len) as usize;
        self.bytes.resize(self.bytes.len().max(end), false);
        self.bytes[from as usize..end].fill(true);
        while self.bytes.get(self.next as usize) == Some(&true) {
            self.next += 1;
        }
    }

    /// The highest number that may be acknowledged.
    pub fn end(&self) -> u32 {
        self.next + u32::from(self.finished)
    }
}

/// A client's connection, from its SYN on.
pub struct Conn {
    pub which: usize,
    pub client: (Addr, u16),
    pub vip: (Addr, u16),
    pub isn: u32,
    /// The box's first number toward it.
    pub our_isn: Option<u32>,
    pub options: u8,
    /// The latest timestamp of the box.
    pub stamp: u32,
    pub says: Vec<u8>,
    /// Where an acknowledgement of settings stands in what it says, if it waits for some.
    pub ack_at: Option<usize>,
    pub sent: Parts,
    pub heard: Parts,
    /// Bytes of what it says that are kept from the backend; known with the first SYN to one.
    pub cut: Option<u32>,
    /// It acknowledged what it has not got.
    pub lied: bool,
    /// Its backend did.
    pub misled: bool,
}

impl Conn {
    pub fn new(
        which: usize,
        (client, vip): ((Addr, u16), (Addr, u16)),
        isn: u32,
        options: u8,
        (says, ack_at): (Vec<u8>, Option<usize>),
    ) -> Conn {
        Conn {
            which,
            client,
            vip,
            isn,
            our_isn: None,
            options,
            stamp: 0,
            says,
            ack_at,
            sent: Parts::default(),
            heard: Parts::default(),
            cut: None,
            lied: false,
            misled: false,
        }
    }

    /// What the backend is to get.
    pub fn toward_backend(&self, from: u32, len: usize) -> Option<Vec<u8>> {
        let from = from as usize;
        let skips = self.ack_at.filter(|_| self.cut.is_some_and(|cut| cut > 0));
        let all: Vec<u8> = match skips {
            Some(at) => [&self.says[..at], &self.says[at + ACKNOWLEDGMENT.len()..]].concat(),
            None => self.says.clone(),
        };
        all.get(from..from + len).map(<[u8]>::to_vec)
    }

    /// What the client is to get.
    pub fn toward_client(&self, from: u32, len: usize) -> Option<Vec<u8>> {
        let greeting = match self.cut {
            Some(0) => &[][..],
            None if self.ack_at.is_none() => return None,
            _ => SETTINGS,
        };
        let all = (0..ANSWER_BYTES).map(answer_byte);
        let all = greeting.iter().copied().chain(all.filter(|_| self.cut.is_some()));
        let all: Vec<u8> = all.skip(from as usize).take(len).collect();
        (all.len() == len).then_some(all)
    }
}

/// The bytes of a backend's answer.
pub fn answer_byte(at: u32) -> u8 {
    (at.wrapping_mul(0x9e37_79b1) >> 24) as u8
}

/// A backend's side of a connection.
pub struct Served {
    /// Number of its client's connection.
    pub conn: usize,
    pub local: (Addr, u16),
    pub remote: (Addr, u16),
    /// Of the SYN.
    pub syn: u32,
    pub isn: u32,
    pub has_answered: bool,
    pub options: u8,
    pub stamp: u32,
    pub said: Parts,
    pub got: Parts,
}

/// What a client says, by number; where it is to acknowledge the server's settings.
pub fn speech(n: u8) -> (Vec<u8>, Option<usize>) {
    let name = if n & 8 == 0 { "a.example" } else { NAMED };
    let long = if n & 16 == 0 { 0 } else { 1_700 };
    let body: Vec<u8> = (0..900u32).map(|i| (i.wrapping_mul(0x85eb_ca6b) >> 24) as u8).collect();
    match n % 8 {
        0 | 1 => ([hello(name, long), body].concat(), None),
        2 => ([http1(name, long), body].concat(), None),
        3 => ([http2(name, long), data(900)].concat(), None),
        4 | 5 => waiting(name, long, PREFACE.len() + 15),
        6 => waiting(name, long, http2(name, long).len()),
        _ => (body, None),
    }
}

fn waiting(name: &str, padding: usize, at: usize) -> (Vec<u8>, Option<usize>) {
    let mut says = [http2(name, padding), data(900)].concat();
    says.splice(at..at, ACKNOWLEDGMENT);
    (says, Some(at))
}
