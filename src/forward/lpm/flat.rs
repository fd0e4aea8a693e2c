//! IPv4 tables of very many routes: an answer for each of the 2^24 values of the first three bytes
//! (DIR-24-8: Gupta, Lin and McKeown, 1998), of two bytes each. A look-up reads one line of memory,
//! and no branch depends on what it finds as long as no route there is longer than /24: so look-ups
//! overlap. The rest goes on in the trie.

use super::build::{Builder, leaf};
use super::{Entry, Lpm};
use crate::base::mem::{huge_table, prefetch};
use crate::base::{Addr, Prefix};

const BITS: u8 = 24;
const BLOCKS: usize = 1 << BITS;
/// The byte of an address behind these.
const NEXT_BYTE: u8 = 15;
/// An answer that is a place in `longer`. Any other is that of a leaf.
const LONGER: u16 = 1 << 15;

/// By the first three bytes of an IPv4 address.
#[derive(Clone, Debug, Default)]
pub(super) struct Flat {
    answers: Vec<u16>,
    longer: Vec<Entry>,
}

impl Flat {
    pub fn memory_bytes(&self) -> usize {
        self.answers.capacity() * size_of::<u16>() + self.longer.capacity() * size_of::<Entry>()
    }

    #[inline(always)]
    pub fn is_in_use(&self) -> bool {
        !self.answers.is_empty()
    }

    /// The entry of an address.
    #[inline(always)]
    pub fn entry(&self, addr: Addr) -> Entry {
        let answer = self.answers[block(addr)];
        match answer & LONGER {
            0 => Entry(u32::from(answer)),
            _ => self.longer[usize::from(answer & !LONGER)],
        }
    }

    #[inline(always)]
    pub fn ask(&self, addr: Addr) {
        prefetch(&self.answers, block(addr));
    }
}

impl Lpm {
    /// Whether sorted IPv4 prefixes can be stored so.
    pub(super) fn fits_flat(list: &[(Prefix, u32)]) -> bool {
        let longer = list.iter().filter(|(p, _)| p.len128() > 96 + BITS);
        let mut blocks: Vec<_> = longer.map(|(p, _)| block(p.addr())).collect();
        blocks.dedup();
        let largest = list.iter().map(|(_, value)| *value).max().unwrap_or(0);
        blocks.len() <= usize::from(LONGER) && leaf(largest).0 < u32::from(LONGER)
    }
}

impl Builder<'_> {
    /// Of sorted IPv4 prefixes for which [`Lpm::fits_flat`].
    pub(super) fn flat(&mut self, list: &[(Prefix, u32)]) -> Flat {
        let mut answers = huge_table(BLOCKS);
        answers.resize(BLOCKS, Entry::NONE.0 as u16);
        let mut longer = Vec::new();
        let mut rest = list;
        // Whatever covers a prefix stands before it.
        while let [(prefix, value), others @ ..] = rest {
            let at = block(prefix.addr());
            if let Some(bits) = (96 + BITS).checked_sub(prefix.len128()) {
                answers[at..][..1 << bits].fill(leaf(*value).0 as u16);
                rest = others;
                continue;
            }
            let same = rest.partition_point(|(p, _)| block(p.addr()) == at);
            let (within, others) = rest.split_at(same);
            let around = Entry(u32::from(answers[at]));
            answers[at] = LONGER | longer.len() as u16;
            longer.push(self.subtree(within, NEXT_BYTE, around));
            rest = others;
        }
        longer.shrink_to_fit();
        Flat { answers, longer }
    }
}

#[inline(always)]
fn block(addr: Addr) -> usize {
    (addr.v4_bits() >> (32 - BITS)) as usize
}
