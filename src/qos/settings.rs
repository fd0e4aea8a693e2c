//! What leaves take from the configuration, and how they are laid out.

use std::collections::HashMap;

use super::codel::Ticks;
use super::pacing::Pace;
use super::queues::Leaf;
use super::spec::{Counting, QueueSpec};
use super::wheel::TICK_BITS;
use crate::base::mem::huge_table;

/// What a leaf takes from the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeafSettings {
    /// Bytes, as counted, that it may hold.
    pub limit: u32,
    pub target: Ticks,
    pub manner: Manner,
}

/// What many leaves have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Manner {
    /// How frames are counted.
    pub counting: Counting,
    pub pace: Pace,
    /// Of the queue management.
    pub interval: Ticks,
}

/// The target of a leaf without queue management: nothing waits that long.
pub(super) const NO_TARGET: Ticks = Ticks::MAX;

impl LeafSettings {
    /// Of an inner class.
    pub const NONE: LeafSettings = LeafSettings {
        limit: 0,
        target: NO_TARGET,
        manner: Manner {
            counting: Counting { overhead: 0, mpu: 0 },
            pace: Pace::NONE,
            interval: 0,
        },
    };

    pub fn new(limit: u32, queue: QueueSpec, counting: Counting, pace: Pace) -> LeafSettings {
        let ticks = |ns: u64| u32::try_from(ns >> TICK_BITS).unwrap_or(u32::MAX).clamp(1, 1 << 30);
        let (target, interval) = match queue {
            QueueSpec::FqCodel { target, interval } => (ticks(target), ticks(interval)),
            QueueSpec::Fifo => (NO_TARGET, 0),
        };
        LeafSettings { limit, target, manner: Manner { counting, pace, interval } }
    }
}

/// What is kept by class.
pub(super) fn table<T>(leaves: &[LeafSettings], new: impl Fn(usize, LeafSettings) -> T) -> Vec<T> {
    let mut table = huge_table(leaves.len());
    table.extend(leaves.iter().enumerate().map(|(i, &settings)| new(i, settings)));
    table
}

/// Empty leaves, and the manners that they have, each once.
pub(super) fn lay_out(leaves: &[LeafSettings]) -> (Vec<Manner>, Vec<Leaf>) {
    let mut numbers = HashMap::new();
    let mut manners = Vec::new();
    let number = |settings: &LeafSettings| {
        *numbers.entry(settings.manner).or_insert_with(|| {
            manners.push(settings.manner);
            (manners.len() - 1) as u16
        })
    };
    let numbers: Vec<u16> = leaves.iter().map(number).collect();
    (manners, table(leaves, |i, settings| Leaf::new(settings, numbers[i])))
}
