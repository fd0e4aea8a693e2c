//! `[service.NAME]`: each by itself, and against the others.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;

use super::splits::parts;
use super::{Build, id16, index, show};
use crate::base::Addr;
use crate::config::file::{FileConfig, FileMode, FileProtocol, FileService};
use crate::forward::spec::{ForwardMode, MssClamp, PoolId, ServiceId, ServiceSpec};

pub const SERVICES_MAX: usize = 65_000;
pub const TCP: u8 = 6;
const UDP: u8 = 17;
/// RFC 5382, REQ-5.
const IDLE_TCP: Duration = Duration::from_secs(2 * 3_600 + 4 * 60);
/// RFC 4787, REQ-5: the recommended value.
const IDLE_UDP: Duration = Duration::from_secs(5 * 60);
const IDLE_MIN: Duration = Duration::from_secs(1);
const IDLE_MAX: Duration = Duration::from_secs(30 * 86_400);

/// A service whose own keys were read. Keys at fault have a stand-in in `spec` and `None` here.
pub struct Draft {
    pub spec: ServiceSpec,
    pub vip: Option<Addr>,
    pub port: Option<u16>,
    /// The pools that new flows go to, with their shares.
    pub parts: Vec<(usize, u16)>,
    /// The table's header.
    pub table: Range<usize>,
    /// Where the mode is given; `None` if it was given and could not be read.
    pub mode_span: Option<Range<usize>>,
}

pub fn services(b: &mut Build<'_>, file: &FileConfig) -> Vec<Draft> {
    let pools = index(&file.pool.0);
    if let Some((key, _)) = file.service.0.get(SERVICES_MAX) {
        b.error(&key.span(), format!("there are {SERVICES_MAX} services at most"));
    }
    let mut taken: HashMap<(Addr, u16, u8), (&str, u32)> = HashMap::new();
    let mut drafts = Vec::with_capacity(file.service.0.len());
    for (i, (key, table)) in file.service.0.iter().enumerate() {
        b.name(key);
        let draft = service(b, id16(i), key, table, &pools);
        if let (Some(vip), Some(port)) = (draft.vip, draft.port) {
            let proto = draft.spec.proto;
            let line = b.line(&table.span());
            if let Some((first, at)) = taken.insert((vip, port, proto), (key.get_ref(), line)) {
                let what = format!(
                    "{vip} port {port}/{} is already service `{first}` (line {at})",
                    if proto == TCP { "tcp" } else { "udp" },
                );
                let place = table.get_ref().vip.as_ref().map_or(table.span(), Spanned::span);
                b.error(&place, what);
            }
        }
        drafts.push(draft);
    }
    drafts
}

fn service(
    b: &mut Build<'_>,
    id: u16,
    key: &Spanned<String>,
    table: &Spanned<FileService>,
    pools: &HashMap<&str, usize>,
) -> Draft {
    let s = table.get_ref();
    let at = table.span();
    let vip = b.need(&at, "vip", &s.vip, "the address that clients connect to");
    let port = b.need(&at, "port", &s.port, "the port that clients connect to");
    let pool_name = b.need(&at, "pool", &s.pool, "the pool that serves it");
    let parts = pool_name.map(|given| parts(b, given, pools)).unwrap_or_default();
    let vip_addr = vip.map(|v| v.get_ref().0);
    if let (Some(v), Some(addr)) = (vip, vip_addr) {
        check_unicast(b, addr, &v.span());
    }
    let port_number = port.map(|p| p.get_ref().0.0);
    let (proto, idle_default) = match s.protocol {
        Some(FileProtocol::Udp) => (UDP, IDLE_UDP),
        Some(FileProtocol::Tcp) | None => (TCP, IDLE_TCP),
    };
    let mode = s.mode.as_ref().map_or(ForwardMode::Nat, |m| match m.get_ref() {
        FileMode::Nat => ForwardMode::Nat,
        FileMode::Dnat => ForwardMode::Dnat,
        FileMode::Dsr => ForwardMode::Dsr,
        FileMode::Ipip => ForwardMode::Ipip,
        FileMode::Gue => ForwardMode::Gue,
    });
    let delay = super::delay::delay(b, table, proto, mode);
    let mode_known = !b.faulty.contains(&at, "mode");
    let mode_span = mode_known.then(|| s.mode.as_ref().map_or(at.clone(), Spanned::span));
    Draft {
        spec: ServiceSpec {
            id: ServiceId(id),
            name: key.get_ref().clone(),
            vip: vip_addr.unwrap_or_default(),
            port: port_number.unwrap_or_default(),
            proto,
            pool: PoolId::default(),
            mode,
            canary_share: hundredths(b, &s.canary_percent),
            idle_established: b.within(&s.idle_timeout, IDLE_MIN..=IDLE_MAX, idle_default, show),
            mss_clamp: s.mss_clamp.as_ref().map_or(MssClamp::Mtu, |m| m.get_ref().0),
            delay,
            rule_pools: Vec::new(),
            shadow: super::shadow::shadow(b, s, (proto, mode), (&parts, pools)),
        },
        vip: vip_addr,
        port: port_number,
        parts,
        mode_span,
        table: at,
    }
}

/// Refuses addresses that no host can hold.
pub fn check_unicast(b: &mut Build<'_>, addr: Addr, span: &Range<usize>) {
    let ip = addr.to_ip();
    let v4_broadcast = addr.is_v4() && addr.v4_bits() == u32::MAX;
    if ip.is_multicast() || ip.is_unspecified() || ip.is_loopback() || v4_broadcast {
        b.error(span, format!("`{addr}` is not an address of one host"));
    }
}

/// Percent to hundredths of a percent; all where none is given.
pub fn hundredths(b: &mut Build<'_>, given: &Option<Spanned<f64>>) -> u16 {
    const ALL: u16 = 10_000;
    let Some(given) = given else { return ALL };
    let percent = *given.get_ref();
    if !(0.0..=100.0).contains(&percent) {
        b.error(&given.span(), format!("{percent} is not within 0 to 100 percent"));
        return ALL;
    }
    (percent * 100.0).round() as u16
}
