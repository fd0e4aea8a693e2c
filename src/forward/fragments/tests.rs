//! Golden tables, limits, and any order.

use super::*;
use crate::base::Addr;
use crate::packet::{FramePool, PacketMeta, Verdict};
use proptest::prelude::*;

const MS: u64 = 1_000_000;
const OVERLAP: Verdict = Verdict::Drop(DropReason::FragmentOverlap);
const ALONE: Verdict = Verdict::Drop(DropReason::FragmentAlone);
const TINY: Verdict = Verdict::Drop(DropReason::FragmentTiny);
const NEXT: Verdict = Verdict::Next;

/// The table, and what came out of it.
struct Bench {
    pool: FramePool,
    fragments: Fragments,
    out: Vec<Packet>,
}

impl Bench {
    fn new() -> Bench {
        let (pool, fragments) = (FramePool::standalone(1_024, 2_048), Fragments::new(Seed(1)));
        Bench { pool, fragments, out: Vec::new() }
    }

    /// Gives in the part of datagram `id` from byte `from` to byte `to`, the first one with source
    /// port `port`. Returns what comes out: verdict, port, and the tag of each.
    fn give(
        &mut self,
        ms: u64,
        id: u32,
        (from, to, more): (u32, u32, bool),
        port: u16,
    ) -> Vec<(Verdict, u16, u8)> {
        self.give_as(ms, id, (from, to, more), port, true)
    }

    fn give_as(
        &mut self,
        ms: u64,
        id: u32,
        (from, to, more): (u32, u32, bool),
        port: u16,
        waits: bool,
    ) -> Vec<(Verdict, u16, u8)> {
        let frame = self.pool.take_with(&[(from / 8) as u8; 60]).expect("stock");
        let mut meta = PacketMeta::default();
        (meta.key.src, meta.key.dst, meta.key.proto) = (Addr::v4(1), Addr::v4(2), 17);
        if from == 0 {
            (meta.key.sport, meta.key.dport) = (port, 53);
        }
        let fragment = Fragment { id, from, to, more };
        let packet = Packet { frame, meta };
        self.fragments.admit(Nanos(ms * MS), packet, fragment, waits, &mut self.out);
        self.collect()
    }

    fn expire(&mut self, ms: u64) -> Vec<(Verdict, u16, u8)> {
        self.fragments.expire(Nanos(ms * MS), &mut self.out);
        self.collect()
    }

    fn collect(&mut self) -> Vec<(Verdict, u16, u8)> {
        let mut seen = Vec::new();
        for packet in self.out.drain(..) {
            let tag = packet.frame.bytes(self.pool.arena())[20];
            let meta = &packet.meta;
            assert!(meta.flags.has(PacketFlags::JOINED));
            if meta.verdict == NEXT && meta.key.sport != 0 {
                assert_eq!(meta.hash, meta.key.hash(Seed(1)));
            }
            seen.push((meta.verdict, meta.key.sport, tag));
            self.pool.put(packet.frame);
        }
        seen
    }

    fn finish(mut self) {
        self.fragments.drain(&mut self.out);
        let all = self.collect();
        assert!(all.iter().all(|(verdict, ..)| *verdict == Verdict::Drop(DropReason::Shutdown)));
        assert_eq!(self.pool.outstanding(), 0);
    }
}

