//! Times the answers of connections by their records, encrypted ones too, and counts what it finds
//! by class, by service and by backend.

use crate::base::Nanos;
use crate::base::mem::prefetch;
use crate::flow::{Flow, FlowKind};
use crate::graph::{Cx, Stage};
use crate::inspect::timing::{AnswerTimer, Heard};
use crate::observe::latency::{Latencies, Measure, Series};
use crate::packet::{Batch, Direction, FlowKey, FlowRef, PacketFlags, PacketMeta, Verdict, tcp};

/// A connection that is quiet for this long gives its place to another that needs it.
const QUIET_NS_MAX: u64 = 10_000_000_000;
/// Of a TLS record's header and the first byte of what is in it, a ClientHello.
const HELLO: (u8, u8) = (22, 1);
/// Segments with payload after which a connection is none of those that are timed: more than what
/// comes before a connection's `STARTTLS` or SOCKS request.
const STRANGE_SEGMENTS: u8 = 16;

/// The stage. A flow's timer has a place that follows from the flow's own; of flows whose places
/// are the same, the one that came first is timed until it is quiet.
pub struct Timing {
    places: Box<[Line]>,
    mask: usize,
    /// One of so many connections is timed.
    one_in: u32,
}

/// Aligned so that a packet costs one cache line.
#[derive(Clone)]
#[repr(align(64))]
struct Line(Place);

#[derive(Clone, Debug)]
enum Place {
    Vacant,
    Timed(AnswerTimer),
    /// A connection whose segments began none of those that are timed, and how many they were.
    Strange {
        owner: u32,
        segments: u8,
    },
}

const _: () = assert!(size_of::<Line>() == 64);

impl Timing {
    /// Times this many flows at once, rounded up to a power of two, and of all connections one in
    /// so many.
    pub fn new(flows_max: u32, one_in: u32) -> Timing {
        let places = (flows_max.max(1) as usize).next_power_of_two();
        let vacant = vec![Line(Place::Vacant); places].into_boxed_slice();
        Timing { places: vacant, mask: places - 1, one_in: one_in.max(1) }
    }

    /// Goes on with the timers of a stage that this one replaces, where it has as many.
    pub fn take_over(&mut self, old: &mut Timing) {
        if self.places.len() == old.places.len() {
            std::mem::swap(&mut self.places, &mut old.places);
        }
    }

    /// Whether there is nothing to be timed of a flow, so that its packets need not come by here.
    pub fn lets_go(&self, at: FlowRef, flow: &Flow) -> bool {
        let owner = owner(&flow.client_key());
        flow.proto != tcp::PROTOCOL
            || !self.times(owner)
            || self.places[at.0 as usize & self.mask].0.is_strange(owner)
    }

    /// Whether a connection is among those that are timed.
    #[inline]
    fn times(&self, owner: u32) -> bool {
        (u64::from(owner) * u64::from(self.one_in)) >> 32 == 0
    }

    /// A client's bytes that were held back until now, which its backend is asked at `at`.
    pub(super) fn follow<'a>(
        &mut self,
        cx: &Cx<'_>,
        at: Nanos,
        first: &PacketMeta,
        said: impl Iterator<Item = (u32, &'a [u8])>,
    ) {
        let (flow, backend) = (cx.flows.get(first.flow), cx.flows.details(first.flow).backend);
        for (tcp_seq, piece) in said {
            let meta = PacketMeta { tcp_seq, direction: Direction::Forward, ..first.clone() };
            // What is bound late is answered this way.
            if self.look(flow, at, &meta, piece).1 {
                cx.flows.serving().asked(backend);
            }
        }
    }

    /// What the packet tells, and whether it begins a request.
    #[inline]
    fn look(
        &mut self,
        flow: &Flow,
        now: Nanos,
        meta: &PacketMeta,
        payload: &[u8],
    ) -> (Heard, bool) {
        let owner = owner(&flow.client_key());
        if !self.times(owner) {
            return (Heard::Nothing, false);
        }
        let place = &mut self.places[meta.flow.0 as usize & self.mask].0;
        let hello = payload.first() == Some(&HELLO.0) && payload.get(5) == Some(&HELLO.1);
        let before = place.is_asked();
        let heard = match place {
            Place::Timed(timer) if timer.owner() == owner && !hello => {
                timer.feed(meta.direction, now, meta.tcp_seq, payload)
            }
            _ => place.begin(owner, now, meta, payload, hello),
        };
        (heard, meta.direction == Direction::Forward && !before && place.is_asked())
    }
}

impl Place {
    /// Whether a connection is surely none of those that are timed.
    fn is_strange(&self, owner: u32) -> bool {
        matches!(self, Place::Strange { owner: of, segments }
            if *of == owner && *segments >= STRANGE_SEGMENTS)
    }

