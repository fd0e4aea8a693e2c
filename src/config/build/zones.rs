//! `zone` of the appliance and of backends, and how flows come back.

use std::time::Duration;

use toml::Spanned;

use super::{Build, show};
use crate::config::file::{FileConfig, FileDistance, FilePool};
use crate::forward::spec::BackendSpec;

const NEED_PERCENT: u8 = 70;
const RETURN_AFTER: Duration = Duration::from_secs(10);
const RETURN_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// The appliance's zone.
pub fn own<'f>(b: &mut Build<'_>, file: &'f FileConfig) -> Option<&'f Spanned<String>> {
    let zone = file.appliance.as_ref()?.get_ref().zone.as_ref()?;
    b.name(zone);
    let all = file.pool.0.iter().flat_map(|(_, pool)| &pool.get_ref().backend);
    let mut zones = all.filter_map(|backend| backend.get_ref().zone.as_ref());
    if !zones.any(|of| of.get_ref() == zone.get_ref()) {
        b.warning(&zone.span(), format!("no backend is in zone `{}`", zone.get_ref()));
    }
    Some(zone)
}

/// Tells those that are in another zone than the appliance.
pub fn mark(
    b: &mut Build<'_>,
    table: &Spanned<FilePool>,
    own: Option<&Spanned<String>>,
    backends: &mut [BackendSpec],
) {
    let pool = table.get_ref();
    let mut given = pool.backend.iter().filter_map(|backend| backend.get_ref().zone.as_ref());
    for zone in given.clone() {
        b.name(zone);
    }
    match (own, given.next()) {
        (None, Some(zone)) => {
            b.warning(&zone.span(), "`zone` has no effect: `[appliance]` has none");
        }
        (Some(_), None) | (None, None) => {
            if let Some(need) = &pool.zone_need_percent {
                let what = "`zone_need_percent` means nothing where no backend has a `zone`";
                b.error(&need.span(), what);
            }
        }
        (Some(own), Some(_)) => {
            for backend in backends {
                backend.is_away = backend.zone.as_ref() != Some(own.get_ref());
            }
        }
    }
}

/// How much of the zone must be well, and for how long, before flows come back.
pub fn coming_back(b: &mut Build<'_>, table: &Spanned<FilePool>) -> (u8, Duration) {
    let pool = table.get_ref();
    let within = Duration::ZERO..=RETURN_AFTER_MAX;
    (
        b.number(&pool.zone_need_percent, 1..=100, NEED_PERCENT),
        b.within(&pool.return_after, within, RETURN_AFTER, show),
    )
}

/// Whether what spills goes to the nearest zone first.
pub fn by_rtt(b: &mut Build<'_>, table: &Spanned<FilePool>, own: Option<&Spanned<String>>) -> bool {
    let pool = table.get_ref();
    let Some(distance) = &pool.distance else { return false };
    if *distance.get_ref() != FileDistance::Rtt {
        return false;
    }
    if pool.health.is_none() {
        b.error(&distance.span(), "`distance` is measured by checks: it needs a `health` table");
    }
    if own.is_none() {
        b.warning(&distance.span(), "`distance` has no effect: `[appliance]` has no `zone`");
    } else if !pool.backend.iter().any(|backend| backend.get_ref().zone.is_some()) {
        b.error(&distance.span(), "`distance` means nothing where no backend has a `zone`");
    }
    true
}
