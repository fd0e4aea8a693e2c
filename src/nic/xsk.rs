//! A port on AF_XDP sockets (`Documentation/networking/af_xdp.rst`), by xsk-rs.
//!
//! A frame is at any time in one of three places: with us as a `Frame`, in a kernel ring with its
//! entry in `lent` set, or in the pool. Every index that the kernel hands back is checked against
//! `lent` before it becomes a handle again.

use std::os::fd::{AsRawFd, RawFd};

use xsk_rs::{FrameDesc, TxQueue};

use super::port::{Port, PortStats};
use super::queue::Queue;
use super::steer::Sockets;
use super::umem::Umem;
use crate::base::Nanos;
use crate::base::mem::Slot;
use crate::packet::frame::HEADROOM;
use crate::packet::{Frame, FramePool, PortId};

/// Descriptors moved to or from a ring at once.
pub(super) const BURST: usize = 64;
/// The fill ring is topped up once this many of its frames were used.
const REFILL_BATCH: u32 = 32;
/// Wake-ups in a row at most; each moves a batch of 32 or more in copy mode.
const KICKS_MAX: usize = 64;
/// Rounds that closing waits for the kernel to send what it was given.
const CLOSE_ROUNDS: usize = 64;
/// The kernel's statistics are read this often.
const STATS_INTERVAL_NS: u64 = 10_000_000;
/// Shortest frame that Linux transmits: an Ethernet header.
const FRAME_MIN: usize = 14;

/// `lent` of a slot that is with us.
const NOT_LENT: u16 = 0;
/// `lent` of a slot in the fill ring; any other value is the length of a frame being sent.
const LENT_TO_FILL: u16 = u16::MAX;

/// What one worker drives of one interface: its receive queues, and the transmit queue of the
/// first.
pub struct XskPort {
    id: PortId,
    umem: Umem,
    queues: Vec<Queue>,
    /// `None` of a port that is none.
    sockets: Option<Sockets>,
    /// Nothing is redirected to the sockets any more.
    is_detached: bool,
    busy_poll: bool,
    tx_ring: u32,
    /// By slot: where it is and, if being sent, how long it is.
    lent: Box<[u16]>,
    in_flight: u32,
    in_flight_bytes: u64,
    /// The transmit ring holds descriptors that the kernel has not read.
    unsent: bool,
    next_rx: usize,
    stats: PortStats,
    stats_at: Nanos,
    /// Refused here, before the kernel saw them.
    refused: u64,
    scratch: Box<[FrameDesc; BURST]>,
}

/// The sockets of a port and their queues.
pub struct Delivery {
    sockets: Option<Sockets>,
    queues: Vec<(u32, RawFd)>,
}

impl Delivery {
    /// Packets of ours go to the sockets from now on, which have to be open still.
    ///
    /// # Errors
    /// The kernel refusing the map update.
    pub fn start(&self) -> Result<(), super::NicError> {
        let Some(sockets) = &self.sockets else { return Ok(()) };
        self.queues.iter().try_for_each(|&(queue, fd)| sockets.set(queue, fd))
    }
}

/// What `open` has settled about a port.
pub(super) struct XskPortParts {
    pub(super) id: PortId,
    pub(super) umem: Umem,
    pub(super) queues: Vec<Queue>,
    pub(super) sockets: Sockets,
    pub(super) busy_poll: bool,
    pub(super) tx_ring: u32,
}

impl XskPort {
    pub(super) fn new(parts: XskPortParts) -> XskPort {
        let slots = parts.umem.arena.slots() as usize;
        XskPort {
            queues: parts.queues,
            sockets: Some(parts.sockets),
            busy_poll: parts.busy_poll,
            tx_ring: parts.tx_ring,
            lent: vec![NOT_LENT; slots].into_boxed_slice(),
            ..XskPort::vacant(parts.id, parts.umem)
        }
    }

    /// What takes the place of a port that is gone: nothing comes by it, and nothing goes.
    pub(super) fn vacant(id: PortId, umem: Umem) -> XskPort {
        XskPort {
            id,
            umem,
            queues: Vec::new(),
            sockets: None,
            is_detached: false,
            busy_poll: false,
            tx_ring: 0,
            lent: Box::default(),
            in_flight: 0,
            in_flight_bytes: 0,
            unsent: false,
            next_rx: 0,
            stats: PortStats::default(),
            stats_at: Nanos::ZERO,
            refused: 0,
            scratch: Box::new([FrameDesc::default(); BURST]),
        }
    }

