//! Which neighbours the kernel should be asked to resolve or to confirm, and when.
//!
//! Packets that go through the appliance never touch the kernel's neighbour cache, so the kernel
//! takes entries that carry gigabits for unused: it neither confirms them nor keeps them. `NTF_USE`
//! tells it otherwise. `NTF_EXT_MANAGED` (Linux 5.16) would hand the whole matter to the kernel,
//! but such entries outlive the process, which is to leave the box as it found it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::mirror::{Mirror, NeighbourState};
use crate::base::{Addr, Nanos};

/// Between two requests to confirm a neighbour that is in use.
pub const CONFIRM_EVERY: Duration = Duration::from_secs(30);
/// Between two requests for one that did not answer. The kernel itself takes 3 s to give up
/// (`mcast_solicit` probes, `retrans_time_ms` apart).
pub const RETRY_EVERY: Duration = Duration::from_secs(5);
/// Between two requests for one that packets wait for.
pub const WANTED_EVERY: Duration = Duration::from_millis(200);
/// Requests made at once.
pub const REQUESTS_MAX: usize = 64;
/// Neighbours remembered to have been asked for.
pub const ASKED_MAX: usize = 16_384;

/// Keeps backends and gateways resolved, and those resolved fresh.
#[derive(Debug, Default)]
pub struct Keeper {
    kept: Vec<(u32, Addr)>,
    asked: BTreeMap<(u32, Addr), Nanos>,
}

impl Keeper {
    /// Interface and address of every neighbour that is to be resolved ahead of need.
    pub fn set_kept(&mut self, mut kept: Vec<(u32, Addr)>) {
        kept.sort_unstable();
        kept.dedup();
        self.kept = kept;
    }

    /// Packets wait for this neighbour: whether the kernel is to be asked for it now.
    pub fn wanted(&mut self, now: Nanos, mirror: &Mirror, ifindex: u32, addr: Addr) -> bool {
        let state = mirror.neighbour(ifindex, addr).map(|n| n.state);
        match state {
            Some(NeighbourState::Fresh | NeighbourState::Fixed) => false,
            _ => self.may_ask(now, WANTED_EVERY, ifindex, addr),
        }
    }

    /// Appends to `out` the neighbours to ask the kernel for now: kept ones that are unresolved,
    /// and stale ones on the appliance's interfaces `ifindexes`. [`REQUESTS_MAX`] at most; call
    /// again.
    pub fn due(
        &mut self,
        now: Nanos,
        mirror: &Mirror,
        ifindexes: &[u32],
        out: &mut Vec<(u32, Addr)>,
    ) {
        for i in 0..self.kept.len() {
            let (ifindex, addr) = self.kept[i];
            let unresolved = match mirror.neighbour(ifindex, addr) {
                None => true,
                Some(n) => n.state == NeighbourState::Failed,
            };
            if unresolved
                && out.len() < REQUESTS_MAX
                && self.may_ask(now, RETRY_EVERY, ifindex, addr)
            {
                out.push((ifindex, addr));
            }
        }
        for (ifindex, addr, neighbour) in mirror.neighbours() {
            let stale = neighbour.state == NeighbourState::Stale && ifindexes.contains(&ifindex);
            if stale && out.len() < REQUESTS_MAX && self.may_ask(now, CONFIRM_EVERY, ifindex, addr)
            {
                out.push((ifindex, addr));
            }
        }
    }

    fn may_ask(&mut self, now: Nanos, every: Duration, ifindex: u32, addr: Addr) -> bool {
        if let Some(at) = self.asked.get(&(ifindex, addr))
            && now < *at + every
        {
            return false;
        }
        if self.asked.len() >= ASKED_MAX {
            self.asked.retain(|_, at| now < *at + CONFIRM_EVERY);
            if self.asked.len() >= ASKED_MAX {
                return false;
            }
        }
        self.asked.insert((ifindex, addr), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::netlink::mirror::{Fact, Neighbour};

    const NOBODY: [u32; 0] = [];

    fn mirror(entries: &[(u32, u32, NeighbourState)]) -> Mirror {
        let mut m = Mirror::default();
        for &(ifindex, addr, state) in entries {
            let mac = (state != NeighbourState::Failed).then_some([2, 0, 0, 0, 0, 1]);
            m.load(Fact::Neighbour(ifindex, Addr::v4(addr), Neighbour { state, mac }));
        }
        m
    }

    fn due(k: &mut Keeper, at_secs: u64, m: &Mirror) -> Vec<u32> {
        let mut out = Vec::new();
        k.due(Nanos::from_secs(at_secs), m, &[2], &mut out);
        out.iter().map(|(_, a)| a.v4_bits()).collect()
    }

    #[test]
    fn kept_neighbours_are_asked_for_until_they_answer() {
        let mut k = Keeper::default();
        k.set_kept(vec![(2, Addr::v4(1)), (2, Addr::v4(2)), (2, Addr::v4(1))]);
        let m = mirror(&[(2, 2, NeighbourState::Failed)]);
        assert_eq!(due(&mut k, 100, &m), [1, 2]);
        assert_eq!(due(&mut k, 101, &m), NOBODY, "not again at once");
        assert_eq!(due(&mut k, 105, &m), [1, 2]);
        let m = mirror(&[(2, 1, NeighbourState::Fresh), (2, 2, NeighbourState::Fixed)]);
        assert_eq!(due(&mut k, 200, &m), NOBODY);
    }

    #[test]
    fn stale_neighbours_of_our_ports_are_confirmed_and_fixed_ones_left_alone() {
        let mut k = Keeper::default();
        let m = mirror(&[
            (2, 1, NeighbourState::Stale),
            (2, 2, NeighbourState::Fixed),
            (3, 3, NeighbourState::Stale),
        ]);
        assert_eq!(due(&mut k, 100, &m), [1]);
        assert_eq!(due(&mut k, 129, &m), NOBODY);
        assert_eq!(due(&mut k, 130, &m), [1]);
    }

    #[test]
    fn wanted_neighbours_are_asked_for_at_a_bounded_rate() {
        let mut k = Keeper::default();
        let m = mirror(&[(2, 9, NeighbourState::Fresh)]);
        let at = Nanos::from_millis;
        assert!(!k.wanted(at(1_000), &m, 2, Addr::v4(9)), "resolved meanwhile");
        assert!(k.wanted(at(1_000), &m, 2, Addr::v4(1)));
        assert!(!k.wanted(at(1_100), &m, 2, Addr::v4(1)));
        assert!(k.wanted(at(1_200), &m, 2, Addr::v4(1)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut k = Keeper::default();
        let m = Mirror::default();
        let now = Nanos::from_secs(1);
        let asked = (0..ASKED_MAX as u32 + 10).filter(|&a| k.wanted(now, &m, 2, Addr::v4(a)));
        assert_eq!(asked.count(), ASKED_MAX);
        assert!(k.wanted(Nanos::from_secs(40), &m, 2, Addr::v4(u32::MAX)), "old ones make room");
    }
}
