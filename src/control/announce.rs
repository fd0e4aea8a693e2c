//! Routes to VIPs, for a routing daemon to pass on: a host route while somebody serves it.
//!
//! The routes are for reading only, in a table that no rule asks by default: packets to VIPs are
//! taken before the kernel routes them. They lead to a device whose other end is this process, and
//! nobody reads there: however the process ends, the kernel takes the device away, and they go with
//! it.

use std::collections::BTreeSet;
use std::io;

use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::pools::Pools;
use crate::base::{Addr, Prefix};
use crate::config::{AnnounceSpec, Config};
use crate::nic::tun::Tun;

/// Bytes of an answer; the kernel's longest are 32 KiB (`netlink_dump`).
const ANSWER_BYTES: usize = 65_536;

/// Addresses that should be announced: of services that want it, those that somebody serves. Of
/// several services of an address one is enough.
pub fn wanted(config: &Config, pools: &Pools) -> BTreeSet<Addr> {
    let announce = &config.announce;
    let services = config.forward.services.iter();
    let announced = services.filter(|s| announce.services.contains(&s.id));
    let served = announced.filter(|s| pools.serves(config, s, announce.healthy_percent));
    served.map(|s| s.vip).collect()
}

/// What is announced. Dropped, it withdraws all.
pub struct Announcer {
    socket: Socket,
    protocol: u8,
    table: u32,
    installed: BTreeSet<Addr>,
    /// Where somebody else's route stands.
    taken: BTreeSet<Addr>,
    /// `None`: not asked for yet.
    device: Option<Device>,
}

/// Where the routes lead to.
enum Device {
    Open {
        _tun: Tun,
        index: u32,
    },
    /// It can't be had: they are blackholes, which outlive a process that is killed.
    None,
}

