//! Datagrams in fragments: whatever their order, the same fragments leave as came, translated.

use std::collections::BTreeMap;

use tidegate::base::hash::Rng;
use tidegate::base::{Addr, Nanos, Seed};
use tidegate::forward::spec::ForwardMode;
use tidegate::graph::spec::StageSpec;
use tidegate::packet::build::{IpSpec, LinkSpec, UdpSpec, ip_packet, udp_packet};
use tidegate::packet::checksum::pseudo;
use tidegate::packet::{
    DropReason, Fragment, PacketMeta, ParseOptions, PortId, ipv4, ipv6, parse, udp,
};
use tidegate::sim::{Appliance, Spread};

use crate::world::{CLIENTS, Family, MODES, SERVERS, UDP_PORT, box_mac, for_seeds, setup, stages};

type End = (Addr, u16);

/// A datagram as its receiver puts it together: who sends it to whom, and what it says.
type Whole = (End, End, Vec<u8>);

/// A datagram in pieces of some size.
fn cut((from, to, says): &Whole, id: u32, piece: usize) -> Vec<Vec<u8>> {
    let v4 = from.0.is_v4();
    let headers = 14 + if v4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    let whole = udp_packet(&UdpSpec::new(*from, *to, says));
    let segment = &whole[headers..];
    let pieces = segment.chunks(piece).enumerate().map(|(n, bytes)| {
        let (units, more) = ((n * piece / 8) as u16, (n + 1) * piece < segment.len());
        let mut ip = IpSpec::new(from.0, to.0);
        ip.identification = id as u16;
        ip.fragment = units | if more { ipv4::MORE_FRAGMENTS } else { 0 };
        let mut header = vec![0, 0];
        header.extend((units << 3 | u16::from(more)).to_be_bytes());
        header.extend(id.to_be_bytes());
        ip.extensions = vec![(44, header)];
        ip_packet(&LinkSpec::default(), &ip, udp::PROTOCOL, bytes)
    });
    pieces.collect()
}

/// What a receiver makes of fragments: those datagrams of which nothing is missing.
fn put_together(frames: &[Vec<u8>]) -> Vec<Whole> {
    type Parts = (Vec<u8>, usize, Option<usize>);
    let mut parts: BTreeMap<(Addr, Addr, u32), Parts> = BTreeMap::new();
    for bytes in frames {
        let mut meta = PacketMeta::default();
        parse(bytes, Seed(1), ParseOptions::default(), &mut meta).expect("a good packet");
        let found = Fragment::read(bytes, &meta).expect("a fragment");
        let place = parts.entry((meta.key.src, meta.key.dst, found.id)).or_default();
        let (from, to) = (found.from as usize, found.to as usize);
        let len = place.0.len().max(to);
        place.0.resize(len, 0);
        place.0[from..to].copy_from_slice(&bytes[usize::from(meta.l4)..usize::from(meta.end)]);
        place.1 += to - from;
        if !found.more {
            place.2 = Some(to);
        }
    }
    let whole = parts.into_iter().filter(|(_, (_, covered, len))| Some(*covered) == *len);
    whole
        .map(|((src, dst, _), (segment, ..))| {
            let sum = pseudo(src, dst, udp::PROTOCOL, segment.len() as u16).bytes(&segment);
            assert!(sum.verifies(), "the checksum does not fit what was put together");
            let port = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
            ((src, port(0)), (dst, port(2)), segment[8..].to_vec())
        })
        .collect()
}

struct Bench {
    appliance: Appliance,
    rng: Rng,
    now: Nanos,
    workers: u32,
}

impl Bench {
    fn new(seed: Seed, family: Family, mode: ForwardMode, workers: u16, stage: StageSpec) -> Bench {
        let mut setup = setup(seed, family, mode);
        (setup.workers, setup.spread) = (workers, Spread::Random);
        setup.pipeline = stages(&[stage]);
        let appliance = Appliance::new(setup);
        Bench { appliance, rng: Rng::new(seed), now: Nanos::from_secs(1), workers: workers.into() }
    }

    /// Has frames arrive at a port, each at any queue, and returns what leaves by the other port.
    fn pass(&mut self, port: PortId, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut left = Vec::new();
        for some in frames.chunks(40) {
            for frame in some {
                let mut frame = frame.clone();
                frame[..6].copy_from_slice(&box_mac(port));
                let queue = self.rng.below(self.workers) as usize;
                assert!(self.appliance.ends[queue][usize::from(port.0)].send(&frame));
            }
            self.settle();
            for ends in &self.appliance.ends {
                left.extend(std::iter::from_fn(|| ends[1 - usize::from(port.0)].recv()));
            }
        }
        left
    }

    fn settle(&mut self) {
        for _ in 0..12 {
            self.now = self.now.saturating_add(100_000);
            self.appliance.poll(self.now);
        }
    }

    fn shuffle(&mut self, frames: &mut [Vec<u8>]) {
        for at in (1..frames.len()).rev() {
            frames.swap(at, self.rng.below(at as u32 + 1) as usize);
        }
    }

    /// Lets what waits run out.
    fn finish(mut self) -> u64 {
        self.now = self.now.saturating_add(Nanos::from_secs(3).0);
        self.settle();
        assert_eq!(self.appliance.held(), 0, "still waiting");
        let counters = self.appliance.finish();
        let of = |reason: DropReason| counters.drops[reason as usize];
        assert_eq!(counters.drops_total(), of(DropReason::FragmentAlone), "{counters:?}");
        counters.drops_total()
    }
}

