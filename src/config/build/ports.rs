//! `[port.NAME]`.

use std::collections::HashMap;

use toml::Spanned;

use super::{Build, id16};
use crate::base::tomlfile::ROOT;
use crate::config::file::{FileAttach, FileConfig, FileCopy, FileOnFailure, FilePort};
use crate::nic::spec::{AttachMode, BusyPoll, CopyMode, PORTS_MAX, PortSpec};
use crate::packet::PortId;

/// `IFNAMSIZ` of the kernel, without the final NUL.
const INTERFACE_LEN_MAX: usize = 15;
/// `RT_TABLE_DEFAULT`, `RT_TABLE_MAIN` and `RT_TABLE_LOCAL` of the kernel.
const USUAL_TABLES: std::ops::RangeInclusive<u32> = 253..=255;
const RING_DEFAULT: u32 = 2_048;
const RING: std::ops::RangeInclusive<i64> = 64..=32_768;
const BUSY_POLL_DEFAULT: BusyPoll = BusyPoll { micros: 20, budget: 64 };
const BUSY_POLL_MICROS: std::ops::RangeInclusive<i64> = 1..=10_000;
/// `SO_BUSY_POLL_BUDGET` is 16 bits wide.
const BUSY_POLL_BUDGET: std::ops::RangeInclusive<i64> = 1..=65_535;

pub fn ports(b: &mut Build<'_>, file: &FileConfig) -> Vec<PortSpec> {
    let list = &file.port.0;
    if list.is_empty() && !b.faulty.contains(&ROOT, "port") {
        b.error(&(0..0), "there is no port: add a `[port.NAME]` with its `interface`");
    }
    if let Some((key, _)) = list.get(PORTS_MAX) {
        b.error(&key.span(), format!("there are {PORTS_MAX} ports at most"));
    }
    let on_failure = file.workers.as_ref().and_then(|w| w.get_ref().on_failure);
    let mut by_interface: HashMap<&str, &str> = HashMap::new();
    let mut ports = Vec::with_capacity(list.len());
    for (i, (key, port)) in list.iter().enumerate() {
        b.name(key);
        let spec = port_spec(b, id16(i), key, port, on_failure);
        if let Some(interface) = &port.get_ref().interface {
            let name = interface.get_ref().as_str();
            if let Some(first) = by_interface.insert(name, key.get_ref()) {
                b.error(&interface.span(), format!("`{name}` is already that of port `{first}`"));
            }
        }
        ports.push(spec);
    }
    ports
}

fn port_spec(
    b: &mut Build<'_>,
    id: u16,
    key: &Spanned<String>,
    table: &Spanned<FilePort>,
    on_failure: Option<FileOnFailure>,
) -> PortSpec {
    let p = table.get_ref();
    let what = "the kernel's name for it, as `ip link` shows it";
    let interface = b.need(&table.span(), "interface", &p.interface, what);
    if let Some(i) = interface {
        check_interface(b, i);
    }
    let attach = p.mode.as_ref().map_or(AttachMode::Auto, |m| match m.get_ref() {
        FileAttach::Auto => AttachMode::Auto,
        FileAttach::Native => AttachMode::Native,
        FileAttach::Generic => AttachMode::Generic,
        FileAttach::Tc => AttachMode::Tc,
    });
    let copy = p.copy.as_ref().map_or(CopyMode::Auto, |c| match c.get_ref() {
        FileCopy::Auto => CopyMode::Auto,
        FileCopy::ZeroCopy => CopyMode::ZeroCopy,
        FileCopy::Copy => CopyMode::Copy,
    });
    if let (AttachMode::Generic | AttachMode::Tc, CopyMode::ZeroCopy, Some(c)) =
        (attach, copy, &p.copy)
    {
        let what = "zero-copy needs the driver's own XDP: set `mode` to \"native\" or \"auto\"";
        b.error(&c.span(), what);
    }
    if let (AttachMode::Tc, Some(busy_poll)) = (attach, &p.busy_poll) {
        let what = "`mode = \"tc\"` has sockets behind the driver, where there is nothing to poll: \
                    leave `busy_poll` out";
        b.error(&busy_poll.span(), what);
    }
    if let (AttachMode::Tc, Some(FileOnFailure::Drop), Some(mode)) = (attach, on_failure, &p.mode) {
        let what = "a program for tc ends with its process: with `on_failure = \"drop\"` it can't \
                    go on dropping, so set `mode` to \"native\", \"generic\" or \"auto\"";
        b.error(&mode.span(), what);
    }
    PortSpec {
        id: PortId(id),
        name: key.get_ref().clone(),
        interface: interface.map(|i| i.get_ref().clone()).unwrap_or_default(),
        attach,
        copy,
        rx_ring: ring(b, &p.rx_ring),
        tx_ring: ring(b, &p.tx_ring),
        busy_poll: p.busy_poll.as_ref().map(|t| BusyPoll {
            micros: b.number(&t.get_ref().micros, BUSY_POLL_MICROS, BUSY_POLL_DEFAULT.micros),
            budget: b.number(&t.get_ref().budget, BUSY_POLL_BUDGET, BUSY_POLL_DEFAULT.budget),
        }),
        verify_checksums: p.verify_checksums.unwrap_or(false),
        table: p.table.as_ref().and_then(|t| routing_table(b, t)),
    }
}

/// A table beside those that the kernel asks by itself (`RT_TABLE_*` of linux/rtnetlink.h).
fn routing_table(b: &mut Build<'_>, given: &Spanned<i64>) -> Option<u32> {
    match u32::try_from(*given.get_ref()) {
        Ok(table) if table > 0 && !USUAL_TABLES.contains(&table) => Some(table),
        _ => {
            let what = "a table of routes has a number from 1 to 4294967295 other than 253 to 255, \
                        which the kernel asks by itself: leave `table` out for those";
            b.error(&given.span(), what);
            None
        }
    }
}

/// `dev_valid_name` of the kernel (net/core/dev.c).
fn check_interface(b: &mut Build<'_>, interface: &Spanned<String>) {
    let name = interface.get_ref();
    let odd = |c: char| c == '/' || c == ':' || c.is_whitespace();
    if name.is_empty() || name.len() > INTERFACE_LEN_MAX || name.contains(odd) || name == ".." {
        let what = format!("`{name}` can't be an interface: names have 1 to 15 characters");
        b.error(&interface.span(), what);
    }
}

fn ring(b: &mut Build<'_>, given: &Option<Spanned<i64>>) -> u32 {
    let size = b.number(given, RING, RING_DEFAULT);
    if let Some(g) = given
        && !size.is_power_of_two()
    {
        let (below, above) = (size.next_power_of_two() / 2, size.next_power_of_two());
        let what = format!("{size} is not a power of two: the nearest are {below} and {above}");
        b.error(&g.span(), what);
    }
    size
}
