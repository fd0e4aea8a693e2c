//! The flows that hold packets now: one arena for all leaves of a scheduler, found by leaf and
//! flow hash through a table of open addressing. A leaf goes by the index of its class, which has
//! 16 bits as class ids have.

use super::codel::{Above, Codel};
use super::wheel::NIL;
use crate::base::Seed;
use crate::base::hash::fold;
use crate::base::mem::{Table, prefetch, prefetch_at};

/// Sizes of flows are told apart by powers of two, from 16 KiB on; the last takes all from 4 MiB.
pub(super) const FAT_SIZES: usize = 9;
const FAT_BITS_MIN: u32 = 14;

const MIX: u64 = 0xc2b2_ae3d_27d4_eb4f;

/// Which of its leaf's lists a flow stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Standing {
    Free,
    /// Began to queue lately: served before the old ones until its first quantum is used.
    New,
    /// What a FIFO held, from before the leaf told flows apart: among the new ones until all of it
    /// has gone, and at no flow's pace.
    Backlog,
    Old,
    /// In no list: it may not send yet.
    Asleep,
}

/// One flow. Two flows of a leaf with the same hash share their queue.
#[derive(Clone, Debug)]
#[repr(C, align(32))]
pub(super) struct Flow {
    pub hash: u32,
    pub leaf: u16,
    pub standing: Standing,
    /// On which of its leaf's lists of fat flows it stands, counted from 1; 0: on none.
    pub fat: u8,
    /// First and last cell of its packets.
    pub head: u32,
    pub tail: u32,
    /// The next in the leaf's list of new or old flows, or the next free flow.
    pub next: u32,
    /// Bytes left in this round.
    pub deficit: i32,
    /// Bytes that wait, as counted.
    pub bytes: u32,
    pub above: Above,
}

impl Flow {
    /// Nothing waits yet of a flow that was made.
    pub fn begin(&mut self, deficit: i32) {
        (self.head, self.tail, self.bytes, self.fat) = (NIL, NIL, 0, 0);
        (self.deficit, self.above) = (deficit, Above::default());
    }

    /// Whether it stands on the list of flows of about its size, or none for thin ones. Only at
    /// half of its size it counts as one of the next smaller, lest it go to and fro.
    #[inline(always)]
    pub fn is_of_size(&self) -> bool {
        let quarters = self.bytes >> ((FAT_BITS_MIN - 2 + u32::from(self.fat)) % u32::BITS);
        match usize::from(self.fat) {
            0 => quarters < 4,
            FAT_SIZES => quarters > 0,
            _ => quarters.wrapping_sub(1) < 3,
        }
    }

    /// The list for flows of its size, counted from 1; 0 for thin ones, which are on no such list.
    pub fn size(&self) -> u8 {
        let bits = u32::BITS - self.bytes.leading_zeros();
        bits.saturating_sub(FAT_BITS_MIN).min(FAT_SIZES as u32) as u8
    }
}

/// By which a flow is found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Key {
    pub leaf: u32,
    hash: u32,
    /// A hash of both.
    tag: u32,
}

/// What only standing queues need of a flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queue {
    /// Neighbours among the leaf's fat flows of about this size.
    pub fat_prev: u32,
    pub fat_next: u32,
    pub codel: Codel,
}

const _: () = assert!(size_of::<Flow>() == 32);
const _: () = assert!(size_of::<Flow>() + size_of::<Queue>() == 48);

/// The arena and its table.
pub(super) struct Flows {
    arena: Table<Flow>,
    queues: Table<Queue>,
    free: u32,
    used: u32,
    /// `tag << 32 | flow`, or `VACANT`. At most half full.
    table: Table<u64>,
    mask: u32,
    seed: Seed,
}

/// No entry looks like it: an index is below `NIL`.
const VACANT: u64 = u64::MAX;

impl Flows {
    pub fn new(flows_max: u32, seed: Seed) -> Flows {
        let blank = |i| Flow {
            hash: 0,
            leaf: 0,
            standing: Standing::Free,
            fat: 0,
            head: NIL,
            tail: NIL,
            next: if i + 1 < flows_max { i + 1 } else { NIL },
            deficit: 0,
            bytes: 0,
            above: Above::default(),
        };
        let slots = (u64::from(flows_max) * 2).next_power_of_two().clamp(2, 1 << 32) as usize;
        let mut arena = Table::with_room(flows_max as usize);
        arena.extend((0..flows_max).map(blank));
        let queue = Queue { fat_prev: NIL, fat_next: NIL, codel: Codel::default() };
        Flows {
            arena,
            queues: Table::filled(flows_max as usize, queue),
            free: if flows_max > 0 { 0 } else { NIL },
            used: 0,
            table: Table::filled(slots, VACANT),
            mask: (slots - 1) as u32,
            seed,
        }
    }

