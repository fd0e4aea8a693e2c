//! Many connections of HTTP, and few parsers.

use super::*;
use crate::flow::TcpState;
use crate::policy::spec::PathPattern;

const ASKS: &[u8] = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n";
const ANSWERS: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// Where a rule refuses by path.
fn guarded(flows_max: u32, http_flows_max: u32) -> Rig {
    let mut rig = Rig::new(8, 8);
    let limits = InspectLimits { http_flows_max, ..inspect_limits(HELLO_BYTES_MAX, flows_max) };
    rig.inspect = Inspect::new(&limits);
    let path = vec![PathPattern::new("/secret").expect("a path")];
    let rule = RuleSpec { path, class: ClassId::RESET, ..RuleSpec::default() };
    rig.snapshot.rules = Arc::new(Rules::compile(&[rule]));
    rig
}

impl Rig {
    fn establish(&mut self, client: &Client) -> FlowRef {
        let flow = self.open(client);
        self.flows.get_mut(flow).tcp = TcpState::Established;
        flow
    }
}

/// Those that have parsers are found wherever they are, and who has its answers loses nothing.
#[test]
fn a_new_connection_finds_parsers_among_many_flows() {
    let mut rig = guarded(600, 4);
    let clients: Vec<Client> = (1..=500).map(client).collect();
    for c in &clients {
        rig.now = rig.now.saturating_add(1_000);
        rig.establish(c);
        rig.run(&[c.data(0, ASKS)]);
        rig.run(&[c.answer(ANSWERS)]);
    }
    // And those that were put off, later.
    for c in &clients {
        rig.now = rig.now.saturating_add(1_000);
        rig.run(&[c.data(ASKS.len(), ASKS)]);
        rig.run(&[c.answer(ANSWERS)]);
    }
    let counters = &rig.counters;
    assert_eq!((counters.requests_read, counters.flows_unread), (1_000, 0));
    assert_eq!(counters.unknown_crowded, 0);
}

/// Who waits for an answer gives way last.
#[test]
fn who_has_all_answers_gives_way_first() {
    let mut rig = guarded(8, 2);
    let clients: Vec<Client> = (1..=3).map(client).collect();
    let flows: Vec<FlowRef> = clients.iter().map(|c| rig.establish(c)).collect();
    rig.run(&[clients[0].data(0, &ASKS[..20])]);
    rig.now = rig.now.saturating_add(1_000);
    rig.run(&[clients[1].data(0, ASKS), clients[1].answer(ANSWERS)]);
    rig.run(&[clients[2].data(0, ASKS)]);
    rig.run(&[clients[0].data(20, &ASKS[20..])]);
    assert_eq!((rig.counters.requests_read, rig.counters.flows_unread), (3, 0));
    assert_eq!(rig.inspection(flows[1]), NOT_YET);
}

/// Where a connection that was put off goes on is kept with it.
#[test]
fn nobody_makes_forget_where_a_connection_goes_on() {
    let mut rig = guarded(8, 1);
    let (one, other) = (client(1), client(2));
    let flow = rig.establish(&one);
    rig.establish(&other);
    rig.run(&[one.data(0, ASKS), one.answer(ANSWERS)]);
    rig.run(&[other.data(0, ASKS), other.answer(ANSWERS)]);
    assert_eq!(rig.inspection(flow), NOT_YET);
    let syns: Vec<_> = (3..20_000).map(|p| client(p).packet(ISN, flag::SYN, b"")).collect();
    for batch in syns.chunks(60) {
        rig.run(batch);
    }
    let secret = b"GET /secret HTTP/1.1\r\nHost: a\r\n\r\n";
    rig.run(&[one.data(ASKS.len() + 9, &secret[9..])]);
    rig.run(&[one.data(ASKS.len(), &secret[..9])]);
    assert_eq!(rig.class(flow), ClassId::RESET);
}
