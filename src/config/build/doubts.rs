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

/// Siblings that differ in weight, of one priority.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Ends {
    lightest: usize,
    heaviest: usize,
}

/// Siblings far apart in weight: told at the heaviest of each priority. What classes send in a turn
/// goes by the heaviest sibling of any priority, so that one may bring others too close together.
fn weights(b: &mut Build<'_>, list: &[Entry], parents: &[Option<Option<usize>>]) {
    let weight_of = |at: usize| {
        let class = list[at].1.get_ref();
        let weight = class.weight.as_ref().map_or(1, |weight| *weight.get_ref());
        class.quantum.is_none().then_some(weight)
    };
    // By parent: the heaviest, and the ends of each priority.
    type Below = (Option<usize>, [Option<Ends>; PRIORITIES]);
    let mut below: HashMap<Option<usize>, Below> = HashMap::new();
    for ((at, parent), mask) in parents.iter().enumerate().zip(priorities_below(list, parents)) {
        let (Some(parent), Some(weight)) = (parent, weight_of(at)) else { continue };
        let (heaviest, ends) = below.entry(*parent).or_default();
        if Some(weight) > heaviest.and_then(weight_of) {
            *heaviest = Some(at);
        }
        for ends in of_mask(ends, mask) {
            let ends = ends.get_or_insert(Ends { lightest: at, heaviest: at });
            if Some(weight) < weight_of(ends.lightest) {
                ends.lightest = at;
            }
            if Some(weight) > weight_of(ends.heaviest) {
                ends.heaviest = at;
            }
        }
    }
    let of_parent = |(most, ends): Below| {
        ends.into_iter().flatten().filter_map(move |ends| Some((ends, most?)))
    };
    let mut ends: Vec<(Ends, usize)> = below.into_values().flat_map(of_parent).collect();
    ends.sort_unstable();
    ends.dedup();
    for (Ends { lightest, heaviest }, most) in ends {
        let Some(least) = weight_of(lightest).filter(|least| *least >= 1) else { continue };
        let is_far = |at| weight_of(at) > Some(least.saturating_mul(WEIGHTS_APART_MAX));
        let name = |at: usize| list[at].0.get_ref();
        let what = format!(
            "that is more than {WEIGHTS_APART_MAX} times the {least} of its sibling `{}`",
            name(lightest)
        );
        let (at, what) = if is_far(heaviest) {
            (heaviest, format!("{what}: shares are held exactly up to that"))
        } else if is_far(most) && weight_of(heaviest) > Some(least) {
            let other = name(heaviest);
            (most, format!("{what}: the shares of that and `{other}` are held exactly up to that"))
        } else {
            continue;
        };
        if let Some(given) = &list[at].1.get_ref().weight {
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
