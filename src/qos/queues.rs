//! What leaves hold: flows in a deficit round robin, their packets, and who loses when there is no
//! room.
//!
//! The order among flows is that of FQ-CoDel (RFC 8290, section 4.1): flows that just began to
//! queue stand in a list of their own and are served first, once; the others take turns, a quantum
//! each.

use std::ops::AddAssign;

use super::codel::Ticks;
use super::flows::{FAT_SIZES, Flows, Key, Standing};
use super::pacing::{Due, Pacing};
use super::packets::{Note, Packets};
use super::settings::{Manner, lay_out};
use super::sojourn::{Recent, Sojourn};
use super::stats::Moves;
use super::wheel::NIL;
use crate::base::mem::{Arena, Table};
use crate::base::{Nanos, Seed};
use crate::packet::{DropReason, Frame};

/// Flows that hold no packet but still stand in a list, at most this many: 1 in so many of the
/// packets held. Those above are forgotten at once.
const EMPTY_SHARE: u32 = 4;

/// Index of a leaf's list of new flows, and of its old ones.
pub(super) const NEW: usize = 0;
pub(super) const OLD: usize = 1;

#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    pub head: u32,
    pub tail: u32,
}

/// Packets and bytes as counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub packets: u64,
    pub bytes: u64,
}

impl Tally {
    #[inline(always)]
    pub fn add(&mut self, bytes: u32) {
        self.packets += 1;
        self.bytes += u64::from(bytes);
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// A leaf's queues and counters: what every packet touches, in one cache line.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(super) struct Leaf {
    /// Of new flows and of old ones.
    pub lists: [List; 2],
    pub bytes: u64,
    pub sent: Tally,
    pub borrowed_bytes: u64,
    /// How long the last few sent have waited, not yet in [`Queues::sojourns`].
    pub recent: Recent,
    pub packets: u32,
    /// An index in [`Queues::manners`].
    pub manner: u16,
    /// Flows that hold packets, modulo 2^16: a weight among workers.
    pub flows: u16,
}

/// What fat flows and losses need of a leaf.
#[derive(Clone, Debug)]
pub(super) struct Losses {
    pub dropped: Tally,
    pub aqm_dropped: u64,
    pub marked: u64,
    /// The first fat flow of each size.
    pub fat: [u32; FAT_SIZES],
    /// Sizes of which there are fat flows.
    pub fat_sizes: u16,
}

const _: () = assert!(size_of::<Leaf>() == 64);
const _: () = assert!(size_of::<Losses>() <= 80);
const _: () = assert!(FAT_SIZES <= u16::BITS as usize);

/// Where packets go that leave a leaf otherwise than by being sent, and what is needed to mark one.
pub(super) struct Exit<'a> {
    pub now: Ticks,
    /// The same time, in full.
    pub at: Nanos,
    pub arena: &'a Arena,
    pub dropped: &'a mut Vec<(Frame, DropReason)>,
    /// Packets that the queue management may still drop; beyond that they are sent.
    pub drops_left: usize,
}

/// All leaves of one scheduler.
pub(super) struct Queues {
    /// By class; those of inner classes stay empty.
    pub leaves: Table<Leaf>,
    pub losses: Table<Losses>,
    pub moves: Table<Moves>,
    pub sojourns: Table<Sojourn>,
    /// Manners of leaves, each once.
    pub manners: Vec<Manner>,
    /// Whether some leaf has a pace for its flows.
    pub has_paces: bool,
    pub pacing: Pacing,
    pub flows: Flows,
    pub packets: Packets,
    /// Flows that packets have begun so far.
    pub made: u32,
    /// Flows that hold no packet but stand in a list.
    pub empty: u32,
    pub empty_max: u32,
    /// Bytes a round for a flow: the largest frame.
    pub quantum: u32,
    /// The leaf that is known to hold, or to have held, most.
    pub fattest: u32,
    /// Where the search for a fatter leaf goes on.
    pub donor_scan: u32,
    pub bytes: u64,
    /// Flows that have left the front of a list of old ones so far, modulo 2^32.
    pub passed: u32,
}

impl Leaf {
    pub fn new(manner: u16) -> Leaf {
        Leaf {
            lists: [List { head: NIL, tail: NIL }; 2],
            bytes: 0,
            sent: Tally::default(),
            borrowed_bytes: 0,
            recent: Recent::default(),
            packets: 0,
            manner,
            flows: 0,
        }
    }

