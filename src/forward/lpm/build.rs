//! Builds the trie of a sorted list of prefixes, from the top down.

use super::{
    ENTRIES_A_LINE, Entry, FANOUT, Line, Lpm, NARROW_ENDS, NARROW_RUNS_MAX, PREFIXES_MAX, Skip,
    VALUE_MAX, WIDE_RUNS_MAX,
};
use crate::base::mem::huge_table;
use crate::base::{Addr, Prefix};

/// With fewer prefixes every node lists all its answers: that is the fastest, and small enough.
const RUNS_FROM: usize = 1_024;
/// With so many IPv4 prefixes a table begins with two bytes at once, in 256 KiB.
const DIRECT_FROM: usize = 8_192;
/// With so many a table begins with three bytes at once, in 32 MiB: what they take otherwise is
/// too much for the caches.
const FLAT_FROM: usize = 131_072;
/// With so many IPv6 prefixes a table begins with ranges.
const RANGES_FROM: usize = 8_192;
/// Lines that a prefix takes at most: two ends of ranges, each in a bucket of its own, and a node
/// behind; in a trie alone two nodes.
const LINES_WITH_RANGES: usize = 9;
const LINES: usize = 4;
const DIRECT_LEN: u32 = 1 << 16;
/// The byte that IPv4 addresses begin at.
const V4_START: u8 = 12;

/// How a table is stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    /// Nodes may list runs.
    pub lists_runs: bool,
    /// IPv4 begins with two bytes at once.
    pub direct: bool,
    /// IPv4 begins with three bytes at once, where that holds the prefixes.
    pub flat: bool,
    /// IPv6 begins with ranges.
    pub ranges: bool,
}

impl Lpm {
    /// Of equal prefixes the last one given counts.
    ///
    /// # Panics
    /// On more than [`PREFIXES_MAX`]: whoever collects them stops there.
    pub fn build(prefixes: &[(Prefix, u32)]) -> Lpm {
        let v4 = prefixes.iter().filter(|(p, _)| p.is_v4()).count();
        let v6 = prefixes.len() - v4;
        let form = Form {
            lists_runs: prefixes.len() >= RUNS_FROM,
            direct: v4 >= DIRECT_FROM,
            flat: v4 >= FLAT_FROM,
            ranges: v6 >= RANGES_FROM
                && LINES * v4 + LINES_WITH_RANGES * v6 <= Entry::INDEX_MASK as usize,
        };
        Lpm::build_as(prefixes, form)
    }

    /// In the form that is told.
    pub(super) fn build_as(prefixes: &[(Prefix, u32)], form: Form) -> Lpm {
        assert!(prefixes.len() <= PREFIXES_MAX, "{} prefixes", prefixes.len());
        let mut lpm = Lpm::default();
        let mut sorted: Vec<_> = prefixes.to_vec();
        // Stable: equal prefixes keep their order. A prefix comes before all that it covers.
        sorted.sort_by_key(|&(p, _)| (!p.is_v4(), p));
        let split = sorted.partition_point(|(p, _)| p.is_v4());
        let (v4, v6) = sorted.split_at(split);
        let mut trie = Builder { lpm: &mut lpm, lists_runs: form.lists_runs };
        let is_flat = form.flat && Lpm::fits_flat(v4);
        if is_flat {
            trie.lpm.flat = trie.flat(v4);
            trie.lpm.root_v4 = Entry(Entry::NODE | Entry::DIRECT);
        } else {
            trie.lpm.root_v4 = trie.root(v4, V4_START);
        }
        if form.ranges {
            trie.lpm.ranges = trie.ranges(v6);
            trie.lpm.root_v6 = Entry(Entry::NODE | Entry::DIRECT);
        } else {
            trie.lpm.root_v6 = trie.root(v6, 0);
        }
        if form.direct && !is_flat {
            lpm.go_direct();
        }
        // Exactly as large as needed, and on huge pages.
        lpm.entries = moved(&lpm.entries);
        lpm.lines = moved(&lpm.lines);
        lpm.skips.shrink_to_fit();
        lpm
    }

    fn go_direct(&mut self) {
        let direct: Vec<_> = (0..DIRECT_LEN).map(|both| self.after_two(both as u16)).collect();
        self.direct = direct;
        self.root_v4 = Entry(Entry::NODE | Entry::DIRECT);
    }

    /// Where the first two bytes of an IPv4 address lead to, as far as nodes decide just these.
    fn after_two(&self, both: u16) -> Entry {
        let mut entry = self.root_v4;
        for (byte, value) in (u32::from(V4_START)..).zip(both.to_be_bytes()) {
            let decides = entry.0 >> Entry::BYTE_SHIFT & 15;
            if !entry.is_node() || entry.0 & Entry::SKIPPED != 0 || decides != byte {
                break;
            }
            entry = match entry.0 & Entry::OTHER {
                0 => self.entries[entry.index() * FANOUT + usize::from(value)],
                _ => self.by_runs(entry, value),
            };
        }
        entry
    }
}

fn moved<T: Copy>(from: &[T]) -> Vec<T> {
    let mut to = huge_table(from.len());
    to.extend_from_slice(from);
    to
}

pub(super) struct Builder<'a> {
    pub lpm: &'a mut Lpm,
    lists_runs: bool,
}