impl Announcer {
    /// Withdraws what a run that was killed has left.
    ///
    /// # Errors
    /// The kernel refusing a socket, or to list or remove routes.
    pub fn new(spec: &AnnounceSpec) -> io::Result<Announcer> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        // The kernel lists the one table only: others may have millions of routes.
        socket.set_netlink_get_strict_chk(true)?;
        let (protocol, table) = (spec.protocol, spec.table);
        let (installed, taken) = (BTreeSet::new(), BTreeSet::new());
        let device = None;
        let mut announcer = Announcer { socket, protocol, table, installed, taken, device };
        announcer.installed = announcer.listed()?;
        announcer.set(&BTreeSet::new())?;
        Ok(announcer)
    }

    /// Whether these are the routes that are asked for now.
    pub fn is_for(&self, spec: &AnnounceSpec) -> bool {
        (self.protocol, self.table) == (spec.protocol, spec.table)
    }

    /// Announces these addresses and no others.
    ///
    /// # Errors
    /// The kernel refusing one; the others are as asked for.
    pub fn set(&mut self, wanted: &BTreeSet<Addr>) -> io::Result<()> {
        let mut outcome = Ok(());
        for &gone in self.installed.clone().difference(wanted) {
            // Whichever kind it has.
            let route = self.route(gone, RouteType::Unspec);
            match self.ask(RouteNetlinkMessage::DelRoute(route), 0) {
                Err(e) if e.raw_os_error() != Some(libc::ESRCH) => outcome = Err(e),
                _ => {
                    self.installed.remove(&gone);
                    tracing::info!(address = %gone, "withdrawn");
                }
            }
        }
        for &new in wanted.difference(&self.installed.clone()) {
            match self.install(new) {
                Ok(true) => {
                    self.installed.insert(new);
                    self.taken.remove(&new);
                    tracing::info!(address = %new, "announced");
                }
                Ok(false) => {
                    if self.taken.insert(new) {
                        let table = self.table;
                        tracing::error!(address = %new, table, "not announced: another's route \
                                        to it stands in the table, and stays");
                    }
                }
                Err(e) => outcome = Err(e),
            }
        }
        self.taken.retain(|addr| wanted.contains(addr));
        outcome
    }

    /// Announces anew what somebody has removed: daemons that manage interfaces clear away routes
    /// that they don't know.
    ///
    /// # Errors
    /// The kernel refusing one; the others are there.
    pub fn renew(&mut self) -> io::Result<()> {
        let mut outcome = Ok(());
        for addr in self.installed.clone() {
            match self.install(addr) {
                Ok(true) => {
                    tracing::warn!(address = %addr, "its route was removed by somebody: announced \
                                   anew");
                }
                Ok(false) => {}
                Err(e) => outcome = Err(e),
            }
        }
        outcome
    }

    pub fn announced(&self) -> &BTreeSet<Addr> {
        &self.installed
    }

    /// Adds a route; whether none stood there.
    fn install(&mut self, addr: Addr) -> io::Result<bool> {
        let route = match self.device() {
            Some(index) => {
                let mut route = self.route(addr, RouteType::Unicast);
                route.attributes.push(RouteAttribute::Oif(index));
                route
            }
            None => self.route(addr, RouteType::BlackHole),
        };
        match self.ask(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The device's number, if there is one to be had.
    fn device(&mut self) -> Option<u32> {
        if self.device.is_none() {
            let device = self.open_device().unwrap_or_else(|error| {
                tracing::warn!(%error, "no device for routes to VIPs: they are blackholes, and \
                                        stay if the process is killed");
                Device::None
            });
            self.device = Some(device);
        }
        match self.device {
            Some(Device::Open { index, .. }) => Some(index),
            Some(Device::None) | None => None,
        }
    }

    fn open_device(&mut self) -> io::Result<Device> {
        let name = format!("vips{}", std::process::id());
        let tun = Tun::open(&name)?;
        let index = nix::net::if_::if_nametoindex(name.as_str())?;
        let mut link = LinkMessage::default();
        link.header.index = index;
        (link.header.flags, link.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
        self.ask(RouteNetlinkMessage::SetLink(link), 0)?;
        Ok(Device::Open { _tun: tun, index })
    }

    fn route(&self, addr: Addr, kind: RouteType) -> RouteMessage {
        let mut route = self.table_message(addr.is_v4());
        route.header.destination_prefix_length = Prefix::host(addr).len();
        route.header.protocol = RouteProtocol::from(self.protocol);
        route.header.scope = RouteScope::Universe;
        route.header.kind = kind;
        route.attributes.push(RouteAttribute::Destination(RouteAddress::from(addr.to_ip())));
        route
    }

    fn table_message(&self, v4: bool) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        // `RT_TABLE_UNSPEC` where the header has no room: the attribute counts.
        route.header.table = u8::try_from(self.table).unwrap_or(0);
        route.attributes.push(RouteAttribute::Table(self.table));
        route
    }

    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.answers(|_| {})
    }

    /// Host routes in our table with our protocol's number.
    fn listed(&mut self) -> io::Result<BTreeSet<Addr>> {
        let mut found = BTreeSet::new();
        for v4 in [true, false] {
            let question = RouteNetlinkMessage::GetRoute(self.table_message(v4));
            self.send(question, NLM_F_REQUEST | NLM_F_DUMP)?;
            let (protocol, table) = (RouteProtocol::from(self.protocol), self.table);
            match self.answers(|route| found.extend(ours(&route, protocol, table))) {
                // There is no such table yet.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                listed => listed?,
            }
        }
        Ok(found)
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        Ok(())
    }

    /// Reads answers to the end, an acknowledgement or a dump's end. The kernel has answered when a
    /// question is sent, so nothing is waited for.
    fn answers(&mut self, mut take: impl FnMut(RouteMessage)) -> io::Result<()> {
        loop {
            let mut bytes = Vec::with_capacity(ANSWER_BYTES);
            self.socket.recv(&mut bytes, 0)?;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
                // Messages are aligned to 4 bytes.
                let len = (message.header.length as usize).max(4).next_multiple_of(4);
                rest = rest.get(len..).unwrap_or_default();
                match message.payload {
                    NetlinkPayload::Error(e) => {
                        return match e.code {
                            Some(_) => Err(e.to_io()),
                            None => Ok(()),
                        };
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(r)) => take(r),
                    _ => {}
                }
            }
        }
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        if let Err(error) = self.set(&BTreeSet::new()) {
            tracing::warn!(%error, "a VIP could not be withdrawn");
        }
    }
}

