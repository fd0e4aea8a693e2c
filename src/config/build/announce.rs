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
/// `RT_TABLE_MAIN`.
const TABLE_MAIN: u32 = 254;
/// Protocols that daemons give their own routes (/etc/iproute2/rt_protos, FRR's kernel_netlink.c):
/// they would not pass them on, and what they have put there would be withdrawn.
const DAEMONS: [(std::ops::RangeInclusive<u8>, &str); 3] =
    [(11..=11, "FRR"), (12..=12, "BIRD"), (186..=197, "FRR")];
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
    let protocol = b.number(&a.protocol, PROTOCOL, PROTOCOL_DEFAULT);
    if let Some(given) = &a.protocol
        && let Some((_, daemon)) = DAEMONS.iter().find(|(of, _)| of.contains(&protocol))
    {
        b.error(&given.span(), format!("{protocol} is for routes of {daemon} itself"));
    }
    let services = file.service.0.iter().enumerate();
    let announced = services.filter(|(_, (_, s))| s.get_ref().announce == Some(true));
    let services: Vec<_> = announced.map(|(i, _)| ServiceId(id16(i))).collect();
    if let Some(given) = &file.announce
        && services.is_empty()
    {
        b.warning(&given.span(), "no service has `announce = true`: nothing is announced");
    }
    if table == TABLE_MAIN {
        warn_of_canaries(b, file);
    }
    AnnounceSpec {
        services,
        protocol,
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

/// In the main table a VIP's route is the kernel's, too.
fn warn_of_canaries(b: &mut Build<'_>, file: &FileConfig) {
    for (_, service) in &file.service.0 {
        let s = service.get_ref();
        if let Some(share) = &s.canary_percent
            && s.announce == Some(true)
            && *share.get_ref() < 100.0
        {
            let what = "announced in table 254, the VIP leads nowhere for the kernel: clients that \
                        are not taken here are lost";
            b.warning(&share.span(), what);
        }
    }
}