    /// The flow that is served next; `NIL` where there is none.
    #[inline(always)]
    pub fn first_flow(&self) -> u32 {
        // By index, not by a branch, which nobody could foretell.
        self.lists[usize::from(self.lists[NEW].head == NIL)].head
    }

    /// The flow that holds all its packets, if there is one, or no more than one, to be looked at;
    /// else `NIL`.
    #[inline(always)]
    pub fn only_flow(&self) -> u32 {
        if self.flows <= 1 { self.first_flow() } else { NIL }
    }
}

impl Losses {
    pub const NONE: Losses = Losses {
        dropped: Tally { packets: 0, bytes: 0 },
        aqm_dropped: 0,
        marked: 0,
        fat: [NIL; FAT_SIZES],
        fat_sizes: 0,
    };
}

impl Queues {
    pub fn new(leaves: &[Manner], packets_max: u32, quantum: u32, seed: Seed) -> Queues {
        let empty_max = packets_max / EMPTY_SHARE + 1;
        let (manners, leaves_new) = lay_out(leaves);
        let has_paces = manners.iter().any(|manner| manner.pace.is_set());
        // A flow holds a packet or is one of the empty ones, of which a few more may lie between
        // others in a leaf that is over its limit.
        let flows_max = packets_max.saturating_add(empty_max.saturating_mul(2));
        Queues {
            leaves: leaves_new,
            losses: Table::filled(leaves.len(), Losses::NONE),
            moves: Table::filled(leaves.len(), Moves::default()),
            manners,
            has_paces,
            pacing: Pacing::new(has_paces, flows_max, leaves.len(), Nanos::ZERO),
            sojourns: Table::filled(leaves.len(), Sojourn::default()),
            flows: Flows::new(flows_max, seed),
            packets: Packets::new(packets_max),
            made: 0,
            empty: 0,
            empty_max,
            quantum,
            fattest: 0,
            donor_scan: 0,
            bytes: 0,
            passed: 0,
        }
    }

    /// By which a packet's flow is found in its leaf; a FIFO has one flow.
    #[inline(always)]
    pub fn key(&self, leaf: u32, hash: u32) -> Key {
        self.flows.key(leaf, if self.manner(leaf).is_fifo() { 0 } else { hash })
    }

    /// Bytes that a frame counts as in a leaf.
    #[inline(always)]
    pub fn counted(&self, leaf: u32, frame_len: usize) -> u32 {
        self.manner(leaf).counting.counted(frame_len)
    }

    #[inline(always)]
    pub fn manner(&self, leaf: u32) -> &Manner {
        &self.manners[usize::from(self.leaves[leaf as usize].manner)]
    }

    /// Appends a packet to its flow; a cell has to be free. Gives the frame back when there is no
    /// room for the flow.
    #[inline(always)]
    pub fn push(
        &mut self,
        key: Key,
        frame: Frame,
        bytes: u32,
        note: Note,
        now: Nanos,
    ) -> Result<(), Frame> {
        let leaf = key.leaf;
        let likely = self.leaves[leaf as usize].only_flow();
        let flow = if self.flows.is_of(likely, key) { likely } else { self.flow_of(key, likely) };
        if flow == NIL {
            return Err(frame);
        }
        let cell = self.packets.insert(frame, note)?;
        self.bytes += u64::from(bytes);
        let held = &mut self.leaves[leaf as usize];
        held.packets += 1;
        held.bytes += u64::from(bytes);
        let held_bytes = held.bytes;
        let entry = self.flows.at_mut(flow);
        entry.bytes = entry.bytes.wrapping_add(bytes);
        let (resized, sleeps) = (!entry.is_of_size(), entry.standing == Standing::Asleep);
        let tail = std::mem::replace(&mut entry.tail, cell);
        if tail == NIL {
            entry.head = cell;
            self.begin(leaf, flow, now);
        } else {
            self.packets.link(tail, cell);
            if sleeps {
                self.pacing.resize(leaf, i64::from(bytes));
            }
        }
        if resized {
            self.change_size(leaf, flow);
        }
        if held_bytes > self.leaves[self.fattest as usize].bytes {
            self.fattest = leaf;
        }
        Ok(())
    }

