//! IPv6 tables of many routes: after the first two bytes an array of slots, and in each slot the
//! ends of the ranges that prefixes up to /48 cut it into (a range search as DXR's: Zec, Rizzo and
//! Mikuc, 2012). Providers' blocks are far apart and sparse, so that most of a trie's nodes there
//! hold one route; a range costs eight bytes instead, and an address three reads of memory that
//! don't fit the caches, however deep its route. What is longer than /48 goes on in the trie.

use super::build::{Builder, leaf};
use super::{ENTRIES_A_LINE, Entry, LINE_BYTES, Line, Lpm};
use crate::base::mem::{huge_table, prefetch};
use crate::base::{Addr, Prefix};

/// Bits before the slots, and behind those that ranges are cut by.
const HEAD_BITS: u8 = 16;
const KEY_BITS: u8 = 48;
/// Slots of one head at most, as bits.
const SLOT_BITS_MAX: u8 = 16;
/// Lines of ends that a bucket may have; a slot that would need more goes on in the trie.
const END_LINES_MAX: usize = 15;
/// Lines that most buckets have at most.
const FEW_LINES: usize = 3;

// They stand in an entry where others name a byte, and all entries of a line have their own end.
const _: () = assert!(END_LINES_MAX < 16 && ENTRIES_A_LINE == LINE_BYTES / size_of::<u32>());

/// By the first two bytes of an address.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    heads: Vec<Head>,
    slots: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Head {
    /// An entry, or where its slots begin.
    at: u32,
    /// Bits that choose among its slots, plus one; 0: it is an entry.
    bits: u32,
}

/// The first of the keys that have an answer, up to the next one's.
type Run = (u32, Entry);

impl Ranges {
    pub fn memory_bytes(&self) -> usize {
        self.heads.capacity() * size_of::<Head>() + self.slots.capacity() * size_of::<Entry>()
    }

    fn ask(&self, addr: Addr) {
        let head = self.head(addr);
        prefetch(&self.slots, head.slot(addr).unwrap_or(0));
    }

    /// The entry of an address's slot.
    #[inline(always)]
    pub fn slot(&self, addr: Addr) -> Entry {
        let head = self.head(addr);
        head.slot(addr).map_or(Entry(head.at), |slot| self.slots[slot])
    }

    #[inline(always)]
    fn head(&self, addr: Addr) -> Head {
        self.heads[(addr.hi >> (64 - HEAD_BITS)) as usize]
    }
}

impl Head {
    /// Which of the slots is an address's; `None` where all have the same entry.
    #[inline(always)]
    fn slot(self, addr: Addr) -> Option<usize> {
        let bits = self.bits.checked_sub(1)?;
        Some(self.at as usize + ((u64::from(key(addr)) << bits) >> 32) as usize)
    }
}

impl Lpm {
    /// Asks the cache for what look-ups of these addresses will read, in tables of many routes: of
    /// IPv6 first the slot, then what lies in it. A look-up alone waits for one read of memory
    /// after the other.
    #[inline]
    pub fn ask(&self, addrs: impl Iterator<Item = Addr> + Clone) {
        if self.flat.is_in_use() {
            addrs.clone().filter(|addr| addr.is_v4()).for_each(|addr| self.flat.ask(addr));
        }
        if self.root_v6 != Entry(Entry::NODE | Entry::DIRECT) {
            return;
        }
        let addrs = addrs.filter(|addr| !addr.is_v4());
        addrs.clone().for_each(|addr| self.ranges.ask(addr));
        for slot in addrs.map(|addr| self.ranges.slot(addr)) {
            if slot.0 & Entry::BUCKET == Entry::BUCKET {
                let (first, lines) = (slot.index(), slot.byte());
                for at in 0..lines.min(FEW_LINES) {
                    prefetch(&self.lines, first + at);
                    prefetch(&self.lines, first + lines + at);
                }
            }
        }
    }

