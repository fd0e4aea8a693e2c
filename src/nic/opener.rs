//! Opens sockets in the one memory region of the process: those of the start, and of ports that
//! come later.
//!
//! libxdp gives the region's own descriptor to the first socket and keeps that open, and bound, as
//! long as the region. So that any port can go, the first one is an anchor where frames are copied:
//! a socket on the loopback device, where nothing is ever sent or received by it. A region with
//! zero-copy needs a first socket on a device that has it, which therefore stays.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig};
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue};

use super::error::NicError;
use super::ethtool::Ethtool;
use super::open::{PortMode, check_frames, check_port, prepare};
use super::queue::Queue;
use super::restore::Changes;
use super::spec::{BusyPoll, CopyMode, PortSpec};
use super::steer::{Loaded, Sockets, Steer};
use super::umem::{Umem, UmemSpec};
use super::ways::Ways;
use super::xsk::{BURST, XskPort, XskPortParts};
use crate::base::mem::Slot;
use crate::packet::frame::HEADROOM;
use crate::packet::{FramePool, PortId};
use crate::worker::spec::{OnFailure, WorkersSpec};

/// Every network namespace has it.
const ANCHOR: &str = "lo";
/// Descriptors in each of the anchor's rings.
const ANCHOR_RING: u32 = 64;
/// How often a queue that is taken is tried again, and how soon: a second in all.
const TRIES: u32 = 200;
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(5);
/// Bytes of the kernel's send buffer for each descriptor of the transmit ring: in copy mode it
/// holds a packet's copy and its `sk_buff`.
const SEND_BUFFER_PER_DESCRIPTOR: u32 = 2_304;

/// The memory region, and how sockets are opened in it.
pub struct Opener {
    umem: Umem,
    copy: CopyMode,
    workers: u16,
    spec: UmemSpec,
    /// The port whose socket the region can't do without; `None` where there is an anchor.
    holder: Option<PortId>,
    /// Open as long as the region.
    _anchor: Option<Anchor>,
}

type Anchor = (TxQueue, RxQueue, Option<(FillQueue, CompQueue)>);

/// A port that was opened later.
pub struct OpenedPort {
    pub mode: PortMode,
    /// By worker: without frames, and without packets before [`super::xsk::Delivery::start`].
    pub ports: Vec<XskPort>,
}

impl Opener {
    /// A region, whose first port will be `first`. Returns its frames, too.
    pub(super) fn new(
        spec: UmemSpec,
        copy: CopyMode,
        workers: u16,
        first: Option<PortId>,
    ) -> Result<(Opener, Vec<Slot>), NicError> {
        let opener =
            |umem, holder, anchor| Opener { umem, copy, workers, spec, holder, _anchor: anchor };
        if copy == CopyMode::Copy {
            let (umem, slots) = Umem::create(spec)?;
            match anchor(&umem) {
                Ok(anchor) => return Ok((opener(umem, None, Some(anchor)), slots)),
                Err(error) => {
                    tracing::warn!(%error, "no anchor on {ANCHOR}: the first port can't go live");
                }
            }
            // What could not be bound can't be used again.
            drop(FramePool::new(umem.arena.clone(), slots));
        }
        let (umem, slots) = Umem::create(spec)?;
        Ok((opener(umem, first, None), slots))
    }

    pub(super) fn umem(&self) -> &Umem {
        &self.umem
    }

    /// The port that can't go while the process runs, if there is one.
    pub fn holder(&self) -> Option<PortId> {
        self.holder
    }

    /// What takes the place of a port that is gone.
    pub fn vacant(&self, id: PortId) -> XskPort {
        XskPort::vacant(id, self.umem.clone())
    }

    /// What can be checked before a port is opened beside others, of which the sizes of their
    /// receive rings and the numbers of these are given. Returns how many it has.
    ///
    /// # Errors
    /// See [`NicError`].
    pub fn check(
        &self,
        spec: &PortSpec,
        others: impl Iterator<Item = (u32, u32)>,
        workers: &WorkersSpec,
    ) -> Result<u32, NicError> {
        let ethtool = Ethtool::open().map_err(|e| NicError::from_io("opening a socket", e))?;
        let channels = check_port(spec, workers, &ethtool)?;
        check_frames(others.chain([(spec.rx_ring, channels.receive())]), workers)?;
        let rings = [
            ("rx_ring", spec.rx_ring, self.spec.fill_ring),
            ("tx_ring", spec.tx_ring, self.spec.completion_ring),
        ];
        for (what, value, limit) in rings {
            if value > limit {
                let interface = spec.interface.clone();
                return Err(NicError::RingTooLarge { interface, what, value, limit });
            }
        }
        match (self.copy, spec.copy) {
            (CopyMode::Copy, CopyMode::ZeroCopy)
            | (CopyMode::Auto | CopyMode::ZeroCopy, CopyMode::Copy) => {
                Err(NicError::MixedCopyModes)
            }
            _ => Ok(channels.receive()),
        }
    }

