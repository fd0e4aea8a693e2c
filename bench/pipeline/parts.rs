//! The first steps of a packet's way without a worker: what the rest of its cost is added to.

use std::cell::RefCell;
use std::hint::black_box;
use std::time::Instant;

use tidegate::base::{Nanos, Seed};
use tidegate::flow::{FlowKind, FlowLimits, FlowTable, NewFlow, Timeouts};
use tidegate::nic::Port;
use tidegate::packet::batch::BATCH_MAX;
use tidegate::packet::{
    Batch, ClassId, FlowKey, Frame, FramePool, PacketMeta, ParseOptions, PortId, parse,
};

use crate::common::Samples;
use crate::rig::{Shared, port};
use crate::traffic::{Mode, Traffic};

const SEED: Seed = Seed(42);

#[derive(Clone, Copy, PartialEq, PartialOrd)]
pub enum Part {
    /// Packets are written, received and sent.
    Port,
    /// And their headers read.
    Parse,
    /// And their flows looked up.
    LookUp,
}

impl Part {
    pub const ALL: [Part; 3] = [Part::Port, Part::Parse, Part::LookUp];

    pub fn name(self) -> &'static str {
        match self {
            Part::Port => "(port alone)",
            Part::Parse => "(port, parse)",
            Part::LookUp => "(port, parse, look up)",
        }
    }

    /// Nanoseconds a packet.
    pub fn measure(self, flows: u32, packets: u64, rounds: u32) -> Samples {
        let mut traffic = Traffic::new(flows, true);
        let mut table = table_of(if self == Part::LookUp { flows } else { 1 });
        for flow in 0..flows {
            let (outside, inside) = traffic.translate(flow);
            if self == Part::LookUp {
                enter(&mut table, outside, inside);
            }
        }
        traffic.set(Mode::Data, 0);
        let traffic: Shared = Shared::new(RefCell::new(traffic));
        let mut ports = [side(&traffic, 0), side(&traffic, 1)];
        let mut pool = FramePool::standalone(4_096, 2_048);
        let mut frames: Vec<Frame> = Vec::with_capacity(BATCH_MAX);
        let mut batch = Batch::new();
        let mut round = |packets: u64| {
            let (start, mut found) = (Instant::now(), 0);
            for _ in 0..packets / (2 * BATCH_MAX as u64) {
                for port in &mut ports {
                    port.rx_burst(Nanos::ZERO, &mut pool, &mut frames, BATCH_MAX);
                    if self > Part::Port {
                        read(&mut frames, &pool, &table, &mut batch);
                    }
                    if self == Part::LookUp {
                        table.lookup_batch(&mut batch);
                        found +=
                            batch.metas().iter().filter(|meta| meta.flow.is_some()).count() as u64;
                    }
                    black_box(&mut batch);
                    frames.extend(batch.drain_frames().map(|(frame, _)| frame));
                    port.tx_burst(Nanos::ZERO, &mut pool, &mut frames);
                }
            }
            assert!(self != Part::LookUp || found * 100 > packets * 99, "{found} of {packets}");
            start.elapsed().as_nanos() as f64 / packets as f64
        };
        round(packets / 4);
        (0..rounds).map(|_| round(packets)).collect()
    }
}

fn side(traffic: &Shared, id: usize) -> impl Port + use<> {
    port(traffic, id)
}

fn read(frames: &mut Vec<Frame>, pool: &FramePool, table: &FlowTable, batch: &mut Batch) {
    for frame in frames.drain(..) {
        let packet = batch.push_unread(frame, PortId(0));
        let bytes = packet.frame.bytes(pool.arena());
        assert!(parse(bytes, SEED, ParseOptions::default(), packet.meta).is_ok());
        table.prefetch(packet.meta.hash);
    }
}

fn table_of(flows_max: u32) -> FlowTable {
    let limits = FlowLimits { flows_max, half_open_max: flows_max };
    FlowTable::new(limits, Timeouts::default(), SEED)
}

fn enter(table: &mut FlowTable, outside: FlowKey, inside: FlowKey) {
    let new = NewFlow {
        key: outside,
        reply: Some(inside.reversed()),
        kind: FlowKind::Nat,
        backend: 0,
        class: ClassId::UNSET,
        idle_established_ms: None,
    };
    table.insert(Nanos::ZERO, &new, &PacketMeta::default()).expect("a flow");
}
