//! Opens all ports of the appliance: offloads, XDP programs, memory region, sockets, in this order.

use std::path::Path;

use super::companion::Companion;
use super::error::NicError;
use super::ethtool::{Channels, Ethtool, Offload};
use super::link;
use super::opener::Opener;
use super::restore::Changes;
use super::spec::{AttachMode, CopyMode, PortSpec};
use super::steer::{Loaded, MAX_QUEUES, MAX_WORKERS, SHARE_ALL, Sockets, Steer};
use super::umem::{Umem, UmemSpec};
use super::xsk::XskPort;
use crate::base::mem::Slot;
use crate::packet::frame::HEADROOM;
use crate::packet::{FramePool, PortId, eth};
use crate::worker::spec::{OnFailure, WorkersSpec};

/// Oldest kernel with all that is used: `bpf_link` for XDP (5.9), mapped BPF arrays, one memory
/// region for several devices (5.10), BPF functions that are given memory (5.12).
const KERNEL_MIN: (u32, u32) = (5, 12);
const KERNEL_MIN_TEXT: &str = "5.12";
/// Oldest kernel with links of tc programs (TCX).
const TCX_MIN: (u32, u32) = (6, 6);
const TCX_MIN_TEXT: &str = "6.6";
/// Frames of a worker that must remain when the receive rings are full.
const FRAMES_SPARE: u32 = 64;
/// Of `frame_size`.
pub const FRAME_SIZE_MAX: u32 = 4_096;

/// What a port was asked for and what it got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMode {
    pub port: PortId,
    pub interface: String,
    pub driver: String,
    /// XDP runs in the driver; otherwise in the kernel's generic hook.
    pub native: bool,
    /// Why native was not to be had, where it was tried.
    pub native_refused: Option<String>,
    /// Of a program for tc: the interface, made beside the port's own, whose sockets receive.
    pub companion: Option<String>,
    /// The NIC reads and writes our frames itself; otherwise the kernel copies.
    pub zero_copy: bool,
    /// The busy-poll options were asked for and accepted.
    pub busy_poll: bool,
    /// Receive queues, each with a socket.
    pub queues: u32,
    /// Packets that a wake-up sends at most in copy mode (`XDP_MAX_TX_SKB_BUDGET`, Linux 6.17).
    pub tx_batch: u32,
    /// Offloads that were switched off, to be restored.
    pub switched_off: Vec<Offload>,
}

/// All ports, open. Fields drop in this order: sockets, then programs, then offloads.
pub struct Nic {
    /// By worker, then by port in the order of the configuration.
    pub ports: Vec<Vec<XskPort>>,
    /// By worker; the frames in receive rings count as theirs.
    pub pools: Vec<FramePool>,
    pub modes: Vec<PortMode>,
    /// Opens further ones.
    pub opener: Opener,
    pub steer: Steer,
    /// Restores offloads when dropped.
    pub changes: Changes,
}

/// Opens a socket on every queue of every port. Nothing is steered to them before the tables of
/// [`Steer`] are set and the workers' hearts beat.
///
/// Worker `w` of `n` gets the queues `w`, `w + n`, ... of each port. `state_dir` keeps the note of
/// what is changed on the interfaces, for restoring it after a crash.
///
/// # Errors
/// See [`NicError`]; everything is undone then.
pub fn open(specs: &[PortSpec], workers: &WorkersSpec, state_dir: &Path) -> Result<Nic, NicError> {
    check_kernel(&kernel_release()?)?;
    let ethtool = Ethtool::open().map_err(|e| NicError::from_io("opening a socket", e))?;
    let channels = check_ports(specs, workers, &ethtool)?;
    let mut changes = Changes::new(state_dir)
        .map_err(|e| NicError::from_io(format!("writing to {}", state_dir.display()), e))?;
    let mut steer = Steer::new(workers.count_max, workers.offload);
    let mut modes = Vec::with_capacity(specs.len());
    let mut sockets = Vec::with_capacity(specs.len());
    let lasting = workers.on_failure == OnFailure::Drop;
    for (spec, channels) in specs.iter().zip(&channels) {
        let loaded = Loaded::load(spec.attach, workers.offload)?;
        let on = (&ethtool, &mut changes, &mut steer);
        let (mode, to) = prepare(spec, channels, lasting, loaded, on)?;
        modes.push(mode);
        sockets.push(to);
    }
    let Opened { ports, pools, opener } = open_sockets(specs, workers, &mut modes, &sockets)?;
    steer.set_config(workers.heartbeat_limit, workers.on_failure, SHARE_ALL as u16)?;
    Ok(Nic { ports, pools, modes, opener, steer, changes })
}