    /// The answer of the range that an address lies in.
    #[inline(always)]
    pub(super) fn of_bucket(&self, bucket: Entry, addr: Addr) -> Entry {
        let (first, lines, key) = (bucket.index(), bucket.byte(), key(addr));
        // All that will be read is asked for at once.
        (0..FEW_LINES).for_each(|at| prefetch(&self.lines, first + lines + at));
        if lines <= FEW_LINES {
            // So many are mostly enough, and buckets differ: no branch that can't be foretold. The
            // last end of a line says whether the run lies behind it; one line is looked into.
            let passed = (0..FEW_LINES - 1).map(|at| {
                let last = self.lines[first + at.min(lines - 1)].entry(ENTRIES_A_LINE - 1).0;
                usize::from(last < key) & usize::from(at + 1 < lines)
            });
            let line = passed.sum::<usize>();
            let run = ends_before(&self.lines[first + line], key) as usize;
            return self.lines[first + lines + line].entry(run);
        }
        let ends = &self.lines[first..first + lines];
        let run = ends.iter().map(|line| ends_before(line, key)).sum::<u32>() as usize;
        self.lines[first + lines + run / ENTRIES_A_LINE].entry(run)
    }

    fn bucket(&mut self, runs: &[Run]) -> Entry {
        let (first, lines) = (self.lines.len(), runs.len().div_ceil(ENTRIES_A_LINE));
        self.lines.resize(first + 2 * lines, Line::UNUSED);
        for (i, run) in runs.iter().enumerate() {
            let (line, at) = (first + i / ENTRIES_A_LINE, i % ENTRIES_A_LINE);
            self.lines[line + lines].set_entry(at, run.1);
            if let Some(next) = runs.get(i + 1) {
                self.lines[line].set_entry(at, Entry(next.0 - 1));
            }
        }
        Entry::bucket(first, lines)
    }
}

/// How many ends lie before a key. Unused ones are the largest number, before nothing.
#[inline(always)]
fn ends_before(line: &Line, key: u32) -> u32 {
    let (words, _) = line.0.as_chunks::<4>();
    words.iter().map(|end| u32::from(u32::from_le_bytes(*end) < key)).sum()
}

/// The bits of an address that ranges are cut by.
#[inline(always)]
fn key(addr: Addr) -> u32 {
    (addr.hi >> (64 - KEY_BITS)) as u32
}

