//! The beginning of TCP byte streams, put in order (RFC 9293, section 3.4).
//!
//! Packets are not held back: they pass, and what inspection needs of them is delivered in order.
//! In order nothing is copied; bytes that come too early wait in pages of a common pool.

/// Bytes of one page.
pub const PAGE_BYTES: usize = 2048;
/// Pages that one stream may hold: its window is this many pages from the one it reads.
pub const WINDOW_PAGES: usize = 32;
/// Bytes beyond the next expected one that are held for certain.
pub const WINDOW_BYTES: usize = (WINDOW_PAGES - 1) * PAGE_BYTES;

// A page's place is the stream offset modulo the window, also when the offset wraps.
const _: () = assert!(PAGE_BYTES.is_power_of_two() && WINDOW_PAGES.is_power_of_two());
const WORDS: usize = PAGE_BYTES / 64;
const NO_PAGE: u16 = u16::MAX;

/// What became of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// Something was delivered.
    Delivered,
    /// It came early and waits, as far as it lies in the window.
    Held,
    /// Nothing new: empty, a duplicate, or a keep-alive probe.
    Old,
    /// Wholly beyond the window.
    OutOfWindow,
    /// It came early and no page was free, so at least a part was not kept.
    NoPage,
}

/// Streams by slot number. All memory is taken at construction.
pub struct Reassembler {
    streams: Vec<Stream>,
    pages: Vec<Page>,
    free: Vec<u16>,
}

#[derive(Clone)]
struct Stream {
    /// Sequence number of the next byte to deliver.
    next: u32,
    /// Bytes delivered, modulo 2^32: places bytes in pages.
    offset: u32,
    pages_held: u16,
    /// Two copies of a byte differed.
    conflicts: bool,
    pages: [u16; WINDOW_PAGES],
}

#[derive(Clone)]
struct Page {
    /// A bit for each byte that is held.
    held: [u64; WORDS],
    bytes: [u8; PAGE_BYTES],
}

impl Reassembler {
    /// `pages` are shared by all `streams`; 65,535 at most are made.
    pub fn new(streams: usize, pages: usize) -> Reassembler {
        let mut reassembler =
            Reassembler { streams: Vec::new(), pages: Vec::new(), free: Vec::new() };
        reassembler.grow(streams, pages);
        reassembler
    }

    /// Takes memory for more streams and pages, as [`Reassembler::new`] does: only for those who
    /// may allocate as they go.
    pub fn grow(&mut self, streams: usize, pages: usize) {
        let pages_none = [NO_PAGE; WINDOW_PAGES];
        let stream =
            Stream { next: 0, offset: 0, pages_held: 0, conflicts: false, pages: pages_none };
        self.streams.resize(self.streams.len() + streams, stream);
        let from = self.pages.len();
        let to = (from + pages).min(usize::from(NO_PAGE));
        self.pages.resize(to, Page { held: [0; WORDS], bytes: [0; PAGE_BYTES] });
        // Room for all of them, so that giving one back never allocates.
        self.free.reserve_exact(to - self.free.len());
        self.free.extend((from as u16..to as u16).rev());
    }

    /// Pages made so far.
    pub fn pages_made(&self) -> usize {
        self.pages.len()
    }

    /// Begins a stream in a slot, giving up what the slot held. `first` is the sequence number of
    /// its first byte: the one after the SYN's.
    ///
    /// # Panics
    /// As all methods, on a slot number beyond those made.
    pub fn open(&mut self, slot: usize, first: u32) {
        self.close(slot);
        let stream = &mut self.streams[slot];
        stream.next = first;
        stream.offset = 0;
        stream.conflicts = false;
    }

    /// Gives the slot's pages back.
    pub fn close(&mut self, slot: usize) {
        let stream = &mut self.streams[slot];
        if stream.pages_held > 0 {
            for place in 0..WINDOW_PAGES {
                stream.release(place, &mut self.pages, &mut self.free);
            }
        }
    }