/// What can be checked before anything is changed. Returns the queue counts.
fn check_ports(
    specs: &[PortSpec],
    workers: &WorkersSpec,
    ethtool: &Ethtool,
) -> Result<Vec<Channels>, NicError> {
    let mut all = Vec::with_capacity(specs.len());
    for spec in specs {
        all.push(check_port(spec, workers, ethtool)?);
    }
    let rings = specs.iter().zip(&all).map(|(spec, channels)| (spec.rx_ring, channels.receive()));
    check_frames(rings, workers)?;
    copy_mode(specs)?;
    Ok(all)
}

/// What can be checked of one port before anything is changed. Returns its queue counts.
pub(super) fn check_port(
    spec: &PortSpec,
    workers: &WorkersSpec,
    ethtool: &Ethtool,
) -> Result<Channels, NicError> {
    let interface = &spec.interface;
    for (what, value) in [("rx_ring", spec.rx_ring), ("tx_ring", spec.tx_ring)] {
        if !value.is_power_of_two() {
            let interface = interface.clone();
            return Err(NicError::NotPowerOfTwo { interface, what, value });
        }
    }
    if spec.attach == AttachMode::Tc {
        check_tcx(&kernel_release()?)?;
    }
    let index = link::index_of(interface)
        .map_err(|_| NicError::NoInterface { interface: interface.clone() })?;
    check_mtu(interface, index, workers.frame_size)?;
    let channels = ethtool
        .channels(interface)
        .map_err(|e| NicError::from_io(format!("reading the queues of {interface}"), e))?;
    check_queues(interface, &channels, workers.count_max)?;
    Ok(channels)
}

/// Frames have to be left where all receive rings are full: of each port its ring's size and how
/// many there are.
pub(super) fn check_frames(
    rings: impl Iterator<Item = (u32, u32)>,
    workers: &WorkersSpec,
) -> Result<(), NicError> {
    let of_a_worker = |queues: u32| queues.div_ceil(u32::from(workers.count_max.max(1)));
    let need = rings.map(|(ring, queues)| of_a_worker(queues) * ring).sum::<u32>() + FRAMES_SPARE;
    if workers.frames < need {
        return Err(NicError::TooFewFrames { have: workers.frames, need });
    }
    Ok(())
}

/// The largest IP packet that frames of this size hold, with a VLAN tag.
pub const fn mtu_max(frame_size: u32) -> u32 {
    frame_size.saturating_sub((HEADROOM + eth::HEADER_LEN + eth::TAG_LEN) as u32)
}

/// A packet takes one frame: larger ones would be lost, each and silently, by the kernel.
fn check_mtu(interface: &str, index: u32, frame_size: u32) -> Result<(), NicError> {
    let what = || format!("reading the MTU of {interface}");
    let mtu = link::mtu_of(index).map_err(|e| NicError::from_io(what(), e))?;
    let fits = mtu_max(frame_size);
    if mtu <= fits {
        return Ok(());
    }
    let would_fit = frame_size < FRAME_SIZE_MAX && mtu <= mtu_max(FRAME_SIZE_MAX);
    let hint = if would_fit { ", or `frame_size = 4096`" } else { "" };
    let interface = interface.to_owned();
    Err(NicError::MtuTooLarge { interface, mtu, frame_size, fits, hint })
}