    /// Opens one more port: its program, and a socket a queue.
    ///
    /// # Errors
    /// See [`NicError`]; everything is undone then.
    pub fn open(
        &self,
        spec: &PortSpec,
        workers: &WorkersSpec,
        loaded: Loaded,
        (steer, changes): (&mut Steer, &mut Changes),
    ) -> Result<OpenedPort, NicError> {
        let ethtool = Ethtool::open().map_err(|e| NicError::from_io("opening a socket", e))?;
        let channels = check_port(spec, workers, &ethtool)?;
        let lasting = workers.on_failure == OnFailure::Drop;
        let on = (&ethtool, &mut *changes, &mut *steer);
        let prepared = prepare(spec, &channels, lasting, loaded, on);
        let opened = prepared.and_then(|(mut mode, to)| {
            let ports = self.sockets(spec, &mut mode, &to)?;
            Ok(OpenedPort { mode, ports })
        });
        if opened.is_err() {
            let _ = steer.detach(spec.id);
            changes.restore(&spec.interface);
        }
        opened
    }

    /// A socket on each queue of a port; worker `w` of `n` gets the queues `w`, `w + n`, ...
    pub(super) fn sockets(
        &self,
        spec: &PortSpec,
        mode: &mut PortMode,
        to: &Sockets,
    ) -> Result<Vec<XskPort>, NicError> {
        let of_worker = |worker: u16| {
            let queues = (u32::from(worker)..mode.queues).step_by(usize::from(self.workers));
            let mut queues =
                queues.map(|id| self.queue(spec, id, mode)).collect::<Result<Vec<_>, _>>()?;
            for queue in &mut queues {
                let frame_max = self.umem.arena.slot_size() as usize - HEADROOM;
                let inbox = to.inbox(queue.id, mode.queues, frame_max);
                queue.ways = inbox.map(|inbox| Box::new(Ways::new(inbox, BURST)));
            }
            Ok(XskPort::new(XskPortParts {
                id: spec.id,
                umem: self.umem.clone(),
                queues,
                sockets: to.clone(),
                busy_poll: mode.busy_poll,
                tx_ring: spec.tx_ring,
            }))
        };
        (0..self.workers).map(of_worker).collect()
    }

    /// The kernel gives a queue free a little after its socket is closed (`xp_put_pool`,
    /// net/xdp/xsk_buff_pool.c): it is tried for a while.
    fn queue(&self, spec: &PortSpec, id: u32, mode: &mut PortMode) -> Result<Queue, NicError> {
        for _ in 0..TRIES {
            match open_queue(spec, &self.umem, id, self.copy, mode) {
                Err(NicError::QueueTaken { .. }) => std::thread::sleep(TRY_AGAIN_AFTER),
                opened => return opened,
            }
        }
        open_queue(spec, &self.umem, id, self.copy, mode)
    }
}

fn anchor(umem: &Umem) -> Result<Anchor, NicError> {
    let what = || format!("AF_XDP socket on {ANCHOR}");
    let other = |text: String| NicError::from_io(what(), io::Error::other(text));
    let config = socket_config(ANCHOR_RING, ANCHOR_RING, CopyMode::Copy).map_err(other)?;
    let name: Interface =
        ANCHOR.parse().map_err(|_| NicError::NoInterface { interface: ANCHOR.to_owned() })?;
    // SAFETY: libxdp loads no program (INHIBIT_PROG_LOAD), as sharing a region asks for.
    let socket = unsafe { Socket::new(config, &umem.xsk, &name, 0) };
    socket.map_err(|e| match NicError::os_error(&e) {
        Some(errno) => NicError::from_io(what(), io::Error::from_raw_os_error(errno)),
        None => other(e.to_string()),
    })
}

fn open_queue(
    spec: &PortSpec,
    umem: &Umem,
    id: u32,
    copy: CopyMode,
    mode: &mut PortMode,
) -> Result<Queue, NicError> {
    let receiver = mode.companion.as_ref().unwrap_or(&spec.interface);
    let (mut tx, rx, fill, mut completion) = bind(receiver, spec, umem, id, copy)?;
    let mut idle = None;
    if mode.companion.is_some() {
        // Its own interface needs no program to send by.
        let (to, unheard, unfilled, sent) = bind(&spec.interface, spec, umem, id, copy)?;
        let unsent = (std::mem::replace(&mut tx, to), std::mem::replace(&mut completion, sent));
        idle = Some((unsent.0, unheard, unfilled, unsent.1));
    }
    let fd = tx.fd().as_raw_fd();
    set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, send_buffer(spec.tx_ring));
    mode.tx_batch = raise_tx_batch(fd, spec.tx_ring);
    mode.busy_poll = spec.busy_poll.is_some_and(|b| set_busy_poll(fd, b));
    mode.zero_copy = is_zero_copy(fd);
    Ok(Queue {
        id,
        tx,
        rx,
        fill,
        completion,
        _idle: idle,
        ways: None,
        missing: spec.rx_ring,
        rx_ring: spec.rx_ring,
        taken: 0,
        lost_told: 0,
        lost: 0,
        drained: 0,
        steered: 0,
        strayed: 0,
    })
}

