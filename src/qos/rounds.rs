//! What a class has to keep while its siblings have their turns.
//!
//! Siblings that borrow take turns, each with a quantum a round. What comes at a class's ceil while
//! the others have theirs is lost to them where its ceil bucket can't hold it. It never needs to
//! hold more than its own quantum: where more comes in a round, it is held by its share and not by
//! its ceil. The same goes for the rounds in which the classes above it take part, and adds up.
//!
//! How fast rounds go by is not known, only what is lent at least: what a class has not promised to
//! those below it, and of what those above it lend as much as its weight says. Where siblings have
//! several priorities even that is not certain for the later ones, and where all is promised
//! nothing is: then a quantum is held.
//!
//! Nor may it lose its rate to its ceil: what comes at its rate while its siblings have a turn each
//! on their own account is held as well, and what workers that share the tree are granted at once.

use std::collections::HashMap;

use super::bucket::Rate;
use super::build::{QUANTUM_MAX, Shape, Weights, largest_frame, quantum_of, turn_of};
use super::shared::{LEASE_BYTES_MAX, LEASE_NS};
use super::spec::{ClassSpec, DEPTH_MAX, PortQosSpec};
use crate::base::units::BitRate;

/// Rounds for which it is kept: a class may be first in one and last in the next.
const ROUNDS: u64 = 2;
/// A frame may take a bucket below zero, and another is in turn.
const FRAMES: u64 = 2;
/// The most that is held for siblings' turns on their own account, a level.
const OWN_MAX: u64 = QUANTUM_MAX as u64;

/// The least `cburst` with which each class reaches its ceil beside busy siblings, in the order of
/// the specification.
pub fn cbursts_min(spec: &PortQosSpec) -> Vec<u32> {
    let frame = largest_frame(spec, &spec.countings());
    let (turn, frame) = (turn_of(spec, frame), u64::from(frame));
    let family = Families::new(spec);
    let quantum = |i: usize| family.quantum(&spec.classes[i], i, turn);
    let mut quanta = vec![0u64; spec.classes.len() + 1];
    for (i, &parent) in family.parents.iter().enumerate() {
        quanta[parent] += quantum(i);
    }
    // By position, 0 being the port: bytes a second that go to those below as loans, at least.
    let mut lent = vec![family.unpromised(0, spec.rate)];
    let mut turns = Vec::with_capacity(spec.classes.len());
    for (i, (class, &parent)) in spec.classes.iter().zip(&family.parents).enumerate() {
        let (quantum, all) = (quantum(i), quanta[parent]);
        let own =
            Own { others: family.children[parent] * u64::from(turn), rate: family.rates[parent] };
        turns.push(Turn { quantum, others: all - quantum, rate: lent[parent], own });
        let part = (u128::from(lent[parent]) * u128::from(quantum) / u128::from(all)) as u64;
        let borrowed = part.min(gap(class));
        lent.push(family.unpromised(i + 1, class.rate) + borrowed);
    }
    let least = |(i, class): (usize, &ClassSpec)| {
        let gap = gap(class);
        let (mut at, mut waits) = (i + 1, leased(class).saturating_sub(frame));
        for _ in 0..DEPTH_MAX {
            if at == 0 {
                break;
            }
            waits += ROUNDS * turns[at - 1].bytes_until_next(gap);
            // A turn below an inner class may be of a small packet: it takes some more of them.
            let own_rounds = if family.children[at] == 0 { 1 } else { ROUNDS };
            waits += own_rounds * turns[at - 1].own.bytes_until_next(class.rate.bytes_per_sec());
            at = family.parents[at - 1];
        }
        u32::try_from(FRAMES * frame + waits).unwrap_or(u32::MAX)
    };
    spec.classes.iter().enumerate().map(least).collect()
}

/// A class's part in the rounds of its siblings.
#[derive(Clone, Copy, Debug)]
struct Turn {
    quantum: u64,
    /// Quanta of its siblings.
    others: u64,
    /// Bytes a second at which rounds go by, at least.
    rate: u64,
    own: Own,
}

/// The turns of siblings on their own account.
#[derive(Clone, Copy, Debug)]
struct Own {
    /// Bytes of one each, with the class's own.
    others: u64,
    /// Bytes a second that the class above them is promised.
    rate: u64,
}

impl Turn {
    /// What comes at `rate` bytes a second while the siblings have their turns, as far as the
    /// class's own turn has room for it.
    fn bytes_until_next(self, rate: u64) -> u64 {
        bytes_in(rate, self.others, self.rate).min(self.quantum)
    }
}

impl Own {
    /// What comes at `rate` bytes a second meanwhile.
    fn bytes_until_next(self, rate: u64) -> u64 {
        bytes_in(rate, self.others, self.rate).min(OWN_MAX)
    }
}

/// What comes at `rate` bytes a second while so many go by at another rate.
fn bytes_in(rate: u64, others: u64, at: u64) -> u64 {
    let bytes = u128::from(rate) * u128::from(others) / u128::from(at.max(1));
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Who stands below whom. Positions are those of the specification plus one, 0 being the port.
struct Families {
    /// By class.
    parents: Vec<usize>,
    /// By position, as what follows: sum of the rates below, in bytes a second.
    promised: Vec<u64>,
    /// Bytes a second, and how many stand below.
    rates: Vec<u64>,
    children: Vec<u64>,
    /// Those below.
    weights: Vec<Weights>,
    /// Of the leaves below, or of the leaf itself: one bit each.
    priorities: Vec<u8>,
}

impl Families {
    fn new(spec: &PortQosSpec) -> Families {
        let mut positions = HashMap::with_capacity(spec.classes.len());
        let mut parents = Vec::with_capacity(spec.classes.len());
        let mut promised = vec![0u64; spec.classes.len() + 1];
        let mut rates = vec![spec.rate.bytes_per_sec()];
        let mut children = vec![0; spec.classes.len() + 1];
        let mut weights = vec![Weights::below(spec.rate, spec.rate)];
        for (i, class) in spec.classes.iter().enumerate() {
            let parent = class.parent.and_then(|id| positions.get(&id).copied()).unwrap_or(0);
            parents.push(parent);
            positions.entry(class.id).or_insert(i + 1);
            promised[parent] = promised[parent].saturating_add(class.rate.bytes_per_sec());
            children[parent] += 1;
            rates.push(class.rate.bytes_per_sec());
            weights[parent].add(class);
            weights.push(Weights::below(class.rate, class.ceil));
        }
        let priorities = Shape::new(spec).priorities;
        Families { parents, promised, rates, children, weights, priorities }
    }

    fn quantum(&self, class: &ClassSpec, i: usize, turn: u32) -> u64 {
        u64::from(quantum_of(class, turn, self.weights[self.parents[i]]))
    }

    /// What a class with such a rate lends those below it on top of what it has promised them: to
    /// any of them only where none has an earlier priority than others.
    fn unpromised(&self, at: usize, rate: BitRate) -> u64 {
        let is_even = self.priorities[at].is_power_of_two();
        if is_even { rate.bytes_per_sec().saturating_sub(self.promised[at]) } else { 0 }
    }
}

/// What comes at a class's ceil beyond its rate, in bytes a second.
fn gap(class: &ClassSpec) -> u64 {
    class.ceil.bytes_per_sec().saturating_sub(class.rate.bytes_per_sec())
}

/// What one worker may be granted of a class at once, while the others wait.
fn leased(class: &ClassSpec) -> u64 {
    Rate::new(class.rate).bytes_in(LEASE_NS).min(u64::from(LEASE_BYTES_MAX))
}