    #[inline(always)]
    pub fn at(&self, flow: u32) -> &Flow {
        &self.arena[flow as usize]
    }

    #[inline(always)]
    pub fn at_mut(&mut self, flow: u32) -> &mut Flow {
        &mut self.arena[flow as usize]
    }

    #[inline(always)]
    pub fn queue(&self, flow: u32) -> &Queue {
        &self.queues[flow as usize]
    }

    #[inline(always)]
    pub fn queue_mut(&mut self, flow: u32) -> &mut Queue {
        &mut self.queues[flow as usize]
    }

    /// The two parts of a flow's state for its queue management.
    #[inline(always)]
    pub fn codel_mut(&mut self, flow: u32) -> (&mut Above, &mut Codel) {
        (&mut self.arena[flow as usize].above, &mut self.queues[flow as usize].codel)
    }

    /// Asks the cache for a flow.
    #[inline(always)]
    pub fn prefetch(&self, flow: u32) {
        prefetch(&self.arena, flow as usize);
    }

    /// Asks the cache for the place in the table of a flow that may be known.
    #[inline(always)]
    pub fn prefetch_entry(&self, key: Key) {
        prefetch(&self.table, (key.tag & self.mask) as usize);
    }

    /// Asks the cache for the likely flow, or where there is none for the place in the table.
    #[inline(always)]
    pub fn prefetch_likely(&self, key: Key, likely: u32) {
        let entry = self.table.as_ptr().wrapping_add((key.tag & self.mask) as usize).cast::<Flow>();
        let flow = self.arena.as_ptr().wrapping_add(likely as usize);
        prefetch_at(if likely == NIL { entry } else { flow });
    }

    /// The flow that is meant, once what [`Flows::prefetch_likely`] asked for has come; `NIL` for
    /// a new one. The cache is asked for it where the table told.
    #[inline(always)]
    pub fn prefetch_known(&self, key: Key, likely: u32) -> u32 {
        if self.is_of(likely, key) {
            return likely;
        }
        let known = self.known(key);
        self.prefetch(known);
        known
    }

    /// The last cell of a flow; `NIL` for none.
    #[inline(always)]
    pub fn tail(&self, flow: u32) -> u32 {
        self.arena.get(flow as usize).map_or(NIL, |flow| flow.tail)
    }

    /// Asks the cache for what a flow's end, or its standing queue, will touch; the flow itself is
    /// there. It ends with its turn if it holds no more than `turn` bytes.
    #[inline(always)]
    pub fn prefetch_rest(&self, flow: u32, turn: u32) {
        let Flow { leaf, hash, bytes, above, fat, .. } = self.arena[flow as usize];
        let stands = above.is_set() | (fat != 0);
        prefetch(&self.queues, flow as usize * usize::from(stands));
        let ends = bytes <= turn;
        self.prefetch_entry(self.key(u32::from(leaf) * u32::from(ends), hash));
    }

    /// Whether an entry, in use or `NIL`, is that of a key.
    #[inline(always)]
    pub fn is_of(&self, flow: u32, key: Key) -> bool {
        let entry = self.arena.get(flow as usize);
        entry.is_some_and(|flow| flow.hash == key.hash && u32::from(flow.leaf) == key.leaf)
    }

    /// The flow that is likely to be meant, as the first look into the table says.
    #[inline(always)]
    fn known(&self, key: Key) -> u32 {
        self.table[(key.tag & self.mask) as usize] as u32
    }

    #[cfg(test)]
    pub fn len(&self) -> u32 {
        self.used
    }

    /// All entries, used or not.
    pub fn all(&self) -> impl Iterator<Item = (u32, &Flow)> {
        (0..).zip(self.arena.iter())
    }

    pub fn capacity(&self) -> u32 {
        self.arena.len() as u32
    }

    /// The flow's entry, if there is one.
    pub fn find(&self, key: Key) -> Option<u32> {
        let Key { leaf, hash, tag } = key;
        let mut slot = (tag & self.mask) as usize;
        while self.table[slot] != VACANT {
            let entry = self.table[slot];
            let flow = &self.arena[entry as u32 as usize];
            if (entry >> 32) as u32 == tag && flow.hash == hash && u32::from(flow.leaf) == leaf {
                return Some(entry as u32);
            }
            slot = (slot + 1) & self.mask as usize;
        }
        None
    }

