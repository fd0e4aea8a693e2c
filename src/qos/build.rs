//! From the configured classes to the tree.

use std::collections::HashSet;

use super::bucket::{Bucket, Patience, Rate};
use super::class::{Buckets, Class, Traits};
use super::pacing::Pace;
use super::settings::Manner;
use super::spec::{ClassSpec, Counting, DEPTH_MAX, PRIORITIES, PortQosSpec, QueueSpec};
use super::tree::{ROOT, Tree};
use super::wheel::TICK_NS;
use crate::base::Nanos;
use crate::base::units::BitRate;
use crate::packet::ClassId;

/// Bytes a class may borrow before its siblings' turn: what the heaviest of them gets a round.
pub(super) const QUANTUM_MAX: u32 = 64 << 10;
/// The least a class gets a round. Weights up to 1,024 times apart are honoured exactly.
pub(super) const QUANTUM_MIN: u32 = 64;

/// A leaf's turn is a frame, or what the port sends in this time; where leaves are few, longer, up
/// to the second, as long as a turn of each takes no more than the third. A class waits so long for
/// each of its siblings at most, and the walk down the tree is made for as many packets at once.
const TURN_NS: u64 = 256;
const TURN_NS_MAX: u64 = 1_024;
const TURNS_NS: u64 = 8_192;

/// Beside siblings of other weights, a class that borrows gets what the class above it is
/// guaranteed in this time a round, or a frame: on slow links what is at most for fast ones would
/// be a long turn, and shares would be right only in the long run.
const ROUND_NS: u64 = 1_000_000;
/// The least that any of them then gets a round ...
const SHORT_MIN: u64 = 16;
/// ... or what may be sent in this time, if that is more: where it is fast, rounds cost time ...
const SHORT_NS: u64 = 1_000;
/// ... or as much that a search for one that may send a frame, with all in debt, looks at no more
/// siblings than this.
const SEARCH_MAX: u64 = 8_192;

/// The most that may be configured: deficits must stay far from the ends of their range.
const QUANTUM_MOST: u32 = 1 << 28;

/// A tree with what else the scheduler keeps by class.
pub(super) struct Compiled {
    pub tree: Tree,
    /// By class id: the leaf's class, the default one's for ids that are no leaf here. Half as long
    /// as other indices, since every packet looks here first.
    pub leaf_of: Vec<u16>,
    pub default_leaf: u32,
    /// By class, as what follows.
    pub leaves: Vec<Manner>,
    pub ids: Vec<ClassId>,
    /// Of the largest frame, as counted where it counts most.
    pub largest: u32,
    /// Bytes that a leaf sends in a turn.
    pub turn: u32,
    /// Of all classes: how long those that wait keep their rate.
    patience: Patience,
}

/// Lays out the classes of `spec`, level by level.
///
/// What `validate` refuses is still built into something that works: a class whose parent is
/// unknown stands under the port, one nested too deep beside its parent, and a port without a leaf
/// gets one.
pub(super) fn compile(spec: &PortQosSpec, now: Nanos) -> Compiled {
    let shape = Shape::new(spec);
    let countings = spec.countings();
    let largest = largest_frame(spec, &countings);
    let rate = Rate::new(spec.rate);
    let bucket = Bucket::new(rate, cap(largest, rate, spec.burst));
    let turn = turn_of(spec, largest);
    let patience = Patience::for_ns(longest_round_ns(spec, &shape, turn));
    let root = Class::new(ROOT, bucket, bucket, Traits::new(false, Buckets::Ceil, 0, patience));
    let mut out = Compiled {
        tree: Tree::new(root, spec.classes.len() + 2, now),
        leaf_of: vec![ROOT as u16; shape.ids],
        default_leaf: u32::MAX,
        leaves: vec![Manner::NONE],
        ids: vec![ClassId::UNSET],
        largest,
        turn,
        patience,
    };
    // By class: its position in the specification, 0 being the port.
    let mut positions = vec![0];
    let mut at = 0;
    while let Some(&position) = positions.get(at) {
        let children = &shape.children[position];
        if !children.is_empty() {
            let first = out.tree.classes.len() as u32;
            out.children(spec, &shape, (at as u32, position), &countings);
            let count = children.len() as u32;
            out.tree.adopt(at as u32, first, count, shape.priorities[position]);
            positions.extend(children);
        } else if at == ROOT as usize {
            let traits = Traits::new(true, Buckets::Rate, 0, patience);
            out.add(Class::new(ROOT, bucket, bucket, traits), ClassId::UNSET, largest);
            out.leaves.push(Manner::new(u32::MAX, QueueSpec::Fifo, spec.counting(), Pace::NONE));
            out.tree.adopt(ROOT, ROOT + 1, 1, 1);
            break;
        }
        at += 1;
    }
    if out.default_leaf == u32::MAX {
        let first = out.tree.classes.iter().position(|class| class.traits.is_leaf());
        out.default_leaf = first.unwrap_or(0) as u32;
    }
    for entry in &mut out.leaf_of {
        if *entry == ROOT as u16 {
            *entry = out.default_leaf as u16;
        }
    }
    out
}

