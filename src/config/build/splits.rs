//! `pool` of services and rules: a pool, or several with their shares.

use std::collections::HashMap;

use toml::Spanned;

use super::{Build, id16};
use crate::config::splits::FilePools;
use crate::forward::spec::{ForwardSpec, PARTS_MAX, PoolId, SplitSpec};

/// Different splits of one configuration at most: with the pools, as many as ids have numbers for.
const SPLITS_MAX: usize = 500;
const SHARE_MAX: i64 = 65_535;
const _: () = assert!(SPLITS_MAX + super::forward::POOLS_MAX < u16::MAX as usize);

/// The pools that are named, by their places, with their shares. Empty where that is at fault.
pub fn parts(
    b: &mut Build<'_>,
    given: &Spanned<FilePools>,
    known: &HashMap<&str, usize>,
) -> Vec<(usize, u16)> {
    let list = match given.get_ref() {
        FilePools::One(name) => {
            let name = Spanned::new(given.span(), name.clone());
            return b.resolve("pool", &name, known).map(|pool| (pool, 1)).into_iter().collect();
        }
        FilePools::Shares(list) => &list.0,
    };
    if list.len() > PARTS_MAX {
        b.error(
            &given.span(),
            format!("new flows are shared out between {PARTS_MAX} pools at most"),
        );
    }
    let mut parts = Vec::with_capacity(list.len());
    for (name, share) in list {
        let pool = b.resolve("pool", name, known);
        let share = b.number(&Some(share.clone()), 0..=SHARE_MAX, 1u16);
        parts.extend(pool.map(|pool| (pool, share)));
    }
    if parts.iter().all(|(_, share)| *share == 0) && parts.len() == list.len() {
        b.error(&given.span(), "no pool has a share above 0");
    }
    parts.sort_unstable();
    parts
}

/// The number of what new flows go to; that of the split is new where none is like it.
pub fn target(
    b: &mut Build<'_>,
    given: &Spanned<FilePools>,
    parts: &[(usize, u16)],
    forward: &mut ForwardSpec,
) -> PoolId {
    let parts: Vec<_> = parts.iter().map(|&(pool, share)| (PoolId(id16(pool)), share)).collect();
    let weighted: Vec<PoolId> = parts.iter().filter(|(_, s)| *s > 0).map(|(p, _)| *p).collect();
    if let [] | [_] = weighted[..] {
        return weighted.first().copied().unwrap_or_default();
    }
    let split = SplitSpec { parts };
    let at = forward.splits.iter().position(|known| *known == split).unwrap_or_else(|| {
        forward.splits.push(split);
        forward.splits.len() - 1
    });
    if at >= SPLITS_MAX {
        b.error(&given.span(), format!("there are {SPLITS_MAX} different splits at most"));
    }
    PoolId(id16(forward.pools.len() + at))
}
