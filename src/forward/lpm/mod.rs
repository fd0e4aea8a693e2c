//! Longest prefix match for both families: a trie that decides one byte of the address a node, and
//! skips what has no branches.
//!
//! Shorter prefixes are pushed down into the nodes below them, so a lookup never goes back. Where
//! all prefixes below a point share their next bytes, one node stands for the chain, and checks
//! what was skipped: a small table is one to three nodes deep even for IPv6.
//!
//! A node's 256 answers come in runs, since a prefix covers a range of them. Where there are many
//! runs, or few routes in all, it lists every answer (1 KiB); else its runs, in two to five cache
//! lines (64 B) or in one. A million IPv4 routes take 12 MiB, most of which a third-level cache
//! holds; listing every answer they took 57 MiB. Tables of many IPv4 routes begin with both first
//! bytes at once, those of very many with the first three ([`flat`]), those of many IPv6 routes
//! with [`ranges`].

mod build;
mod flat;
mod ranges;

use crate::base::Addr;
use crate::base::mem::prefetch;
use flat::Flat;
use ranges::Ranges;

/// Values stored at most: an entry keeps one bit for itself, and 0 means none.
pub const VALUE_MAX: u32 = (1 << 31) - 2;
/// Prefixes of one table at most.
pub const PREFIXES_MAX: usize = 1 << 22;

const FANOUT: usize = 256;
const LINE_BYTES: usize = 64;
const ENTRIES_A_LINE: usize = LINE_BYTES / size_of::<Entry>();
/// Runs that a node of one line holds: so many ends before them, a byte each.
const NARROW_RUNS_MAX: usize = 12;
const NARROW_ENDS: usize = LINE_BYTES - NARROW_RUNS_MAX * size_of::<Entry>();
/// Runs that a node holds whose ends fill a line of their own.
const WIDE_RUNS_MAX: usize = LINE_BYTES;

const _: () = assert!(NARROW_RUNS_MAX <= NARROW_ENDS + 1);
// Nodes are twice as many as prefixes at most, and take two lines each where they are many.
const _: () = assert!(4 * PREFIXES_MAX <= Entry::INDEX_MASK as usize + 1);

/// An immutable table from prefixes to numbers.
#[derive(Clone, Debug, Default)]
pub struct Lpm {
    root_v4: Entry,
    root_v6: Entry,
    /// Nodes that list every answer, [`FANOUT`] entries each.
    entries: Vec<Entry>,
    /// What those nodes skip, one each.
    skips: Vec<Skip>,
    /// Nodes that list runs.
    lines: Vec<Line>,
    /// Empty, or the entry for each value of an IPv4 address's first two bytes.
    direct: Vec<Entry>,
    /// Not in use, or where IPv4 addresses begin.
    flat: Flat,
    /// Empty, or where IPv6 addresses begin.
    ranges: Ranges,
}

/// A cache line: of a node's run ends, then entries; of entries alone; or of what a node skips.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line([u8; LINE_BYTES]);

/// Where a node stands; read only when bytes were skipped on the way to it.
#[derive(Clone, Copy, Debug)]
struct Skip {
    /// The bytes before the one it decides, and the mask that covers them.
    key: Addr,
    mask: Addr,
    /// The answer where the address differs in the skipped bytes.
    fallback: Entry,
}

/// A leaf: the value plus one, 0 for none. Or a node, if the top bit is set: the next bits say
/// whether bytes were skipped and what kind it is, four bits which byte it decides, the rest is its
/// index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry(u32);

impl Entry {
    const NONE: Entry = Entry(0);
    const NODE: u32 = 1 << 31;
    const SKIPPED: u32 = 1 << 30;
    /// One line; index of the line.
    const NARROW: u32 = 1 << 29;
    /// A line of run ends, then lines of entries; index of the first.
    const WIDE: u32 = 1 << 28;
    /// [`Lpm::direct`], [`Lpm::flat`], or of IPv6 [`Lpm::ranges`]; with [`Entry::SKIPPED`] a bucket
    /// of these.
    const DIRECT: u32 = Entry::NARROW | Entry::WIDE;
    const BUCKET: u32 = Entry::NODE | Entry::SKIPPED | Entry::DIRECT;
    /// What does not list every answer.
    const OTHER: u32 = Entry::NARROW | Entry::WIDE;
    const BYTE_SHIFT: u32 = 24;
    const INDEX_MASK: u32 = (1 << Entry::BYTE_SHIFT) - 1;

    #[inline(always)]
    fn is_node(self) -> bool {
        self.0 & Entry::NODE != 0
    }

    #[inline(always)]
    fn index(self) -> usize {
        (self.0 & Entry::INDEX_MASK) as usize
    }

    /// The byte that a node decides.
    #[inline(always)]
    fn byte(self) -> usize {
        (self.0 >> Entry::BYTE_SHIFT & 15) as usize
    }

