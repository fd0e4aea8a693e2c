//! Our XDP programs: what they steer to us, and what they did.
//!
//! One program an interface (`src/nic/bpf/steer.c`), all with the same tables. Control calls the
//! `set_*` functions at start and after each reload; each replaces what was set before.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

mod abi;
mod heartbeat;
pub(in crate::nic) mod inbox;
mod kept;
mod mapped;
mod offload;
mod program;
mod room;
mod targets;
mod tcx;

pub use abi::{MAX_KEPT, MAX_QUEUES, MAX_WORKERS, SHARE_ALL, SHARE_TUNNEL, SteerReason};
pub use heartbeat::{Heartbeat, kernel_now};
pub use kept::Lowered;
pub use offload::{MAX_OFFLOAD_SLOTS, MAX_WAITED, OffloadEntry, OffloadOrder, OffloadSlots};
pub use program::{Attached, Loaded, PROGRAM_NAME, Sockets, program_name};
pub use room::check_room;

use abi::{ADDR_CHECKS, ADDR_LOCAL, ADDR_NAT, ADDR_VIP, AddrInfo, Config, Endpoint};
use heartbeat::Renewal;
use offload::OffloadKey;
use program::Program;
use targets::Target;

use super::error::NicError;
use super::link;
use super::spec::AttachMode;
use crate::base::{Addr, Prefix};
use crate::packet::PortId;
use crate::worker::spec::OnFailure;

/// Why a port's interface is none that flows are offloaded to.
pub const NO_TARGET: &str = "its device takes no frames of other devices' XDP programs (a veth \
     device does if its peer has GRO or an XDP program; kernels tell since 6.3)";

/// A service's address, or a DNAT backend's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VipEntry {
    pub addr: Addr,
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Share of clients that is ours, in hundredths of a percent.
    pub canary_share: u16,
}

/// An address whose ports `first` to `last` (inclusive) our NAT uses as sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatRange {
    pub addr: Addr,
    pub first: u16,
    pub last: u16,
}

/// Packets of one interface by what the program did with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteerStats {
    pub interface: String,
    counts: [u64; SteerReason::COUNT],
}

impl SteerStats {
    pub fn count(&self, reason: SteerReason) -> u64 {
        self.counts[reason as usize]
    }
}

/// The programs of all interfaces. Dropping it detaches them; see [`Steer::leave`].
pub struct Steer {
    workers: u16,
    offload: bool,
    config: Config,
    /// By port: what packets of other devices leave by now.
    targets: Vec<Option<Target>>,
    /// By port; `None` where there is none.
    programs: Vec<Option<Program>>,
    /// By worker.
    heartbeats: Vec<Arc<Renewal>>,
    vips: Vec<VipEntry>,
    returns: Vec<VipEntry>,
    transit: Vec<Prefix>,
    nat: Vec<NatRange>,
    checks: Option<PortRange>,
    local: Vec<Addr>,
    lowered: Lowered,
    kept: HashMap<OffloadKey, u32>,
}

/// First and last.
pub type PortRange = (u16, u16);

impl Steer {
    /// Attached nowhere yet. Queue `q` of each interface belongs to worker `q % workers`. With
    /// `offload` the programs can forward flows themselves.
    pub fn new(workers: u16, offload: bool) -> Steer {
        Steer {
            workers,
            offload,
            config: Config::default(),
            targets: Vec::new(),
            programs: Vec::new(),
            heartbeats: (0..workers).map(|_| Renewal::new()).collect(),
            vips: Vec::new(),
            returns: Vec::new(),
            transit: Vec::new(),
            nat: Vec::new(),
            checks: None,
            local: Vec::new(),
            lowered: Lowered::default(),
            kept: HashMap::new(),
        }
    }

    /// Whether the programs can forward flows themselves, for [`Loaded::load`].
    pub fn offloads(&self) -> bool {
        self.offload
    }

