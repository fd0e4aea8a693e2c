//! Flows that stay ours though their service takes a smaller share of clients by now.
//!
//! A share that is lowered stops new flows only: the programs ask a map of the flows that had begun
//! for clients outside of it. Until workers have told which those are all that comes by the share
//! before is ours, and the programs note it: so no flow begins meanwhile that is in no map.

use std::collections::{HashMap, HashSet};

use super::abi::{Endpoint, MAX_KEPT, SHARE_ALL, SHARE_BEFORE, SHARE_KEEPS, SHARE_TUNNEL};
use super::offload::OffloadKey;
use super::{Steer, VipEntry};
use crate::base::Addr;
use crate::nic::NicError;
use crate::packet::FlowKey;

/// Address, port and protocol.
pub type At = (Addr, u16, u8);

/// Where flows are kept that are outside of the share by now, each with the share that counts for
/// now: the one before, while it is not known which flows those are; 0 once it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lowered {
    /// Services.
    pub vips: HashMap<At, u16>,
    /// Backends that answer by way of here.
    pub returns: HashMap<At, u16>,
}

impl Lowered {
    /// What is lowered once these entries take the place of `was`, `before` having been told last.
    pub fn of(
        (vips, was_vips): (&[VipEntry], &[VipEntry]),
        (returns, was_returns): (&[VipEntry], &[VipEntry]),
        before: &Lowered,
    ) -> Lowered {
        let vips = lowered(vips, was_vips, &before.vips);
        if vips.is_empty() {
            // A backend's share may be smaller because a service is gone: none of its flows stays.
            return Lowered::default();
        }
        Lowered { vips, returns: lowered(returns, was_returns, &before.returns) }
    }

    /// Whether it is not known yet which flows are kept.
    pub fn holds(&self) -> bool {
        self.vips.values().chain(self.returns.values()).any(|share| *share > 0)
    }

    /// From now on that is known.
    pub fn known(&self) -> Lowered {
        let known = |of: &HashMap<At, u16>| of.keys().map(|at| (*at, 0)).collect();
        Lowered { vips: known(&self.vips), returns: known(&self.returns) }
    }
}

/// Writes it into the words of shares.
pub(super) fn mark(lowered: &HashMap<At, u16>, words: &mut HashMap<Endpoint, u32>) {
    for (key, word) in words {
        if let Some(before) = lowered.get(&(key.addr, key.port, key.proto)) {
            *word |= SHARE_KEEPS | u32::from(*before) << SHARE_BEFORE;
        }
    }
}

fn lowered(now: &[VipEntry], was: &[VipEntry], before: &HashMap<At, u16>) -> HashMap<At, u16> {
    let was = shares(was);
    let entry = |(at, share): (At, u16)| {
        let last = was.get(&at).copied().filter(|last| *last > share);
        let held = before.get(&at).copied();
        if u32::from(share) >= SHARE_ALL || last.or(held).is_none() {
            return None;
        }
        let hold = last.unwrap_or_default().max(held.unwrap_or_default());
        Some((at, if hold > share { hold } else { 0 }))
    };
    shares(now).into_iter().filter_map(entry).collect()
}

/// Where several are at one place the largest share counts.
fn shares(entries: &[VipEntry]) -> HashMap<At, u16> {
    let mut all = HashMap::new();
    for e in entries.iter().filter(|e| u32::from(e.canary_share) != SHARE_TUNNEL) {
        let share = all.entry((e.addr, e.port, e.proto)).or_default();
        *share = e.canary_share.max(*share);
    }
    all
}

impl Steer {
    /// What is lowered from now on, with the next [`Steer::set_vips`] and [`Steer::set_returns`].
    pub fn set_lowered(&mut self, lowered: Lowered) {
        self.lowered = lowered;
    }

    /// These flows stay ours, besides those that the programs noted themselves, as far as there is
    /// room; or, once it is known that these are all, no others. How many there is no room for is
    /// the answer.
    ///
    /// # Errors
    /// The kernel refusing the map update.
    pub fn keep(&mut self, flows: &HashSet<FlowKey>, are_all: bool) -> Result<usize, NicError> {
        let keys = flows.iter().take(MAX_KEPT as usize).map(|key| (OffloadKey::from(key), 1));
        let wanted: HashMap<_, _> = keys.collect();
        let refused = flows.len() - wanted.len();
        for program in self.all() {
            match are_all {
                true => program.set_kept(&wanted)?,
                false => {
                    let is_full = !wanted.keys().all(|key| program.keep(key));
                    if is_full {
                        // What is noted may be anybody's, and gives way to flows.
                        program.set_kept(&wanted)?;
                    }
                }
            }
        }
        self.kept = wanted;
        Ok(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vip(addr: &str, canary_share: u16) -> VipEntry {
        VipEntry { addr: addr.parse().expect("literal"), port: 80, proto: 6, canary_share }
    }

    #[test]
    fn what_is_lowered_is_held_until_it_is_known_and_kept_until_it_is_gone() {
        let step = |was: &[VipEntry], now: &[VipEntry], before: &Lowered| {
            Lowered::of((now, was), (&[], &[]), before)
        };
        let held = |of: &Lowered| of.vips.values().copied().collect::<Vec<_>>();
        let [all, most, half, some] =
            [10_000, 7_500, 5_000, 2_500].map(|share| [vip("192.0.2.1", share)]);
        let none = Lowered::default();
        assert_eq!(step(&[], &some, &none), none, "new here");
        assert_eq!(step(&some, &half, &none), none, "raised");
        let first = step(&all, &half, &none);
        assert_eq!((held(&first), first.holds()), (vec![10_000], true));
        assert_eq!(step(&half, &half, &first), first, "told once more");
        assert_eq!(held(&step(&half, &some, &first)), [10_000], "before it is known");
        let known = first.known();
        assert_eq!((held(&known), known.holds()), (vec![0], false));
        // What lies beyond the share before is the kernel's, but for what is kept.
        assert_eq!(held(&step(&half, &some, &known)), [5_000]);
        assert_eq!(held(&step(&half, &most, &known)), [0], "some are kept beyond that, too");
        assert_eq!(held(&step(&half, &most, &first)), [10_000]);
        assert_eq!(step(&half, &all, &known), none);
        assert_eq!(step(&half, &[], &known), none, "gone");
        assert_eq!(Lowered::of((&[], &[]), (&some, &all), &none), none, "another service's");
        let tunnel = [vip("192.0.2.1", SHARE_TUNNEL as u16)];
        assert_eq!(Lowered::of((&[], &[]), (&some, &tunnel), &none), none);
    }

    #[test]
    fn the_word_has_both_shares() {
        let mut words =
            super::super::endpoints(&[vip("192.0.2.1", 2_500), vip("192.0.2.2", 2_500)]);
        let first = vip("192.0.2.1", 0);
        mark(&[((first.addr, first.port, first.proto), 9_000)].into(), &mut words);
        let mut words: Vec<_> = words.into_values().collect();
        words.sort_unstable();
        assert_eq!(words, [2_500, 2_500 | 9_000 << 16 | 1 << 30]);
    }
}