impl Builder<'_> {
    /// The trie of one family, whose addresses begin at byte `start`.
    fn root(&mut self, mut list: &[(Prefix, u32)], start: u8) -> Entry {
        let mut default = Entry::NONE;
        while let [(prefix, value), rest @ ..] = list
            && prefix.len128() <= 8 * start
        {
            default = leaf(*value);
            list = rest;
        }
        self.subtree(list, start, default)
    }

    /// The trie of prefixes that are longer than `byte` bytes and agree in them. `inherited`
    /// answers where none of them does.
    pub(super) fn subtree(&mut self, list: &[(Prefix, u32)], byte: u8, inherited: Entry) -> Entry {
        let [(first, _), ..] = list else { return inherited };
        let at = branching_byte(list, byte);
        let mut answers = [inherited; FANOUT];
        for (prefix, value) in list.iter().filter(|(p, _)| last_byte(*p) == at) {
            let from = usize::from(byte_of(prefix.addr(), at));
            let count = 1usize << (8 * (at + 1) - prefix.len128());
            answers[from..from + count].fill(leaf(*value));
        }
        let mut rest = list;
        while let [(prefix, _), ..] = rest {
            let value = byte_of(prefix.addr(), at);
            let same = rest.partition_point(|(p, _)| byte_of(p.addr(), at) == value);
            let (group, others) = rest.split_at(same);
            // Those that end in this node stand before the longer ones.
            let longer = group.partition_point(|(p, _)| last_byte(*p) == at);
            let slot = &mut answers[usize::from(value)];
            *slot = self.subtree(&group[longer..], at + 1, *slot);
            rest = others;
        }
        let (key, mask) = leading_bytes(first.addr(), at);
        self.put(&answers, at, at > byte, Skip { key, mask, fallback: inherited })
    }

    /// Stores a node, in the smallest form that holds it.
    fn put(&mut self, answers: &[Entry; FANOUT], byte: u8, skipped: bool, skip: Skip) -> Entry {
        let lpm = &mut *self.lpm;
        let (mut ends, mut runs) = (Line::UNUSED, vec![answers[0]]);
        for (last, pair) in answers.windows(2).enumerate().filter(|(_, pair)| pair[0] != pair[1]) {
            if let Some(end) = ends.0.get_mut(runs.len() - 1) {
                *end = last as u8;
            }
            runs.push(pair[1]);
        }
        if !self.lists_runs || runs.len() > WIDE_RUNS_MAX {
            let index = lpm.skips.len();
            lpm.skips.push(skip);
            lpm.entries.extend_from_slice(answers);
            return node(index, 0, byte, skipped);
        }
        if skipped {
            lpm.lines.push(skip.to_line());
        }
        let index = lpm.lines.len();
        let kind = if runs.len() <= NARROW_RUNS_MAX {
            let first = NARROW_ENDS / size_of::<Entry>();
            runs.iter().enumerate().for_each(|(i, run)| ends.set_entry(first + i, *run));
            lpm.lines.push(ends);
            Entry::NARROW
        } else {
            lpm.lines.push(ends);
            lpm.lines.extend(runs.chunks(ENTRIES_A_LINE).map(|some| {
                let mut line = Line::UNUSED;
                some.iter().enumerate().for_each(|(i, run)| line.set_entry(i, *run));
                line
            }));
            Entry::WIDE
        };
        node(index, kind, byte, skipped)
    }
}

impl Entry {
    /// A bucket of so many lines of ends; none: of a single line.
    pub(super) fn bucket(index: usize, lines: usize) -> Entry {
        node(index, Entry::DIRECT, lines as u8, true)
    }
}

fn node(index: usize, kind: u32, byte: u8, skipped: bool) -> Entry {
    assert!(index <= Entry::INDEX_MASK as usize, "a trie of a gigabyte");
    let skipped = if skipped { Entry::SKIPPED } else { 0 };
    Entry(Entry::NODE | skipped | kind | u32::from(byte) << Entry::BYTE_SHIFT | index as u32)
}

pub(super) fn leaf(value: u32) -> Entry {
    debug_assert!(value <= VALUE_MAX);
    Entry(value + 1)
}

/// The byte whose node a prefix ends in. Only for prefixes longer than 0.
fn last_byte(p: Prefix) -> u8 {
    (p.len128() - 1) / 8
}

fn byte_of(addr: Addr, byte: u8) -> u8 {
    addr.to_bytes()[usize::from(byte)]
}

/// The first byte from `byte` on in which a prefix ends or two of them differ.
fn branching_byte(list: &[(Prefix, u32)], byte: u8) -> u8 {
    let ends = list.iter().map(|(p, _)| last_byte(*p)).min().unwrap_or(byte);
    let (Some((first, _)), Some((last, _))) = (list.first(), list.last()) else { return byte };
    // The list is sorted: what the ends share, all share.
    let (a, b) = (first.addr(), last.addr());
    (byte..ends).find(|&i| byte_of(a, i) != byte_of(b, i)).unwrap_or(ends)
}

/// An address cut to `n` bytes, and the mask of these.
fn leading_bytes(addr: Addr, n: u8) -> (Addr, Addr) {
    let ones = |bytes: u8| if bytes == 0 { 0 } else { u64::MAX << (64 - 8 * bytes) };
    let mask = Addr { hi: ones(n.min(8)), lo: ones(n.saturating_sub(8)) };
    (Addr { hi: addr.hi & mask.hi, lo: addr.lo & mask.lo }, mask)
}