/// Who stands below whom.
pub(super) struct Shape {
    /// One more than the largest class id.
    ids: usize,
    /// By position in the specification, 0 being the port: positions of the children.
    children: Vec<Vec<usize>>,
    /// As above: priorities of the leaves below, or of the leaf itself, one bit each.
    pub priorities: Vec<u8>,
}

impl Shape {
    pub fn new(spec: &PortQosSpec) -> Shape {
        let classes = &spec.classes;
        let ids = classes.iter().map(|c| usize::from(c.id.0) + 1).max().unwrap_or(0);
        let mut position = vec![0usize; ids];
        let mut depth = vec![0usize; classes.len() + 1];
        let mut parents = vec![0usize; classes.len() + 1];
        let mut children = vec![Vec::new(); classes.len() + 1];
        let mut order = Vec::with_capacity(classes.len());
        for (i, class) in classes.iter().enumerate() {
            let at = i + 1;
            if position[usize::from(class.id.0)] != 0 {
                continue;
            }
            let named = class.parent.and_then(|p| position.get(usize::from(p.0)).copied());
            let mut parent = named.unwrap_or(0);
            if depth[parent] == DEPTH_MAX {
                parent = parents[parent];
            }
            parents[at] = parent;
            depth[at] = depth[parent] + 1;
            children[parent].push(at);
            position[usize::from(class.id.0)] = at;
            order.push(at);
        }
        let mut priorities = vec![0u8; classes.len() + 1];
        for &at in order.iter().rev() {
            if children[at].is_empty() {
                priorities[at] = 1 << priority(&classes[at - 1]);
            }
            priorities[parents[at]] |= priorities[at];
        }
        Shape { ids, children, priorities }
    }
}

impl Compiled {
    /// Adds the children of a class, which is known by its index and its position.
    fn children(
        &mut self,
        spec: &PortQosSpec,
        shape: &Shape,
        (parent, position): (u32, usize),
        countings: &[Counting],
    ) {
        let (turn, children) = (self.turn, &shape.children[position]);
        let above = position.checked_sub(1).map(|at| &spec.classes[at]);
        let (rate, ceil) = above.map_or((spec.rate, spec.rate), |class| (class.rate, class.ceil));
        let mut weights = Weights::below(rate, ceil);
        children.iter().for_each(|&at| weights.add(&spec.classes[at - 1]));
        for &at in children {
            let class = &spec.classes[at - 1];
            let (rate, ceil) = (Rate::new(class.rate), Rate::new(class.ceil.max(class.rate)));
            let rate = Bucket::new(rate, cap(self.largest, rate, class.burst));
            let ceil = Bucket::new(ceil, cap(self.largest, ceil, class.cburst));
            let is_leaf = shape.children[at].is_empty();
            let above = &self.tree.classes[parent as usize].ceil;
            let buckets = if ceil.is_at_least(above) { Buckets::Rate } else { Buckets::Both };
            let traits = Traits::new(is_leaf, buckets, priority(class), self.patience);
            let quantum = quantum_of(class, turn, weights);
            let pace = Pace::new(class.flow_rate.filter(|_| class.queue != QueueSpec::Fifo));
            let node = self.add(Class::new(parent, rate, ceil, traits), class.id, quantum);
            let counting = countings[at - 1];
            self.leaves.push(Manner::new(class.limit, class.queue, counting, pace));
            if is_leaf {
                self.leaf_of[usize::from(class.id.0)] = node as u16;
            }
            if class.id == spec.default_class && is_leaf {
                self.default_leaf = node;
            }
        }
    }

