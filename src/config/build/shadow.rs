//! `shadow` of services: who hears requests besides.

use std::collections::HashMap;

use toml::Spanned;

use super::services::{TCP, hundredths};
use super::{Build, id16};
use crate::config::file::{FileConfig, FileService};
use crate::forward::spec::{ForwardMode, ForwardSpec, PoolId, ShadowSpec};

/// A service's shadow, where it has one. `parts` are the pools that answer.
pub fn shadow(
    b: &mut Build<'_>,
    s: &FileService,
    (proto, mode): (u8, ForwardMode),
    (parts, known): (&[(usize, u16)], &HashMap<&str, usize>),
) -> Option<ShadowSpec> {
    let given = s.shadow.as_ref()?;
    let (at, f) = (given.span(), given.get_ref());
    if proto != TCP {
        b.error(&at, "`shadow` is for `protocol = \"tcp\"`: it repeats requests of HTTP/1");
    } else if mode.is_one_way() {
        let what = format!(
            "`shadow` can't go with `mode = \"{}\"`: answers pass the appliance by, and could not \
             be compared",
            mode.word()
        );
        b.error(&at, what);
    }
    let pool = b.need(&at, "pool", &f.pool, "the pool that hears requests besides");
    let percent = b.need(&at, "percent", &f.percent, "the share of connections that it hears");
    let share = hundredths(b, &f.percent);
    if let (Some(percent), 0) = (percent, share) {
        b.error(&percent.span(), "no connection would be heard: leave `shadow` out");
    }
    let pool = pool?;
    let place = b.resolve("pool", pool, known)?;
    if parts.iter().any(|(part, _)| *part == place) {
        let name = pool.get_ref();
        b.warning(&pool.span(), format!("pool `{name}` answers requests and hears them again"));
    }
    Some(ShadowSpec { pool: PoolId(id16(place)), share })
}

/// Whether some service has this pool hear its requests.
pub fn uses(file: &FileConfig, pool: &str) -> bool {
    file.service.0.iter().any(|(_, service)| {
        let shadow = service.get_ref().shadow.as_ref().map(Spanned::get_ref);
        shadow.and_then(|shadow| shadow.pool.as_ref()).is_some_and(|name| name.get_ref() == pool)
    })
}

/// Refuses a shadow that would be the service itself.
pub fn check(b: &mut Build<'_>, file: &FileConfig, forward: &ForwardSpec) {
    let vips: Vec<_> = forward.services.iter().map(|s| (s.vip, s.port)).collect();
    for (service, (_, table)) in forward.services.iter().zip(&file.service.0) {
        let (Some(shadow), Some(given)) = (&service.shadow, &table.get_ref().shadow) else {
            continue;
        };
        let pool = forward.pools.get(usize::from(shadow.pool.0));
        let mut backends = pool.into_iter().flat_map(|pool| &pool.backends);
        if let Some(backend) = backends.find(|b| vips.contains(&(b.addr, b.port))) {
            let what =
                format!("{} is a service of this appliance: it would be asked twice", backend.name);
            b.error(&given.span(), what);
        }
    }
}
