//! First bytes of clients, kept until a backend has acknowledged them: pages of a common pool.

/// Bytes of one page: a usual ClientHello with post-quantum key shares.
pub const PAGE_BYTES: usize = 2_048;
/// Pages that one stream may hold.
pub const PAGES_MAX: usize = 36;
/// Bytes that one stream may hold.
pub const STREAM_BYTES_MAX: u32 = (PAGES_MAX * PAGE_BYTES) as u32;
/// Runs of bytes that one stream may hold ahead of a gap.
const RUNS_MAX: usize = 4;
const NO_PAGE: u16 = u16::MAX;

/// What became of a segment's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The stream has grown: this many bytes are there without a gap.
    Grown(u32),
    /// They wait for a gap to be filled.
    Early,
    /// Nothing new.
    Old,
    /// Beyond the limit, or the pool is used up, or there are too many gaps.
    NoRoom,
}

/// Streams by slot number. All memory is taken at construction.
pub struct Held {
    streams: Box<[Stream]>,
    pages: Box<[[u8; PAGE_BYTES]]>,
    free: Vec<u16>,
}

#[derive(Clone)]
struct Stream {
    pages: [u16; PAGES_MAX],
    /// Bytes there without a gap, those released included.
    len: u32,
    /// Pages given back at the front.
    released: u32,
    /// Runs behind gaps: from, to. In no order; empty ones are free places.
    runs: [(u32, u32); RUNS_MAX],
}

const VACANT: Stream =
    Stream { pages: [NO_PAGE; PAGES_MAX], len: 0, released: 0, runs: [(0, 0); RUNS_MAX] };

impl Held {
    /// `pages` are shared by all `streams`; 65,535 at most are made.
    pub fn new(streams: usize, pages: usize) -> Held {
        let pages = pages.min(usize::from(NO_PAGE));
        Held {
            streams: vec![VACANT; streams].into_boxed_slice(),
            pages: vec![[0; PAGE_BYTES]; pages].into_boxed_slice(),
            free: (0..pages as u16).rev().collect(),
        }
    }

    pub fn pages_free(&self) -> usize {
        self.free.len()
    }

    /// Bytes of a stream that are there without a gap.
    pub fn len(&self, slot: usize) -> u32 {
        self.streams[slot].len
    }

    /// Gives everything back.
    pub fn clear(&mut self, slot: usize) {
        let stream = &mut self.streams[slot];
        self.free.extend(stream.pages.iter().filter(|&&page| page != NO_PAGE));
        *stream = VACANT;
    }

    /// Keeps bytes that begin `offset` bytes into the stream, as far as they are new and lie below
    /// `limit`. Bytes that are there without a gap are not changed by it.
    pub fn put(&mut self, slot: usize, offset: u32, bytes: &[u8], limit: u32) -> Put {
        let stream = &mut self.streams[slot];
        let end = offset.saturating_add(bytes.len() as u32);
        if end <= stream.len {
            return Put::Old;
        }
        let from = offset.max(stream.len);
        let end = end.min(limit.min(STREAM_BYTES_MAX));
        if from >= end {
            return Put::NoRoom;
        }
        let bytes = &bytes[(from - offset) as usize..(end - offset) as usize];
        let written = stream.write(from, bytes, &mut self.pages, &mut self.free);
        let end = from + written;
        if written == 0 {
            return Put::NoRoom;
        }
        if from > stream.len {
            return if stream.note(from, end) { Put::Early } else { Put::NoRoom };
        }
        stream.len = end;
        stream.join();
        Put::Grown(stream.len)
    }

    /// The bytes from `from` to `to`, which are there without a gap and not released, in pieces.
    pub fn pieces(&self, slot: usize, from: u32, to: u32) -> impl Iterator<Item = &[u8]> {
        self.run(slot, from, to.min(self.streams[slot].len))
    }

    /// The bytes that wait for a gap to be filled, in pieces, each with its offset.
    pub fn early(&self, slot: usize) -> impl Iterator<Item = (u32, &[u8])> {
        self.streams[slot].runs.iter().flat_map(move |&(from, to)| {
            let pieces = self.run(slot, from, to);
            pieces.scan(from, |at, piece| {
                let offset = *at;
                *at += piece.len() as u32;
                Some((offset, piece))
            })
        })
    }