    /// Takes a segment and delivers, in order, all bytes that follow without a gap. A SYN takes up
    /// one sequence number before its payload.
    ///
    /// Every byte is delivered once. Where copies differ, bytes that can be delivered at once win
    /// over those that wait, as in Linux (`tcp_data_queue`), and among waiting ones the first copy
    /// wins.
    pub fn push(
        &mut self,
        slot: usize,
        seq: u32,
        syn: bool,
        payload: &[u8],
        mut deliver: impl FnMut(&[u8]),
    ) -> Pushed {
        let stream = &mut self.streams[slot];
        let ahead = seq.wrapping_add(u32::from(syn)).wrapping_sub(stream.next) as i32;
        if ahead > 0 {
            return self.hold(slot, ahead as usize, payload);
        }
        let fresh = payload.get(ahead.unsigned_abs() as usize..).unwrap_or_default();
        if fresh.is_empty() {
            return Pushed::Old;
        }
        deliver(fresh);
        if stream.pages_held > 0 {
            stream.conflicts |= stream.contradicts(fresh, &self.pages);
        }
        stream.advance(fresh.len(), &mut self.pages, &mut self.free);
        while let Some((page, from)) = stream.current() {
            let run = self.pages[page].run(from);
            if run == 0 {
                if self.pages[page].is_empty_from(from) {
                    let (place, _) = locate(stream.offset);
                    stream.release(place, &mut self.pages, &mut self.free);
                }
                break;
            }
            deliver(&self.pages[page].bytes[from..from + run]);
            stream.advance(run, &mut self.pages, &mut self.free);
        }
        Pushed::Delivered
    }

    /// Pages that hold no bytes.
    pub fn pages_free(&self) -> usize {
        self.free.len()
    }

    /// Sequence number of the next byte to deliver.
    pub fn next_seq(&self, slot: usize) -> u32 {
        self.streams[slot].next
    }

    /// Whether a segment that came early lies in the window as a whole.
    pub fn holds(&self, slot: usize, seq: u32, len: usize) -> bool {
        let ahead = seq.wrapping_sub(self.streams[slot].next) as usize;
        ahead + len <= WINDOW_BYTES
    }

    /// Whether bytes wait for a gap to be filled.
    pub fn has_gap(&self, slot: usize) -> bool {
        self.streams[slot].pages_held > 0
    }

    /// Whether copies of the same byte differed, one of which waited to be delivered. Of bytes that
    /// were delivered no copy is kept to compare with.
    pub fn conflicts(&self, slot: usize) -> bool {
        self.streams[slot].conflicts
    }

    /// Keeps what lies `ahead` bytes beyond the next expected one.
    fn hold(&mut self, slot: usize, ahead: usize, payload: &[u8]) -> Pushed {
        if payload.is_empty() {
            return Pushed::Old;
        }
        if ahead >= WINDOW_BYTES {
            return Pushed::OutOfWindow;
        }
        let stream = &mut self.streams[slot];
        let mut rest = &payload[..payload.len().min(WINDOW_BYTES - ahead)];
        let mut offset = (stream.offset as usize).wrapping_add(ahead);
        while !rest.is_empty() {
            let (place, from) = locate(offset as u32);
            let n = rest.len().min(PAGE_BYTES - from);
            if stream.pages[place] == NO_PAGE {
                let Some(page) = self.free.pop() else { return Pushed::NoPage };
                self.pages[usize::from(page)].held.fill(0);
                stream.pages[place] = page;
                stream.pages_held += 1;
            }
            let same = self.pages[usize::from(stream.pages[place])].fill(from, &rest[..n]);
            stream.conflicts |= !same;
            rest = &rest[n..];
            offset = offset.wrapping_add(n);
        }
        Pushed::Held
    }
}

/// Which place a stream offset has: its page in the window, and the byte in the page.
#[inline]
fn locate(offset: u32) -> (usize, usize) {
    let offset = offset as usize;
    (offset / PAGE_BYTES % WINDOW_PAGES, offset % PAGE_BYTES)
}

impl Stream {
    /// The page that the next byte would wait in, if there is one, and the byte's place there.
    fn current(&self) -> Option<(usize, usize)> {
        let (place, from) = locate(self.offset);
        let page = self.pages[place];
        (page != NO_PAGE).then_some((usize::from(page), from))
    }

    /// Whether bytes that are delivered now differ from copies that wait.
    fn contradicts(&self, fresh: &[u8], pages: &[Page]) -> bool {
        let (_, from) = locate(self.offset);
        let (first, rest) = fresh.split_at(fresh.len().min(PAGE_BYTES - from));
        let parts = std::iter::once((from, first)).chain(rest.chunks(PAGE_BYTES).map(|c| (0, c)));
        let first_place = locate(self.offset).0;
        parts.take(WINDOW_PAGES).enumerate().any(|(i, (from, part))| {
            let page = self.pages[(first_place + i) % WINDOW_PAGES];
            pages.get(usize::from(page)).is_some_and(|page| !page.agrees(from, part))
        })
    }