fn check_queues(interface: &str, channels: &Channels, workers: u16) -> Result<(), NicError> {
    let interface = interface.to_owned();
    let most = u32::from(workers);
    if channels.receive() > MAX_QUEUES {
        let have = channels.receive();
        return Err(NicError::TooManyQueues { interface, have, limit: MAX_QUEUES });
    }
    for (what, have) in [("receive", channels.receive()), ("transmit", channels.transmit())] {
        if have < most.min(MAX_WORKERS) {
            let fix = channels.command(&interface, most);
            return Err(NicError::TooFewQueues { interface, have, what, workers, fix });
        }
    }
    Ok(())
}

/// The mode that all ports agree on.
fn copy_mode(specs: &[PortSpec]) -> Result<CopyMode, NicError> {
    let any = |mode| specs.iter().any(|s| s.copy == mode);
    match (any(CopyMode::ZeroCopy), any(CopyMode::Copy)) {
        (true, true) => Err(NicError::MixedCopyModes),
        (true, false) => Ok(CopyMode::ZeroCopy),
        (false, true) => Ok(CopyMode::Copy),
        (false, false) => Ok(CopyMode::Auto),
    }
}

pub(super) fn prepare(
    spec: &PortSpec,
    channels: &Channels,
    lasting: bool,
    loaded: Loaded,
    (ethtool, changes, steer): (&Ethtool, &mut Changes, &mut Steer),
) -> Result<(PortMode, Sockets), NicError> {
    let interface = &spec.interface;
    let what = || format!("switching offloads of {interface}");
    // Behind the driver merged packets are welcome.
    let merges = if spec.attach == AttachMode::Tc { &[][..] } else { &Offload::RECEIVE_MERGES };
    let switched_off =
        changes.switch_off(ethtool, interface, merges).map_err(|e| NicError::from_io(what(), e))?;
    if lasting {
        changes.note_program(interface).map_err(|e| NicError::from_io(what(), e))?;
    }
    let loaded = match spec.attach {
        AttachMode::Tc => {
            let index = link::index_of(interface)
                .map_err(|_| NicError::NoInterface { interface: interface.clone() })?;
            let companion = Companion::create(interface, index, channels.receive())?;
            changes.note_companion(interface).map_err(|e| NicError::from_io(what(), e))?;
            loaded.beside(companion)
        }
        _ => loaded,
    };
    let companion = loaded.companion().map(str::to_owned);
    let (attached, sockets) = steer.attach(spec.id, interface, spec.attach, lasting, loaded)?;
    let mode = PortMode {
        port: spec.id,
        interface: interface.clone(),
        driver: ethtool.driver(interface).unwrap_or_default(),
        native: attached.native,
        native_refused: attached.native_refused,
        companion,
        zero_copy: false,
        busy_poll: false,
        queues: channels.receive(),
        tx_batch: 0,
        switched_off,
    };
    Ok((mode, sockets))
}

struct Opened {
    ports: Vec<Vec<XskPort>>,
    pools: Vec<FramePool>,
    opener: Opener,
}

/// Zero-copy is the region's property, decided by the first socket: where a later port can't
/// follow, all start again with copying.
fn open_sockets(
    specs: &[PortSpec],
    workers: &WorkersSpec,
    modes: &mut [PortMode],
    sockets: &[Sockets],
) -> Result<Opened, NicError> {
    let mut copy = copy_mode(specs)?;
    // Generic XDP has nothing else, nor have many drivers.
    let copies = |m: &PortMode| !m.native || lacks_zero_copy(&m.interface);
    if copy == CopyMode::Auto && modes.iter().any(copies) {
        copy = CopyMode::Copy;
    }
    let first = try_open_sockets(specs, workers, modes, sockets, copy);
    let retry = match &first {
        Err(NicError::Io { .. } | NicError::NoZeroCopy { .. }) => copy == CopyMode::Auto,
        _ => false,
    };
    if retry { try_open_sockets(specs, workers, modes, sockets, CopyMode::Copy) } else { first }
}

fn lacks_zero_copy(interface: &str) -> bool {
    link::index_of(interface).ok().and_then(link::has_zero_copy) == Some(false)
}