    fn run(&self, slot: usize, from: u32, to: u32) -> impl Iterator<Item = &[u8]> {
        let stream = &self.streams[slot];
        let mut at = from;
        std::iter::from_fn(move || {
            let (place, start) = (at as usize / PAGE_BYTES, at as usize % PAGE_BYTES);
            let page = *stream.pages.get(place).filter(|_| at < to)?;
            let n = (PAGE_BYTES - start).min((to - at) as usize);
            at += n as u32;
            self.pages.get(usize::from(page)).map(|bytes| &bytes[start..start + n])
        })
    }

    /// Copies the bytes from `from` on into `out`.
    pub fn copy(&self, slot: usize, from: u32, out: &mut [u8]) {
        let mut at = 0;
        for piece in self.pieces(slot, from, from + out.len() as u32) {
            out[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
    }

    /// Takes `count` bytes out that begin at `at`. What precedes them moves up, so that what
    /// follows stays where it is and the stream begins at `count`. Nothing must have been released.
    pub fn cut(&mut self, slot: usize, at: u32, count: u32) {
        let stream = &self.streams[slot];
        debug_assert!(at + count <= stream.len && stream.released == 0);
        let mut chunk = [0; 256];
        let mut to = at;
        while to > 0 {
            let from = to.saturating_sub(chunk.len() as u32);
            let part = &mut chunk[..(to - from) as usize];
            self.copy(slot, from, part);
            self.streams[slot].write(from + count, part, &mut self.pages, &mut self.free);
            to = from;
        }
    }

    /// Whether bytes wait for a gap to be filled.
    pub fn has_gaps(&self, slot: usize) -> bool {
        self.streams[slot].runs.iter().any(|run| run.0 < run.1)
    }

    /// Gives back the pages that lie wholly before `offset`.
    pub fn release(&mut self, slot: usize, offset: u32) {
        let stream = &mut self.streams[slot];
        let pages = offset.min(stream.len) / PAGE_BYTES as u32;
        while stream.released < pages {
            let page = std::mem::replace(&mut stream.pages[stream.released as usize], NO_PAGE);
            if page != NO_PAGE {
                self.free.push(page);
            }
            stream.released += 1;
        }
    }
}

impl Stream {
    /// Writes as many bytes as there are pages for; returns how many.
    fn write(
        &mut self,
        from: u32,
        bytes: &[u8],
        pages: &mut [[u8; PAGE_BYTES]],
        free: &mut Vec<u16>,
    ) -> u32 {
        let (mut at, mut rest) = (from as usize, bytes);
        while !rest.is_empty() {
            let (place, start) = (at / PAGE_BYTES, at % PAGE_BYTES);
            if self.pages[place] == NO_PAGE {
                let Some(page) = free.pop() else { break };
                self.pages[place] = page;
            }
            let (now, later) = rest.split_at(rest.len().min(PAGE_BYTES - start));
            pages[usize::from(self.pages[place])][start..start + now.len()].copy_from_slice(now);
            at += now.len();
            rest = later;
        }
        at as u32 - from
    }

    /// Remembers a run behind a gap; `false` where too many are.
    fn note(&mut self, mut from: u32, mut to: u32) -> bool {
        for run in &mut self.runs {
            if run.0 < run.1 && from <= run.1 && run.0 <= to {
                (from, to) = (from.min(run.0), to.max(run.1));
                *run = (0, 0);
            }
        }
        let place = self.runs.iter_mut().find(|run| run.0 >= run.1);
        place.map(|run| *run = (from, to)).is_some()
    }

    /// Takes in the runs that the stream has reached.
    fn join(&mut self) {
        while let Some(run) = self.runs.iter_mut().find(|r| r.0 < r.1 && r.0 <= self.len) {
            self.len = self.len.max(run.1);
            *run = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i ^ i >> 8) as u8).collect()
    }

    fn all(held: &Held, slot: usize) -> Vec<u8> {
        let mut out = vec![0; held.len(slot) as usize];
        held.copy(slot, 0, &mut out);
        out
    }

    #[test]
    fn bytes_are_kept_and_given_back() {
        let data = stream(5_000);
        let mut held = Held::new(2, 4);
        assert_eq!(held.put(1, 0, &data[..3_000], 70_000), Put::Grown(3_000));
        assert_eq!(held.put(1, 4_000, &data[4_000..], 70_000), Put::Early);
        assert_eq!(held.put(1, 100, &[9; 100], 70_000), Put::Old);
        assert_eq!(held.put(1, 2_900, &data[2_900..4_500], 70_000), Put::Grown(5_000));
        assert_eq!((all(&held, 1), held.pages_free()), (data.clone(), 1));
        held.release(1, 4_095);
        assert_eq!(held.pages_free(), 2);
        held.release(1, 5_000);
        assert_eq!(held.pages_free(), 3);
        let mut tail = vec![0; 900];
        held.copy(1, 4_100, &mut tail);
        assert_eq!(tail, data[4_100..]);
        held.clear(1);
        assert_eq!((held.pages_free(), held.len(1)), (4, 0));
    }

    #[test]
    fn limits_hold() {
        let mut held = Held::new(2, 2);
        assert_eq!(held.put(0, 0, &[1; 100], 60), Put::Grown(60));
        assert_eq!(held.put(0, 60, &[1; 100], 60), Put::NoRoom);
        assert_eq!(held.put(0, u32::MAX - 5, &[1; 100], 60), Put::NoRoom);
        assert_eq!(held.put(0, 60, &[1; 9_000], 70_000), Put::Grown(4_096), "two pages");
        assert_eq!(held.put(1, 0, &[1], 70_000), Put::NoRoom);
        held.clear(0);
        for run in 0..RUNS_MAX as u32 {
            assert_eq!(held.put(0, 10 + 20 * run, &[1; 10], 70_000), Put::Early);
        }
        assert_eq!(held.put(0, 500, &[1; 10], 70_000), Put::NoRoom, "too many gaps");
        assert_eq!(held.put(0, 20, &[1; 10], 70_000), Put::Early, "joins two runs");
        assert_eq!(held.put(0, 0, &[1; 10], 70_000), Put::Grown(40));
    }

    #[test]
    fn bytes_can_be_taken_out_of_the_midst() {
        for (at, count) in [(0, 9), (24, 9), (256, 300), (2_045, 9), (4_991, 9), (4_000, 0)] {
            let data = stream(5_000);
            let mut held = Held::new(1, 4);
            held.put(0, 0, &data, 70_000);
            held.put(0, 5_100, &data[..10], 70_000);
            assert!(held.has_gaps(0));
            held.cut(0, at, count);
            let (at, count) = (at as usize, count as usize);
            let rest = [&data[..at], &data[at + count..]].concat();
            assert!(all(&held, 0)[count..] == rest, "{count} at {at}");
            assert_eq!(held.put(0, 5_000, &data[..100], 70_000), Put::Grown(5_110));
            assert!(!held.has_gaps(0));
        }
    }

    proptest! {
        #[test]
        fn any_cut_and_order_gives_the_stream(
            len in 1usize..30_000,
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            order in any::<u64>(),
        ) {
            let data = stream(len);
            let mut held = Held::new(1, PAGES_MAX);
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(len)).chain([0, len]).collect();
            cuts.sort_unstable();
            let mut rng = crate::base::hash::Rng::new(crate::base::Seed(order));
            // As a sender that sends again what was not taken.
            while (held.len(0) as usize) < len {
                let i = rng.below(cuts.len() as u32 - 1) as usize;
                held.put(0, cuts[i] as u32, &data[cuts[i]..cuts[i + 1]], STREAM_BYTES_MAX);
                let from = held.len(0) as usize;
                if rng.chance(0.2) {
                    held.put(0, from as u32, &data[from..len.min(from + 700)], STREAM_BYTES_MAX);
                }
            }
            prop_assert_eq!(all(&held, 0), data);
            held.clear(0);
            prop_assert_eq!(held.pages_free(), PAGES_MAX);
        }
    }
}