    /// The flow's entry, made if there is none. The flag says that it was made; such a flow stands
    /// nowhere yet. `None` when all entries are taken. `likely`: the entry that is looked at before
    /// the table is; `NIL`: none.
    #[inline(always)]
    pub fn find_or_insert(&mut self, key: Key, likely: u32) -> Option<(u32, bool)> {
        let Key { leaf, hash, tag } = key;
        if self.is_of(likely, key) {
            return Some((likely, false));
        }
        let mut slot = (tag & self.mask) as usize;
        loop {
            let entry = self.table[slot];
            if entry == VACANT {
                break;
            }
            if (entry >> 32) as u32 == tag {
                let flow = &self.arena[entry as u32 as usize];
                if flow.hash == hash && u32::from(flow.leaf) == leaf {
                    return Some((entry as u32, false));
                }
            }
            slot = (slot + 1) & self.mask as usize;
        }
        let at = self.free;
        let flow = self.arena.get_mut(at as usize)?;
        self.free = flow.next;
        (flow.hash, flow.leaf, flow.next) = (hash, leaf as u16, NIL);
        self.table[slot] = u64::from(tag) << 32 | u64::from(at);
        self.used += 1;
        Some((at, true))
    }

    /// Frees an entry that holds no packets and stands in no list.
    pub fn remove(&mut self, at: u32) {
        let Flow { hash, leaf, .. } = self.arena[at as usize];
        let tag = self.tag(u32::from(leaf), hash);
        let entry = u64::from(tag) << 32 | u64::from(at);
        let mut slot = (tag & self.mask) as usize;
        while self.table[slot] != entry {
            debug_assert!(self.table[slot] != VACANT, "flow {at} is not in the table");
            if self.table[slot] == VACANT {
                return;
            }
            slot = (slot + 1) & self.mask as usize;
        }
        self.close_gap(slot);
        let flow = &mut self.arena[at as usize];
        flow.standing = Standing::Free;
        flow.next = self.free;
        self.free = at;
        self.used -= 1;
    }

    /// Moves the entries behind a gap forward where their search would end at it.
    fn close_gap(&mut self, gap: usize) {
        let mask = self.mask as usize;
        let mut gap = gap;
        let mut slot = gap;
        loop {
            slot = (slot + 1) & mask;
            let entry = self.table[slot];
            if entry == VACANT {
                break;
            }
            let home = (entry >> 32) as usize & mask;
            if (slot.wrapping_sub(home) & mask) >= (slot.wrapping_sub(gap) & mask) {
                self.table[gap] = entry;
                gap = slot;
            }
        }
        self.table[gap] = VACANT;
    }

    #[inline(always)]
    pub fn key(&self, leaf: u32, hash: u32) -> Key {
        Key { leaf, hash, tag: self.tag(leaf, hash) }
    }

    #[inline(always)]
    fn tag(&self, leaf: u32, hash: u32) -> u32 {
        let key = u64::from(leaf) << 32 | u64::from(hash);
        fold(key ^ self.seed.0, MIX) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::hash::Rng;
    use std::collections::HashMap;

    #[test]
    fn behaves_like_a_map_of_fixed_size() {
        let mut rng = Rng::new(Seed(5));
        let mut flows = Flows::new(300, Seed(9));
        let mut model: HashMap<(u32, u32), u32> = HashMap::new();
        for _ in 0..100_000 {
            let key = (rng.below(4), rng.below(150));
            if rng.chance(0.5) {
                let likely = model.values().next().copied().unwrap_or(NIL);
                let made = flows.find_or_insert(flows.key(key.0, key.1), likely);
                match model.get(&key) {
                    Some(&at) => assert_eq!(made, Some((at, false))),
                    None if model.len() == 300 => assert_eq!(made, None),
                    None => {
                        let (at, fresh) = made.expect("room");
                        assert!(fresh && !model.values().any(|&other| other == at));
                        model.insert(key, at);
                    }
                }
            } else if let Some(at) = model.remove(&key) {
                flows.remove(at);
            }
            assert_eq!(flows.len() as usize, model.len());
        }
        assert!(model.len() > 200, "the table was never full: {}", model.len());
    }
}
