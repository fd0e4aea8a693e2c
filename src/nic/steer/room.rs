//! Whether the programs' maps have room, before any of them is changed.

use std::collections::HashSet;

use super::abi::{MAX_ADDRS, MAX_PREFIXES, MAX_RETURNS, MAX_SERVICES};
use super::{NatRange, PortRange, VipEntry, addr_infos, endpoints, returns_of};
use crate::base::{Addr, Prefix};
use crate::nic::NicError;

/// Whether there is room for what [`super::Steer`] would be told: answers, transit, services, and
/// addresses by what makes them ours.
///
/// # Errors
/// [`NicError::TooMany`].
pub fn check_room(
    returns: &[VipEntry],
    transit: &[Prefix],
    vips: &[VipEntry],
    (local, nat, checks): (&[Addr], &[NatRange], Option<PortRange>),
) -> Result<(), NicError> {
    let prefixes: HashSet<_> = transit.iter().map(|p| (p.len128(), p.addr())).collect();
    let addrs = addr_infos(local, vips, nat, checks);
    for (what, wanted, limit) in [
        ("services", endpoints(vips).len(), MAX_SERVICES),
        ("ends of backends that answer by way of here", returns_of(returns).len(), MAX_RETURNS),
        ("addresses of this host, services and `[nat]`", addrs.len(), MAX_ADDRS),
        ("prefixes of `[transit]`", prefixes.len(), MAX_PREFIXES),
    ] {
        if wanted > limit as usize {
            return Err(NicError::TooMany { what, wanted, limit });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vips(from: u32, count: u32) -> Vec<VipEntry> {
        let at = |n: u32| Addr::from(std::net::Ipv4Addr::from(n));
        let entry = |n| VipEntry { addr: at(n), port: 443, proto: 6, canary_share: 10_000 };
        (from..from + count).map(entry).collect()
    }

    fn refused(returns: &[VipEntry], transit: &[Prefix], services: &[VipEntry]) -> Option<String> {
        let checked = check_room(returns, transit, services, (&[], &[], None));
        checked.err().map(|error| error.to_string())
    }

    #[test]
    fn what_the_maps_can_not_hold_is_named() {
        let most = vips(1, MAX_SERVICES);
        assert_eq!(refused(&[], &[], &most), None);
        let more = [most.clone(), vips(1_000_000, 1)].concat();
        let words = refused(&[], &[], &more).expect("one too many");
        assert!(words.contains("room for 4096 services, not for 4097"), "{words}");
        assert_eq!(refused(&[], &[], &[most.clone(), most].concat()), None, "each counts once");
        // Each backend has an end for fragments, too.
        assert_eq!(refused(&vips(1, MAX_RETURNS / 2), &[], &[]), None);
        let words = refused(&vips(1, MAX_RETURNS / 2 + 1), &[], &[]).expect("too many");
        assert!(words.contains("backends"), "{words}");
        let prefix = |n: u32| format!("{}/32", std::net::Ipv4Addr::from(n)).parse();
        let prefixes: Vec<Prefix> =
            (0..=MAX_PREFIXES).map(|n| prefix(n).expect("a prefix")).collect();
        assert_eq!(refused(&[], &prefixes[1..], &[]), None);
        assert!(refused(&[], &prefixes, &[]).is_some_and(|words| words.contains("`[transit]`")));
        let addresses: Vec<_> = vips(1, MAX_ADDRS + 1).iter().map(|vip| vip.addr).collect();
        let crowded = check_room(&[], &[], &[], (&addresses, &[], None));
        assert!(crowded.is_err_and(|error| error.to_string().contains("this host")));
    }
}
