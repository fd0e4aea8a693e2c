//! The XDP program of one interface: loaded, attached, and its maps.

use std::collections::{HashMap as Set, HashSet};
use std::error::Error;
use std::hash::Hash;
use std::os::fd::{AsFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, XskMap};
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, Pod};

use super::abi::{AddrInfo, AddrKey, Config, Endpoint, MAX_QUEUES, MAX_WORKERS, SteerReason};
use super::heartbeat::HeartbeatPage;
use super::inbox::{INBOX_SLOTS, Inbox, Inboxes};
use super::mapped::MappedArray;
use super::offload::{MAX_OFFLOAD_SLOTS, OffloadEntry, OffloadKey, OffloadPage, QueuePage};
use super::targets::{Target, Targets};
use super::tcx;
use crate::base::{Addr, Prefix};
use crate::nic::companion::Companion;
use crate::nic::error::NicError;
use crate::nic::link::{self, LastingXdp};
use crate::nic::spec::AttachMode;

/// What build.rs made of `src/nic/bpf/steer.c`.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.o"));
pub(super) static OBJECT_TC: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer_tc.o"));

/// Name of the program, by which a later start knows it as ours.
pub const PROGRAM_NAME: &str = "tidegate_steer";

/// How the program came to be attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub native: bool,
    /// Why native mode was not to be had, where `auto` asked for it.
    pub native_refused: Option<String>,
}

/// The sockets that one interface's program redirects to, by queue.
#[derive(Clone)]
pub struct Sockets {
    map: Arc<Mutex<XskMap<MapData>>>,
    /// Where the program forwards flows itself: what has come to each socket and went on.
    queues: Option<Arc<QueuePage>>,
    /// Of a program for tc.
    inboxes: Option<Inboxes>,
}

impl Sockets {
    /// The other way to the socket of one of `queues`, where there is one: see [`Inboxes::open`].
    pub(crate) fn inbox(&self, queue: u32, queues: u32, frame_max: usize) -> Option<Inbox> {
        self.inboxes.as_ref().map(|of| of.open(queue, queues, frame_max))
    }

    /// Of the packets that the program has steered to this queue's socket since the start, the
    /// first `packets` are sent or gone: what comes behind them may leave without the worker.
    #[inline]
    pub(crate) fn pass(&self, queue: u32, packets: u64) {
        if let Some(queues) = &self.queues {
            queues.at(queue as usize).passed.store(packets, Ordering::Release);
        }
    }

    /// Packets that the program has steered to this queue since the start, where it counts them.
    pub(crate) fn steered(&self, queue: u32) -> u64 {
        let queues = self.queues.as_ref();
        queues.map_or(0, |of| of.at(queue as usize).steered.load(Ordering::Relaxed))
    }

    /// Packets of ours that arrive on `queue` go to this socket from now on.
    pub(crate) fn set(&self, queue: u32, socket: RawFd) -> Result<(), NicError> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        map.set(queue, socket, 0).map_err(|e| map_error("xsks", &e))
    }

    /// No packet of these queues is redirected any more once this returned and then
    /// [`Sockets::wait`].
    pub(crate) fn unset(&self, queues: impl Iterator<Item = u32>) {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        for queue in queues {
            // Fails where the kernel has removed the entry of a closed socket by itself.
            let _ = map.unset(queue);
        }
    }

    /// Waits for redirects under way, of whichever port.
    pub(crate) fn wait() {
        // A redirect under way holds RCU until it is flushed; this command waits for that
        // (membarrier(2), MEMBARRIER_CMD_GLOBAL).
        const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
        // SAFETY: no memory is passed.
        unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    }
}

/// A program that the kernel has checked, which takes it its time, and no interface has.
pub struct Loaded {
    pub(super) ebpf: Ebpf,
    offload: bool,
    is_tc: bool,
    companion: Option<Companion>,
}

impl Loaded {
    /// Has the kernel check a program for being attached so; with `offload` one that can forward
    /// flows itself.
    ///
    /// # Errors
    /// No privileges, or the kernel refusing it.
    pub fn load(mode: AttachMode, offload: bool) -> Result<Loaded, NicError> {
        let mut loader = EbpfLoader::new();
        let enabled = u32::from(offload);
        loader.override_global("offload_enabled", &enabled, true);
        if !offload {
            loader.map_max_entries("offloads", 1).map_max_entries("offload_slots", 1);
        }
        let is_tc = mode == AttachMode::Tc;
        let object = if is_tc { OBJECT_TC } else { OBJECT };
        let mut ebpf = loader.load(object).map_err(|e| load_error(&e))?;
        match is_tc {
            true => tcx::load(&mut ebpf)?,
            false => xdp(&mut ebpf)?.load().map_err(|e| load_error(&e))?,
        }
        Ok(Loaded { ebpf, offload, is_tc, companion: None })
    }

