//! Our side: headers, reassembly and the inspector of online flows.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::Instant;

use tidegate::base::Seed;
use tidegate::flow::reassembly::Reassembler;
use tidegate::inspect::fields::{PATH_BYTES, Wanted};
use tidegate::inspect::hpack::TABLE_BYTES;
use tidegate::inspect::http1::Side;
use tidegate::inspect::inspector::{App, Event, Inspector, Pool, Rooms};
use tidegate::packet::tcp::flag::{ACK, SYN};
use tidegate::packet::{PacketMeta, ParseOptions, parse};

use super::{Case, NAME, Run};

const SEED: Seed = Seed(1);
const PAGES: usize = 64;
const HELLO_BYTES_MAX: u32 = 16_384;

pub struct Ours {
    reassembler: Reassembler,
    pool: Pool,
    /// What a flow takes, by case.
    bytes: HashMap<String, u64>,
}

impl Ours {
    pub fn new() -> Ours {
        let wanted = Wanted::new([]).expect("no names");
        // One flow is kept while others come and go.
        let pool = Pool::filled(wanted, ROOMS, 2);
        Ours { reassembler: Reassembler::new(1, PAGES), pool, bytes: HashMap::new() }
    }

    pub fn run(&mut self, case: &Case, runs: u32) -> Run {
        let bytes = *self.bytes.entry(case.name.clone()).or_insert_with(|| bytes(&case.frames));
        let named = self.names(&case.frames);
        let known = self.follow(&case.frames);
        let app = known.app();
        let start = Instant::now();
        if case.again {
            for _ in 0..runs {
                assert!(black_box(&known).knows());
            }
        } else {
            for _ in 0..runs {
                let inspector = self.follow(black_box(&case.frames));
                assert!(black_box(&inspector).app() != App::None);
                inspector.give_back(&mut self.pool);
            }
        }
        let ns = start.elapsed().as_nanos() as f64 / f64::from(runs);
        known.give_back(&mut self.pool);
        Run { ns, known: app != App::None, named, bytes }
    }

    /// Whether the name is found.
    fn names(&mut self, frames: &[Vec<u8>]) -> bool {
        let (mut inspector, mut named) = (Inspector::with_hello(false, HELLO_BYTES_MAX), false);
        for frame in frames {
            inspector.read(&mut self.pool, Side::Client, payload(frame), &mut |event| {
                if let Event::Request(request) = event {
                    named |= request.authority == Some(NAME.as_bytes());
                }
            });
        }
        named |= inspector.client_hello().and_then(|hello| hello.sni()) == Some(NAME.as_bytes());
        inspector.give_back(&mut self.pool);
        named
    }

    fn follow(&mut self, frames: &[Vec<u8>]) -> Inspector {
        let mut inspector = Inspector::with_hello(false, HELLO_BYTES_MAX);
        for frame in frames {
            self.packet(&mut inspector, frame);
        }
        inspector
    }

    #[inline]
    fn packet(&mut self, inspector: &mut Inspector, frame: &[u8]) {
        let mut meta = PacketMeta::default();
        let options = ParseOptions { verify_transport_checksum: false };
        parse(frame, SEED, options, &mut meta).expect("a good packet");
        if meta.tcp_flags & (SYN | ACK) == SYN {
            self.reassembler.open(0, meta.tcp_seq.wrapping_add(1));
        }
        let payload = &frame[usize::from(meta.payload)..usize::from(meta.end)];
        if payload.is_empty() || inspector.knows() {
            return;
        }
        let (reassembler, pool) = (&mut self.reassembler, &mut self.pool);
        reassembler.push(0, meta.tcp_seq, false, payload, |bytes| {
            inspector.stream(pool, Side::Client, bytes);
        });
    }
}

fn payload(frame: &[u8]) -> &[u8] {
    let mut meta = PacketMeta::default();
    let options = ParseOptions { verify_transport_checksum: false };
    parse(frame, SEED, options, &mut meta).expect("a good packet");
    &frame[usize::from(meta.payload)..usize::from(meta.end)]
}

/// Flows of which the memory is taken, to see what one takes.
const MANY: usize = 5_000;
/// As the `inspect` stage has it.
const SIDES: usize = 2;
const FLOWS_PER_PAGE: usize = 4;
const ROOMS: Rooms = Rooms {
    greetings: MANY,
    target: PATH_BYTES,
    first_target: 0,
    heads: 2,
    table: TABLE_BYTES,
    whole_tables: MANY,
};

/// What a flow takes while it is inspected: its slot, its two streams with their share of the pages
/// in which early segments wait, and what of the parsers of HTTP it keeps between its packets.
fn bytes(frames: &[Vec<u8>]) -> u64 {
    let before = resident_bytes();
    let wanted = Wanted::new([]).expect("no names");
    let mut pool = Pool::growing(wanted, ROOMS, MANY);
    let mut slots = Vec::with_capacity(MANY);
    for _ in 0..MANY {
        let mut inspector = Inspector::with_hello(false, HELLO_BYTES_MAX);
        for frame in frames {
            inspector.stream(&mut pool, Side::Client, payload(frame));
        }
        slots.push(inspector);
    }
    let streams = Reassembler::new(SIDES * MANY, MANY / FLOWS_PER_PAGE);
    let held = resident_bytes().saturating_sub(before);
    // Never freed: the next case would find memory that is resident already.
    std::mem::forget(black_box((slots, streams, pool)));
    held / MANY as u64
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.trim().split(' ').next()).and_then(|n| n.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
