//! `show services` for people.

use super::{duration, or_none};
use crate::admin::table::Table;
use crate::control::view::ServiceView;

pub(super) fn services(lines: &[ServiceView]) -> String {
    let mut table = Table::new(&[
        "service",
        "address",
        "proto",
        "mode",
        "pool",
        ">backends",
        ">canary",
        ">idle limit",
        "state",
    ]);
    for s in lines {
        table.row([
            s.name.clone(),
            std::net::SocketAddr::new(s.vip, s.port).to_string(),
            s.protocol.clone(),
            s.mode.clone(),
            s.pool.clone(),
            s.backends.to_string(),
            format!("{}%", s.canary_percent),
            duration(s.idle_established_secs),
            state_of(s),
        ]);
    }
    or_none(&table, "no services")
}

fn state_of(s: &ServiceView) -> String {
    let state = if s.drained { "drained" } else { "takes flows" };
    match s.announced {
        None => state.into(),
        Some(true) => format!("{state}, announced"),
        Some(false) => format!("{state}, not announced"),
    }
}