    /// Moves on by `n` delivered bytes, giving back the pages that are behind.
    fn advance(&mut self, n: usize, pages: &mut [Page], free: &mut Vec<u16>) {
        let (first, from) = locate(self.offset);
        if self.pages_held > 0 {
            let passed = (from + n) / PAGE_BYTES;
            for i in 0..passed.min(WINDOW_PAGES) {
                self.release((first + i) % WINDOW_PAGES, pages, free);
            }
        }
        self.next = self.next.wrapping_add(n as u32);
        self.offset = self.offset.wrapping_add(n as u32);
    }

    fn release(&mut self, place: usize, pages: &mut [Page], free: &mut Vec<u16>) {
        let page = std::mem::replace(&mut self.pages[place], NO_PAGE);
        if page != NO_PAGE {
            debug_assert!(free.len() < pages.len(), "page given back twice");
            free.push(page);
            self.pages_held -= 1;
        }
    }
}

impl Page {
    /// Keeps bytes from place `from` on, except where some are held already. `false` where those
    /// differ.
    fn fill(&mut self, from: usize, bytes: &[u8]) -> bool {
        let mut same = true;
        for (at, &byte) in (from..).zip(bytes) {
            let bit = 1u64 << (at % 64);
            if self.held[at / 64] & bit == 0 {
                self.held[at / 64] |= bit;
                self.bytes[at] = byte;
            } else {
                same &= self.bytes[at] == byte;
            }
        }
        same
    }

    /// Whether the bytes held from place `from` on are these.
    fn agrees(&self, from: usize, bytes: &[u8]) -> bool {
        let held = |at: usize| self.held[at / 64] & 1u64 << (at % 64) != 0;
        (from..).zip(bytes).all(|(at, &byte)| !held(at) || self.bytes[at] == byte)
    }

    /// Whether no byte is held at place `from` or later.
    fn is_empty_from(&self, from: usize) -> bool {
        self.held[from / 64] >> (from % 64) == 0
            && self.held[from / 64 + 1..].iter().all(|&word| word == 0)
    }

