//! Where each backend is counted: a place that it keeps over reloads.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::Addr;
use crate::config::Config;
use crate::flow::entry::NONE_U16;
use crate::flow::serving::PLACES_MAX;

/// A backend's address and port: what several pools have in common is one.
pub type End = (Addr, u16);

/// Places given so far. One that nobody uses any more is kept until all are given: flows that
/// began before a reload still count on it.
#[derive(Debug, Default)]
pub struct Places {
    by_end: BTreeMap<End, u16>,
    /// Not of the configuration any more, with when they were left: the oldest first.
    left: Vec<(End, u16)>,
    given: usize,
}

impl Places {
    /// Gives places to all backends of a configuration. `busy` says whether flows count on one.
    pub fn set_config(&mut self, config: &Config, busy: impl Fn(u16) -> bool) {
        let backends = config.forward.pools.iter().flat_map(|p| &p.backends);
        let wanted: BTreeSet<End> = backends.map(|b| (b.addr, b.port)).collect();
        let left: Vec<End> =
            self.by_end.keys().filter(|end| !wanted.contains(end)).copied().collect();
        // Those that were left earlier, whose last flows have ended by now, may be given again.
        let mut free: Vec<u16> =
            self.left.iter().map(|(_, place)| *place).filter(|place| !busy(*place)).collect();
        free.reverse();
        for end in wanted {
            if self.by_end.contains_key(&end) {
                continue;
            }
            let again = self.left.iter().position(|(of, _)| *of == end);
            let place = match again {
                Some(at) => Some(self.left.remove(at).1),
                None => self.fresh(&mut free),
            };
            match place {
                Some(place) => {
                    free.retain(|f| *f != place);
                    self.by_end.insert(end, place);
                }
                None => tracing::warn!(
                    "too many backends have come and gone: {end:?} is not \
                                        counted"
                ),
            }
        }
        for end in left {
            self.left.extend(self.by_end.remove(&end).map(|place| (end, place)));
        }
    }

    fn fresh(&mut self, free: &mut Vec<u16>) -> Option<u16> {
        if self.given < PLACES_MAX {
            self.given += 1;
            return u16::try_from(self.given - 1).ok();
        }
        let place = free.pop()?;
        self.left.retain(|(_, of)| *of != place);
        Some(place)
    }

    /// The place of a backend; that of none where it has none.
    pub fn of(&self, end: End) -> u16 {
        self.by_end.get(&end).copied().unwrap_or(NONE_U16)
    }

    /// All places that are or were in use are below this.
    pub fn count(&self) -> usize {
        self.given
    }
}