    /// That byte of an address.
    #[inline(always)]
    fn byte_of(self, addr: Addr) -> u8 {
        let byte = self.byte();
        let word = if byte < 8 { addr.hi } else { addr.lo };
        (word >> (56 - 8 * (byte & 7))) as u8
    }
}

impl Lpm {
    /// The value of the longest prefix that contains `addr`.
    #[inline]
    pub fn lookup(&self, addr: Addr) -> Option<u32> {
        let mut entry = if addr.is_v4() { self.root_v4 } else { self.root_v6 };
        while entry.is_node() {
            if entry.0 & (Entry::SKIPPED | Entry::OTHER) != 0 {
                if entry.0 & Entry::OTHER != 0 {
                    entry = self.behind(entry, addr);
                    continue;
                }
                let skip = &self.skips[entry.index()];
                if skip.excludes(addr) {
                    entry = skip.fallback;
                    break;
                }
            }
            entry = self.entries[entry.index() * FANOUT + usize::from(entry.byte_of(addr))];
        }
        entry.0.checked_sub(1)
    }

    /// Bytes of memory it takes.
    pub fn memory_bytes(&self) -> usize {
        let entries = self.entries.capacity() + self.direct.capacity();
        entries * size_of::<Entry>()
            + self.skips.capacity() * size_of::<Skip>()
            + self.lines.capacity() * LINE_BYTES
            + self.flat.memory_bytes()
            + self.ranges.memory_bytes()
    }

    /// The entry that a node of [`Entry::OTHER`] kinds has for an address. Apart from the loop, so
    /// that small tables, which have none, stay as fast as can be.
    #[inline(never)]
    fn behind(&self, node: Entry, addr: Addr) -> Entry {
        if node.0 & Entry::OTHER == Entry::DIRECT {
            return match node.0 & Entry::SKIPPED != 0 {
                true => self.of_bucket(node, addr),
                false if !addr.is_v4() => self.ranges.slot(addr),
                false if self.flat.is_in_use() => self.flat.entry(addr),
                false => self.direct[(addr.v4_bits() >> 16) as usize],
            };
        }
        if node.0 & Entry::SKIPPED != 0 {
            let skip = Skip::read(&self.lines[node.index() - 1]);
            if skip.excludes(addr) {
                return skip.fallback;
            }
        }
        self.by_runs(node, node.byte_of(addr))
    }

    /// The entry of the run that a byte lies in.
    #[inline(always)]
    fn by_runs(&self, node: Entry, value: u8) -> Entry {
        let index = node.index();
        if node.0 & Entry::NARROW != 0 {
            let line = &self.lines[index];
            line.entry(NARROW_ENDS / size_of::<Entry>() + run_of(&line.0[..NARROW_ENDS], value))
        } else {
            // While the ends come, so do the entries.
            prefetch(&self.lines, index + 1);
            prefetch(&self.lines, index + 2);
            let run = run_of(&self.lines[index].0, value);
            self.lines[index + 1 + run / ENTRIES_A_LINE].entry(run % ENTRIES_A_LINE)
        }
    }
}

/// The run that a byte lies in: as many as end before it. Unused ends are 255, before nothing.
#[inline(always)]
fn run_of(ends: &[u8], value: u8) -> usize {
    // Counted in bytes, so that 16 are compared at once.
    usize::from(ends.iter().map(|end| u8::from(*end < value)).sum::<u8>())
}

impl Line {
    const UNUSED: Line = Line([u8::MAX; LINE_BYTES]);

    #[inline(always)]
    fn entry(&self, index: usize) -> Entry {
        let (entries, _) = self.0.as_chunks::<{ size_of::<Entry>() }>();
        Entry(u32::from_le_bytes(entries[index % ENTRIES_A_LINE]))
    }

    fn set_entry(&mut self, index: usize, entry: Entry) {
        let (entries, _) = self.0.as_chunks_mut::<{ size_of::<Entry>() }>();
        entries[index] = entry.0.to_le_bytes();
    }
}

impl Skip {
    #[inline(always)]
    fn excludes(&self, addr: Addr) -> bool {
        let (key, mask) = (self.key, self.mask);
        (addr.hi ^ key.hi) & mask.hi | (addr.lo ^ key.lo) & mask.lo != 0
    }

    #[inline(always)]
    fn read(line: &Line) -> Skip {
        let (words, _) = line.0.as_chunks::<8>();
        let word = |i: usize| u64::from_le_bytes(words[i]);
        Skip {
            key: Addr { hi: word(0), lo: word(1) },
            mask: Addr { hi: word(2), lo: word(3) },
            fallback: line.entry(32 / size_of::<Entry>()),
        }
    }

    fn to_line(self) -> Line {
        let mut line = Line::UNUSED;
        let (words, _) = line.0.as_chunks_mut::<8>();
        let all = [self.key.hi, self.key.lo, self.mask.hi, self.mask.lo];
        words.iter_mut().zip(all).for_each(|(to, word)| *to = word.to_le_bytes());
        line.set_entry(32 / size_of::<Entry>(), self.fallback);
        line
    }
}

#[cfg(test)]
mod tests;
