//! Segments in any order over streams that share few pages: delivered is what a model delivers
//! that keeps single bytes.

use std::collections::{BTreeMap, BTreeSet};

use tidegate::flow::reassembly::{PAGE_BYTES, Pushed, Reassembler, WINDOW_BYTES};

use super::script::Input;

const STREAMS: usize = 3;
/// Fewer than one stream may hold.
const PAGES: usize = 4;
const STEPS_MAX: usize = 200;

/// What a step's first byte says; the stream is the rest of it.
mod op {
    /// A first sequence number follows (16 bits, the upper ones).
    pub const OPEN: u8 = 0;
    pub const CLOSE: u8 = 1;
    // All others push a segment: where it begins, how long it is, how its bytes are.
    pub const PUSH: u8 = 2;
    pub const COUNT: u8 = 8;
}

/// Units of places and lengths.
const UNITS: [i64; 4] = [1, 64, PAGE_BYTES as i64 / 2, PAGE_BYTES as i64];

/// Input: steps ([`op`]).
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut reassembler = Reassembler::new(STREAMS, PAGES);
    let mut models: [Model; STREAMS] = Default::default();
    let mut free = PAGES;
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let what = input.u8();
        let slot = usize::from(what / op::COUNT) % STREAMS;
        match what % op::COUNT {
            op::OPEN => {
                let first = u32::from(input.u16()) << 16 | 0xfff0;
                reassembler.open(slot, first);
                free += models[slot].pages.len();
                models[slot] = Model { first, ..Model::default() };
            }
            op::CLOSE => {
                reassembler.close(slot);
                free += std::mem::take(&mut models[slot].pages).len();
                models[slot].held.clear();
            }
            _ => push(&mut reassembler, &mut models[slot], slot, &mut free, &mut input),
        }
        assert_eq!(reassembler.pages_free(), free, "pages");
    }
    (0..STREAMS).for_each(|slot| reassembler.close(slot));
    assert_eq!(reassembler.pages_free(), PAGES, "pages leaked");
}

fn push(
    reassembler: &mut Reassembler,
    model: &mut Model,
    slot: usize,
    free: &mut usize,
    input: &mut Input<'_>,
) {
    let (units, ahead, len, salt) = (input.u8(), input.u8(), input.u8(), input.u8());
    let ahead = i64::from(ahead as i8) * UNITS[usize::from(units % 4)];
    let len = i64::from(len) * UNITS[usize::from(units / 4 % 3)];
    let syn = units & 128 != 0;
    let payload: Vec<u8> = (0..len).map(|i| (model.next as i64 + ahead + i) as u8 ^ salt).collect();
    let seq = model.seq().wrapping_add(ahead as u32).wrapping_sub(u32::from(syn));
    let mut got = Vec::new();
    let pushed = reassembler.push(slot, seq, syn, &payload, |b| got.extend_from_slice(b));
    let wanted = model.push(ahead, &payload, free);
    assert_eq!((pushed, &got), (wanted.0, &wanted.1));
    assert_eq!(reassembler.next_seq(slot), model.seq());
    assert_eq!(reassembler.has_gap(slot), !model.pages.is_empty());
    assert_eq!(reassembler.conflicts(slot), model.conflicts);
}

/// A stream byte by byte.
#[derive(Default)]
struct Model {
    first: u32,
    /// Bytes delivered.
    next: usize,
    held: BTreeMap<usize, u8>,
    pages: BTreeSet<usize>,
    conflicts: bool,
}

impl Model {
    fn seq(&self) -> u32 {
        self.first.wrapping_add(self.next as u32)
    }

