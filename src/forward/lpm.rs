//! Longest prefix match for both families: a trie of 256-way nodes that skips what has no branches.
//!
//! Each node decides one byte of the address; its 256 entries are leaves or further nodes, and
//! shorter prefixes are pushed down into them, so a lookup never goes back. Where all prefixes
//! below a point share their next bytes, one node stands for the chain, and checks what was
//! skipped: a small table is one to three nodes deep even for IPv6. A node takes 1 KiB; a million
//! IPv4 routes some 50 MiB.

use crate::base::{Addr, Prefix};

/// Values stored at most: an entry keeps one bit for itself, and 0 means none.
pub const VALUE_MAX: u32 = (1 << 31) - 2;

const FANOUT: usize = 256;

/// An immutable table from prefixes to numbers.
#[derive(Clone, Debug)]
pub struct Lpm {
    root_v4: Entry,
    root_v6: Entry,
    nodes: Vec<Node>,
    entries: Vec<Entry>,
}

/// Where a node stands; read only when bytes were skipped on the way to it.
#[derive(Clone, Copy, Debug)]
struct Node {
    /// The bytes before the one it decides, and the mask that covers them.
    key: Addr,
    mask: Addr,
    /// The answer where the address differs in the skipped bytes.
    fallback: Entry,
}

/// A leaf: the value plus one, 0 for none. Or a node, if the top bit is set: bit 30 says whether
/// bytes were skipped, bits 26 to 29 which byte it decides, the rest is its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry(u32);

impl Entry {
    const NONE: Entry = Entry(0);
    const NODE: u32 = 1 << 31;
    const SKIPPED: u32 = 1 << 30;
    const BYTE_SHIFT: u32 = 26;
    const INDEX_MASK: u32 = (1 << Entry::BYTE_SHIFT) - 1;

    fn node(index: usize, byte: u8, skipped: bool) -> Entry {
        assert!(index as u32 <= Entry::INDEX_MASK, "a trie of 64 GiB");
        let skipped = if skipped { Entry::SKIPPED } else { 0 };
        Entry(Entry::NODE | skipped | u32::from(byte) << Entry::BYTE_SHIFT | index as u32)
    }

    #[inline(always)]
    fn is_node(self) -> bool {
        self.0 & Entry::NODE != 0
    }

    #[inline(always)]
    fn index(self) -> usize {
        (self.0 & Entry::INDEX_MASK) as usize
    }
}

impl Lpm {
    /// Of equal prefixes the last one given counts.
    pub fn build(prefixes: &[(Prefix, u32)]) -> Lpm {
        let mut lpm = Lpm {
            root_v4: Entry::NONE,
            root_v6: Entry::NONE,
            nodes: Vec::new(),
            entries: Vec::new(),
        };
        let mut sorted: Vec<_> = prefixes.to_vec();
        // Stable: equal prefixes keep their order. A prefix comes before all that it covers.
        sorted.sort_by_key(|&(p, _)| (!p.is_v4(), p));
        let split = sorted.partition_point(|(p, _)| p.is_v4());
        let (v4, v6) = sorted.split_at(split);
        lpm.root_v4 = lpm.root(v4, 12);
        lpm.root_v6 = lpm.root(v6, 0);
        lpm.nodes.shrink_to_fit();
        lpm.entries.shrink_to_fit();
        lpm
    }

    /// The value of the longest prefix that contains `addr`.
    #[inline]
    pub fn lookup(&self, addr: Addr) -> Option<u32> {
        let mut entry = if addr.is_v4() { self.root_v4 } else { self.root_v6 };
        while entry.is_node() {
            if entry.0 & Entry::SKIPPED != 0 {
                let node = &self.nodes[entry.index()];
                let differs =
                    (addr.hi ^ node.key.hi) & node.mask.hi | (addr.lo ^ node.key.lo) & node.mask.lo;
                if differs != 0 {
                    entry = node.fallback;
                    break;
                }
            }
            let byte = entry.0 >> Entry::BYTE_SHIFT & 15;
            let word = if byte < 8 { addr.hi } else { addr.lo };
            let value = (word >> (56 - 8 * (byte & 7))) as u8;
            entry = self.entries[entry.index() * FANOUT + usize::from(value)];
        }
        entry.0.checked_sub(1)
    }

    /// Bytes of memory it takes.
    pub fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>() + self.nodes.capacity() * size_of::<Node>()
    }

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
    fn subtree(&mut self, list: &[(Prefix, u32)], byte: u8, inherited: Entry) -> Entry {
        let [(first, _), ..] = list else { return inherited };
        let at = branching_byte(list, byte);
        let index = self.nodes.len();
        let (key, mask) = leading_bytes(first.addr(), at);
        self.nodes.push(Node { key, mask, fallback: inherited });
        self.entries.resize((index + 1) * FANOUT, inherited);
        let base = index * FANOUT;
        for (prefix, value) in list.iter().filter(|(p, _)| last_byte(*p) == at) {
            let from = usize::from(byte_of(prefix.addr(), at));
            let count = 1usize << (8 * (at + 1) - prefix.len128());
            self.entries[base + from..base + from + count].fill(leaf(*value));
        }
        let mut rest = list;
        while let [(prefix, _), ..] = rest {
            let value = byte_of(prefix.addr(), at);
            let same = rest.partition_point(|(p, _)| byte_of(p.addr(), at) == value);
            let (group, others) = rest.split_at(same);
            // Those that end in this node stand before the longer ones.
            let longer = group.partition_point(|(p, _)| last_byte(*p) == at);
            let slot = base + usize::from(value);
            let below = self.subtree(&group[longer..], at + 1, self.entries[slot]);
            self.entries[slot] = below;
            rest = others;
        }
        Entry::node(index, at, at > byte)
    }
}