    /// Bytes held without a gap from place `from` on.
    fn run(&self, from: usize) -> usize {
        let mut at = from;
        while at < PAGE_BYTES {
            let left = 64 - at % 64;
            let ones = ((self.held[at / 64] >> (at % 64)).trailing_ones() as usize).min(left);
            at += ones;
            if ones < left {
                break;
            }
        }
        at - from
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::HashMap;

    use super::*;

    /// One stream and what it delivered.
    struct Rig {
        reassembler: Reassembler,
        got: Vec<u8>,
    }

    impl Rig {
        fn new(first: u32, pages: usize) -> Rig {
            let mut reassembler = Reassembler::new(2, pages);
            reassembler.open(1, first);
            Rig { reassembler, got: Vec::new() }
        }

        fn push(&mut self, seq: u32, payload: &[u8]) -> Pushed {
            let got = &mut self.got;
            self.reassembler.push(1, seq, false, payload, |bytes| got.extend_from_slice(bytes))
        }
    }

    fn stream(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i ^ i >> 8) as u8).collect()
    }

    #[test]
    fn in_order_segments_pass_uncopied() {
        let data = stream(100);
        let mut reassembler = Reassembler::new(1, 0);
        reassembler.open(0, 5);
        let mut seen = Vec::new();
        reassembler.push(0, 5, false, &data, |bytes| seen.push(bytes.as_ptr()));
        assert_eq!(seen, [data.as_ptr()]);
    }

    #[test]
    fn a_syn_takes_up_one_number() {
        let mut reassembler = Reassembler::new(1, 1);
        reassembler.open(0, 1_001);
        let mut got = Vec::new();
        let pushed = reassembler.push(0, 1_000, true, b"ab", |b| got.extend_from_slice(b));
        assert_eq!((pushed, &got[..]), (Pushed::Delivered, &b"ab"[..]));
        assert_eq!(reassembler.next_seq(0), 1_003);
        assert_eq!(reassembler.push(0, 1_000, true, b"", |_| ()), Pushed::Old);
    }

    #[test]
    fn keep_alive_probes_and_duplicates_are_ignored() {
        let mut rig = Rig::new(10, 1);
        assert_eq!(rig.push(10, b"hello"), Pushed::Delivered);
        assert_eq!(rig.push(14, b"X"), Pushed::Old, "a probe of one byte");
        assert_eq!(rig.push(14, b""), Pushed::Old, "a probe of none");
        assert_eq!(rig.push(10, b"HELLO"), Pushed::Old);
        assert_eq!(rig.push(12, b"LLO!"), Pushed::Delivered, "only its last byte is new");
        assert_eq!(rig.got, b"hello!");
    }

    #[test]
    fn waiting_bytes_follow_when_the_gap_is_filled() {
        let mut rig = Rig::new(u32::MAX - 1, 2);
        assert_eq!(rig.push(3, b"fghij"), Pushed::Held);
        assert!(rig.reassembler.has_gap(1));
        assert_eq!(rig.push(u32::MAX - 1, b"abcde"), Pushed::Delivered, "across the wrap");
        assert_eq!(rig.got, b"abcdefghij");
    }

    #[test]
    fn pages_come_back() {
        let data = stream(3 * PAGE_BYTES);
        let mut rig = Rig::new(0, 4);
        rig.push(1, &data[1..]);
        assert_eq!(rig.reassembler.pages_free(), 1);
        rig.push(0, &data[..1]);
        assert_eq!(rig.got, data);
        assert_eq!(rig.reassembler.pages_free(), 4);
        rig.push(4 * PAGE_BYTES as u32, &data);
        rig.reassembler.close(1);
        assert_eq!(rig.reassembler.pages_free(), 4);
    }

    #[test]
    fn limits_hold() {
        let mut rig = Rig::new(0, 1);
        assert_eq!(rig.push(WINDOW_BYTES as u32, b"x"), Pushed::OutOfWindow);
        assert_eq!(rig.push(0x7fff_ffff, b"x"), Pushed::OutOfWindow);
        assert_eq!(rig.push(0x8000_0001, b"x"), Pushed::Old);
        let edge = WINDOW_BYTES as u32 - 1;
        assert_eq!(rig.push(edge, b"xy"), Pushed::Held, "its first byte is inside");
        assert_eq!(rig.push(1, b"x"), Pushed::NoPage);
        let data = stream(WINDOW_BYTES + 10);
        assert_eq!(rig.push(0, &data), Pushed::Delivered, "in order there is no limit");
        assert_eq!(rig.got, data);
        assert_eq!(rig.reassembler.pages_free(), 1);
    }

    /// The rule for conflicting copies, byte by byte.
    #[derive(Default)]
    struct Model {
        held: HashMap<usize, u8>,
        got: Vec<u8>,
    }

    impl Model {
        /// Whether a byte differs from one that waits.
        fn push(&mut self, at: usize, payload: &[u8]) -> bool {
            let next = self.got.len();
            let mut differs = false;
            for (i, &byte) in (at..).zip(payload) {
                differs |= i >= next && self.held.get(&i).is_some_and(|&held| held != byte);
                if at > next && i < next + WINDOW_BYTES {
                    self.held.entry(i).or_insert(byte);
                } else if at <= next && i >= next {
                    self.got.push(byte);
                }
            }
            while let Some(&byte) = self.held.get(&self.got.len()).filter(|_| at <= next) {
                self.got.push(byte);
            }
            differs
        }
    }

    proptest! {
        #[test]
        fn any_cut_order_and_repetition_gives_the_stream(
            len in 1usize..20_000,
            first in any::<u32>(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
            repeats in prop::collection::vec(any::<(prop::sample::Index, u16)>(), 0..20),
            order in any::<u64>(),
        ) {
            let data = stream(len);
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(len)).chain([0, len]).collect();
            cuts.sort_unstable();
            let mut parts: Vec<(usize, usize)> = cuts.windows(2).map(|w| (w[0], w[1])).collect();
            for (from, size) in repeats {
                let from = from.index(len);
                parts.push((from, (from + usize::from(size)).min(len)));
            }
            let mut rng = crate::base::hash::Rng::new(crate::base::Seed(order));
            for i in (1..parts.len()).rev() {
                parts.swap(i, rng.below(i as u32 + 1) as usize);
            }
            let mut rig = Rig::new(first, WINDOW_PAGES);
            for (from, to) in parts {
                rig.push(first.wrapping_add(from as u32), &data[from..to]);
            }
            prop_assert_eq!(&rig.got, &data);
            prop_assert_eq!(rig.reassembler.pages_free(), WINDOW_PAGES);
        }

        #[test]
        fn conflicting_copies_follow_the_rule(
            segments in prop::collection::vec((0usize..9_000, 0usize..3_000, any::<u8>()), 1..60),
        ) {
            let mut rig = Rig::new(77, WINDOW_PAGES);
            let (mut model, mut conflicts) = (Model::default(), false);
            for (at, len, fill) in segments {
                let payload = vec![fill; len];
                rig.push(77 + at as u32, &payload);
                let differs = model.push(at, &payload);
                conflicts |= differs;
                prop_assert_eq!(rig.reassembler.conflicts(1), conflicts);
                prop_assert_eq!(&rig.got, &model.got);
            }
        }
    }
}