    /// Whether it can be attached so.
    pub fn suits(&self, mode: AttachMode) -> bool {
        self.is_tc == (mode == AttachMode::Tc)
    }

    /// Gives a program for tc the way to its sockets, which goes with it.
    pub(in crate::nic) fn beside(self, companion: Companion) -> Loaded {
        Loaded { companion: Some(companion), ..self }
    }

    /// The interface of the sockets, where that is another one.
    pub(in crate::nic) fn companion(&self) -> Option<&str> {
        self.companion.as_ref().map(|c| c.exit_name.as_str())
    }
}

fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp, NicError> {
    ebpf.program_mut(PROGRAM_NAME)
        .ok_or_else(|| NicError::Load(format!("no program {PROGRAM_NAME}")))?
        .try_into()
        .map_err(|e| load_error(&e))
}

/// See the module. Detached and unloaded on drop.
pub(super) struct Program {
    pub(super) interface: String,
    /// The interface's own, whatever its name is now.
    pub(super) index: u32,
    pub(super) attached: Attached,
    pub(super) heartbeats: Arc<HeartbeatPage>,
    pub(super) sockets: Sockets,
    config: Array<MapData, Config>,
    addrs: HashMap<MapData, AddrKey, AddrInfo>,
    services: HashMap<MapData, Endpoint, u32>,
    returns: HashMap<MapData, Endpoint, u32>,
    transit: LpmTrie<MapData, [u8; 16], u32>,
    kept: HashMap<MapData, OffloadKey, u32>,
    counters: PerCpuArray<MapData, u64>,
    /// `None` where nothing is to be offloaded: the maps are as small as can be then.
    pub(super) offload: Option<Offloads>,
    // Detached before the program's own descriptor goes.
    lasting: Option<LastingXdp>,
    _ebpf: Ebpf,
    /// Behind all that leads there.
    _companion: Option<Companion>,
}

/// The maps of flows that the program forwards itself.
pub(super) struct Offloads {
    pub(super) slots: Arc<OffloadPage>,
    flows: HashMap<MapData, OffloadKey, OffloadEntry>,
    targets: Targets,
}

impl Offloads {
    fn take(ebpf: &mut Ebpf, is_tc: bool) -> Result<Offloads, NicError> {
        let slots = mapped(ebpf, "offload_slots", MAX_OFFLOAD_SLOTS as usize)?;
        Ok(Offloads {
            slots: Arc::new(slots),
            flows: take(ebpf, "offloads")?,
            targets: Targets::take(ebpf, is_tc)?,
        })
    }

    pub(super) fn insert(&mut self, key: &OffloadKey, e: &OffloadEntry) -> Result<(), NicError> {
        self.flows.insert(key, e, 0).map_err(|e| map_error("offloads", &e))
    }

    /// What is not there is gone already.
    pub(super) fn remove(&mut self, key: &OffloadKey) {
        let _ = self.flows.remove(key);
    }

    /// Packets may leave by the port `index` from now on, or no longer.
    pub(super) fn set_port(&mut self, index: u32, to: Option<Target>) -> Result<(), NicError> {
        self.targets.set(index, to)
    }

    /// Whether packets can leave so.
    pub(super) fn reaches(&self, target: Target) -> bool {
        self.targets.reaches(target)
    }
}

impl Program {
    /// Attaches the program; `lasting` makes the attachment survive a crash.
    pub(super) fn attach(
        interface: &str,
        mode: AttachMode,
        lasting: bool,
        loaded: Loaded,
    ) -> Result<Program, NicError> {
        let index = link::index_of(interface)
            .map_err(|_| NicError::NoInterface { interface: interface.to_owned() })?;
        let Loaded { mut ebpf, offload, is_tc, companion } = loaded;
        let (attached, lasting) = match &companion {
            Some(companion) => {
                tcx::attach(&mut ebpf, interface, companion)?;
                (Attached { native: false, native_refused: None }, None)
            }
            None => {
                refuse_present(interface, index)?;
                attach_by_mode(xdp(&mut ebpf)?, interface, index, mode, lasting)?
            }
        };
        let page = mapped(&ebpf, "heartbeats", MAX_WORKERS as usize)?;
        let queues = || mapped(&ebpf, "offload_queues", MAX_QUEUES as usize).map(Arc::new);
        let queues = offload.then(queues).transpose()?;
        let offload = offload.then(|| Offloads::take(&mut ebpf, is_tc)).transpose()?;
        let inboxes = is_tc.then(|| inboxes(&ebpf)).transpose()?;
        let map = Arc::new(Mutex::new(take(&mut ebpf, "xsks")?));
        Ok(Program {
            interface: interface.to_owned(),
            index,
            attached,
            heartbeats: Arc::new(page),
            sockets: Sockets { map, queues, inboxes },
            config: take(&mut ebpf, "config")?,
            addrs: take(&mut ebpf, "addrs")?,
            services: take(&mut ebpf, "services")?,
            returns: take(&mut ebpf, "returns")?,
            transit: take(&mut ebpf, "transit")?,
            kept: take(&mut ebpf, "kept")?,
            counters: take(&mut ebpf, "counters")?,
            offload,
            lasting,
            _ebpf: ebpf,
            _companion: companion,
        })
    }