fn leaf(value: u32) -> Entry {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(s: &str) -> Prefix {
        s.parse().expect(s)
    }

    fn table(prefixes: &[&str]) -> Lpm {
        let list: Vec<_> = (0u32..).zip(prefixes).map(|(i, s)| (prefix(s), i)).collect();
        Lpm::build(&list)
    }

    fn look(lpm: &Lpm, addr: &str) -> Option<u32> {
        lpm.lookup(addr.parse().expect(addr))
    }

    #[test]
    fn the_longest_prefix_wins() {
        let t = table(&["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/23", "10.1.2.3/32"]);
        assert_eq!(look(&t, "192.0.2.1"), Some(0));
        assert_eq!(look(&t, "10.2.0.1"), Some(1));
        assert_eq!(look(&t, "10.1.4.1"), Some(2));
        assert_eq!(look(&t, "10.1.3.255"), Some(3));
        assert_eq!(look(&t, "10.1.2.3"), Some(4));
        assert_eq!(look(&t, "2001:db8::1"), None);
    }

    #[test]
    fn skipped_bytes_are_checked() {
        let t = table(&["::/0", "2001:db8::/32", "2001:db8::7/128", "2001:db8:0:1::/64"]);
        assert_eq!(look(&t, "2001:db8::7"), Some(2));
        assert_eq!(look(&t, "2001:db8::8"), Some(1));
        assert_eq!(look(&t, "2001:db8:0:0:1::7"), Some(1));
        assert_eq!(look(&t, "2001:db8:0:1:ffff::7"), Some(3));
        assert_eq!(look(&t, "2001:db9::7"), Some(0));
        assert_eq!(look(&t, "10.0.0.1"), None);
    }

    #[test]
    fn an_empty_table_and_a_host_alone() {
        assert_eq!(look(&table(&[]), "10.0.0.1"), None);
        let t = table(&["10.0.0.1/32"]);
        assert_eq!(look(&t, "10.0.0.1"), Some(0));
        assert_eq!(look(&t, "10.0.0.2"), None);
        assert_eq!(look(&t, "11.0.0.1"), None);
        assert!(t.memory_bytes() < 2048, "one node");
    }

    #[test]
    fn of_equal_prefixes_the_last_counts() {
        assert_eq!(look(&table(&["10.0.0.0/8", "10.0.0.0/8"]), "10.0.0.1"), Some(1));
        assert_eq!(look(&table(&["0.0.0.0/0", "0.0.0.0/0"]), "10.0.0.1"), Some(1));
    }

    /// Few distinct bytes, so that prefixes nest and share.
    fn any_addr() -> impl Strategy<Value = Addr> {
        let byte = prop_oneof![Just(0u8), Just(1), Just(0x80), Just(0xff), any::<u8>()];
        let v4 = prop::array::uniform4(byte.clone()).prop_map(|b| Addr::v4(u32::from_be_bytes(b)));
        let v6 = prop::array::uniform16(byte).prop_map(Addr::from_v6_bytes);
        prop_oneof![v4, v6]
    }

    fn any_prefix() -> impl Strategy<Value = Prefix> {
        (any_addr(), 0u8..=128).prop_map(|(addr, len)| {
            let len = if addr.is_v4() { len % 33 } else { len };
            Prefix::new(addr, len).expect("length in range")
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_search(
            prefixes in prop::collection::vec(any_prefix(), 0..60),
            probes in
                prop::collection::vec((any_addr(), any::<prop::sample::Index>(), 0u8..128), 60),
        ) {
            let list: Vec<_> = prefixes.iter().copied().zip(0u32..).collect();
            let lpm = Lpm::build(&list);
            let naive = |a: Addr| {
                let hits = list.iter().filter(|(p, _)| p.contains(a));
                hits.max_by_key(|(p, i)| (p.len(), *i)).map(|&(_, i)| i)
            };
            for (random, index, bit) in probes {
                prop_assert_eq!(lpm.lookup(random), naive(random));
                // Near a prefix: its address with one bit turned over.
                if let Some(p) = (!prefixes.is_empty()).then(|| index.get(&prefixes)) {
                    let bit = if p.is_v4() { 96 + bit % 32 } else { bit };
                    let flipped = u128::from_be_bytes(p.addr().to_bytes()) ^ 1u128 << (127 - bit);
                    let near = Addr::from_v6_bytes(flipped.to_be_bytes());
                    prop_assert_eq!(lpm.lookup(near), naive(near), "{} near {}", near, p);
                    prop_assert_eq!(lpm.lookup(p.addr()), naive(p.addr()));
                }
            }
        }
    }
}
