//! `[announce]`, and `announce` of services.

use std::time::Duration;

use toml::Spanned;

use super::{Build, id16, show};
use crate::config::AnnounceSpec;
use crate::config::file::{FileAnnounce, FileConfig};
use crate::forward::spec::ServiceId;

const PROTOCOL_DEFAULT: u8 = 200;
/// `RTPROT_STATIC` and below belong to the kernel and to those who configure it by hand.
const PROTOCOL: std::ops::RangeInclusive<i64> = 5..=255;
/// FRR imports tables from 1 to 252.
const TABLE_DEFAULT: u32 = 200;
const TABLE: std::ops::RangeInclusive<i64> = 1..=u32::MAX as i64;
/// `RT_TABLE_DEFAULT` and `RT_TABLE_LOCAL` of linux/rtnetlink.h.
const TABLES_OF_THE_KERNEL: [u32; 2] = [253, 255];
const WITHDRAW_DEFAULT: Duration = Duration::from_secs(1);
const WITHDRAW_MAX: Duration = Duration::from_secs(60);

pub fn announce(b: &mut Build<'_>, file: &FileConfig) -> AnnounceSpec {
    let none = FileAnnounce::default();
    let a = file.announce.as_ref().map_or(&none, Spanned::get_ref);
    let table = b.number(&a.table, TABLE, TABLE_DEFAULT);
    if let Some(given) = &a.table
        && TABLES_OF_THE_KERNEL.contains(&table)
    {
        b.error(&given.span(), format!("table {table} belongs to the kernel"));
    }
    let services = file.service.0.iter().enumerate();
    let announced = services.filter(|(_, (_, s))| s.get_ref().announce == Some(true));
    let services: Vec<_> = announced.map(|(i, _)| ServiceId(id16(i))).collect();
    if let Some(given) = &file.announce
        && services.is_empty()
    {
        b.warning(&given.span(), "no service has `announce = true`: nothing is announced");
    }
    AnnounceSpec {
        services,
        protocol: b.number(&a.protocol, PROTOCOL, PROTOCOL_DEFAULT),
        table,
        healthy_percent: b.number(&a.healthy_percent, 0..=100, 0),
        withdraw_wait: b.within(
            &a.withdraw_wait,
            Duration::ZERO..=WITHDRAW_MAX,
            WITHDRAW_DEFAULT,
            show,
        ),
    }
}
