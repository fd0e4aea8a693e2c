//! What leaves take from the configuration, and how they are laid out.

use std::collections::HashMap;

use super::codel::Ticks;
use super::pacing::Pace;
use super::queues::Leaf;
use super::spec::{Counting, QueueSpec};
use super::wheel::TICK_BITS;
use crate::base::mem::Table;

/// What a leaf takes from the configuration. Most have it in common with many others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Manner {
    /// How frames are counted.
    pub counting: Counting,
    pub pace: Pace,
    /// Bytes, as counted, that it may hold.
    pub limit: u32,
    /// Packets of a flow that wait longer are too many.
    pub target: Ticks,
    /// Of the queue management.
    pub interval: Ticks,
}

/// The target of a leaf without queue management: nothing waits that long.
const NO_TARGET: Ticks = Ticks::MAX;

impl Manner {
    /// Of an inner class.
    pub const NONE: Manner = Manner {
        counting: Counting { overhead: 0, mpu: 0 },
        pace: Pace::NONE,
        limit: 0,
        target: NO_TARGET,
        interval: 0,
    };

    pub fn new(limit: u32, queue: QueueSpec, counting: Counting, pace: Pace) -> Manner {
        let ticks = |ns: u64| u32::try_from(ns >> TICK_BITS).unwrap_or(u32::MAX).clamp(1, 1 << 30);
        let (target, interval) = match queue {
            QueueSpec::FqCodel { target, interval } => (ticks(target), ticks(interval)),
            QueueSpec::Fifo => (NO_TARGET, 0),
        };
        Manner { counting, pace, limit, target, interval }
    }

    #[inline(always)]
    pub fn is_fifo(&self) -> bool {
        self.target == NO_TARGET
    }
}

/// Empty leaves, and the manners that they have, each once.
pub(super) fn lay_out(of_classes: &[Manner]) -> (Vec<Manner>, Table<Leaf>) {
    let mut numbers = HashMap::new();
    let mut manners = Vec::new();
    let number = |manner: &Manner| {
        *numbers.entry(*manner).or_insert_with(|| {
            manners.push(*manner);
            (manners.len() - 1) as u16
        })
    };
    let mut leaves = Table::with_room(of_classes.len());
    leaves.extend(of_classes.iter().map(number).map(Leaf::new));
    (manners, leaves)
}