    /// Attaches a program to an interface, which is a port from now on. It steers what
    /// the others do, once its queues have sockets; nothing as long as these were told nothing.
    ///
    /// `lasting`: the program stays when the process dies, so that `on_failure = "drop"` holds then
    /// too; otherwise the kernel removes it with the process.
    ///
    /// # Errors
    /// No such interface, no privileges, another program there, the mode refused.
    pub fn attach(
        &mut self,
        port: PortId,
        interface: &str,
        mode: AttachMode,
        lasting: bool,
        loaded: Loaded,
    ) -> Result<(Attached, Sockets), NicError> {
        let mut program = Program::attach(interface, mode, lasting, loaded)?;
        let result = (program.attached.clone(), program.sockets.clone());
        for worker in 0..self.workers {
            let beat = program.heartbeats.at(usize::from(worker));
            beat.ns.store(kernel_now().0, Ordering::Relaxed);
        }
        self.tell_all(&mut program)?;
        let at = usize::from(port.0);
        if self.programs.len() <= at {
            self.programs.resize_with(at + 1, || None);
            self.targets.resize(at + 1, None);
        }
        self.programs[at] = Some(program);
        self.renew_heartbeats();
        Ok(result)
    }

    /// Detaches a port's program: what comes by its interface is the kernel's from now on.
    ///
    /// # Errors
    /// The kernel refusing to have no packets sent there any more.
    pub fn detach(&mut self, port: PortId) -> Result<(), NicError> {
        let at = usize::from(port.0);
        let Some(program) = self.programs.get_mut(at).and_then(Option::take) else { return Ok(()) };
        drop(program);
        self.renew_heartbeats();
        self.set_target(at, None)
    }