    /// What was attached to outlive the process stays when this is dropped.
    pub(super) fn leave(&mut self) {
        std::mem::forget(self.lasting.take());
    }

    pub(super) fn set_config(&mut self, config: Config) -> Result<(), NicError> {
        self.config.set(0, config, 0).map_err(|e| map_error("config", &e))
    }

    pub(super) fn set_addrs(&mut self, wanted: &Set<Addr, AddrInfo>) -> Result<(), NicError> {
        let wanted = wanted.iter().map(|(&a, &i)| (AddrKey(a), i)).collect();
        replace(&mut self.addrs, &wanted).map_err(|e| map_error("addrs", &e))
    }

    pub(super) fn set_services(&mut self, wanted: &Set<Endpoint, u32>) -> Result<(), NicError> {
        replace(&mut self.services, wanted).map_err(|e| map_error("services", &e))
    }

    pub(super) fn set_returns(&mut self, wanted: &Set<Endpoint, u32>) -> Result<(), NicError> {
        replace(&mut self.returns, wanted).map_err(|e| map_error("returns", &e))
    }

    pub(super) fn set_transit(&mut self, wanted: &[Prefix]) -> Result<(), NicError> {
        let wanted: HashSet<(u32, [u8; 16])> =
            wanted.iter().map(|p| (u32::from(p.len128()), p.addr().to_bytes())).collect();
        let error = |e: MapError| map_error("transit", &e);
        let present: HashSet<(u32, [u8; 16])> = self
            .transit
            .keys()
            .map(|k| k.map(|k| (k.prefix_len(), k.data())))
            .collect::<Result<_, _>>()
            .map_err(error)?;
        for &(len, addr) in wanted.difference(&present) {
            self.transit.insert(&Key::new(len, addr), 1, 0).map_err(error)?;
        }
        for &(len, addr) in present.difference(&wanted) {
            self.transit.remove(&Key::new(len, addr)).map_err(error)?;
        }
        Ok(())
    }

    /// Keeps a flow besides; `false`: there is no room.
    pub(super) fn keep(&mut self, key: &OffloadKey) -> bool {
        self.kept.insert(key, 1, 0).is_ok()
    }

    /// Keeps these flows and no others.
    pub(super) fn set_kept(&mut self, wanted: &Set<OffloadKey, u32>) -> Result<(), NicError> {
        // There may be room only where others were.
        let leave: Vec<_> = self.kept.keys().filter_map(Result::ok).collect();
        for key in leave.iter().filter(|key| !wanted.contains_key(key)) {
            // The program forgets none: it is there, or went with another call.
            let _ = self.kept.remove(key);
        }
        replace(&mut self.kept, wanted).map_err(|e| map_error("kept", &e))
    }

    /// Packets by reason since the program was loaded.
    pub(super) fn counts(&self) -> Result<[u64; SteerReason::COUNT], NicError> {
        let mut counts = [0; SteerReason::COUNT];
        for (i, n) in counts.iter_mut().enumerate() {
            let of_cpus = self.counters.get(&(i as u32), 0);
            *n = of_cpus.map_err(|e| map_error("counters", &e))?.iter().sum();
        }
        Ok(counts)
    }
}

fn attach_by_mode(
    program: &mut Xdp,
    interface: &str,
    index: u32,
    mode: AttachMode,
    lasting: bool,
) -> Result<(Attached, Option<LastingXdp>), NicError> {
    let mut native_refused = None;
    if mode != AttachMode::Generic {
        match attach_once(program, interface, index, AttachMode::Native, lasting) {
            Ok(link) => return Ok((Attached { native: true, native_refused: None }, link)),
            Err(e @ NicError::AttachRefused { .. }) if mode == AttachMode::Auto => {
                native_refused = Some(e.to_string());
            }
            Err(e) => return Err(e),
        }
    }
    let link = attach_once(program, interface, index, AttachMode::Generic, lasting)?;
    Ok((Attached { native: false, native_refused }, link))
}

