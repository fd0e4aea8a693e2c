//! One far end without a TCP stack: an AF_XDP socket, and segments in and out of it.

use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;
use tidegate::base::Addr;
use tidegate::lab::Namespace;
use tidegate::nic::link::{index_of, mac_of};
use tidegate::nic::spec::{AttachMode, CopyMode, PortSpec};
use tidegate::nic::steer::{Heartbeat, kernel_now};
use tidegate::nic::xsk::XskPort;
use tidegate::nic::{Nic, Port, open};
use tidegate::packet::build::{LinkSpec, TcpSpec, tcp_packet};
use tidegate::packet::tcp::{PROTOCOL, flag};
use tidegate::packet::{Frame, FramePool, PortId};
use tidegate::worker::spec::{IdleStrategy, OnFailure, WorkersSpec};

const RING: u32 = 2_048;
const BURST: usize = 64;
const ETHERNET_LEN: usize = 14;
const IP_LEN: usize = 20;
/// One option: segments of 1460 bytes.
const MSS: [u8; 4] = [2, 4, 0x05, 0xb4];

/// An address and a port.
pub type Socket = ([u8; 4], u16);

/// A TCP segment over IPv4.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    pub src: Socket,
    pub dst: Socket,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub payload: &'a [u8],
}

impl Segment<'_> {
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// The sequence number behind it.
    pub fn next(&self) -> u32 {
        let phantom = u32::from(self.has(flag::SYN)) + u32::from(self.has(flag::FIN));
        self.seq.wrapping_add(self.payload.len() as u32).wrapping_add(phantom)
    }
}

/// Takes all that comes in by its interface, but for ARP, which stays the kernel's.
pub struct End {
    nic: Nic,
    beat: Heartbeat,
    /// Source and destination.
    link: LinkSpec,
    incoming: Vec<Frame>,
    outgoing: Vec<Frame>,
    /// Where changes of the interface are noted; removed last.
    _state: TempDir,
}

impl End {
    /// # Errors
    /// An interface that can't be opened.
    pub fn open(ns: &Namespace, interface: &'static str, next: [u8; 6]) -> anyhow::Result<End> {
        ns.enter(move || End::open_here(interface, next))?.context(interface)
    }

    fn open_here(interface: &str, next: [u8; 6]) -> anyhow::Result<End> {
        let state = tempfile::tempdir()?;
        let port = PortSpec {
            id: PortId(0),
            name: interface.to_owned(),
            interface: interface.to_owned(),
            attach: AttachMode::Native,
            copy: CopyMode::Auto,
            rx_ring: RING,
            tx_ring: RING,
            busy_poll: None,
            verify_checksums: false,
            table: None,
        };
        let workers = WorkersSpec {
            count: 1,
            count_max: 1,
            cores: Vec::new(),
            idle: IdleStrategy::Busy,
            on_failure: OnFailure::Pass,
            offload: false,
            heartbeat_limit: Duration::from_secs(60),
            frames: 4 * RING,
            frame_size: 2_048,
            huge_pages: false,
            flows_max: 0,
            half_open_max: 0,
            drain_limit: Duration::ZERO,
        };
        let mut nic = open(&[port], &workers, state.path())?;
        let all = "0.0.0.0/0".parse().map_err(anyhow::Error::msg)?;
        nic.steer.set_transit(&[all])?;
        let mut beat = nic.steer.heartbeat(0);
        beat.stamp(kernel_now());
        let source = mac_of(index_of(interface)?)?;
        let link = LinkSpec { destination: next, source, ..LinkSpec::default() };
        let (incoming, outgoing) = (Vec::with_capacity(BURST), Vec::with_capacity(BURST));
        Ok(End { nic, beat, link, incoming, outgoing, _state: state })
    }

    /// What has come since: each segment is given to `take` with the end to answer by.
    pub fn receive(&mut self, mut take: impl FnMut(&Segment<'_>, &mut Answers<'_>)) -> usize {
        let now = kernel_now();
        self.beat.stamp(now);
        let (port, pool) = (&mut self.nic.ports[0][0], &mut self.nic.pools[0]);
        let count = port.rx_burst(now, pool, &mut self.incoming, BURST);
        for frame in self.incoming.drain(..) {
            // Apart from the frame, whose place may be had by what is answered.
            let bytes = frame.bytes(pool.arena()).to_vec();
            pool.put(frame);
            if let Some(segment) = parse(&bytes) {
                let mut answers = Answers { pool, link: &self.link, outgoing: &mut self.outgoing };
                take(&segment, &mut answers);
            }
        }
        self.flush();
        count
    }

    pub fn send(&mut self, segment: &Segment<'_>) {
        let pool = &mut self.nic.pools[0];
        Answers { pool, link: &self.link, outgoing: &mut self.outgoing }.send(segment);
    }

    /// Has what is to be sent sent.
    pub fn flush(&mut self) {
        let (port, pool): (&mut XskPort, &mut FramePool) =
            (&mut self.nic.ports[0][0], &mut self.nic.pools[0]);
        port.tx_burst(kernel_now(), pool, &mut self.outgoing);
        port.poll(kernel_now(), pool);
    }

    /// Gives the interface back as it was, which is the kernel's to find in its own namespace.
    ///
    /// # Errors
    /// The namespace gone.
    pub fn close(self, ns: &Namespace) -> anyhow::Result<()> {
        let close = move || {
            // All of it, or the rest is dropped elsewhere.
            let mut end = self;
            let (port, pool) = (&mut end.nic.ports[0][0], &mut end.nic.pools[0]);
            end.outgoing.drain(..).for_each(|frame| pool.put(frame));
            port.close(pool);
        };
        Ok(ns.enter(close)?)
    }
}

/// Where answers to a segment are put.
pub struct Answers<'a> {
    pool: &'a mut FramePool,
    link: &'a LinkSpec,
    outgoing: &'a mut Vec<Frame>,
}

impl Answers<'_> {
    pub fn send(&mut self, segment: &Segment<'_>) {
        let socket = |(ip, port): Socket| (Addr::v4(u32::from_be_bytes(ip)), port);
        let (src, dst) = (socket(segment.src), socket(segment.dst));
        let mut spec = TcpSpec::new(src, dst, segment.flags, segment.payload);
        (spec.seq, spec.ack, spec.window) = (segment.seq, segment.ack, u16::MAX);
        spec.link = self.link.clone();
        if segment.has(flag::SYN) {
            spec.options = MSS.to_vec();
        }
        // Without a frame it is lost, as on any wire.
        self.outgoing.extend(self.pool.take_with(&tcp_packet(&spec)));
    }
}

/// `None`: no TCP over IPv4 without options.
fn parse(bytes: &[u8]) -> Option<Segment<'_>> {
    let (ip, rest) = bytes.get(ETHERNET_LEN..)?.split_at_checked(IP_LEN)?;
    let len = usize::from(u16::from_be_bytes([ip[2], ip[3]])).checked_sub(IP_LEN)?;
    let segment = rest.get(..len)?;
    let (header, _) = segment.split_first_chunk::<20>()?;
    let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|i| header[at + i]));
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let address = |at: usize| [0, 1, 2, 3].map(|i| ip[at + i]);
    (bytes[12..14] == [8, 0] && ip[0] == 0x45 && ip[9] == PROTOCOL).then_some(())?;
    Some(Segment {
        src: (address(12), port(0)),
        dst: (address(16), port(2)),
        seq: word(4),
        ack: word(8),
        flags: header[13],
        payload: segment.get(usize::from(header[12] >> 4) * 4..)?,
    })
}