fn ours(route: &RouteMessage, protocol: RouteProtocol, table: u32) -> Option<Addr> {
    let mut of_table = u32::from(route.header.table);
    let mut addr = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(table) => of_table = *table,
            RouteAttribute::Destination(RouteAddress::Inet(a)) => addr = Some(Addr::from(*a)),
            RouteAttribute::Destination(RouteAddress::Inet6(a)) => addr = Some(Addr::from(*a)),
            _ => {}
        }
    }
    let addr = addr?;
    let whole = route.header.destination_prefix_length == Prefix::host(addr).len();
    (route.header.protocol == protocol && of_table == table && whole).then_some(addr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::spec::ServiceId;
    use std::process::Command;
    use std::time::Duration;

    fn spec(table: u32) -> AnnounceSpec {
        AnnounceSpec {
            services: vec![ServiceId(0)],
            protocol: 200,
            table,
            healthy_percent: 0,
            withdraw_wait: Duration::ZERO,
        }
    }

    fn ip(words: &str) -> String {
        let output = Command::new("ip").args(words.split(' ')).output().expect("ip");
        assert!(output.status.success(), "ip {words}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn in_namespace(test: fn()) {
        let body = move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            ip("link set lo up");
            test();
        };
        std::thread::spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }

    fn addrs(of: &[&str]) -> BTreeSet<Addr> {
        of.iter().map(|a| a.parse().expect("literal")).collect()
    }

    fn shown(table: u32) -> String {
        let of = |family| ip(&format!("{family} route show table {table} proto 200"));
        // `ip` fails where the table does not exist; here it always has, once.
        of("-4") + &of("-6")
    }

    #[test]
    fn routes_come_and_go_and_leftovers_too() {
        in_namespace(|| {
            for table in [200, 70_000] {
                for line in ["-4 route add 192.0.2.99", "-6 route add 2001:db8::99"] {
                    let left = line.replace("add ", "add blackhole ");
                    ip(&format!("{left} table {table} proto 200"));
                    // Somebody else's.
                    let other = left.replace("99", "77");
                    ip(&format!("{other} table {table} proto static"));
                }
                let mut announcer = Announcer::new(&spec(table)).expect("sockets");
                assert_eq!(shown(table).trim(), "", "what a killed run has left");
                let both = addrs(&["203.0.113.10", "2001:db8:5::10"]);
                announcer.set(&both).expect("announced");
                announcer.set(&both).expect("nothing to do");
                let seen = shown(table);
                assert!(seen.contains("203.0.113.10") && seen.contains("2001:db8:5::10"), "{seen}");
                announcer.set(&addrs(&["203.0.113.10"])).expect("one withdrawn");
                assert!(!shown(table).contains("2001:db8:5::10"));
                ip(&format!("route del 203.0.113.10 table {table} proto 200"));
                announcer.set(&both).expect("the other again");
                drop(announcer);
                assert_eq!(shown(table).trim(), "");
                assert!(ip(&format!("route show table {table}")).contains("192.0.2.77"));
            }
        });
    }

    #[test]
    fn what_a_killed_run_has_left_goes_also_where_nothing_is_announced() {
        in_namespace(|| {
            let mut announcer = Announcer::new(&spec(200)).expect("sockets");
            announcer.set(&addrs(&["203.0.113.10", "2001:db8:5::10"])).expect("announced");
            std::mem::forget(announcer);
            assert!(shown(200).contains("203.0.113.10"), "as a killed run");
            let spec = AnnounceSpec { services: Vec::new(), ..spec(200) };
            let _announcer = Announcer::new(&spec).expect("sockets");
            assert_eq!(shown(200).trim(), "");
        });
    }

    #[test]
    fn what_somebody_removes_is_announced_anew() {
        in_namespace(|| {
            let mut announcer = Announcer::new(&spec(200)).expect("sockets");
            let both = addrs(&["203.0.113.10", "2001:db8:5::10"]);
            announcer.set(&both).expect("announced");
            let all = shown(200);
            for family in ["-4", "-6"] {
                ip(&format!("{family} route flush table 200"));
            }
            assert_eq!(shown(200).trim(), "");
            announcer.renew().expect("announced");
            assert_eq!(shown(200), all);
            announcer.renew().expect("nothing to do");
            assert_eq!(shown(200), all);
        });
    }

    #[test]
    fn a_route_of_somebody_else_stays_and_the_vip_waits() {
        in_namespace(|| {
            ip("link set lo up");
            let mut announcer = Announcer::new(&spec(254)).expect("sockets");
            ip("route add 203.0.113.10 dev lo proto static");
            assert!(ip("route show 203.0.113.10").contains("dev lo"));
            let wanted = addrs(&["203.0.113.10"]);
            announcer.set(&wanted).expect("told once, by the log");
            announcer.set(&wanted).expect("and again");
            assert!(announcer.announced().is_empty());
            let there = || ip("route show 203.0.113.10");
            assert!(there().contains("proto static") && !there().contains("blackhole"));
            ip("route del 203.0.113.10 dev lo proto static");
            announcer.set(&wanted).expect("announced");
            assert!(announcer.announced() == &wanted && there().contains("proto 200"));
        });
    }

    #[test]
    fn routes_go_with_the_process_and_its_device() {
        in_namespace(|| {
            let mut announcer = Announcer::new(&spec(200)).expect("sockets");
            announcer.set(&addrs(&["203.0.113.10", "2001:db8:5::10"])).expect("announced");
            assert_eq!(shown(200).matches("dev vips").count(), 2, "{}", shown(200));
            // As the kernel does where a process ends.
            announcer.device = None;
            let start = std::time::Instant::now();
            while !shown(200).trim().is_empty() {
                assert!(start.elapsed() < Duration::from_secs(20), "{}", shown(200));
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }
}
