//! What of a class tree is allowed, but probably not meant.

use std::collections::HashMap;

use toml::Spanned;

use super::Build;
use crate::config::file::FileClass;
use crate::qos::spec::{DEPTH_MAX, PRIORITIES};

/// Weights of siblings that are held exactly are no further apart.
const WEIGHTS_APART_MAX: i64 = 1_024;

/// A class as written, under its name.
type Entry = (Spanned<String>, Spanned<FileClass>);

/// Warns of quanta and priorities that don't do what they seem to; to be called when errors are
/// told, since of one place the first thing that is told counts. `parents`: by class; `None` where
/// it is not known; `Some(None)`: the port.
pub fn doubts(b: &mut Build<'_>, list: &[Entry], parents: &[Option<Option<usize>>]) {
    quanta(b, list, parents);
    weights(b, list, parents);
    priorities(b, list, parents);
}

/// Siblings far apart in weight: told at the heaviest of each priority.
fn weights(b: &mut Build<'_>, list: &[Entry], parents: &[Option<Option<usize>>]) {
    let weight_of = |at: usize| {
        let class = list[at].1.get_ref();
        let weight = class.weight.as_ref().map_or(1, |weight| *weight.get_ref());
        class.quantum.is_none().then_some(weight)
    };
    // By parent and priority: the lightest and the heaviest.
    let mut ends: HashMap<Option<usize>, [Option<[usize; 2]>; PRIORITIES]> = HashMap::new();
    for ((at, parent), mask) in parents.iter().enumerate().zip(priorities_below(list, parents)) {
        let (Some(parent), Some(weight)) = (parent, weight_of(at)) else { continue };
        for ends in of_mask(ends.entry(*parent).or_default(), mask) {
            let [lightest, heaviest] = ends.get_or_insert([at; 2]);
            if Some(weight) < weight_of(*lightest) {
                *lightest = at;
            }
            if Some(weight) > weight_of(*heaviest) {
                *heaviest = at;
            }
        }
    }
    let mut ends: Vec<_> = ends.into_values().flatten().flatten().collect();
    ends.sort_unstable();
    ends.dedup();
    for [lightest, heaviest] in ends {
        let (Some(least), Some(most)) = (weight_of(lightest), weight_of(heaviest)) else {
            continue;
        };
        if let Some(given) = &list[heaviest].1.get_ref().weight
            && least >= 1
            && most > least.saturating_mul(WEIGHTS_APART_MAX)
        {
            let what = format!(
                "that is more than {WEIGHTS_APART_MAX} times the {least} of its sibling `{}`: \
                 shares are held exactly up to that",
                list[lightest].0.get_ref()
            );
            b.warning(&given.span(), what);
        }
    }
}

/// A quantum is bytes, a weight is relative to the siblings': beside each other they are neither.
/// Siblings are beside each other in the rounds of a priority that leaves below both have.
fn quanta(b: &mut Build<'_>, list: &[Entry], parents: &[Option<Option<usize>>]) {
    let priorities = priorities_below(list, parents);
    // By parent and priority: a class below it without a quantum.
    let mut without: HashMap<Option<usize>, [Option<&str>; PRIORITIES]> = HashMap::new();
    for (((name, class), parent), mask) in list.iter().zip(parents).zip(&priorities) {
        if let (Some(parent), None) = (parent, &class.get_ref().quantum) {
            for other in of_mask(without.entry(*parent).or_default(), *mask) {
                other.get_or_insert(name.get_ref());
            }
        }
    }
    for (((_, class), parent), mask) in list.iter().zip(parents).zip(&priorities) {
        let Some(quantum) = &class.get_ref().quantum else { continue };
        if let Some(weight) = &class.get_ref().weight {
            b.warning(&weight.span(), "a class with a `quantum` goes by that: no effect");
        }
        let Some(others) = parent.and_then(|parent| without.get_mut(&parent)) else { continue };
        // Told once a priority: the siblings would be told the same.
        let others: Vec<&str> = of_mask(others, *mask).filter_map(Option::take).collect();
        if let Some(other) = others.first() {
            let what = format!(
                "its sibling `{other}` has none, and goes by its weight: how the two compare \
                 depends on the siblings' weights and the port's rate. Give all of them a \
                 `quantum`, or none"
            );
            b.warning(&quantum.span(), what);
        }
    }
}

/// What stands for the priorities of a mask.
fn of_mask<T>(list: &mut [T; PRIORITIES], mask: u8) -> impl Iterator<Item = &mut T> {
    list.iter_mut().enumerate().filter(move |(at, _)| mask & (1 << at) != 0).map(|(_, item)| item)
}

/// By class: the priorities of the leaves below it, or its own if it is one, as bits.
fn priorities_below(list: &[Entry], parents: &[Option<Option<usize>>]) -> Vec<u8> {
    let mut masks = vec![0; list.len()];
    for leaf in leaves(parents) {
        let above = ancestors(leaf, parents);
        let given = above.clone().find_map(|at| list[at].1.get_ref().priority.as_ref());
        let priority = given.map_or(0, |given| *given.get_ref());
        let bit = 1 << usize::try_from(priority).unwrap_or(0).min(PRIORITIES - 1);
        above.for_each(|at| masks[at] |= bit);
    }
    masks
}

fn leaves(parents: &[Option<Option<usize>>]) -> impl Iterator<Item = usize> + use<> {
    let mut is_inner = vec![false; parents.len()];
    for parent in parents.iter().flatten().flatten() {
        is_inner[*parent] = true;
    }
    (0..parents.len()).filter(move |&at| !is_inner[at])
}

/// A class and those above it, as far as a tree may be deep.
fn ancestors(
    class: usize,
    parents: &[Option<Option<usize>>],
) -> impl Iterator<Item = usize> + Clone + use<'_> {
    std::iter::successors(Some(class), |&at| parents[at].flatten()).take(DEPTH_MAX + 1)
}

/// Leaves borrow, and an inner class's priority is for those below it that have none of their own.
fn priorities(b: &mut Build<'_>, list: &[Entry], parents: &[Option<Option<usize>>]) {
    let mut is_taken = vec![false; list.len()];
    for leaf in leaves(parents) {
        for at in ancestors(leaf, parents) {
            is_taken[at] = true;
            if list[at].1.get_ref().priority.is_some() {
                break;
            }
        }
    }
    for (at, (_, class)) in list.iter().enumerate() {
        if let Some(priority) = &class.get_ref().priority
            && !is_taken[at]
        {
            let what = "all classes below it have priorities of their own: no effect";
            b.warning(&priority.span(), what);
        }
    }
}