    /// Tells a new program what the others know.
    fn tell_all(&self, program: &mut Program) -> Result<(), NicError> {
        program.set_config(self.config)?;
        program.set_kept(&self.kept)?;
        program.set_returns(&self.return_words())?;
        program.set_transit(&self.transit)?;
        program.set_addrs(&addr_infos(&self.local, &self.vips, &self.nat, self.checks))?;
        program.set_services(&self.service_words())?;
        if let Some(offload) = &mut program.offload {
            for (port, to) in (0u32..).zip(&self.targets) {
                offload.set_port(port, *to)?;
            }
        }
        Ok(())
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Program> {
        self.programs.iter_mut().flatten()
    }

    fn renew_heartbeats(&self) {
        self.heartbeats.iter().for_each(|worker| worker.renew(self.heartbeat_pages()));
    }

    fn heartbeat_pages(&self) -> Vec<Arc<heartbeat::HeartbeatPage>> {
        self.programs.iter().flatten().map(|p| Arc::clone(&p.heartbeats)).collect()
    }

    /// Programs that were attached to outlive the process stay when this is dropped.
    pub fn leave(&mut self) {
        self.all().for_each(Program::leave);
    }

    /// Sets when a worker counts as dead, what happens to our packets then, and which share of
    /// transit flows is ours (hundredths of a percent).
    ///
    /// `on_failure` takes effect on a dead process only as the programs were attached: see
    /// [`Steer::attach`].
    ///
    /// # Errors
    /// The kernel refusing the map update.
    pub fn set_config(
        &mut self,
        heartbeat_limit: Duration,
        on_failure: OnFailure,
        transit_share: u16,
    ) -> Result<(), NicError> {
        self.config = Config {
            heartbeat_limit_ns: u64::try_from(heartbeat_limit.as_nanos()).unwrap_or(u64::MAX),
            on_failure: u32::from(on_failure == OnFailure::Drop),
            transit_share: u32::from(transit_share),
            workers: u32::from(self.workers),
            generation: self.config.generation,
        };
        self.tell_config()
    }

    fn tell_config(&mut self) -> Result<(), NicError> {
        let config = self.config;
        self.all().try_for_each(|p| p.set_config(config))
    }

    /// From now on the programs forward flows of this generation only; 0: none.
    ///
    /// # Errors
    /// The kernel refusing the map update.
    pub fn set_generation(&mut self, generation: u32) -> Result<(), NicError> {
        if self.offload && self.config.generation != generation {
            self.config.generation = generation;
            self.tell_config()?;
        }
        Ok(())
    }

    /// What workers write to, where flows can be offloaded: of the ports that there are now.
    pub fn offload_slots(&self) -> Option<OffloadSlots> {
        let page = |p: &Option<Program>| Some(Arc::clone(&p.as_ref()?.offload.as_ref()?.slots));
        self.offload.then(|| OffloadSlots::new(self.programs.iter().map(page).collect()))
    }

    /// Sees by which ports the programs may send: the kernel drops frames for a device that takes
    /// none.
    ///
    /// # Errors
    /// The kernel refusing to tell, or refusing the map update.
    pub fn refresh_targets(&mut self) -> Result<(), NicError> {
        if !self.offload {
            return Ok(());
        }
        for port in 0..self.programs.len() {
            let Some(program) = &self.programs[port] else { continue };
            let Program { interface, index, attached, .. } = program;
            // Another interface of this name has no program of ours, and flows don't lead there.
            let here = link::index_of(interface).ok().filter(|now| now == index);
            let takes = |index| !attached.native || link::takes_xdp_frames(index);
            let to = here.map(|index| Target { index, takes_frames: takes(index) });
            self.set_target(port, to)?;
        }
        Ok(())
    }

    fn set_target(&mut self, port: usize, to: Option<Target>) -> Result<(), NicError> {
        if to != self.targets[port] {
            for offload in self.all().filter_map(|p| p.offload.as_mut()) {
                offload.set_port(port as u32, to)?;
            }
            self.targets[port] = to;
        }
        Ok(())
    }

    /// By port: whether packets of other devices may leave by it now.
    pub fn is_target(&self, port: usize) -> bool {
        let target = self.targets.get(port).copied().flatten();
        let mut all = self.programs.iter().flatten().filter_map(|p| p.offload.as_ref());
        target.is_some_and(|to| all.all(|from| from.reaches(to)))
    }

    /// Does what a worker asks for.
    ///
    /// # Errors
    /// The kernel refusing the map update.
    pub fn offload(&mut self, order: &OffloadOrder) -> Result<(), NicError> {
        let (OffloadOrder::Forward { port, key, .. } | OffloadOrder::Forget { port, key }) = order;
        let program = self.programs.get_mut(usize::from(port.0)).and_then(Option::as_mut);
        let Some(maps) = program.and_then(|p| p.offload.as_mut()) else { return Ok(()) };
        match order {
            OffloadOrder::Forward { entry, .. } => maps.insert(&key.into(), entry),
            OffloadOrder::Forget { .. } => {
                maps.remove(&key.into());
                Ok(())
            }
        }
    }

    /// Services: packets to them from clients within their share are ours.
    ///
    /// # Errors
    /// More than the map holds, or the kernel refusing the update.
    pub fn set_vips(&mut self, vips: &[VipEntry]) -> Result<(), NicError> {
        self.vips = vips.to_vec();
        let wanted = self.service_words();
        // The services first: an address without its service is passed or routed, not steered.
        self.all().try_for_each(|p| p.set_services(&wanted))?;
        self.set_addrs()
    }

    /// NAT source ports: TCP and UDP packets to them are ours.
    ///
    /// # Errors
    /// As [`Steer::set_vips`].
    pub fn set_nat(&mut self, ranges: &[NatRange]) -> Result<(), NicError> {
        self.nat = ranges.to_vec();
        self.set_addrs()
    }

    /// Ports of health checks at the box's own addresses, but those of NAT: TCP and UDP packets to
    /// them are ours.
    ///
    /// # Errors
    /// As [`Steer::set_vips`].
    pub fn set_checks(&mut self, ports: Option<PortRange>) -> Result<(), NicError> {
        self.checks = ports;
        self.set_addrs()
    }

    /// Backends of `dnat` pools: what they send to clients within the share is ours. Where several
    /// services share a backend, the largest share counts.
    ///
    /// # Errors
    /// As [`Steer::set_vips`].
    pub fn set_returns(&mut self, backends: &[VipEntry]) -> Result<(), NicError> {
        self.returns = backends.to_vec();
        let wanted = self.return_words();
        self.all().try_for_each(|p| p.set_returns(&wanted))
    }

    /// Destinations whose traffic we route.
    ///
    /// # Errors
    /// As [`Steer::set_vips`].
    pub fn set_transit(&mut self, prefixes: &[Prefix]) -> Result<(), NicError> {
        self.transit = prefixes.to_vec();
        self.all().try_for_each(|p| p.set_transit(prefixes))
    }

    /// The box's own addresses: the kernel's, except for services and NAT ports on them.
    ///
    /// # Errors
    /// As [`Steer::set_vips`].
    pub fn set_local(&mut self, addrs: &[Addr]) -> Result<(), NicError> {
        self.local = addrs.to_vec();
        self.set_addrs()
    }

    /// The stamp of one worker on all interfaces, those included that are attached later.
    ///
    /// # Panics
    /// On a worker beyond the number that this was made for.
    pub fn heartbeat(&self, worker: u16) -> Heartbeat {
        let renewal = Arc::clone(&self.heartbeats[usize::from(worker)]);
        Heartbeat::new(self.heartbeat_pages(), renewal, worker)
    }

    /// Counters of each interface.
    ///
    /// # Errors
    /// The kernel refusing to read the map.
    pub fn stats(&self) -> Result<Vec<SteerStats>, NicError> {
        self.programs
            .iter()
            .flatten()
            .map(|p| Ok(SteerStats { interface: p.interface.clone(), counts: p.counts()? }))
            .collect()
    }

    fn service_words(&self) -> HashMap<Endpoint, u32> {
        let mut words = endpoints(&self.vips);
        kept::mark(&self.lowered.vips, &mut words);
        words
    }

    fn return_words(&self) -> HashMap<Endpoint, u32> {
        let mut words = returns_of(&self.returns);
        kept::mark(&self.lowered.returns, &mut words);
        words
    }

    fn set_addrs(&mut self) -> Result<(), NicError> {
        let wanted = addr_infos(&self.local, &self.vips, &self.nat, self.checks);
        self.all().try_for_each(|p| p.set_addrs(&wanted))
    }
}

/// What backends' answers look like.
fn returns_of(backends: &[VipEntry]) -> HashMap<Endpoint, u32> {
    let mut wanted = endpoints(backends);
    wanted.extend(fragments_of(backends));
    wanted
}

fn endpoints(list: &[VipEntry]) -> HashMap<Endpoint, u32> {
    let mut map = HashMap::with_capacity(list.len());
    for e in list {
        let key = Endpoint { addr: e.addr, port: e.port, proto: e.proto, pad: [0; 5] };
        let share = map.entry(key).or_insert(0);
        *share = u32::from(e.canary_share).max(*share);
    }
    map
}

/// What later fragments of backends' answers look like, which have no ports: steered where all of a
/// backend's are.
fn fragments_of(list: &[VipEntry]) -> HashMap<Endpoint, u32> {
    let mut map = HashMap::new();
    for e in list.iter().filter(|e| u32::from(e.canary_share) != SHARE_TUNNEL) {
        let key = Endpoint { addr: e.addr, port: 0, proto: e.proto, pad: [0; 5] };
        let share = map.entry(key).or_insert(SHARE_ALL);
        *share = u32::from(e.canary_share).min(*share);
    }
    map
}

fn addr_infos(
    local: &[Addr],
    vips: &[VipEntry],
    nat: &[NatRange],
    checks: Option<PortRange>,
) -> HashMap<Addr, AddrInfo> {
    let fresh = AddrInfo { fragment_share: SHARE_ALL, ..AddrInfo::default() };
    let mut map: HashMap<Addr, AddrInfo> = HashMap::new();
    for &addr in local {
        map.entry(addr).or_insert(fresh).flags |= ADDR_LOCAL;
    }
    for vip in vips {
        let info = map.entry(vip.addr).or_insert(fresh);
        info.flags |= ADDR_VIP;
        info.fragment_share = info.fragment_share.min(u32::from(vip.canary_share));
    }
    for range in nat {
        let info = map.entry(range.addr).or_insert(fresh);
        info.flags |= ADDR_NAT;
        info.nat_first = range.first;
        info.nat_last = range.last;
    }
    for (info, (first, last)) in map.values_mut().filter_map(|info| Some((info, checks?))) {
        if info.flags & (ADDR_LOCAL | ADDR_NAT) == ADDR_LOCAL {
            info.flags |= ADDR_CHECKS;
            (info.nat_first, info.nat_last) = (first, last);
        }
    }
    map
}

#[cfg(test)]
mod tests;