impl Builder<'_> {
    /// The ranges of sorted IPv6 prefixes.
    pub(super) fn ranges(&mut self, list: &[(Prefix, u32)]) -> Ranges {
        let mut heads = vec![Entry::NONE; 1 << HEAD_BITS];
        let head_of = |p: &Prefix| (p.addr().hi >> (64 - HEAD_BITS)) as usize;
        for (prefix, value) in list.iter().filter(|(p, _)| p.len128() <= HEAD_BITS) {
            let count = 1usize << (HEAD_BITS - prefix.len128());
            heads[head_of(prefix)..][..count].fill(leaf(*value));
        }
        let whole = |entry: &Entry| Head { at: entry.0, bits: 0 };
        let mut ranges = Ranges { heads: heads.iter().map(whole).collect(), slots: Vec::new() };
        let groups = list.chunk_by(|(a, _), (b, _)| head_of(a) == head_of(b));
        for group in groups {
            let own = group.partition_point(|(p, _)| p.len128() <= HEAD_BITS);
            if let [(first, _), ..] = &group[own..] {
                let head = head_of(first);
                ranges.heads[head] = self.head(&group[own..], heads[head], &mut ranges.slots);
            }
        }
        let mut slots = huge_table(ranges.slots.len());
        slots.extend_from_slice(&ranges.slots);
        Ranges { slots, ..ranges }
    }

    /// The slots of prefixes that share a head and are longer. `inherited` answers elsewhere.
    fn head(&mut self, list: &[(Prefix, u32)], inherited: Entry, slots: &mut Vec<Entry>) -> Head {
        let bits = list.len().next_power_of_two().ilog2().min(SLOT_BITS_MAX.into()) as u8;
        let (at, runs) = (slots.len() as u32, self.runs(list, inherited));
        let mut rest = &runs[..];
        for slot in 0..1u64 << bits {
            let (from, to) = (slot << (32 - bits), (slot + 1) << (32 - bits));
            // The last run that begins before the slot or with it.
            let passed = rest.partition_point(|(key, _)| u64::from(*key) <= from) - 1;
            rest = &rest[passed..];
            let count = rest.partition_point(|(key, _)| u64::from(*key) < to);
            slots.push(match &rest[..count] {
                [(_, entry)] => *entry,
                many if many.len() <= END_LINES_MAX * ENTRIES_A_LINE => self.lpm.bucket(many),
                _ => self.crowd(list, inherited, (from as u32, bits)),
            });
        }
        Head { at, bits: u32::from(bits) + 1 }
    }

    /// Cuts the keys of a head by its prefixes.
    fn runs(&mut self, list: &[(Prefix, u32)], inherited: Entry) -> Vec<Run> {
        let mut runs = vec![(0, inherited)];
        // What the prefixes around the present place say, and where they end.
        let mut around = vec![(1u64 << 32, inherited)];
        let close = |around: &mut Vec<(u64, Entry)>, runs: &mut Vec<Run>, from: u64| {
            while let [.., (_, outer), (end, _)] = around[..]
                && end <= from
            {
                around.pop();
                begin_run(runs, end, outer);
            }
        };
        let mut rest = list;
        while let [(prefix, value), others @ ..] = rest {
            let from = u64::from(key(prefix.addr()));
            close(&mut around, &mut runs, from);
            let len = prefix.len128();
            let (entry, end) = if len <= KEY_BITS {
                rest = others;
                (leaf(*value), from + (1 << (KEY_BITS - len)))
            } else {
                let same = rest.partition_point(|(p, _)| u64::from(key(p.addr())) == from);
                let (longer, others) = rest.split_at(same);
                rest = others;
                let outer = around.last().map_or(inherited, |(_, entry)| *entry);
                (self.subtree(longer, KEY_BITS / 8, outer), from + 1)
            };
            begin_run(&mut runs, from, entry);
            around.push((end, entry));
        }
        close(&mut around, &mut runs, 1 << 32);
        runs
    }

    /// A trie for a slot of too many ranges.
    fn crowd(
        &mut self,
        list: &[(Prefix, u32)],
        inherited: Entry,
        (from, bits): (u32, u8),
    ) -> Entry {
        let depth = HEAD_BITS + bits;
        let slot_of = |p: &Prefix| key(p.addr()) >> (32 - u32::from(bits));
        let slot = (u64::from(from) >> (32 - bits)) as u32;
        let begin = list.partition_point(|(p, _)| slot_of(p) < slot);
        let within = &list[begin..];
        let within = &within[..within.partition_point(|(p, _)| slot_of(p) == slot)];
        let short = within.partition_point(|(p, _)| p.len128() <= depth);
        let at = Addr { hi: list[0].0.addr().hi >> 48 << 48 | u64::from(from) << 16, lo: 0 };
        // The longest of those that cover the slot: few lengths, each looked for once.
        let covering = (HEAD_BITS + 1..=depth).rev().find_map(|len| {
            let wanted = at.masked(len);
            let behind = list.partition_point(|(p, _)| (p.addr(), p.len128()) <= (wanted, len));
            let (prefix, value) = list[..behind].last()?;
            (prefix.addr() == wanted && prefix.len128() == len).then(|| leaf(*value))
        });
        self.subtree(&within[short..], depth / 8, covering.unwrap_or(inherited))
    }
}

/// Has an answer begin at a key. The one that begins there already is of a shorter prefix.
fn begin_run(runs: &mut Vec<Run>, from: u64, entry: Entry) {
    let Ok(from) = u32::try_from(from) else { return };
    if runs.last().is_some_and(|last| last.0 == from) {
        runs.pop();
    }
    if runs.last().is_none_or(|last| last.1 != entry) {
        runs.push((from, entry));
    }
}