    fn push(&mut self, ahead: i64, payload: &[u8], free: &mut usize) -> (Pushed, Vec<u8>) {
        if ahead > 0 {
            return (self.hold(ahead as usize, payload, free), Vec::new());
        }
        let fresh = payload.get(ahead.unsigned_abs() as usize..).unwrap_or_default();
        if fresh.is_empty() {
            return (Pushed::Old, Vec::new());
        }
        let mut got = fresh.to_vec();
        for (at, byte) in (self.next..).zip(fresh) {
            self.conflicts |= self.held.get(&at).is_some_and(|held| held != byte);
        }
        self.advance(fresh.len(), free);
        // Pages are looked at one after another, and what waits ends with one that is not there.
        while self.pages.contains(&(self.next / PAGE_BYTES)) {
            let page = self.next / PAGE_BYTES;
            let end = (page + 1) * PAGE_BYTES;
            let run: Vec<u8> =
                (self.next..end).map_while(|at| self.held.get(&at).copied()).collect();
            if run.is_empty() {
                if self.held.range(self.next..end).next().is_none() {
                    self.pages.remove(&page);
                    *free += 1;
                }
                break;
            }
            self.advance(run.len(), free);
            got.extend(run);
        }
        (Pushed::Delivered, got)
    }

    fn hold(&mut self, ahead: usize, payload: &[u8], free: &mut usize) -> Pushed {
        if payload.is_empty() {
            return Pushed::Old;
        }
        if ahead >= WINDOW_BYTES {
            return Pushed::OutOfWindow;
        }
        for (i, &byte) in payload.iter().enumerate().take(WINDOW_BYTES - ahead) {
            let at = self.next + ahead + i;
            if !self.pages.contains(&(at / PAGE_BYTES)) {
                if *free == 0 {
                    return Pushed::NoPage;
                }
                *free -= 1;
                self.pages.insert(at / PAGE_BYTES);
            }
            self.conflicts |= *self.held.entry(at).or_insert(byte) != byte;
        }
        Pushed::Held
    }

    fn advance(&mut self, n: usize, free: &mut usize) {
        self.next += n;
        self.held = self.held.split_off(&self.next);
        let kept = self.pages.split_off(&(self.next / PAGE_BYTES));
        *free += std::mem::replace(&mut self.pages, kept).len();
    }
}

/// A segment in units of the stream's bytes, for one of them.
fn segment(slot: u8, units: u8, ahead: i8, len: u8, salt: u8) -> [u8; 5] {
    [op::PUSH + slot * op::COUNT, units, ahead as u8, len, salt]
}

/// Seeds by name.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let open =
        |slot: u8, first: u16| vec![op::OPEN + slot * op::COUNT, (first >> 8) as u8, first as u8];
    let whole = [segment(0, 0, 0, 100, 0), segment(0, 0, 0, 50, 0)].concat();
    let swapped = [segment(0, 0, 20, 30, 0), segment(0, 0, 0, 20, 0)].concat();
    let backwards: Vec<u8> = (1..20).rev().flat_map(|i| segment(0, 1, i, 64, 0)).collect();
    let filled = [&backwards[..], &segment(0, 4, 0, 1, 0)].concat();
    let conflict = [segment(0, 0, 10, 20, 0), segment(0, 0, 15, 20, 1), segment(0, 0, 0, 12, 2)];
    let far = [segment(0, 3, 31, 1, 0), segment(0, 3, 30, 200, 0), segment(0, 3, 127, 9, 0)];
    let hog: Vec<u8> = (1..6).flat_map(|i| segment(i as u8 % 3, 3, i, 1, 0)).collect();
    let probes = [segment(0, 0, -1, 1, 0), segment(0, 0, -1, 0, 0), segment(0, 128, -40, 60, 0)];
    let long = [segment(0, 8, 1, 255, 0), segment(0, 0, 0, 1, 0)].concat();
    let again = [&segment(0, 2, 1, 9, 0)[..], &open(0, 7), &segment(0, 0, 0, 9, 0)].concat();
    let closed = [&segment(1, 2, 1, 9, 0)[..], &[op::CLOSE + op::COUNT], &hog].concat();
    let seeds = [
        ("in-order", whole),
        ("swapped", swapped),
        ("backwards", filled),
        ("conflict", conflict.concat()),
        ("window", far.concat()),
        ("no-page", hog),
        ("probes", probes.concat()),
        ("pages-in-a-row", long),
        ("reopened", again),
        ("closed", closed),
    ];
    // The sequence numbers wrap in all of them.
    let start = |bytes: Vec<u8>| [open(0, u16::MAX), open(1, 3), bytes].concat();
    seeds.map(|(name, bytes)| (name.to_string(), start(bytes))).into()
}