    /// The flow of a packet, which is made where there is none; `NIL`: there is no room.
    #[inline(never)]
    fn flow_of(&mut self, key: Key, likely: u32) -> u32 {
        let Some((flow, fresh)) = self.flows.find_or_insert(key, likely) else { return NIL };
        if fresh {
            self.made = self.made.wrapping_add(1);
            let deficit = self.quantum as i32;
            self.enter(key.leaf, flow, (Standing::New, deficit, Due::default()));
        }
        flow
    }

    /// A flow that was made stands with a leaf's others, and has no packets yet.
    pub fn enter(&mut self, leaf: u32, flow: u32, (standing, deficit, due): (Standing, i32, Due)) {
        self.flows.at_mut(flow).begin(deficit);
        self.append(leaf, flow, standing);
        self.empty += 1;
        if self.has_paces {
            self.pacing.set(flow, due);
        }
    }

    /// A flow has its first packet.
    #[inline(always)]
    fn begin(&mut self, leaf: u32, flow: u32, now: Nanos) {
        self.empty -= 1;
        let held = &mut self.leaves[leaf as usize];
        held.flows = held.flows.wrapping_add(1);
        if self.flows.at(flow).standing == Standing::Asleep {
            self.stir(leaf, flow, now);
            let entry = self.flows.at(flow);
            if entry.standing == Standing::Asleep {
                self.pacing.resize(leaf, i64::from(entry.bytes));
            }
        }
    }

    /// Takes the first packet of a flow that holds one.
    #[inline(always)]
    pub fn shift(&mut self, leaf: u32, flow: u32) -> Option<(Frame, u32, Note)> {
        let entry = self.flows.at_mut(flow);
        let (frame, note, next) = self.packets.remove(entry.head);
        let frame = frame?;
        let held = &mut self.leaves[leaf as usize];
        let bytes = self.manners[usize::from(held.manner)].counting.counted(frame.len());
        self.bytes -= u64::from(bytes);
        held.packets -= 1;
        held.bytes = held.bytes.wrapping_sub(u64::from(bytes));
        entry.bytes = entry.bytes.wrapping_sub(bytes);
        entry.head = next;
        if next == NIL {
            entry.tail = NIL;
            held.flows = held.flows.wrapping_sub(1);
        }
        if entry.standing == Standing::Asleep {
            self.pacing.resize(leaf, -i64::from(bytes));
            if next == NIL {
                self.pacing.has_packets(leaf, false);
            }
        }
        // A thin flow that shrinks stays one.
        if entry.fat != 0 && !entry.is_of_size() {
            self.change_size(leaf, flow);
        }
        Some((frame, bytes, note))
    }

    /// Removes the first flow of a list, which holds no packets.
    pub fn forget_first(&mut self, leaf: u32, list: usize) {
        self.empty -= 1;
        let flow = self.unlink_first(leaf, list);
        self.flows.remove(flow);
    }

    #[inline(always)]
    pub fn first_of(&self, leaf: u32, list: usize) -> Option<u32> {
        let head = self.leaves[leaf as usize].lists[list].head;
        (head != NIL).then_some(head)
    }

    pub fn append(&mut self, leaf: u32, flow: u32, standing: Standing) {
        let list = &mut self.leaves[leaf as usize].lists[list_of(standing)];
        let last = std::mem::replace(&mut list.tail, flow);
        if last == NIL {
            list.head = flow;
        } else {
            self.flows.at_mut(last).next = flow;
        }
        let entry = self.flows.at_mut(flow);
        (entry.next, entry.standing) = (NIL, standing);
    }

    /// The first flow of a list has used up its round: it joins the end of the old ones.
    #[inline(always)]
    pub fn go_behind(&mut self, leaf: u32, list: usize) {
        let flow = self.unlink_first(leaf, list);
        self.append(leaf, flow, Standing::Old);
    }

    #[inline(always)]
    pub fn unlink_first(&mut self, leaf: u32, list: usize) -> u32 {
        self.passed = self.passed.wrapping_add(u32::from(list == OLD));
        let list = &mut self.leaves[leaf as usize].lists[list];
        let first = list.head;
        list.head = self.flows.at(first).next;
        if list.head == NIL {
            list.tail = NIL;
        }
        first
    }
}

#[inline(always)]
fn list_of(standing: Standing) -> usize {
    if matches!(standing, Standing::New | Standing::Backlog) { NEW } else { OLD }
}
