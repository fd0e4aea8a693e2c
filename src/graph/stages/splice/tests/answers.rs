//! Answers to what was held: they are timed and counted like any other.

use std::sync::Arc;
use std::time::Duration;

use super::{Bench, REQUEST, delayed};
use crate::flow::serving::Tally;
use crate::forward::Tables;
use crate::forward::spec::ForwardSpec;
use crate::graph::stages::balance::Balance;
use crate::graph::stages::inspect::{Inspect, InspectLimits};
use crate::graph::stages::rig::*;
use crate::graph::stages::timing::Timing;
use crate::graph::{Cx, Stage};
use crate::packet::build::{TcpSpec, tcp_packet};
use crate::packet::tcp::flag::{ACK, SYN};
use crate::packet::{Batch, PacketMeta, ParseOptions, Verdict, parse};

const ASKED: &[u8] = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
const FAULT: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";
const WAIT: Duration = Duration::from_millis(80);

struct Whole<'a>(&'a mut Inspect, &'a mut Timing, &'a mut Balance);

impl Stage for Whole<'_> {
    fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
        let Whole(inspect, timing, balance) = self;
        balance.follow_bound(cx, Some(inspect), Some(timing));
        inspect.process(cx, batch);
        timing.process(cx, batch);
        balance.process(cx, batch);
    }
}

pub(super) struct Talk {
    pub bench: Bench,
    pub inspect: Inspect,
    timing: Timing,
}

impl Talk {
    fn new(judged: bool) -> Talk {
        let mut spec = delayed();
        spec.pools.iter_mut().for_each(|pool| pool.judged = judged);
        Talk::at(&spec)
    }

    pub fn at(spec: &ForwardSpec) -> Talk {
        let mut bench = Bench::new(8, 2);
        bench.rig.snapshot.forward = Arc::new(Tables::build(spec, 2, bench.rig.snapshot.seed));
        let inspect = Inspect::new(&InspectLimits {
            hello_bytes_max: 16_384,
            flows_max: 8,
            http_flows_max: 8,
            headers: Vec::new(),
        });
        Talk { bench, inspect, timing: Timing::new(64, 1) }
    }

    /// What goes out for a packet: to the client, and to the backend.
    fn pass(&mut self, spec: &TcpSpec) -> [Vec<PacketMeta>; 2] {
        let Talk { bench, inspect, timing } = self;
        let mut whole = Whole(inspect, timing, &mut bench.stage);
        let (out, replies) = bench.rig.run_with(&mut whole, &[tcp_packet(spec)], |_| {});
        let sent = out.into_iter().filter(|o| o.verdict == Verdict::Output).chain(replies);
        let metas = sent.map(|outcome| {
            let mut meta = PacketMeta::default();
            parse(&outcome.bytes, crate::base::Seed(1), ParseOptions::default(), &mut meta)
                .expect("a packet");
            (meta.class, meta.hash) = (outcome.meta.class, outcome.meta.hash);
            meta
        });
        let (mut ways, client) = ([Vec::new(), Vec::new()], addr(V4.client.0));
        metas.for_each(|meta| ways[usize::from(meta.key.dst != client)].push(meta));
        ways
    }

    pub fn client(&mut self, numbers: (u32, u32), flags: u8, says: &[u8]) -> [Vec<PacketMeta>; 2] {
        let mut spec = TcpSpec::new((addr(V4.client.0), 1), (addr(V4.vip), REQUEST), flags, says);
        (spec.seq, spec.ack) = numbers;
        (spec.link.destination, spec.link.source) = (CLIENT_SIDE, CLIENT_MAC);
        self.pass(&spec)
    }

    pub fn backend(
        &mut self,
        to: &PacketMeta,
        numbers: (u32, u32),
        flags: u8,
        says: &[u8],
    ) -> [Vec<PacketMeta>; 2] {
        let backend = (to.key.dst, to.key.dport);
        let mut spec = TcpSpec::new(backend, (to.key.src, to.key.sport), flags, says);
        (spec.seq, spec.ack) = numbers;
        (spec.link.destination, spec.link.source) = (BACKEND_SIDE, BACKEND_MAC);
        self.pass(&spec)
    }

    /// Two requests of a connection, each answered with an error. What its backend has done.
    fn run(&mut self) -> Tally {
        let [answers, _] = self.client((99, 0), SYN, b"");
        let next = answers[0].tcp_seq.wrapping_add(1);
        let [_, opened] = self.client((100, next), ACK, ASKED);
        let syn = opened[0].clone();
        assert_eq!(syn.tcp_flags & (SYN | ACK), SYN, "the backend is asked");
        // A slow handshake is nothing that the server needed for its answer.
        self.bench.rig.now += WAIT;
        let first = syn.tcp_seq.wrapping_add(1);
        self.backend(&syn, (5_000, first), SYN | ACK, b"");
        self.bench.rig.now += WAIT;
        let asked = ASKED.len() as u32;
        let behind = first.wrapping_add(asked);
        let [to_client, _] = self.backend(&syn, (5_001, behind), ACK, FAULT);
        let given = FAULT.len() as u32;
        assert!(to_client.iter().any(|meta| meta.payload_len() as u32 == given));
        let (mine, theirs) = (100 + asked, next.wrapping_add(given));
        self.client((mine, theirs), ACK, ASKED);
        self.bench.rig.now += WAIT;
        let behind = behind.wrapping_add(asked);
        self.backend(&syn, (5_001 + given, behind), ACK, FAULT);
        let flows = &self.bench.rig.flows;
        let (at, _) = flows.iter().next().expect("the connection");
        flows.serving().tally(flows.details(at).backend)
    }
}

#[test]
fn what_was_held_is_asked_when_its_backend_has_opened() {
    let tally = Talk::new(false).run();
    let times = (tally.asked, tally.firsts, tally.firsts_us);
    assert_eq!(times, (2, 2, 2 * WAIT.as_micros() as u64));
    assert_eq!((tally.taken, tally.answers, tally.errors), (1, 1, 1), "the first tells who it is");
}

#[test]
fn who_is_judged_by_answers_has_all_of_them_read() {
    let tally = Talk::new(true).run();
    assert_eq!((tally.answers, tally.errors), (2, 2));
}
