//! Metrics of pools' groups: backends of one priority.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;

use super::{Page, gauge};
use crate::control::view::GroupView;

impl Page {
    pub(super) fn groups(&self, e: &mut DescriptorEncoder) -> fmt::Result {
        let lines = |value: fn(&GroupView) -> u64| -> Vec<_> {
            let groups = self.0.pools.iter().flat_map(|p| p.groups.iter().map(move |g| (p, g)));
            let line = |(p, g): (&crate::control::view::PoolView, &GroupView)| {
                let priority = ("priority", g.priority.to_string());
                (vec![("pool", p.name.clone()), priority], value(g))
            };
            groups.map(line).collect()
        };
        let spills = "Percent of new flows that go to backends of other zones, for want of room in \
                      the appliance's.";
        gauge(e, "pool_spill_percent", spills, &lines(|g| g.spills_percent.into()))?;
        let waits = "Whether it is well again, but not for long enough to get new flows back.";
        gauge(e, "pool_group_waits", waits, &lines(|g| g.waits.into()))
    }
}