/// Milliseconds, identification, part, source port of a first one, and what comes out.
type Step = (u64, u32, (u32, u32, bool), u16, &'static [(Verdict, u16, u8)]);

const GOLDEN: &[(&str, &[Step])] = &[
    (
        "in order",
        &[
            (0, 1, (0, 80, true), 7, &[(NEXT, 7, 0)]),
            (0, 1, (80, 160, true), 0, &[(NEXT, 7, 10)]),
            (0, 1, (160, 163, false), 0, &[(NEXT, 7, 20)]),
            (0, 1, (80, 160, true), 0, &[]),
        ],
    ),
    (
        "the last one first",
        &[
            (0, 1, (160, 163, false), 0, &[]),
            (0, 1, (80, 160, true), 0, &[]),
            (0, 1, (0, 80, true), 7, &[(NEXT, 7, 0), (NEXT, 7, 20), (NEXT, 7, 10)]),
        ],
    ),
    (
        "datagrams apart",
        &[
            (0, 1, (80, 160, true), 0, &[]),
            (0, 2, (0, 80, true), 9, &[(NEXT, 9, 0)]),
            (0, 1, (0, 80, true), 7, &[(NEXT, 7, 0), (NEXT, 7, 10)]),
        ],
    ),
    (
        "twice",
        &[
            (0, 1, (0, 80, true), 7, &[(NEXT, 7, 0)]),
            (0, 1, (0, 80, true), 7, &[(NEXT, 7, 0)]),
            (0, 1, (80, 160, true), 0, &[(NEXT, 7, 10)]),
            (0, 1, (80, 160, true), 0, &[(NEXT, 7, 10)]),
        ],
    ),
    (
        "overlap, and what follows",
        &[
            (0, 1, (0, 80, true), 7, &[(NEXT, 7, 0)]),
            (0, 1, (72, 160, true), 0, &[(OVERLAP, 0, 9)]),
            (0, 1, (160, 163, false), 0, &[(OVERLAP, 0, 20)]),
            (0, 1, (0, 80, true), 7, &[(OVERLAP, 7, 0)]),
        ],
    ),
    (
        "overlap of what waits",
        &[
            (0, 1, (80, 160, true), 0, &[]),
            (0, 1, (88, 160, true), 0, &[(OVERLAP, 0, 10), (OVERLAP, 0, 11)]),
        ],
    ),
    (
        "within another",
        &[
            (0, 1, (0, 160, true), 7, &[(NEXT, 7, 0)]),
            (0, 1, (80, 88, true), 0, &[(OVERLAP, 0, 10)]),
        ],
    ),
    (
        "two ends",
        &[
            (0, 1, (0, 80, true), 7, &[(NEXT, 7, 0)]),
            (0, 1, (160, 168, false), 0, &[(NEXT, 7, 20)]),
            (0, 1, (80, 96, false), 0, &[(OVERLAP, 0, 10)]),
        ],
    ),
    (
        "beyond the end",
        &[
            (0, 1, (80, 160, false), 0, &[]),
            (0, 1, (160, 240, true), 0, &[(OVERLAP, 0, 10), (OVERLAP, 0, 20)]),
        ],
    ),
    (
        "an end before what came",
        &[
            (0, 1, (160, 240, true), 0, &[]),
            (0, 1, (80, 160, false), 0, &[(OVERLAP, 0, 20), (OVERLAP, 0, 10)]),
        ],
    ),
    (
        "two beginnings",
        &[(0, 1, (0, 80, true), 7, &[(NEXT, 7, 0)]), (50, 1, (0, 80, true), 8, &[(OVERLAP, 8, 0)])],
    ),
    (
        "identifications come round",
        &[
            (0, 1, (0, 80, true), 7, &[(NEXT, 7, 0)]),
            (0, 1, (80, 88, false), 0, &[(NEXT, 7, 10)]),
            (1, 1, (0, 80, true), 8, &[(NEXT, 8, 0)]),
            (101, 1, (0, 160, true), 9, &[(NEXT, 9, 0)]),
            (101, 1, (160, 240, false), 0, &[(NEXT, 9, 20)]),
        ],
    ),
    ("nothing in it", &[(0, 1, (80, 80, true), 0, &[(TINY, 0, 10)])]),
    (
        "too late",
        &[
            (0, 1, (0, 80, true), 7, &[(NEXT, 7, 0)]),
            (1_999, 1, (80, 160, true), 0, &[(NEXT, 7, 10)]),
            (2_000, 1, (160, 240, true), 0, &[]),
        ],
    ),
];

#[test]
fn golden() {
    for (name, steps) in GOLDEN {
        let mut b = Bench::new();
        for (n, (ms, id, part, port, want)) in steps.iter().enumerate() {
            assert_eq!(b.give(*ms, *id, *part, *port), *want, "{name}, step {n}");
        }
        b.finish();
    }
}

#[test]
fn what_waits_too_long_is_dropped() {
    let mut b = Bench::new();
    b.give(0, 1, (80, 160, true), 0);
    b.give(5, 2, (80, 160, true), 0);
    assert_eq!(b.expire(1_999), []);
    assert_eq!(b.expire(2_000), [(ALONE, 0, 10)]);
    assert_eq!(b.give(2_001, 2, (0, 80, true), 7), [(NEXT, 7, 0), (NEXT, 7, 10)]);
    assert_eq!(b.give(2_002, 1, (0, 80, true), 8), [(NEXT, 8, 0)], "as if it came first");
    b.finish();
}

#[test]
fn who_does_not_wait_goes_on_without_ports() {
    let mut b = Bench::new();
    assert_eq!(b.give_as(0, 1, (80, 160, true), 0, false), [(NEXT, 0, 10)]);
    assert_eq!(b.give_as(0, 1, (0, 80, true), 7, false), [(NEXT, 7, 0)]);
    assert_eq!(b.give_as(0, 1, (160, 240, true), 0, false), [(NEXT, 7, 20)]);
    b.finish();
}

#[test]
fn limits_of_pieces_of_waiting_ones_and_of_datagrams() {
    let mut b = Bench::new();
    b.give(0, 1, (0, 8, true), 7);
    for piece in 1..PIECES_MAX as u32 {
        assert_eq!(b.give(0, 1, (piece * 8, piece * 8 + 8, true), 0)[0].0, NEXT);
    }
    let one_more = PIECES_MAX as u32 * 8;
    assert_eq!(b.give(0, 1, (one_more, one_more + 8, true), 0)[0].0, TINY);
    for piece in 1..=u32::from(HELD_PER_DATAGRAM_MAX) {
        assert_eq!(b.give(0, 2, (piece * 8, piece * 8 + 8, true), 0), []);
    }
    assert_eq!(b.give(0, 2, (8_000, 8_008, true), 0)[0].0, ALONE);
    let mut dropped = 0;
    for id in 3..3 + 2 * HELD_MAX as u32 {
        dropped += b.give(1, id, (80, 160, true), 0).len();
        assert!(b.fragments.len() <= HELD_MAX);
    }
    let given = usize::from(HELD_PER_DATAGRAM_MAX) + 2 * HELD_MAX;
    assert_eq!(given - dropped, b.fragments.len(), "the oldest go");
    assert_eq!(b.give(1, 2 + 2 * HELD_MAX as u32, (0, 80, true), 5).len(), 2, "not the newest");
    for id in 0..2 * DATAGRAMS_MAX as u32 {
        b.give(2, 10_000 + id, (0, 80, true), 6);
    }
    let last = 10_000 + 2 * DATAGRAMS_MAX as u32 - 1;
    assert_eq!(b.give(2, last, (80, 160, true), 0), [(NEXT, 6, 10)]);
    assert_eq!(b.expire(5_000).len(), b.pool.outstanding() as usize, "all else");
    b.finish();
}

proptest! {
    /// In any order, with some doubled: each comes out once for each time it came in, with the
    /// first one's port, and is nowhere left.
    #[test]
    fn any_order(
        cuts in prop::collection::btree_set(1..200u32, 1..20),
        order in prop::collection::vec(any::<u32>(), 60),
        doubled in 0..4usize,
    ) {
        let ends: Vec<u32> = cuts.iter().map(|cut| cut * 8).collect();
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let last = ends.len();
        let ends = ends.iter().copied().chain([1_700]);
        let mut parts: Vec<_> =
            starts.zip(ends).enumerate().map(|(n, (a, b))| (a, b, n != last)).collect();
        // The same once more, before all have come: what is whole is forgotten.
        let doubles: Vec<_> = parts.iter().take(doubled).copied().collect();
        let mut keys = order.iter().cycle();
        parts.sort_by_cached_key(|_| keys.next().copied());
        let at = parts.len() - 1;
        let tail = parts.split_off(at);
        parts.extend(doubles.iter().filter(|part| !tail.contains(part)));
        parts.extend(&tail);
        let mut b = Bench::new();
        let mut got = Vec::new();
        for part in &parts {
            got.extend(b.give(0, 1, *part, 7));
        }
        prop_assert!(b.fragments.is_empty());
        prop_assert!(got.iter().all(|(verdict, port, _)| (*verdict, *port) == (NEXT, 7)));
        let mut tags: Vec<_> = got.iter().map(|(.., tag)| *tag).collect();
        let mut want: Vec<_> = parts.iter().map(|part| (part.0 / 8) as u8).collect();
        tags.sort_unstable();
        want.sort_unstable();
        prop_assert_eq!(tags, want);
        b.finish();
    }

    /// Whatever comes, nothing is lost sight of.
    #[test]
    fn hostile(
        parts in prop::collection::vec(
            (0..3u32, 0..40u32, 0..12u32, any::<bool>(), 1..4u16, 0..3_000u64), 1..200),
    ) {
        let mut b = Bench::new();
        let (mut given, mut came_out, mut ms) = (0, 0, 0);
        for (id, from, len, more, port, later) in parts {
            // Mostly at once, sometimes much later.
            ms += later.saturating_sub(2_900) * 20;
            given += 1;
            came_out += b.give(ms, id, (from * 8, (from + len) * 8, more), port).len();
            came_out += b.expire(ms).len();
            prop_assert_eq!(given - came_out, b.fragments.len());
        }
        b.finish();
    }
}