fn questions(family: Family, rng: &mut Rng, count: usize) -> Vec<Whole> {
    let question = |i: usize| {
        let says: Vec<u8> = (0..1_500 + rng.below(6_000)).map(|at| (at ^ i as u32) as u8).collect();
        ((family.client(i % 5), 5_000 + i as u16), (family.vip(), UDP_PORT), says)
    };
    (0..count).map(question).collect()
}

/// All of them in pieces; those of one datagram in a row.
fn in_pieces(wholes: &[Whole], rng: &mut Rng, id: u32) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for (n, whole) in wholes.iter().enumerate() {
        frames.extend(cut(whole, id + n as u32, 8 * (60 + rng.below(120) as usize)));
    }
    frames
}

fn says(wholes: &[Whole]) -> Vec<&[u8]> {
    let mut all: Vec<_> = wholes.iter().map(|whole| whole.2.as_slice()).collect();
    all.sort_unstable();
    all
}

fn each(modes: &[ForwardMode], run: impl Fn(Seed, Family, ForwardMode, u16)) {
    for &mode in modes {
        for family in Family::BOTH {
            for workers in [1, 2, 4] {
                for_seeds(3, |seed| run(seed, family, mode, workers));
            }
        }
    }
}

#[test]
fn in_any_order_the_same_fragments_leave_translated() {
    each(&MODES, |seed, family, mode, workers| {
        let mut bench = Bench::new(seed, family, mode, workers, StageSpec::Balance);
        let asked = questions(family, &mut bench.rng, 12);
        let mut frames = in_pieces(&asked, &mut bench.rng, 70_000);
        bench.shuffle(&mut frames);
        let left = bench.pass(CLIENTS, &frames);
        assert_eq!(left.len(), frames.len());
        let got = put_together(&left);
        assert_eq!(says(&got), says(&asked), "{mode:?} {family:?}");
        if mode != ForwardMode::Dsr {
            let answers: Vec<_> = got.iter().map(|(c, s, says)| (*s, *c, says.clone())).collect();
            let mut frames = in_pieces(&answers, &mut bench.rng, 1);
            bench.shuffle(&mut frames);
            let left = bench.pass(SERVERS, &frames);
            let mut got = put_together(&left);
            let mut want: Vec<_> = asked.into_iter().map(|(c, v, says)| (v, c, says)).collect();
            got.sort();
            want.sort();
            assert!(got == want, "{mode:?} {family:?}: answers come from whom was asked");
        }
        assert_eq!(bench.finish(), 0);
    });
}

#[test]
fn what_is_routed_keeps_its_fragments() {
    each(&[ForwardMode::Dsr], |seed, family, mode, workers| {
        let mut bench = Bench::new(seed, family, mode, workers, StageSpec::Route);
        let mut asked = questions(family, &mut bench.rng, 12);
        asked.iter_mut().for_each(|whole| whole.1.0 = family.server(1));
        let mut frames = in_pieces(&asked, &mut bench.rng, 9);
        bench.shuffle(&mut frames);
        // Even those whose first one never comes this way.
        let lost = frames.pop().map_or(0, |_| 1);
        let left = bench.pass(CLIENTS, &frames);
        assert_eq!(left.len(), frames.len());
        assert_eq!(put_together(&left).len(), asked.len() - lost);
        assert_eq!(bench.finish(), 0);
    });
}

/// What leaves is what came, translated: nothing twice that came once, nothing whole that was not.
#[test]
fn lost_and_doubled_fragments() {
    each(&[ForwardMode::Nat], |seed, family, mode, workers| {
        let mut bench = Bench::new(seed, family, mode, workers, StageSpec::Balance);
        let asked = questions(family, &mut bench.rng, 12);
        let mut frames = in_pieces(&asked, &mut bench.rng, 5);
        let doubled = frames[3..9].to_vec();
        frames.extend(doubled);
        bench.shuffle(&mut frames);
        frames.truncate(frames.len() - 8);
        let left = bench.pass(CLIENTS, &frames);
        let mut kept: Vec<Vec<u8>> = left.clone();
        kept.sort();
        kept.dedup();
        let got = put_together(&kept);
        let mut came = frames.clone();
        came.sort();
        came.dedup();
        let could = put_together(&came);
        assert_eq!(says(&got), says(&could));
        let dropped = bench.finish();
        assert_eq!(left.len() as u64 + dropped, frames.len() as u64);
    });
}

/// A flood of datagrams that never become whole keeps neither frames nor places for long.
#[test]
fn fragments_that_lead_nowhere_are_bounded() {
    let family = Family::V4;
    let mut bench = Bench::new(Seed(1), family, ForwardMode::Nat, 2, StageSpec::Balance);
    for id in 0..1_500 {
        let mut flood = questions(family, &mut bench.rng, 1);
        flood[0].2.truncate(900);
        let mut frames = cut(&flood[0], id, 400);
        match id % 2 {
            0 => drop(frames.remove(0)),
            _ => drop(frames.pop()),
        }
        bench.pass(CLIENTS, &frames);
        assert!(bench.appliance.held() <= 2 * 256, "{}", bench.appliance.held());
    }
    let asked = questions(family, &mut bench.rng, 3);
    let frames = in_pieces(&asked, &mut bench.rng, 60_000);
    let left = bench.pass(CLIENTS, &frames);
    assert_eq!(says(&put_together(&left)), says(&asked), "others are not kept out");
    bench.finish();
}