    /// Fills the receive side with frames and has packets delivered.
    pub(super) fn start(&mut self, pool: &mut FramePool) -> Result<(), super::NicError> {
        for q in 0..self.queues.len() {
            self.refill(q, pool, 1);
        }
        self.delivery().start()
    }

    /// What has packets delivered, for who is to start it once the port has frames for them.
    pub fn delivery(&self) -> Delivery {
        let queues = self.queues.iter().map(|q| (q.id, q.rx.fd().as_raw_fd())).collect();
        Delivery { sockets: self.sockets.clone(), queues }
    }

    /// Closes a port that nothing is steered to any more. Returns the frames that it held.
    pub fn into_frames(mut self) -> Vec<Slot> {
        let mut pool = FramePool::new(self.umem.arena.clone(), Vec::new());
        self.close(&mut pool);
        std::iter::from_fn(|| pool.take_slot()).collect()
    }

    /// As [`XskPort::rx_from`], of a queue that frames come to by two ways.
    fn rx_joined(
        &mut self,
        q: usize,
        now: Nanos,
        pool: &mut FramePool,
        out: &mut Vec<Frame>,
        max: usize,
    ) -> usize {
        let Some(mut ways) = self.queues[q].ways.take() else { return 0 };
        ways.fetch(|frames| self.rx_from(q, frames, BURST));
        let copied = ways.give(now, pool, out, max);
        self.stats.rx_packets += copied.packets;
        self.stats.rx_bytes += copied.bytes;
        self.queues[q].ways = Some(ways);
        copied.given
    }

    fn rx_from(&mut self, q: usize, out: &mut Vec<Frame>, max: usize) -> usize {
        let want = max.min(BURST);
        // SAFETY: all sockets are of this region; what is consumed leaves the kernel's hands.
        let got = unsafe { self.queues[q].rx.consume(&mut self.scratch[..want]) };
        for i in 0..got {
            let (addr, len) = (self.scratch[i].addr(), self.scratch[i].lengths().data());
            match self.take_back(addr, len) {
                Some((slot, offset, LENT_TO_FILL)) => {
                    self.stats.rx_packets += 1;
                    self.stats.rx_bytes += len as u64;
                    out.push(Frame::new(slot, offset, len));
                }
                other => self.bad_descriptor(addr, len, other.map(|(slot, ..)| slot)),
            }
        }
        self.queues[q].missing += got as u32;
        self.queues[q].taken += got as u64;
        if got < want {
            let queue = &mut self.queues[q];
            (queue.lost, queue.drained) = (queue.lost_told, queue.taken);
        }
        got
    }

    /// The handle of a slot that the kernel gives back, the offset within it, and what it was lent
    /// as.
    #[inline]
    fn take_back(&mut self, addr: usize, len: usize) -> Option<(Slot, usize, u16)> {
        let size = self.umem.arena.slot_size() as usize;
        let (index, offset) = (addr / size, addr % size);
        let lent = self.lent.get_mut(index)?;
        if *lent == NOT_LENT || offset + len > size {
            return None;
        }
        let was = std::mem::replace(lent, NOT_LENT);
        // SAFETY: the entry was set when the handle was given up, and is cleared: once only.
        Some((unsafe { self.umem.arena.slot_from_raw(index as u32) }, offset, was))
    }

    /// Not seen with any driver; if it happens, that frame is lost, not used twice.
    #[cold]
    fn bad_descriptor(&mut self, addr: usize, len: usize, slot: Option<Slot>) {
        tracing::error!(port = self.id.0, addr, len, "the kernel returned a frame it was not lent");
        self.refused += 1;
        slot.map(Slot::into_raw);
    }

    /// Lends frames to the fill ring where at least `batch` are missing.
    fn refill(&mut self, q: usize, pool: &mut FramePool, batch: u32) {
        let queue = &mut self.queues[q];
        while queue.missing >= batch.max(1) {
            let want = (queue.missing as usize).min(BURST).min(pool.available());
            let room = (queue.fill.nb_free(want as u32) as usize).min(want);
            let mut n = 0;
            while n < room {
                let Some(slot) = pool.take_slot() else { break };
                let index = slot.into_raw() as usize;
                self.lent[index] = LENT_TO_FILL;
                self.scratch[n] = self.umem.descs[index];
                n += 1;
            }
            if n == 0 {
                break;
            }
            // SAFETY: the frames are this region's and their handles were given up just now; the
            // ring has room for them all.
            let given = unsafe { queue.fill.produce(&self.scratch[..n]) };
            debug_assert_eq!(given, n);
            queue.missing -= n as u32;
        }
        if queue.fill.needs_wakeup() {
            wake_rx(queue.rx.fd().as_raw_fd());
            self.stats.wakeups += 1;
        }
    }