    fn add(&mut self, class: Class, id: ClassId, quantum: u32) -> u32 {
        self.ids.push(id);
        self.tree.add(class, quantum)
    }
}

/// What a bucket holds at most. A packet is sent at zero and above and may take the bucket one
/// packet below, so that this, and not the burst itself, bounds what goes at once to the burst.
/// Never less than what comes while a timer's tick passes: less would lose rate.
fn cap(largest: u32, rate: Rate, burst: u32) -> u32 {
    let tick = u32::try_from(rate.bytes_in(2 * TICK_NS)).unwrap_or(u32::MAX);
    burst.saturating_sub(largest).max(tick)
}

/// Bytes of the largest frame, as counted where it counts most.
pub(super) fn largest_frame(spec: &PortQosSpec, countings: &[Counting]) -> u32 {
    let of_port = std::iter::once(spec.counting());
    let all = of_port.chain(countings.iter().copied());
    all.map(|c| c.counted(usize::from(spec.mtu))).max().unwrap_or(0).max(1)
}

/// Bytes of a leaf's turn: a frame, or what the port sends in a time.
pub(super) fn turn_of(spec: &PortQosSpec, largest: u32) -> u32 {
    let parents: HashSet<_> = spec.classes.iter().filter_map(|class| class.parent).collect();
    let leaves = (spec.classes.len() - parents.len().min(spec.classes.len())).max(1) as u64;
    let ns = (TURNS_NS / leaves).clamp(TURN_NS, TURN_NS_MAX);
    let fast = Rate::new(spec.rate).bytes_in(ns).min(u64::from(QUANTUM_MAX));
    largest.max(fast as u32)
}

/// How long the port takes to serve every leaf once after each has sent its burst. For so long a
/// class may have to wait until all the others are below their rates.
fn longest_round_ns(spec: &PortQosSpec, shape: &Shape, turn: u32) -> u64 {
    let bytes = |(i, class): (usize, &ClassSpec)| {
        let is_leaf = shape.children[i + 1].is_empty();
        u64::from(is_leaf) * (u64::from(class.burst) + u64::from(turn))
    };
    let bytes: u64 = spec.classes.iter().enumerate().map(bytes).sum();
    let ns = u128::from(bytes) * 1_000_000_000 / u128::from(spec.rate.bytes_per_sec().max(1));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// What siblings weigh that have no quanta of their own, and where they stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights {
    lightest: u64,
    heaviest: u64,
    /// The greatest that divides them all.
    unit: u64,
    count: u64,
    /// Bytes that the class above them is guaranteed in a round.
    round: u64,
    /// Bytes that each gets a round at least, where rounds are short, beside what `count` says.
    least: u64,
}

impl Weights {
    /// No siblings yet, below a class that may send so much.
    pub fn below(rate: BitRate, ceil: BitRate) -> Weights {
        let round = Rate::new(rate).bytes_in(ROUND_NS);
        let least = Rate::new(ceil.max(rate)).bytes_in(SHORT_NS).max(SHORT_MIN);
        Weights { lightest: u64::MAX, heaviest: 1, unit: 0, count: 0, round, least }
    }

