//! A network namespace of its own for each test, and appliances' ends of veth pairs in it.
//!
//! The namespace has no name and belongs to one thread: it is gone with that thread, however the
//! test ends, and nothing outside is ever touched.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;
use tidegate::nic::spec::{AttachMode, CopyMode, PortSpec};
use tidegate::nic::steer::{Heartbeat, SteerReason};
use tidegate::nic::xsk::XskPort;
use tidegate::nic::{Nic, NicError, Port, open};
use tidegate::packet::{Frame, FramePool, PortId};
use tidegate::worker::spec::{IdleStrategy, OnFailure, WorkersSpec};

use tidegate::nic::steer::kernel_now;

/// Runs a test in a fresh namespace with the veth pair `v0`, `v1` of `queues` queues each.
pub fn with_veth(queues: u32, test: impl FnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root for network namespaces and AF_XDP");
        return;
    }
    std::thread::scope(|scope| {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            // Else the kernel's own discovery packets disturb the counters.
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("sysctl");
            let n = queues.to_string();
            let side = ["numrxqueues", &n, "numtxqueues", &n];
            let mut link = vec!["link", "add", "v0"];
            link.extend(side);
            link.extend(["type", "veth", "peer", "name", "v1"]);
            link.extend(side);
            ip(&link);
            ip(&["link", "set", "lo", "up"]);
            ip(&["addr", "add", "10.9.0.1/24", "dev", "v0"]);
            for link in ["v0", "v1"] {
                ip(&["link", "set", link, "up"]);
            }
            test();
        };
        if let Err(panic) = scope.spawn(run).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

pub fn ip(args: &[&str]) {
    ip_says(args);
}

pub fn ip_says(args: &[&str]) -> String {
    let output = Command::new("ip").args(args).output().expect("ip (iproute2) runs");
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn port_spec(id: u16, interface: &str) -> PortSpec {
    PortSpec {
        id: PortId(id),
        name: interface.to_owned(),
        interface: interface.to_owned(),
        attach: AttachMode::Auto,
        copy: CopyMode::Auto,
        rx_ring: 512,
        tx_ring: 512,
        busy_poll: None,
        verify_checksums: true,
        table: None,
    }
}

pub fn workers_spec(count: u16) -> WorkersSpec {
    WorkersSpec {
        count,
        count_max: count,
        cores: Vec::new(),
        idle: IdleStrategy::Adaptive,
        on_failure: OnFailure::Pass,
        offload: false,
        heartbeat_limit: Duration::from_secs(60),
        frames: 2048,
        frame_size: 2048,
        huge_pages: false,
        flows_max: 16,
        half_open_max: 16,
        drain_limit: Duration::ZERO,
    }
}

/// One side of a veth pair, opened as the appliance opens its ports.
pub struct Side {
    pub nic: Nic,
    pub beats: Vec<Heartbeat>,
    /// Where changes of the interfaces are noted; removed last.
    _state: TempDir,
}

impl Side {
    pub fn open(interface: &str, workers: u16, attach: AttachMode) -> Side {
        let spec = PortSpec { attach, ..port_spec(0, interface) };
        Side::with(&[spec], &workers_spec(workers)).expect("open")
    }

    pub fn with(specs: &[PortSpec], workers: &WorkersSpec) -> Result<Side, NicError> {
        let state = tempfile::tempdir().expect("state directory");
        let nic = open(specs, workers, state.path())?;
        let beats = (0..workers.count_max).map(|w| nic.steer.heartbeat(w)).collect();
        Ok(Side { nic, beats, _state: state })
    }

    /// Everything that arrives is ours, whatever its addresses.
    pub fn takes_everything(mut self) -> Side {
        let all = ["0.0.0.0/0", "::/0"].map(|p| p.parse().expect("literal"));
        self.nic.steer.set_transit(&all).expect("transit");
        self
    }

    fn parts(&mut self, worker: usize) -> (&mut XskPort, &mut FramePool) {
        (&mut self.nic.ports[worker][0], &mut self.nic.pools[worker])
    }

    /// Sends packets from a worker's port and waits until the kernel is done with them.
    pub fn send(&mut self, worker: usize, packets: &[Vec<u8>]) {
        let (port, pool) = self.parts(worker);
        let deadline = Instant::now() + Duration::from_secs(60);
        for chunk in packets.chunks(256) {
            let fill = |p: &Vec<u8>| pool.take_with(p).expect("a free frame");
            let mut frames: Vec<Frame> = chunk.iter().map(fill).collect();
            while !frames.is_empty() || port.tx_in_flight_bytes() > 0 {
                port.tx_burst(kernel_now(), pool, &mut frames);
                port.poll(kernel_now(), pool);
                assert!(Instant::now() < deadline, "{} frames not sent", frames.len());
            }
        }
    }

    /// Receives until `count` packets have come or 200 ms have passed without one.
    pub fn receive(&mut self, worker: usize, count: usize) -> Vec<Vec<u8>> {
        self.receive_for(worker, count, Duration::from_millis(200))
    }

    /// Receives until `count` packets have come or `quiet` has passed without one.
    pub fn receive_for(&mut self, worker: usize, count: usize, quiet: Duration) -> Vec<Vec<u8>> {
        let (port, pool) = self.parts(worker);
        let mut packets = Vec::new();
        let mut frames = Vec::with_capacity(64);
        let mut last = Instant::now();
        while packets.len() < count && last.elapsed() < quiet {
            if port.rx_burst(kernel_now(), pool, &mut frames, 64) > 0 {
                last = Instant::now();
            }
            port.poll(kernel_now(), pool);
            for frame in frames.drain(..) {
                packets.push(frame.bytes(pool.arena()).to_vec());
                pool.put(frame);
            }
        }
        packets
    }

    /// How often a reason was counted on the first interface.
    /// All that was received has gone on.
    pub fn settle(&mut self, worker: usize) {
        let (port, _) = self.parts(worker);
        assert!(port.is_flushed());
        port.settle();
    }

    pub fn count(&self, reason: SteerReason) -> u64 {
        self.nic.steer.stats().expect("counters")[0].count(reason)
    }

    /// Closes all ports and sees that every frame is back.
    pub fn close(mut self) {
        for (ports, pool) in self.nic.ports.iter_mut().zip(&mut self.nic.pools) {
            for port in ports {
                port.close(pool);
            }
        }
        let outstanding: isize = self.nic.pools.iter().map(FramePool::outstanding).sum();
        assert_eq!(outstanding, 0, "frames outstanding after close");
    }
}