    /// Takes sent frames back.
    fn complete(&mut self, pool: &mut FramePool) {
        while self.in_flight > 0 {
            let want = (self.in_flight as usize).min(BURST);
            let queue = &mut self.queues[0];
            // SAFETY: as in `rx_from`.
            let got = unsafe { queue.completion.consume(&mut self.scratch[..want]) };
            for i in 0..got {
                let addr = self.scratch[i].addr();
                match self.take_back(addr, 0) {
                    Some((slot, _, len)) if len != LENT_TO_FILL => {
                        self.in_flight -= 1;
                        self.in_flight_bytes -= u64::from(len);
                        pool.put_slot(slot);
                    }
                    other => self.bad_descriptor(addr, 0, other.map(|(slot, ..)| slot)),
                }
            }
            if got < want {
                break;
            }
        }
    }

    /// The descriptor of a frame to send, its slot lent; `None` puts the frame back.
    #[inline]
    fn describe(&mut self, mut frame: Frame, pool: &mut FramePool) -> Option<FrameDesc> {
        let len = frame.len();
        let room = self.umem.arena.slot_size() as usize - HEADROOM;
        if !(FRAME_MIN..=room).contains(&len) {
            self.refused += 1;
            pool.put(frame);
            return None;
        }
        if frame.offset() != HEADROOM {
            self.umem.realign(&mut frame);
        }
        // The kernel reads it next; and this panics on a frame of another region.
        frame.prefetch(&self.umem.arena);
        let index = frame.into_slot().into_raw() as usize;
        self.lent[index] = len as u16;
        self.stats.tx_packets += 1;
        self.stats.tx_bytes += len as u64;
        self.in_flight += 1;
        self.in_flight_bytes += len as u64;
        let mut desc = self.umem.descs[index];
        // SAFETY: the frame is this region's and not yet with the kernel; only the length is set.
        unsafe { self.umem.xsk.data_mut(&mut desc) }.cursor().set_pos(len);
        Some(desc)
    }

    /// Has the kernel read the transmit ring. In copy mode a call takes a batch at most, so it is
    /// repeated while it makes progress.
    fn kick(&mut self) {
        let queue = &mut self.queues[0];
        let mut left = u32::MAX;
        for _ in 0..KICKS_MAX {
            let used = self.tx_ring - queue.tx.nb_free_exact().min(self.tx_ring);
            if used == 0 {
                self.unsent = false;
                return;
            }
            // Woken for nothing: the device or the socket's send buffer is full. Later again.
            if used >= left || !queue.tx.needs_wakeup() {
                return;
            }
            left = used;
            self.stats.wakeups += 1;
            if queue.tx.wakeup().is_err() {
                return;
            }
        }
    }

    fn read_kernel_stats(&mut self) {
        let mut missed = 0;
        let mut invalid = self.refused;
        for q in &mut self.queues {
            if let Ok(s) = q.rx.fd().xdp_statistics() {
                q.lost_told = s.rx_dropped() + s.rx_ring_full();
                missed += q.lost_told;
            }
            if let Ok(s) = q.tx.fd().xdp_statistics() {
                invalid += s.tx_invalid_descs();
            }
        }
        self.stats.rx_missed = missed;
        self.stats.tx_errors = invalid;
    }

    /// See [`Queue::miss_strayed`].
    fn miss_strayed(&mut self) {
        let Some(sockets) = &self.sockets else { return };
        self.queues.iter_mut().for_each(|q| q.miss_strayed(sockets.steered(q.id)));
    }
}

impl Port for XskPort {
    fn rx_burst(
        &mut self,
        now: Nanos,
        pool: &mut FramePool,
        out: &mut Vec<Frame>,
        max: usize,
    ) -> usize {
        let mut got = 0;
        for _ in 0..self.queues.len() {
            let q = self.next_rx;
            self.next_rx = if q + 1 == self.queues.len() { 0 } else { q + 1 };
            got += match self.queues[q].ways {
                None => self.rx_from(q, out, max - got),
                Some(_) => self.rx_joined(q, now, pool, out, max - got),
            };
            self.refill(q, pool, REFILL_BATCH);
            if got == max {
                break;
            }
        }
        if got == 0 && self.busy_poll {
            // The system call runs the driver's poll function on this core.
            self.fds().for_each(wake_rx);
            self.stats.wakeups += self.queues.len() as u64;
        }
        got
    }

