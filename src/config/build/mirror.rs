//! `mirror` of rules and `[collector.NAME]`: where copies of packets go.

use std::collections::HashMap;

use super::services::{check_unicast, hundredths};
use super::{Build, index};
use crate::config::file::{FileConfig, FileRule};
use crate::nic::spec::PortSpec;
use crate::packet::CopyTo;
use crate::policy::spec::Mirror;

/// Hosts that copies may go to.
const COLLECTORS_MAX: usize = 64;

/// What `mirror` may name.
pub struct Targets<'f> {
    names: HashMap<&'f str, usize>,
    /// By the numbers of `names`; `None` where one is at fault.
    list: Vec<Option<CopyTo>>,
}

impl<'f> Targets<'f> {
    pub fn new(b: &mut Build<'_>, file: &'f FileConfig, ports: &[PortSpec]) -> Targets<'f> {
        let mut names = index(&file.port.0);
        let mut list: Vec<_> = ports.iter().map(|p| Some(CopyTo::Port(p.id))).collect();
        list.resize(file.port.0.len(), None);
        if let Some((key, _)) = file.collector.0.get(COLLECTORS_MAX) {
            b.error(&key.span(), format!("there are {COLLECTORS_MAX} collectors at most"));
        }
        for (key, table) in &file.collector.0 {
            b.name(key);
            if names.insert(key.get_ref(), list.len()).is_some() {
                let what = format!("`{}` is a port: `mirror` could mean either", key.get_ref());
                b.error(&key.span(), what);
            }
            let (at, given) = (table.span(), &table.get_ref().address);
            let address = b.need(&at, "address", given, "the host that copies are sent to");
            if let Some(address) = address {
                check_unicast(b, address.get_ref().0, &address.span());
            }
            list.push(address.map(|address| CopyTo::Host(address.get_ref().0)));
        }
        Targets { names, list }
    }

    /// Where a rule's copies go, and of which share of its flows.
    pub fn mirror(&self, b: &mut Build<'_>, r: &FileRule) -> Option<Mirror> {
        let share = share(b, r);
        let target = b.resolve("port or collector", r.mirror.as_ref()?, &self.names)?;
        let to = self.list.get(target).copied().flatten()?;
        Some(Mirror { to, share })
    }
}

/// The share of flows that are copied.
fn share(b: &mut Build<'_>, r: &FileRule) -> u16 {
    let Some(given) = &r.mirror_percent else { return Mirror::ALL };
    if r.mirror.is_none() {
        b.error(&given.span(), "`mirror_percent` means nothing without `mirror`");
    }
    let share = hundredths(b, &r.mirror_percent);
    if share == 0 {
        b.error(&given.span(), "no flow would be copied: leave `mirror` out");
    }
    share
}