fn try_open_sockets(
    specs: &[PortSpec],
    workers: &WorkersSpec,
    modes: &mut [PortMode],
    sockets: &[Sockets],
    copy: CopyMode,
) -> Result<Opened, NicError> {
    let spec = UmemSpec {
        frames: workers.frames * u32::from(workers.count_max),
        frame_size: workers.frame_size,
        fill_ring: specs.iter().map(|s| s.rx_ring).max().unwrap_or(64),
        completion_ring: specs.iter().map(|s| s.tx_ring).max().unwrap_or(64),
        huge_pages: workers.huge_pages,
    };
    let (opener, slots) = Opener::new(spec, copy, workers.count_max, specs.first().map(|s| s.id))?;
    let mut pools = share_out(opener.umem(), slots, workers.count_max);
    let mut all: Vec<Vec<XskPort>> = pools.iter().map(|_| Vec::new()).collect();
    for ((spec, mode), to) in specs.iter().zip(modes).zip(sockets) {
        for (worker, mut port) in opener.sockets(spec, mode, to)?.into_iter().enumerate() {
            port.start(&mut pools[worker])?;
            all[worker].push(port);
        }
    }
    Ok(Opened { ports: all, pools, opener })
}

/// Equal shares; what rounding to huge pages has added goes to the last.
fn share_out(umem: &Umem, mut slots: Vec<Slot>, workers: u16) -> Vec<FramePool> {
    let share = slots.len() / usize::from(workers.max(1));
    let mut pools: Vec<FramePool> = (1..workers)
        .map(|_| FramePool::new(umem.arena.clone(), slots.split_off(slots.len() - share)))
        .collect();
    pools.insert(0, FramePool::new(umem.arena.clone(), slots));
    pools
}

fn kernel_release() -> Result<String, NicError> {
    let name = nix::sys::utsname::uname()
        .map_err(|e| NicError::from_io("reading the kernel's version", e.into()))?;
    Ok(name.release().to_string_lossy().into_owned())
}

/// # Errors
/// A release such as `5.4.0-150-generic` that is older than what is needed.
pub fn check_kernel(release: &str) -> Result<(), NicError> {
    if version(release) < KERNEL_MIN {
        return Err(NicError::KernelTooOld { found: release.to_owned(), needed: KERNEL_MIN_TEXT });
    }
    Ok(())
}

/// # Errors
/// A release that has no links of tc programs.
fn check_tcx(release: &str) -> Result<(), NicError> {
    if version(release) < TCX_MIN {
        return Err(NicError::KernelWithoutTcx { found: release.to_owned(), needed: TCX_MIN_TEXT });
    }
    Ok(())
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_named() {
        for good in ["5.12.0-28-amd64", "6.1.0", "6.18.44-fc", "10.0"] {
            assert!(check_kernel(good).is_ok(), "{good}");
        }
        for old in ["5.11.22", "5.9.16", "4.19.0-26-amd64", "5.4.0-150-generic"] {
            let e = check_kernel(old).expect_err(old);
            assert!(e.to_string().contains(old) && e.to_string().contains("5.12"), "{e}");
        }
        assert!(check_tcx("6.6.0").is_ok());
        let e = check_tcx("6.5.13-1-generic").expect_err("older than TCX");
        assert!(e.to_string().contains("6.5.13") && e.to_string().contains("6.6 or"), "{e}");
    }

    #[test]
    fn too_few_queues_name_the_command() {
        let nic = Channels { combined: 1, combined_max: 8, ..Channels::default() };
        let e = check_queues("eth0", &nic, 4).expect_err("one queue for four");
        assert!(e.to_string().contains("`ethtool -L eth0 combined 4`"), "{e}");
        let veth = Channels { rx: 2, tx: 1, rx_max: 4, tx_max: 4, ..Channels::default() };
        let e = check_queues("v0", &veth, 2).expect_err("one transmit queue");
        assert!(e.to_string().contains("1 transmit queues"), "{e}");
        assert!(e.to_string().contains("`ethtool -L v0 rx 2 tx 2`"), "{e}");
        assert!(check_queues("v0", &veth, 1).is_ok());
        let wide = Channels { combined: 128, combined_max: 128, ..Channels::default() };
        assert!(matches!(check_queues("e", &wide, 1), Err(NicError::TooManyQueues { .. })));
    }
}
