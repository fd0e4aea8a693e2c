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
/// Whose routes stand in the table is looked at with every so many renewals: the kernel walks all
/// of it, and the main one may have a million.
const LOOKED_AT_EVERY: u32 = 10;

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
    wanted: BTreeSet<Addr>,
    installed: BTreeSet<Addr>,
    /// Where somebody else's route stands.
    taken: BTreeSet<Addr>,
    /// `None`: not asked for yet.
    device: Option<Device>,
    renewals: u32,
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
    /// Withdraws what a run that had no device and was killed has left. Routes that lead to a
    /// device are of a run that lives.
    ///
    /// # Errors
    /// The kernel refusing a socket, or to list or remove routes.
    pub fn new(spec: &AnnounceSpec) -> io::Result<Announcer> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        // The kernel lists the one table only: others may have millions of routes.
        socket.set_netlink_get_strict_chk(true)?;
        let (protocol, table) = (spec.protocol, spec.table);
        let mut announcer = Announcer {
            socket,
            protocol,
            table,
            wanted: BTreeSet::new(),
            installed: BTreeSet::new(),
            taken: BTreeSet::new(),
            device: None,
            renewals: 0,
        };
        announcer.installed = announcer.standing()?;
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
        self.wanted.clone_from(wanted);
        let mut outcome = Ok(());
        for &gone in self.installed.clone().difference(wanted) {
            let route = self.route(gone);
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
    /// and devices that they don't know. To be called once a second.
    ///
    /// # Errors
    /// The kernel refusing one, which is announced no more; the others are there.
    pub fn renew(&mut self) -> io::Result<()> {
        self.renewals = self.renewals.wrapping_add(1);
        if self.renewals.is_multiple_of(LOOKED_AT_EVERY) && !self.installed.is_empty() {
            let standing = self.standing()?;
            self.installed.retain(|addr| standing.contains(addr));
        }
        for addr in self.installed.clone() {
            match self.install(addr) {
                Ok(true) => {
                    tracing::warn!(address = %addr, "its route was removed by somebody: announced \
                                   anew");
                }
                Ok(false) => {}
                Err(_) => {
                    self.installed.remove(&addr);
                }
            }
        }
        self.set(&self.wanted.clone())
    }

    pub fn announced(&self) -> &BTreeSet<Addr> {
        &self.installed
    }

    /// Adds a route; whether none stood there.
    fn install(&mut self, addr: Addr) -> io::Result<bool> {
        self.find_device();
        let installed = self.try_install(addr);
        if installed.is_ok() || self.own_device().is_none() {
            return installed;
        }
        // Somebody may have taken it down, or away.
        self.device = None;
        self.find_device();
        self.try_install(addr)
    }

    fn try_install(&mut self, addr: Addr) -> io::Result<bool> {
        let route = self.route(addr);
        match self.ask(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn find_device(&mut self) {
        if self.device.is_none() {
            let device = self.open_device().unwrap_or_else(|error| {
                tracing::warn!(%error, "no device for routes to VIPs: they are blackholes, and \
                                        stay if the process is killed");
                Device::None
            });
            self.device = Some(device);
        }
    }

    /// The device's number, if there is one.
    fn own_device(&self) -> Option<u32> {
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

    fn route(&self, addr: Addr) -> RouteMessage {
        let mut route = self.table_message(addr.is_v4());
        route.header.destination_prefix_length = Prefix::host(addr).len();
        route.header.protocol = RouteProtocol::from(self.protocol);
        route.header.scope = RouteScope::Universe;
        route.header.kind = RouteType::BlackHole;
        route.attributes.push(RouteAttribute::Destination(RouteAddress::from(addr.to_ip())));
        if let Some(index) = self.own_device() {
            route.header.kind = RouteType::Unicast;
            route.attributes.push(RouteAttribute::Oif(index));
        }
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

    /// Host routes in our table with our protocol's number, that lead to our device; blackholes
    /// where there is none.
    fn standing(&mut self) -> io::Result<BTreeSet<Addr>> {
        let mut found = BTreeSet::new();
        for v4 in [true, false] {
            let question = RouteNetlinkMessage::GetRoute(self.table_message(v4));
            self.send(question, NLM_F_REQUEST | NLM_F_DUMP)?;
            let (protocol, table) = (RouteProtocol::from(self.protocol), self.table);
            let device = self.own_device();
            match self.answers(|route| found.extend(ours(&route, protocol, table, device))) {
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

fn ours(
    route: &RouteMessage,
    protocol: RouteProtocol,
    table: u32,
    device: Option<u32>,
) -> Option<Addr> {
    let mut of_table = u32::from(route.header.table);
    let (mut addr, mut leads_to) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(table) => of_table = *table,
            RouteAttribute::Oif(index) => leads_to = Some(*index),
            RouteAttribute::Destination(RouteAddress::Inet(a)) => addr = Some(Addr::from(*a)),
            RouteAttribute::Destination(RouteAddress::Inet6(a)) => addr = Some(Addr::from(*a)),
            _ => {}
        }
    }
    let addr = addr?;
    let whole = route.header.destination_prefix_length == Prefix::host(addr).len();
    let is_of_form = match device {
        Some(_) => route.header.kind == RouteType::Unicast && leads_to == device,
        None => route.header.kind == RouteType::BlackHole,
    };
    let is_found = route.header.protocol == protocol && of_table == table;
    (is_found && is_of_form && whole).then_some(addr)
}

#[cfg(test)]
mod tests;