    pub fn add(&mut self, class: &ClassSpec) {
        if class.quantum.is_none() {
            let own = weight(class);
            self.lightest = own.min(self.lightest);
            self.heaviest = own.max(self.heaviest);
            self.unit = divisor(own, self.unit);
            self.count += 1;
        }
    }

    /// Bytes a round for each unit of weight where rounds are short.
    fn each(&self, turn: u64) -> u64 {
        let least = self.least.max(self.count * turn / SEARCH_MAX);
        least.div_ceil(self.lightest).max(self.round.max(turn) / self.heaviest)
    }
}

/// The greatest that divides both; 0 is divided by all.
fn divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { divisor(b, a % b) }
}

fn weight(class: &ClassSpec) -> u64 {
    u64::from(class.weight.max(1))
}

/// Bytes a round of a class among siblings of such weights.
pub(super) fn quantum_of(class: &ClassSpec, turn: u32, weights: Weights) -> u32 {
    match class.quantum {
        Some(bytes) => bytes.clamp(QUANTUM_MIN, QUANTUM_MOST),
        None => quantum(turn, weight(class), weights).min(QUANTUM_MOST),
    }
}

/// One turn a round for the lightest, in proportion for the others; where that would be over the
/// maximum for the heaviest, about the maximum for it and in proportion for the others. Where that
/// or less is enough for a round, as many whole bytes for each unit of weight, so that shares are
/// exact.
fn quantum(turn: u32, weight: u64, mut weights: Weights) -> u32 {
    let (turn, unit) = (u64::from(turn), weights.unit.max(1));
    let weight = weight / unit;
    weights.lightest /= unit;
    weights.heaviest /= unit;
    let Weights { lightest, heaviest, .. } = weights;
    let most = u64::from(QUANTUM_MAX).max(turn);
    let fits = heaviest * turn <= most * lightest;
    let longest = if fits { heaviest * turn / lightest } else { most };
    let each = weights.each(turn);
    let quantum = if heaviest * each < longest {
        weight * each
    } else if fits {
        weight * turn / lightest
    } else if most / heaviest * lightest >= u64::from(QUANTUM_MIN) {
        most / heaviest * weight
    } else {
        (weight * most / heaviest).max(u64::from(QUANTUM_MIN))
    };
    quantum as u32
}

/// A class's priority as a number below [`PRIORITIES`].
fn priority(class: &ClassSpec) -> u8 {
    class.priority.min(PRIORITIES as u8 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quanta_are_as_weights_are() {
        let fast = BitRate(100_000_000_000);
        for weights in [&[900, 1][..], &[1_000, 30, 1], &[1_024, 1], &[2_000, 3], &[150, 7, 1]] {
            let mut all = Weights::below(fast, fast);
            let classes: Vec<_> = (1..).zip(weights).collect();
            for &(id, &weight) in &classes {
                all.add(&ClassSpec { weight, ..ClassSpec::plain(id, fast, fast) });
            }
            let quanta: Vec<_> =
                weights.iter().map(|&w| quantum(1_538, u64::from(w), all)).collect();
            for (quantum, weight) in quanta.iter().zip(weights) {
                let [a, b] = [quantum * weights[0], quanta[0] * weight];
                assert_eq!(a, b, "{weights:?}: {quanta:?}");
                assert!((QUANTUM_MIN..=QUANTUM_MAX).contains(quantum), "{quanta:?}");
            }
        }
    }

    /// Where rounds are short, who may send a frame is found among few looks at siblings in debt.
    #[test]
    fn short_rounds_are_no_shorter_than_a_search_allows() {
        for count in [16, 256, 1_024] {
            let slow = BitRate(1_000_000);
            let mut all = Weights::below(slow, slow);
            let class = |weight| ClassSpec { weight, ..ClassSpec::plain(1, slow, slow) };
            (0..count).for_each(|_| all.add(&class(1)));
            all.add(&class(100));
            let quantum = u64::from(quantum(1_538, 1, all));
            let looks = count * 1_538 / quantum;
            assert!(looks <= 8_400 && quantum < 300, "{count}: {looks} for {quantum} bytes");
        }
    }
}