    #[inline]
    fn is_asked(&self) -> bool {
        matches!(self, Place::Timed(timer) if timer.is_asked())
    }

    /// A segment of a flow that has no timer, or that begins anew.
    fn begin(
        &mut self,
        owner: u32,
        now: Nanos,
        meta: &PacketMeta,
        payload: &[u8],
        hello: bool,
    ) -> Heard {
        let (direction, seq) = (meta.direction, meta.tcp_seq);
        let stays = |timer: &AnswerTimer| match timer.owner() == owner {
            // The same hello may come again, and so may the addresses with another.
            true => hello && timer.has_passed(direction, seq),
            false => now.since(timer.since()) < QUIET_NS_MAX,
        };
        if matches!(self, Place::Timed(timer) if stays(timer)) {
            return Heard::Nothing;
        }
        let Some(mut timer) = AnswerTimer::begin(owner, direction, now, payload) else {
            self.pass(owner);
            return Heard::Nothing;
        };
        let heard = timer.feed(direction, now, seq, payload);
        *self = Place::Timed(timer);
        heard
    }

    /// Counts a segment of a connection that has no timer and begins none.
    fn pass(&mut self, owner: u32) {
        match self {
            // Its time is over, but nobody needs the place.
            Place::Timed(_) => {}
            Place::Strange { owner: of, segments } if *of == owner => {
                *segments = segments.saturating_add(1);
            }
            Place::Vacant | Place::Strange { .. } => *self = Place::Strange { owner, segments: 1 },
        }
    }
}

/// Tells flows of one place apart, nearly always.
#[inline]
fn owner(client: &FlowKey) -> u32 {
    let ports = u64::from(client.sport) << 16 | u64::from(client.dport);
    let mixed = (client.src.lo ^ client.dst.lo.rotate_left(32)).wrapping_add(client.src.hi) ^ ports;
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

impl Stage for Timing {
    fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
        for meta in batch.metas() {
            prefetch(&self.places, meta.flow.0 as usize & self.mask);
        }
        for packet in batch.iter() {
            let meta = packet.meta;
            if meta.verdict != Verdict::Next
                || meta.key.proto != tcp::PROTOCOL
                || meta.payload >= meta.end
                || !meta.flow.is_some()
                || meta.flags.has(PacketFlags::FRAGMENT)
            {
                continue;
            }
            let bytes = packet.frame.bytes(cx.arena);
            let payload = bytes.get(usize::from(meta.payload)..usize::from(meta.end));
            let flow = cx.flows.get(meta.flow);
            let (heard, asked) = self.look(flow, cx.now, meta, payload.unwrap_or_default());
            // Where answers take another way nobody would be seen to give one.
            if asked && flow.has_reply_key() {
                cx.flows.serving().asked(cx.flows.details(meta.flow).backend);
            }
            match heard {
                Heard::Nothing => {}
                Heard::First(ns) => {
                    let backend = cx.flows.details(meta.flow).backend;
                    cx.flows.serving().answered(backend, cx.now, ns);
                    count(cx.latencies, flow, Measure::First, ns);
                }
                Heard::Next(ns) => count(cx.latencies, flow, Measure::Gap, ns),
            }
        }
    }
}