/// One socket and its rings.
pub(super) type Bound = (TxQueue, RxQueue, FillQueue, CompQueue);

fn bind(
    interface: &str,
    spec: &PortSpec,
    umem: &Umem,
    id: u32,
    copy: CopyMode,
) -> Result<Bound, NicError> {
    let failed = |errno: Option<i32>, text: String| match errno {
        Some(libc::EBUSY) => NicError::QueueTaken { interface: interface.to_owned(), queue: id },
        Some(libc::EOPNOTSUPP) if copy == CopyMode::ZeroCopy => {
            NicError::NoZeroCopy { interface: interface.to_owned() }
        }
        _ => {
            let source = errno.map_or_else(|| io::Error::other(text), io::Error::from_raw_os_error);
            NicError::from_io(format!("AF_XDP socket on {interface}, queue {id}"), source)
        }
    };
    let config =
        socket_config(spec.rx_ring, spec.tx_ring, copy).map_err(|text| failed(None, text))?;
    let name: Interface =
        interface.parse().map_err(|_| NicError::NoInterface { interface: interface.to_owned() })?;
    // SAFETY: libxdp loads no program (INHIBIT_PROG_LOAD), as sharing a region asks for.
    let socket = unsafe { Socket::new(config, &umem.xsk, &name, id) };
    let (tx, rx, rings) = socket.map_err(|e| failed(NicError::os_error(&e), e.to_string()))?;
    let (fill, completion) =
        rings.ok_or_else(|| failed(Some(libc::EBUSY), "queue bound twice".to_owned()))?;
    Ok((tx, rx, fill, completion))
}

fn socket_config(rx_ring: u32, tx_ring: u32, copy: CopyMode) -> Result<SocketConfig, String> {
    let mut bind = BindFlags::XDP_USE_NEED_WAKEUP;
    match copy {
        CopyMode::Auto => {}
        CopyMode::ZeroCopy => bind |= BindFlags::XDP_ZEROCOPY,
        CopyMode::Copy => bind |= BindFlags::XDP_COPY,
    }
    Ok(SocketConfig::builder()
        .rx_queue_size(QueueSize::new(rx_ring).map_err(|e| e.to_string())?)
        .tx_queue_size(QueueSize::new(tx_ring).map_err(|e| e.to_string())?)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(bind)
        .build())
}

fn send_buffer(tx_ring: u32) -> u32 {
    tx_ring.saturating_mul(SEND_BUFFER_PER_DESCRIPTOR).min(i32::MAX as u32 / 2)
}

/// A wake-up in copy mode sends 32 packets unless asked for more (`net/xdp/xsk.c`).
fn raise_tx_batch(fd: i32, tx_ring: u32) -> u32 {
    const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
    const TX_BATCH_DEFAULT: u32 = 32;
    const TX_BATCH: u32 = 256;
    let wanted = TX_BATCH.min(tx_ring);
    if set_option(fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, wanted) {
        wanted
    } else {
        TX_BATCH_DEFAULT
    }
}

fn set_busy_poll(fd: i32, wanted: BusyPoll) -> bool {
    const SO_PREFER_BUSY_POLL: libc::c_int = 69;
    const SO_BUSY_POLL_BUDGET: libc::c_int = 70;
    set_option(fd, libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, 1)
        && set_option(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL, wanted.micros)
        && set_option(fd, libc::SOL_SOCKET, SO_BUSY_POLL_BUDGET, wanted.budget)
}

fn set_option(fd: i32, level: i32, name: i32, value: u32) -> bool {
    // SAFETY: passes four bytes that live through the call.
    let result = unsafe {
        libc::setsockopt(fd, level, name, (&raw const value).cast(), size_of::<u32>() as u32)
    };
    result == 0
}

fn is_zero_copy(fd: i32) -> bool {
    let mut options: u32 = 0;
    let mut len = size_of::<u32>() as libc::socklen_t;
    // SAFETY: `struct xdp_options` is one u32, whose length is passed.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_XDP,
            libc::XDP_OPTIONS,
            (&raw mut options).cast(),
            &raw mut len,
        )
    };
    result == 0 && options & libc::XDP_OPTIONS_ZEROCOPY != 0
}
