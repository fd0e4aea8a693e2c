//! A changed tree takes the place of another while packets wait.
//!
//! What takes memory or time in proportion to what may be held is done ahead, by whoever may: the
//! new tables are made and the old ones freed elsewhere. What is left for the packets' owner goes
//! by the number of classes and of packets that wait.

use super::ahead::Ahead;
use super::build::{Compiled, compile};
use super::member::Books;
use super::packets::Packets;
use super::queues::Queues;
use super::rehouse::Move;
use super::scheduler::Scheduler;
use super::spec::PortQosSpec;
use super::tree::{ROOT, Tree};
use crate::base::{Nanos, Seed};
use crate::packet::ClassId;

/// A new class has no predecessor.
const NOBODY: u32 = u32::MAX;

/// All that a changed tree needs, made ahead; after [`Scheduler::succeed`], what the old one had.
pub struct Successor {
    tree: Tree,
    queues: Queues,
    leaf_of: Vec<u16>,
    default_leaf: u32,
    ids: Vec<ClassId>,
    largest: u32,
    turn: u32,
    books: Books,
    /// By old class: where the flows of a leaf go.
    moves: Vec<Move>,
    /// By new class: the old one of the same id, or [`NOBODY`].
    from: Vec<u32>,
}

impl Successor {
    /// For a scheduler of `old`, to go on as `spec`, for as many packets as it was made for. Takes
    /// all memory.
    pub fn new(
        now: Nanos,
        (old, spec): (&PortQosSpec, &PortQosSpec),
        packets_max: u32,
        seed: Seed,
    ) -> Successor {
        let Compiled { tree, leaf_of, default_leaf, leaves, ids, largest, turn, .. } =
            compile(spec, now);
        let mut queues = Queues::new(&leaves, packets_max, largest, seed);
        queues.pacing.begin(now);
        // The old ones stay.
        queues.packets = Packets::new(0);
        let old = compile(old, now);
        let from = predecessors(&ids, &old.ids);
        let nowhere = Move { leaf: default_leaf, is_same: false, counters: ROOT, stays: false };
        let mut moves = vec![nowhere; old.ids.len()];
        let successors = predecessors(&old.ids, &ids);
        for (from, id) in old.ids.iter().enumerate().skip(ROOT as usize + 1) {
            let class = &old.tree.classes[from];
            // Parents stand before their children.
            let counters = match successors[from] {
                NOBODY => moves[class.parent() as usize].counters,
                same => same,
            };
            let to = leaf_of.get(usize::from(id.0)).map_or(default_leaf, |&to| u32::from(to));
            let is_same = class.traits.is_leaf() && ids[to as usize] == *id;
            let leaf = if is_same { to } else { default_leaf };
            let stays = successors[from] != NOBODY;
            moves[from] = Move { leaf, is_same, counters, stays };
        }
        let books = Books::new(spec, ids.len());
        Successor { tree, queues, leaf_of, default_leaf, ids, largest, turn, books, moves, from }
    }
}

/// By class: the one of another tree that has the same id.
pub(super) fn predecessors(ids: &[ClassId], old: &[ClassId]) -> Vec<u32> {
    let mut at_of = vec![NOBODY; usize::from(u16::MAX) + 1];
    for (at, id) in (0u32..).zip(old) {
        let known = &mut at_of[usize::from(id.0)];
        *known = (*known).min(at);
    }
    ids.iter().map(|id| at_of[usize::from(id.0)]).collect()
}

impl Scheduler {
    /// Changes to another tree. Classes are matched by id: they keep their packets, their tokens
    /// (the new burst at most) and their counters; those of one that is gone are counted by the
    /// nearest class above that is left. Packets of leaves that are gone, or now have classes below
    /// them, move to the default leaf, behind packets there of the same flow; nothing is dropped,
    /// and limits count again with the next arrival. How many packets may be held stays
    /// as it is. Takes time in proportion to classes and packets, and no memory.
    pub fn succeed(&mut self, now: Nanos, next: &mut Successor) {
        use std::mem::swap;
        debug_assert_eq!(next.moves.len(), self.ids.len(), "made for another tree");
        let now = self.advance(now);
        next.tree.inherit(now, &next.from, &mut self.tree);
        self.queues.rehouse(&mut next.queues, &next.moves);
        swap(&mut self.tree, &mut next.tree);
        swap(&mut self.leaf_of, &mut next.leaf_of);
        swap(&mut self.ids, &mut next.ids);
        (self.default_leaf, self.largest) = (next.default_leaf, next.largest);
        self.turn = next.turn;
        self.ahead = Ahead::new();
        if let Some(member) = &mut self.member {
            member.succeed(&mut next.books, &self.queues);
            return;
        }
        for leaf in 0..self.ids.len() as u32 {
            if self.queues.has_ready(leaf) {
                self.tree.activate(now, leaf);
            }
        }
    }
}