/// Once for each that has a part in it.
#[inline(never)]
fn count(latencies: &Latencies, flow: &Flow, measure: Measure, ns: u64) {
    let (client, server) = (flow.client_key(), flow.server_key());
    latencies.record(Series::Class(flow.class), measure, ns);
    // What is only routed has servers without number.
    if flow.kind == FlowKind::Transit {
        return;
    }
    let service = Series::Service(client.dst, client.dport, client.proto);
    latencies.record(service, measure, ns);
    if flow.has_reply_key() {
        latencies.record(Series::Backend(server.src, server.sport, server.proto), measure, ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::FlowLimits;
    use crate::graph::stages::balance::Balance;
    use crate::graph::stages::rig::{Endpoint, Rig, V4, addr};
    use crate::packet::ClassId;
    use crate::packet::build::{TcpSpec, tcp_packet};
    use crate::packet::field::u16_at;
    use crate::packet::tcp::flag::{ACK, SYN};

    const MS: u64 = 1_000_000;
    const LIMITS: FlowLimits = FlowLimits { flows_max: 64, half_open_max: 16 };

    /// The stage, and the one behind it that enters flows.
    struct Whole(Timing, Balance);

    impl Stage for Whole {
        fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
            self.0.process(cx, batch);
            self.1.process(cx, batch);
        }
    }

    fn record(kind: u8, first: u8, len: u16) -> Vec<u8> {
        let mut body = vec![0; usize::from(len)];
        body[0] = first;
        [&[kind, 3, 3][..], &len.to_be_bytes(), &body].concat()
    }

    fn send(
        rig: &mut Rig,
        stage: &mut Whole,
        (src, dst): (Endpoint, Endpoint),
        mac: [u8; 6],
        (flags, seq, payload): (u8, u32, &[u8]),
    ) -> u16 {
        let ends = ((addr(src.0), src.1), (addr(dst.0), dst.1));
        let mut spec = TcpSpec::new(ends.0, ends.1, flags, payload);
        (spec.seq, spec.link.destination) = (seq, mac);
        u16_at(&rig.run(stage, tcp_packet(&spec)).bytes, 34)
    }

    /// A whole connection through a NAT: an answer 80 ms after its request, three gaps of 20 ms.
    fn connection(rig: &mut Rig, stage: &mut Whole, client: Endpoint) {
        use crate::graph::stages::rig::{BACKEND_SIDE, CLIENT_SIDE};
        let there = (client, (V4.vip, 80));
        let port = send(rig, stage, there, CLIENT_SIDE, (SYN, 9, b""));
        let back = (V4.backend, (V4.nat, port));
        send(rig, stage, back, BACKEND_SIDE, (SYN | ACK, 99, b""));
        send(rig, stage, there, CLIENT_SIDE, (ACK, 10, &record(22, 1, 300)));
        send(rig, stage, back, BACKEND_SIDE, (ACK, 100, &record(22, 2, 95)));
        send(rig, stage, there, CLIENT_SIDE, (ACK, 315, &record(23, 0, 200)));
        rig.now = rig.now.saturating_add(60 * MS);
        for i in 0..4 {
            rig.now = rig.now.saturating_add(20 * MS);
            send(rig, stage, back, BACKEND_SIDE, (ACK, 200 + i * 105, &record(23, 0, 100)));
        }
    }

    fn counts(rig: &Rig) -> Vec<(Series, u64, u64, u64)> {
        let read = rig.latencies.read();
        let mut all: Vec<_> =
            read.map(|(s, [f, g])| (s, f.count(), g.count(), f.sum_us + g.sum_us)).collect();
        all.sort();
        all
    }

    #[test]
    fn times_are_counted_for_class_service_and_backend() {
        let mut rig = Rig::new(LIMITS);
        let stage = &mut Whole(Timing::new(64, 1), Balance::new());
        connection(&mut rig, stage, V4.client);
        connection(&mut rig, stage, (V4.client.0, 41_000));
        let wanted = [
            Series::Class(ClassId::UNSET),
            Series::Service(addr(V4.vip), 80, tcp::PROTOCOL),
            Series::Backend(addr(V4.backend.0), V4.backend.1, tcp::PROTOCOL),
        ];
        assert_eq!(counts(&rig), wanted.map(|series| (series, 2, 6, 2 * 140_000)));
    }

    #[test]
    fn who_is_asked_is_counted_where_answers_come_this_way() {
        use crate::graph::stages::rig::CLIENT_SIDE;
        for (service, wanted) in [(80, 1), (82, 0)] {
            let mut rig = Rig::new(LIMITS);
            let stage = &mut Whole(Timing::new(64, 1), Balance::new());
            let there = (V4.client, (V4.vip, service));
            send(&mut rig, stage, there, CLIENT_SIDE, (SYN, 9, b""));
            send(&mut rig, stage, there, CLIENT_SIDE, (ACK, 10, b"GET / HTTP/1.1\r\n\r\n"));
            let (at, _) = rig.flows.iter().next().expect("a flow");
            let backend = rig.flows.details(at).backend;
            assert_eq!(rig.flows.serving().tally(backend).asked, wanted, "port {service}");
        }
    }

    #[test]
    fn a_place_goes_to_another_flow_when_its_own_is_quiet() {
        let mut rig = Rig::new(LIMITS);
        let stage = &mut Whole(Timing::new(1, 1), Balance::new());
        connection(&mut rig, stage, V4.client);
        connection(&mut rig, stage, (V4.client.0, 41_000));
        assert_eq!(counts(&rig)[0].1, 1, "the second one has no place");
        rig.now = rig.now.saturating_add(QUIET_NS_MAX);
        connection(&mut rig, stage, (V4.client.0, 42_000));
        assert_eq!(counts(&rig)[0].1, 2);
    }

    #[test]
    fn a_reload_keeps_what_is_under_way() {
        let (mut old, mut new) = (Timing::new(5, 1), Timing::new(8, 1));
        let timer = AnswerTimer::begin(7, Direction::Forward, Nanos(1), b"GET / HTTP/1.1");
        old.places[3].0 = Place::Timed(timer.expect("a request"));
        new.take_over(&mut old);
        assert!(matches!(&new.places[3].0, Place::Timed(timer) if timer.owner() == 7));
        let mut other = Timing::new(9, 1);
        other.take_over(&mut new);
        assert!(other.places.iter().all(|p| matches!(p.0, Place::Vacant)));
    }
    /// A connection, opened, and what the stage says of it after each segment with payload.
    fn let_go(rig: &mut Rig, stage: &mut Whole, client: Endpoint, segments: &[&[u8]]) -> Vec<bool> {
        use crate::graph::stages::rig::{BACKEND_SIDE, CLIENT_SIDE};
        let there = (client, (V4.vip, 80));
        let port = send(rig, stage, there, CLIENT_SIDE, (SYN, 9, b""));
        let back = (V4.backend, (V4.nat, port));
        send(rig, stage, back, BACKEND_SIDE, (SYN | ACK, 99, b""));
        let (mut seq, mut said) = ([10, 100], Vec::new());
        for (i, segment) in segments.iter().enumerate() {
            let (ends, side) = [(there, CLIENT_SIDE), (back, BACKEND_SIDE)][i % 2];
            send(rig, stage, ends, side, (ACK, seq[i % 2], segment));
            seq[i % 2] += segment.len() as u32;
            let own = |flow: &Flow| {
                flow.client_key().src == addr(client.0) && flow.client_key().sport == client.1
            };
            let (at, flow) = rig.flows.iter().find(|(_, flow)| own(flow)).expect("open");
            said.push(stage.0.lets_go(at, flow));
        }
        said
    }

    #[test]
    fn a_connection_that_is_none_of_those_timed_is_let_go_once_that_is_sure() {
        let mut rig = Rig::new(LIMITS);
        let stage = &mut Whole(Timing::new(64, 1), Balance::new());
        let enough = usize::from(STRANGE_SEGMENTS);
        let said = let_go(&mut rig, stage, V4.client, &vec![&b"EHLO "[..]; enough + 2]);
        let first = said.iter().position(|&goes| goes);
        assert_eq!((first, &said[enough - 1..]), (Some(enough - 1), &[true; 3][..]));
        // One that begins late is timed all the same, for as long as it lasts.
        let hello = record(22, 1, 300);
        let mut late = vec![&b"EHLO "[..]; enough - 2];
        late.push(&hello);
        late.extend(vec![&b"sealed"[..]; 2 * enough]);
        let said = let_go(&mut rig, stage, (V4.client.0, 41_000), &late);
        assert!(said.iter().all(|&goes| !goes), "{said:?}");
        assert!(counts(&rig).is_empty());
    }

    #[test]
    fn a_timed_connection_is_never_let_go_and_its_place_is_not_taken_by_a_strange_one() {
        let mut rig = Rig::new(LIMITS);
        let stage = &mut Whole(Timing::new(1, 1), Balance::new());
        let hello = record(22, 1, 300);
        let mut all = vec![&hello[..]];
        all.extend(vec![&b"more"[..]; 40]);
        assert_eq!(let_go(&mut rig, stage, V4.client, &all), [false; 41]);
        let strange = vec![&b"EHLO "[..]; 40];
        let said = let_go(&mut rig, stage, (V4.client.0, 41_000), &strange);
        assert_eq!(said, [false; 40], "its turn may come");
        assert!(matches!(stage.0.places[0].0, Place::Timed(_)));
        // Of two strange ones the place goes to and fro, but a request takes it at once.
        rig.now = rig.now.saturating_add(QUIET_NS_MAX);
        let mut stage = Whole(Timing::new(1, 1), Balance::new());
        let_go(&mut rig, &mut stage, (V4.client.0, 42_000), &strange[..20]);
        connection(&mut rig, &mut stage, (V4.client.0, 43_000));
        assert_eq!(counts(&rig)[0].1, 1);
    }

    #[test]
    fn of_a_sample_the_others_cost_nothing_and_are_let_go() {
        let mut rig = Rig::new(FlowLimits { flows_max: 512, half_open_max: 512 });
        let stage = &mut Whole(Timing::new(512, 4), Balance::new());
        let clients = 41_000..41_400;
        let times = |port: u16| {
            let (src, dst) = (addr(V4.client.0), addr(V4.vip));
            stage.0.times(owner(&FlowKey {
                src,
                dst,
                sport: port,
                dport: 80,
                proto: tcp::PROTOCOL,
            }))
        };
        let timed: Vec<bool> = clients.clone().map(times).collect();
        let wanted = timed.iter().filter(|&&timed| timed).count();
        assert!((60..140).contains(&wanted), "{wanted} of 400");
        for (port, timed) in clients.zip(timed) {
            let hello = record(22, 1, 300);
            let said = let_go(&mut rig, stage, (V4.client.0, port), &[&hello, &record(22, 2, 95)]);
            assert_eq!(said, [!timed; 2]);
        }
        let places = stage.0.places.iter().filter(|place| !matches!(place.0, Place::Vacant));
        assert_eq!(places.count(), wanted);
    }
}