    fn tx_burst(&mut self, _now: Nanos, pool: &mut FramePool, frames: &mut Vec<Frame>) -> usize {
        self.complete(pool);
        let n = frames.len().min(self.tx_room());
        if n == 0 {
            return 0;
        }
        let mut described = 0;
        for frame in frames.drain(..n) {
            let Some(desc) = self.describe(frame, pool) else { continue };
            self.scratch[described] = desc;
            described += 1;
            if described == BURST {
                produce(&mut self.queues[0].tx, &self.scratch[..]);
                described = 0;
            }
        }
        produce(&mut self.queues[0].tx, &self.scratch[..described]);
        self.unsent = true;
        self.kick();
        n
    }

    fn tx_room(&self) -> usize {
        (self.tx_ring - self.in_flight) as usize
    }

    fn poll(&mut self, now: Nanos, pool: &mut FramePool) {
        self.complete(pool);
        if self.unsent {
            self.kick();
        }
        for q in 0..self.queues.len() {
            self.refill(q, pool, REFILL_BATCH);
        }
        if now.since(self.stats_at) >= STATS_INTERVAL_NS {
            self.stats_at = now;
            self.read_kernel_stats();
            self.miss_strayed();
        }
    }

    fn rx_frames(&self) -> usize {
        self.queues.iter().map(|q| q.rx_ring as usize).sum()
    }

    fn is_flushed(&self) -> bool {
        !self.unsent
    }

    fn settle(&mut self) {
        let Some(sockets) = &self.sockets else { return };
        self.queues.iter().for_each(|q| sockets.pass(q.id, q.given() + q.lost + q.strayed));
    }

    fn tx_in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    fn stats(&self) -> PortStats {
        self.stats
    }

    fn fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.queues.iter().map(|q| q.rx.fd().as_raw_fd())
    }

    fn doze(&self, asleep: bool) {
        self.queues.iter().filter_map(|q| q.ways.as_ref()).for_each(|ways| ways.doze(asleep));
    }

    fn has_arrivals(&self) -> bool {
        self.queues.iter().filter_map(|q| q.ways.as_ref()).any(|ways| !ways.is_empty())
    }

    fn detach_all(ports: &mut [&mut XskPort]) {
        let is_attached = |port: &&mut XskPort| !port.is_detached && !port.queues.is_empty();
        if !ports.iter().any(is_attached) {
            return;
        }
        for port in ports.iter().filter(|port| is_attached(port)) {
            port.sockets.iter().for_each(|to| to.unset(port.queues.iter().map(|q| q.id)));
        }
        Sockets::wait();
        ports.iter_mut().for_each(|port| port.is_detached = true);
    }

    /// Packets that arrived and were not read are lost. Waits for the kernel, tens of milliseconds
    /// where there are many queues. Without an anchor ([`super::opener`]) the first port's socket
    /// stays open with the memory region, as libxdp has it.
    fn close(&mut self, pool: &mut FramePool) {
        XskPort::detach_all(&mut [self]);
        for _ in 0..CLOSE_ROUNDS {
            if self.queues.is_empty() || self.in_flight == 0 {
                break;
            }
            self.kick();
            self.complete(pool);
        }
        self.read_kernel_stats();
        let ways = self.queues.drain(..).filter_map(|q| q.ways);
        ways.flat_map(|ways| ways.into_frames()).for_each(|frame| pool.put(frame));
        for (index, lent) in self.lent.iter_mut().enumerate() {
            if std::mem::replace(lent, NOT_LENT) != NOT_LENT {
                // SAFETY: the handle was given up when the entry was set; nothing is redirected to
                // the sockets any more and they are closed, so the kernel is done with the frame.
                pool.put_slot(unsafe { self.umem.arena.slot_from_raw(index as u32) });
            }
        }
        (self.in_flight, self.in_flight_bytes, self.unsent, self.tx_ring) = (0, 0, false, 0);
    }
}

fn produce(tx: &mut TxQueue, descs: &[FrameDesc]) {
    // SAFETY: the frames are this region's and their handles were given up.
    let given = unsafe { tx.produce(descs) };
    // Frames in flight, those in the ring included, are never more than its size.
    debug_assert_eq!(given, descs.len());
}

fn wake_rx(fd: RawFd) {
    // SAFETY: nothing is read into memory; a socket that is gone yields an error, which is no
    // matter.
    unsafe {
        libc::recvfrom(
            fd,
            std::ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        );
    }
}
