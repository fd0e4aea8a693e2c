//! Source addresses and ports of full NAT: each worker owns a slice of the ports, so the owner of a
//! reply is computed from its destination port.

use crate::base::Addr;
use crate::base::hash::{Seed, hash1, pick};

use super::spec::NatSpec;

/// Ports tried for one new flow before it is refused. A slice that is nine tenths full toward one
/// backend fails one flow in a thousand.
pub const PROBES_MAX: u32 = 64;

/// The NAT addresses and the slices of their ports.
#[derive(Clone, Debug)]
pub struct NatPorts {
    v4: Option<Addr>,
    v6: Option<Addr>,
    first: u16,
    /// Ports of one worker. What the division leaves over is used by nobody.
    slice: u16,
    /// `2^32 / slice`, rounded up: a division per packet would cost as much as a table lookup.
    reciprocal: u64,
    workers: u16,
    /// Of health checks; none where the last is below the first.
    checks: (u16, u16),
}

impl NatPorts {
    /// `None` where the range holds less than a port for each worker.
    pub fn new(spec: &NatSpec, workers: u16) -> Option<NatPorts> {
        let workers = workers.max(1);
        let all = u32::from(spec.port_last).checked_sub(u32::from(spec.port_first))? + 1;
        let ports = all.checked_sub(u32::from(spec.check_ports))?;
        let slice = (ports / u32::from(workers)).min(u32::from(u16::MAX)) as u16;
        if slice == 0 {
            return None;
        }
        Some(NatPorts {
            v4: spec.addresses.iter().copied().find(|a| a.is_v4()),
            v6: spec.addresses.iter().copied().find(|a| !a.is_v4()),
            first: spec.port_first,
            slice,
            reciprocal: (1u64 << 32).div_ceil(u64::from(slice)),
            workers,
            checks: spec.check_range(),
        })
    }

    /// The source address for a backend of the family.
    #[inline]
    pub fn address(&self, v4: bool) -> Option<Addr> {
        if v4 { self.v4 } else { self.v6 }
    }

    /// Whether it is one of the addresses.
    pub fn is_source(&self, addr: Addr) -> bool {
        self.v4 == Some(addr) || self.v6 == Some(addr)
    }

    /// Whether flows never have this port, and health checks do.
    pub fn is_for_checks(&self, port: u16) -> bool {
        (self.checks.0..=self.checks.1).contains(&port)
    }

    /// The worker whose slice a reply's destination lies in.
    #[inline]
    pub fn owner(&self, dst: Addr, dport: u16) -> Option<u16> {
        if !self.is_source(dst) {
            return None;
        }
        let n = u64::from(dport.checked_sub(self.first)?);
        // Exact for n and slice below 2^16.
        let worker = ((n * self.reciprocal) >> 32) as u16;
        (worker < self.workers).then_some(worker)
    }

    /// The ports to try for one new flow of `worker`, [`PROBES_MAX`] at most: from a random point
    /// of its slice, so that a restart does not meet the stale connections of the run before, and
    /// in strides, so that neighbouring allocations do not pile up.
    pub fn probes(&self, worker: u16, seed: Seed, nonce: u64) -> impl Iterator<Item = u16> {
        let slice = u32::from(self.slice);
        let random = hash1(seed, nonce);
        let base = u32::from(self.first) + slice * u32::from(worker.min(self.workers - 1));
        // Short enough that no port comes twice.
        let stride = 1 + pick(random << 32, slice / PROBES_MAX);
        let mut at = pick(random, slice);
        (0..slice.min(PROBES_MAX)).map(move |_| {
            let port = (base + at) as u16;
            at += stride;
            if at >= slice {
                at -= slice;
            }
            port
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn ports(first: u16, last: u16, workers: u16) -> NatPorts {
        let addresses = vec![Addr::v4(0x0a00_0001), Addr { hi: 1, lo: 1 }];
        let spec = NatSpec { addresses, port_first: first, port_last: last, check_ports: 0 };
        NatPorts::new(&spec, workers).expect("ports")
    }

    #[test]
    fn every_port_of_a_slice_leads_back_to_its_worker() {
        for (first, last, workers) in
            [(1024, 65535, 1), (1024, 65535, 3), (0, 65535, 1), (0, 65535, 7), (40_000, 40_009, 4)]
        {
            let p = ports(first, last, workers);
            let slice = (u32::from(last) - u32::from(first) + 1) / u32::from(workers);
            let slice = slice.min(65_535);
            for port in 0..=u16::MAX {
                let want = port
                    .checked_sub(first)
                    .map(|n| u32::from(n) / slice)
                    .filter(|&w| w < u32::from(workers))
                    .map(|w| w as u16);
                assert_eq!(p.owner(Addr::v4(0x0a00_0001), port), want, "{port} of {p:?}");
            }
            assert_eq!(p.owner(Addr::v4(0x0a00_0002), first), None);
        }
    }

    #[test]
    fn probes_stay_in_the_slice_and_differ() {
        let p = ports(20_000, 59_999, 4);
        for nonce in 0..200 {
            let got: Vec<_> = p.probes(2, Seed(9), nonce).collect();
            assert_eq!(got.len(), PROBES_MAX as usize);
            assert!(got.iter().all(|&port| (40_000..50_000).contains(&port)), "{got:?}");
            assert_eq!(got.iter().collect::<HashSet<_>>().len(), got.len());
        }
        let starts: HashSet<_> = (0..200).filter_map(|n| p.probes(2, Seed(9), n).next()).collect();
        assert!(starts.len() > 180);
    }

    #[test]
    fn small_slices_are_searched_whole() {
        let p = ports(100, 119, 2);
        let got: HashSet<_> = p.probes(1, Seed(1), 7).collect();
        assert_eq!(got, (110..120).collect());
    }

    #[test]
    fn a_range_without_a_port_for_each_is_refused() {
        let spec = NatSpec { addresses: vec![], port_first: 10, port_last: 11, check_ports: 0 };
        assert!(NatPorts::new(&spec, 3).is_none());
        let spec = NatSpec { addresses: vec![], port_first: 10, port_last: 9, check_ports: 0 };
        assert!(NatPorts::new(&spec, 1).is_none());
    }
}