fn attach_once(
    program: &mut Xdp,
    interface: &str,
    index: u32,
    mode: AttachMode,
    lasting: bool,
) -> Result<Option<LastingXdp>, NicError> {
    let result: Result<_, Box<dyn Error>> = if lasting {
        let fd = program.fd().map_err(|e| load_error(&e))?;
        LastingXdp::attach(index, fd.as_fd(), mode).map(Some).map_err(Into::into)
    } else {
        let mode = if mode == AttachMode::Native { XdpMode::Driver } else { XdpMode::Skb };
        program.attach_to_if_index(index, mode).map(|_| None).map_err(Into::into)
    };
    result.map_err(|e| {
        let interface = interface.to_owned();
        match NicError::os_error(e.as_ref()) {
            Some(libc::EPERM | libc::EACCES) => {
                NicError::Privileges { what: format!("attaching an XDP program to {interface}") }
            }
            Some(libc::EBUSY | libc::EEXIST) => {
                NicError::ProgramPresent { interface, program: "of unknown name".to_owned() }
            }
            errno => NicError::AttachRefused {
                interface,
                mode: if mode == AttachMode::Native { "native" } else { "generic" },
                hint: hint(errno),
                source: errno.map_or_else(
                    || std::io::Error::other(e.to_string()),
                    std::io::Error::from_raw_os_error,
                ),
            },
        }
    })
}

/// What drivers mean by the error numbers they refuse native XDP with.
fn hint(errno: Option<i32>) -> &'static str {
    match errno {
        // veth_xdp_set, drivers/net/veth.c.
        Some(libc::ENOSPC) => {
            " (a veth needs as many receive queues as its peer has transmit queues)"
        }
        Some(libc::ERANGE) => " (the MTU, on a veth the peer's, is too large for native XDP)",
        Some(libc::EOPNOTSUPP) => " (the driver does not support it)",
        _ => "",
    }
}

/// A program that is there already is not ours to replace.
fn refuse_present(interface: &str, index: u32) -> Result<(), NicError> {
    let id = link::xdp_program_id(index)
        .map_err(|e| NicError::from_io(format!("reading the state of {interface}"), e))?;
    let Some(id) = id else { return Ok(()) };
    let program = match program_name(id) {
        Some(name) => format!("`{name}`, id {id}"),
        None => format!("id {id}"),
    };
    Err(NicError::ProgramPresent { interface: interface.to_owned(), program })
}

/// The name of a loaded program.
pub fn program_name(id: u32) -> Option<String> {
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|p| p.id() == id)
        .and_then(|p| p.name_as_str().map(str::to_owned))
}

fn inboxes(ebpf: &Ebpf) -> Result<Inboxes, NicError> {
    Ok(Inboxes {
        lines: Arc::new(mapped(ebpf, "inboxes", MAX_QUEUES as usize)?),
        slots: Arc::new(mapped(ebpf, "inbox_slots", INBOX_SLOTS as usize)?),
    })
}

/// Maps an array; the mapping keeps the map alive.
fn mapped<T: Sync>(
    ebpf: &Ebpf,
    name: &'static str,
    len: usize,
) -> Result<MappedArray<T>, NicError> {
    match ebpf.map(name) {
        Some(Map::Array(data)) => MappedArray::map(data.fd().as_fd(), len)
            .map_err(|e| NicError::from_io(format!("mapping the map `{name}`"), e)),
        _ => Err(NicError::Map { map: name, reason: "missing".to_owned() }),
    }
}

pub(super) fn take<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, NicError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(NicError::Map { map: name, reason: "missing".into() })?;
    M::try_from(map).map_err(|e| map_error(name, &e))
}

/// Makes the map hold `wanted` and nothing else; new entries go in before old ones go out.
fn replace<K, V>(map: &mut HashMap<MapData, K, V>, wanted: &Set<K, V>) -> Result<(), MapError>
where
    K: Pod + Eq + Hash,
    V: Pod + PartialEq,
{
    let present: Set<K, V> = map.iter().collect::<Result<_, _>>()?;
    for (key, value) in wanted {
        if present.get(key) != Some(value) {
            map.insert(key, value, 0)?;
        }
    }
    for key in present.keys().filter(|k| !wanted.contains_key(k)) {
        map.remove(key)?;
    }
    Ok(())
}

pub(super) fn load_error(error: &(dyn Error + 'static)) -> NicError {
    match NicError::os_error(error) {
        Some(libc::EPERM | libc::EACCES) => {
            NicError::Privileges { what: "loading the XDP program".to_owned() }
        }
        _ => NicError::Load(chain(error)),
    }
}

pub(super) fn map_error(map: &'static str, error: &(dyn Error + 'static)) -> NicError {
    match NicError::os_error(error) {
        Some(libc::EPERM | libc::EACCES) => {
            NicError::Privileges { what: format!("writing map `{map}`") }
        }
        Some(libc::E2BIG | libc::ENOSPC) => {
            NicError::Map { map, reason: "more entries than it has room for".to_owned() }
        }
        _ => NicError::Map { map, reason: chain(error) },
    }
}

/// An error and its causes in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(cause) = at {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        at = cause.source();
    }
    text
}
