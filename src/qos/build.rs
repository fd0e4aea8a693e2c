//! From the configured classes to the tree.

use super::bucket::{Bucket, Rate};
use super::class::{Buckets, Class, Inner};
use super::queues::LeafSettings;
use super::spec::{ClassSpec, DEPTH_MAX, PRIORITIES, PortQosSpec};
use super::tree::{ROOT, Tree};
use super::wheel::{TICK_NS, Wheel};
use crate::base::Nanos;
use crate::packet::ClassId;

/// Bytes a class may borrow before its siblings' turn: what the heaviest of them gets a round.
pub(super) const QUANTUM_MAX: u32 = 64 << 10;
/// The least a class gets a round. Weights up to 256 times apart are honoured exactly.
pub(super) const QUANTUM_MIN: u32 = 256;

/// A tree with what else the scheduler keeps by class.
pub(super) struct Compiled {
    pub tree: Tree,
    /// By class id: the leaf's index, that of the default leaf for ids that are no leaf here.
    pub leaf_of: Vec<u32>,
    pub default_leaf: u32,
    pub leaves: Vec<LeafSettings>,
    pub lengths: Lengths,
}

/// How a frame's length is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lengths {
    pub overhead: u32,
    pub mpu: u32,
    /// Of the largest frame, as counted.
    pub largest: u32,
}

impl Lengths {
    fn new(spec: &PortQosSpec) -> Lengths {
        let (overhead, mpu) = (u32::from(spec.overhead), u32::from(spec.mpu));
        Lengths { overhead, mpu, largest: (u32::from(spec.mtu) + overhead).max(mpu).max(1) }
    }

    /// Bytes that a frame takes of the link.
    #[inline(always)]
    pub fn counted(self, frame_len: usize) -> u32 {
        (frame_len as u32 + self.overhead).max(self.mpu)
    }
}

/// Lays out the classes of `spec`, each before its children.
///
/// What `validate` refuses is still built into something that works: a class whose parent is
/// unknown stands under the port, one nested too deep beside its parent, and a port without a leaf
/// gets one.
pub(super) fn compile(spec: &PortQosSpec, now: Nanos) -> Compiled {
    let mut builder = Builder::new(spec, now);
    builder.subtree(ROOT, 0, 0);
    builder.finish()
}

struct Builder<'s> {
    spec: &'s PortQosSpec,
    lengths: Lengths,
    /// By position in the specification, 0 being the port: positions of the children.
    children: Vec<Vec<usize>>,
    out: Compiled,
}

impl<'s> Builder<'s> {
    fn new(spec: &'s PortQosSpec, now: Nanos) -> Builder<'s> {
        let classes = &spec.classes;
        let ids = classes.iter().map(|c| usize::from(c.id.0) + 1).max().unwrap_or(0);
        let mut position = vec![0usize; ids];
        let mut depth = vec![0usize; classes.len() + 1];
        let mut parents = vec![0usize; classes.len() + 1];
        let mut children = vec![Vec::new(); classes.len() + 1];
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
        }
        let lengths = Lengths::new(spec);
        let mut builder = Builder {
            spec,
            lengths,
            children,
            out: Compiled {
                tree: Tree::new(
                    Vec::with_capacity(classes.len() + 2),
                    Vec::new(),
                    Vec::new(),
                    Wheel::new(now),
                ),
                leaf_of: vec![u32::MAX; ids],
                default_leaf: 0,
                leaves: Vec::new(),
                lengths,
            },
        };
        let rate = Rate::new(spec.rate);
        let bucket = Bucket::new(rate, builder.cap(rate, spec.burst));
        let mut root = Class::new(ClassId::UNSET, ROOT, 0, bucket, bucket);
        root.buckets = Buckets::Ceil;
        builder.add(root, None);
        builder
    }

    /// What a bucket holds at most. A packet is sent at zero and above and may take the bucket one
    /// packet below, so that this, and not the burst itself, bounds what goes at once to the burst.
    /// Never less than what comes while a timer's tick passes: less would lose rate.
    fn cap(&self, rate: Rate, burst: u32) -> u32 {
        let tick = u32::try_from(rate.bytes_in(2 * TICK_NS)).unwrap_or(u32::MAX);
        burst.saturating_sub(self.lengths.largest).max(tick)
    }

    /// Everything below the class at `position`, which is node `parent`.
    fn subtree(&mut self, parent: u32, position: usize, depth: u8) {
        let children = std::mem::take(&mut self.children[position]);
        let spec = self.spec;
        let weights = children.iter().map(|&at| u64::from(spec.classes[at - 1].weight.max(1)));
        let lightest = weights.clone().min().unwrap_or(1);
        let heaviest = weights.max().unwrap_or(1);
        for at in children {
            let class = &spec.classes[at - 1];
            let (rate, ceil) = (Rate::new(class.rate), Rate::new(class.ceil.max(class.rate)));
            let rate = Bucket::new(rate, self.cap(rate, class.burst));
            let ceil = Bucket::new(ceil, self.cap(ceil, class.cburst));
            let mut node = Class::new(class.id, parent, depth + 1, rate, ceil);
            node.quantum = self.quantum(u64::from(class.weight.max(1)), lightest, heaviest);
            if ceil.is_at_least(&self.out.tree.classes[parent as usize].ceil) {
                node.buckets = Buckets::Rate;
            }
            let leaf = self.children[at].is_empty().then(|| settings(class));
            let node = self.add(node, leaf);
            self.subtree(node, at, depth + 1);
        }
    }

    /// One frame a round for the lightest, in proportion for the others; where that would be over
    /// the maximum for the heaviest, the maximum for it and in proportion for the others.
    fn quantum(&self, weight: u64, lightest: u64, heaviest: u64) -> u32 {
        let frame = u64::from(self.lengths.largest);
        let most = u64::from(QUANTUM_MAX).max(frame);
        let quantum = if heaviest * frame <= most * lightest {
            weight * frame / lightest
        } else {
            (weight * most / heaviest).max(u64::from(QUANTUM_MIN))
        };
        quantum as u32
    }

    fn add(&mut self, mut class: Class, leaf: Option<LeafSettings>) -> u32 {
        let tree = &mut self.out.tree;
        let at = tree.classes.len() as u32;
        if let Some(settings) = leaf {
            let index = tree.leaves.len() as u32;
            if let Some(entry) = self.out.leaf_of.get_mut(usize::from(class.id.0)) {
                *entry = index;
            }
            if class.id == self.spec.default_class {
                self.out.default_leaf = index;
            }
            tree.leaves.push(at);
            self.out.leaves.push(settings);
            (class.body, class.is_leaf) = (index, true);
        } else {
            class.body = tree.inners.len() as u32;
            tree.inners.push(Inner::new());
        }
        tree.classes.push(class);
        at
    }

    fn finish(mut self) -> Compiled {
        if self.out.leaves.is_empty() {
            let root = &self.out.tree.classes[ROOT as usize];
            let mut whole = Class::new(ClassId::UNSET, ROOT, 1, root.rate, root.ceil);
            whole.quantum = self.lengths.largest;
            self.add(whole, Some(LeafSettings { limit: u32::MAX, priority: 0 }));
        }
        for entry in &mut self.out.leaf_of {
            if *entry == u32::MAX {
                *entry = self.out.default_leaf;
            }
        }
        self.out
    }
}

fn settings(class: &ClassSpec) -> LeafSettings {
    LeafSettings { limit: class.limit, priority: class.priority.min(PRIORITIES as u8 - 1) }
}
