//! Clients that say something unreadable don't get around rules that refuse by what is said.

use super::*;
use crate::flow::reassembly::WINDOW_BYTES;
use crate::inspect::h2::PREFACE;
use crate::inspect::hpack::TABLE_BYTES;

const UNREAD: Verdict = Verdict::Drop(DropReason::Unread);
const STALL: u64 = 10_000_000_001;

fn guard() -> RuleSpec {
    by_path("/secret/*", ClassId::RESET)
}

fn frame(kind: u8, flags: u8, stream: u8, body: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (body.len() as u32).to_be_bytes();
    [&[a, b, c, kind, flags, 0, 0, 0, stream][..], body].concat()
}

/// A connection of HTTP/2 with these header blocks.
pub(super) fn h2(blocks: &[&[u8]]) -> Vec<u8> {
    let mut said = [PREFACE, &frame(4, 0, 0, b"")].concat();
    for (i, block) in blocks.iter().enumerate() {
        said.extend(frame(1, 5, 2 * i as u8 + 1, block));
    }
    said
}

/// `:method: GET`, `:scheme: http`, `:path`, `:authority`.
pub(super) const ASKS: &[u8] = b"\x82\x86\x04\x02/a\x41\x09a.example";

fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0, name.len() as u8][..], name, &[value.len() as u8], value].concat()
}

/// Header blocks after `ASKS` of a client whose server allows a table of 64 KB: one that says so
/// and puts a path in it, one that fills more than is kept, one that asks by the first.
fn large_table() -> [Vec<u8>; 3] {
    let first = b"\x3f\xe1\xff\x03\x82\x86\x44\x02/a\x41\x09a.example".to_vec();
    let mut fill = ASKS.to_vec();
    for _ in 0..=TABLE_BYTES / 132 {
        fill.extend([&b"\x40\x01x\x63"[..], &[b'a'; 99]].concat());
    }
    // Before what fills it, authorities of two requests were added.
    let index = 62 + TABLE_BYTES / 132 + 1 + 2;
    let by_index = [&b"\x82\x86"[..], &[0x80 | index as u8], b"\x01\x09a.example"].concat();
    [first, fill, by_index]
}

/// The same where all that rules ask for is said in letters, and one field more by its index.
fn one_more_of_large_table() -> [Vec<u8>; 3] {
    let [_, fill, _] = large_table();
    let first = [&b"\x3f\xe1\xff\x03"[..], ASKS, b"\x40\x04host\x09a.example"].concat();
    let index = 62 + TABLE_BYTES / 132 + 1 + 1;
    let letters = &b"\x82\x86\x04\x02/a\x01\x09a.example"[..];
    [first, fill, [letters, &[0x80 | index as u8]].concat()]
}

/// What clients say, and whether that is refused where it must be read.
pub(super) fn table() -> Vec<(&'static str, Vec<u8>, bool)> {
    let ok = "GET /a HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let after = |rest: &str| format!("{ok}{rest}").into_bytes();
    let plain = |text: &str| text.as_bytes().to_vec();
    let both = "POST /a HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    let [first, fill, by_index] = large_table();
    let [host, fill_2, letters] = one_more_of_large_table();
    let allowed = h2(&[&b"\x3f\xe1\xff\x03"[..], ASKS].concat().chunks(64).collect::<Vec<_>>());
    let long = [frame(0, 0, 1, &[0; 20_000]), frame(1, 5, 3, ASKS)].concat();
    vec![
        ("a request", plain(ok), false),
        ("two", after(ok), false),
        ("a length and chunks", plain(both), true),
        ("a blank before a colon", plain("GET /a HTTP/1.1\r\nHost : a\r\n\r\n"), true),
        ("a line of no field", plain("GET /a HTTP/1.1\r\nHost: a\r\n\x01x\r\n\r\n"), true),
        ("a request without version", plain("GET /secret/x\r\n"), true),
        ("one of another version", plain("GET /secret/x HTTP/3.0\r\n\r\n"), true),
        ("no request after one", after("\x01\x02\x03\x04"), true),
        (
            "a method of one's own, then a request",
            plain(&format!("FOO / HTTP/1.0\r\n\r\n{}", "GET /secret/x HTTP/1.0\r\n\r\n")),
            true,
        ),
        ("two hosts", plain("GET http://b/a HTTP/1.1\r\nHost: c\r\n\r\n"), true),
        ("one host", plain("GET http://A:80/a HTTP/1.1\r\nHost: a\r\n\r\n"), false),
        ("another protocol", plain("SSH-2.0-OpenSSH_9.9 Debian\r\n"), false),
        ("bytes", b"\x01\x02\x03\x04".to_vec(), false),
        ("HTTP/2", h2(&[ASKS, ASKS]), false),
        ("a bad index", h2(&[ASKS, b"\xff\x70"]), true),
        ("a bad frame", [h2(&[ASKS]), frame(4, 0, 0, b"12345")].concat(), true),
        ("a forbidden name", h2(&[&[ASKS, &literal(b"X-Up", b"1")].concat()]), true),
        ("a value of two lines", h2(&[&[ASKS, &literal(b"x", b"a\r\nb: c")].concat()]), true),
        ("two hosts of HTTP/2", h2(&[&[ASKS, &literal(b"host", b"b")].concat()]), true),
        ("one host of HTTP/2", h2(&[&[ASKS, &literal(b"host", b"a.example.")].concat()]), false),
        ("a long frame", [h2(&[ASKS]), long].concat(), false),
        ("a large table", allowed, false),
        ("out of a large table", h2(&[ASKS, &fill, ASKS]), false),
        ("the forgotten of a large table", h2(&[&first, &fill, &by_index]), true),
        ("one more field of it", h2(&[&host, &fill_2, &letters]), true),
        ("no more of it", h2(&[&host, &fill_2, &letters[..letters.len() - 1]]), false),
    ]
}

#[test]
fn what_cannot_be_read_is_refused_where_rules_refuse_by_requests() {
    for (name, said, refused) in table() {
        for rule in [guard(), by_path("/secret/*", BULK), by_name(ClassId::RESET)] {
            let guarded = rule == guard();
            let mut c = Connection::open(&V4, &[rule]);
            let packets = said.chunks(1_000).map(|part| c.segment(true, ACK, part).0.verdict);
            let dropped = packets.filter(|v| *v != Verdict::Output).count();
            let answer = c.segment(false, ACK, b"").0.verdict;
            let is_out = c.rig.flows.iter().all(|(_, flow)| !flow.class.is_refused());
            assert_eq!(!is_out, guarded && refused, "{name}: {dropped} {answer:?}");
            assert_eq!(answer == Verdict::Output, is_out, "{name}");
        }
    }
}

#[test]
fn a_long_method_hides_no_request() {
    for (len, path, rule, refused) in [
        (32, "/secret/x", guard(), true),
        (32, "/a", guard(), false),
        (33, "/secret/x", guard(), true),
        (33, "/a", guard(), true),
        (5_000, "/secret/x", guard(), true),
        (5_000, "/secret/x", by_path("/secret/*", BULK), false),
        (5_000, "/secret/x", by_name(ClassId::RESET), false),
    ] {
        let mut c = Connection::open(&V4, &[rule]);
        let head = format!("{} {path} HTTP/1.1\r\nHost: a\r\n\r\n", "A".repeat(len));
        head.as_bytes().chunks(1_000).for_each(|part| drop(c.segment(true, ACK, part)));
        let is_out = c.rig.flows.iter().all(|(_, flow)| !flow.class.is_refused());
        assert_eq!(!is_out, refused, "{path}, {len}");
    }
}

/// An answer that is as good as none, or that some other server might give, does not hide what
/// comes behind it.
#[test]
fn what_a_tunnel_or_an_upgrade_holds_is_read_as_who_did_not_switch_reads_it() {
    let secret = get("/secret/x");
    let ssh = &b"SSH-2.0-OpenSSH_9.9 Debian\r\n"[..];
    let by_h2 = h2(&[b"\x82\x86\x04\x09/secret/x\x41\x09a.example"]);
    let connect = &b"CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n"[..];
    let h2c = &b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"[..];
    let (yes, plain) = (&b"HTTP/1.1 200 OK\r\n\r\n"[..], get("/a"));
    let to_h2c = &b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"[..];
    let to_other = &b"HTTP/1.1 101 Yes\r\nUpgrade: other\r\n\r\n"[..];
    let behind = [&plain[..], &secret].concat();
    type Case<'a> = (&'a [u8], &'a [u8], &'a [u8], bool);
    let cases: [Case<'_>; 14] = [
        (connect, yes, &secret, true),
        (connect, yes, &[b"\r\n", &secret[..]].concat(), true),
        (connect, yes, &behind, true),
        (connect, yes, &by_h2, true),
        (connect, yes, b"GET /secret/x\r\n", true),
        (connect, yes, b"GET /a HTTP/1.1\r\nHost : a\r\n\r\n", true),
        (connect, yes, &plain, false),
        (connect, yes, ssh, false),
        (connect, yes, &hello("a.example"), false),
        (connect, yes, &h2(&[ASKS, ASKS]), false),
        (&plain, to_other, &secret, true),
        (&plain, to_h2c, &by_h2, true),
        (h2c, to_h2c, &secret, true),
        (h2c, yes, &secret, true),
    ];
    for (i, (asks, answer, then, refused)) in cases.into_iter().enumerate() {
        for cut in [1, 5, then.len()] {
            let mut c = Connection::open(&V4, &[guard()]);
            c.say(asks);
            c.hear(answer);
            c.segment(true, ACK, &then[..cut]);
            c.segment(true, ACK, &then[cut..]);
            let is_out = c.rig.flows.iter().all(|(_, flow)| !flow.class.is_refused());
            assert_eq!(!is_out, refused, "{i}, cut at {cut}");
        }
    }
}

#[test]
fn answers_through_a_tunnel_are_read_on() {
    let mut c = Connection::open(&V4, &[by_path("/v1/*", BULK)]);
    c.say(b"CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n");
    c.hear(b"HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(c.say(&get("/v1/x")), BULK);
    c.hear(b"HTTP/1.1 418 No\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((c.note().status, c.note().requests), (418, 2));
    assert_eq!(c.say(&get("/a")), ClassId::UNSET);
}

/// After what was said the flow is given up.
fn left_with(said: &[u8], give_up: impl FnOnce(&mut Connection)) -> Connection {
    let mut c = Connection::open(&V4, &[guard()]);
    if !said.is_empty() {
        assert_eq!(c.say(said), ClassId::UNSET);
    }
    give_up(&mut c);
    c
}

fn stall(c: &mut Connection) {
    c.rig.now = c.rig.now.saturating_add(STALL);
    for _ in 0..4 {
        c.rig.run_with(&mut c.whole, &[], |_| {});
    }
}

/// Others come until this one gives way: with parts of requests, or whole ones.
fn crowd(c: &mut Connection) {
    for port in 1..=8 {
        c.rig.now = c.rig.now.saturating_add(1);
        let end = |end: Endpoint| (addr(end.0), end.1);
        let (client, server) = ((addr(c.family.client.0), port), end(c.family.backend));
        let (here, there) = ((CLIENT_SIDE, CLIENT_MAC), (BACKEND_SIDE, BACKEND_MAC));
        for (from, to, flags, payload, link) in [
            (client, server, SYN, &b""[..], here),
            (server, client, SYN | ACK, b"", there),
            (client, server, ACK, b"GET", here),
        ] {
            let mut spec = TcpSpec::new(from, to, flags, payload);
            (spec.seq, spec.ack) = (u32::from(flags == ACK), 1);
            (spec.link.destination, spec.link.source) = link;
            c.rig.run_with(&mut c.whole, &[tcp_packet(&spec)], |_| {});
        }
    }
}

#[test]
fn who_waits_until_nobody_reads_any_more_is_refused() {
    let stop = h2(&[ASKS]);
    for give_up in [stall, crowd] {
        let mut c = left_with(b"GET /sec", give_up);
        assert_eq!(c.segment(true, ACK, b"ret/x HTTP/1.1\r\n\r\n").0.verdict, Verdict::Output);
        assert_eq!(c.segment(false, ACK, OK).0.verdict, UNREAD, "its reset was its packet");
    }
    let mut c = left_with(&stop, crowd);
    c.segment(true, ACK, b"");
    assert_eq!(c.segment(false, ACK, b"").0.verdict, UNREAD);
    let mut c = left_with(&stop, stall);
    assert_eq!(c.segment(false, ACK, b"").0.verdict, Verdict::Output, "may be silent");
}

#[test]
fn who_has_said_nothing_yet_is_read_once_it_speaks() {
    for give_up in [stall, crowd] {
        for answered in [false, true] {
            let mut c = Connection::open(&V4, &[guard()]);
            if answered {
                c.say(&get("/a"));
                c.hear(OK);
            } else {
                c.hear(b"220 ready\r\n");
            }
            give_up(&mut c);
            assert_eq!(c.say(b"GET /secret/"), ClassId::UNSET);
            c.segment(true, ACK, b"x HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(c.segment(false, ACK, OK).0.verdict, REFUSED, "{answered}");
            let apps = c.rig.counters.apps_http1;
            assert_eq!(apps, 1, "counted once");
        }
    }
}

#[test]
fn what_comes_too_early_comes_again() {
    let early = |c: &Connection, rules_at: usize| {
        let mut ahead = Connection::new(c.family, &[], false);
        ahead.sent = c.sent;
        ahead.sent[0] += rules_at as u32;
        ahead.packet(true, ACK, b"x")
    };
    for (rule, verdict) in [
        (guard(), Verdict::Drop(DropReason::TooFarAhead)),
        (by_path("/secret/*", BULK), Verdict::Output),
    ] {
        let mut c = Connection::open(&V4, &[rule]);
        c.say(b"POST /a HTTP/1.1\r\nContent-Length: 999999\r\nHost: a\r\n\r\n");
        let packet = early(&c, WINDOW_BYTES);
        let out = c.rig.run_with(&mut c.whole, &[packet], |_| {}).0.remove(0);
        assert_eq!(out.verdict, verdict);
        let packet = early(&c, WINDOW_BYTES - 1);
        let out = c.rig.run_with(&mut c.whole, &[packet], |_| {}).0.remove(0);
        assert_eq!(out.verdict, Verdict::Output);
    }
}

#[test]
fn two_copies_of_the_same_bytes_that_differ_are_not_believed() {
    for (rule, refused) in [(guard(), true), (by_path("/secret/*", BULK), false)] {
        let mut c = Connection::open(&V4, &[rule]);
        for copy in [&b"a HTTP/1.1\r\n"[..], b"secret/x HTTP"] {
            c.sent[0] = 5;
            c.segment(true, ACK, copy);
        }
        let answer = c.segment(false, ACK, b"").0.verdict;
        assert_eq!(answer, if refused { UNREAD } else { Verdict::Output });
    }
}

#[test]
fn a_connection_joined_later_is_not_refused_for_what_is_not_known() {
    for said in [&b"\x00\x00\x04\x01\x05\x00\x00\x00\x03\x82\x86\xff\x70"[..], b"\x17 Host : a\r\n"]
    {
        let mut c = Connection::new(&V4, &[guard()], false);
        c.segment(true, ACK, b"");
        c.say(said);
        assert_eq!(c.segment(true, ACK, b"x").0.verdict, Verdict::Output);
        assert_eq!(c.rig.counters.flows_unread, 0);
    }
}

#[test]
fn only_flows_that_a_rule_is_for_are_refused() {
    let vip = |vip: &str| vec![vip.parse().expect("an address")];
    let allowed = RuleSpec { vip: vip(V4.backend.0), class: BULK, ..RuleSpec::default() };
    let cases = [
        (vec![RuleSpec { vip: vip(V4.backend.0), ..guard() }], true),
        (vec![RuleSpec { vip: vip("192.0.2.99"), ..guard() }], false),
        (vec![RuleSpec { vip: vip("192.0.2.99"), ..guard() }, guard()], true),
        (vec![allowed.clone(), guard()], false),
        (vec![guard(), allowed], true),
    ];
    for (i, (rules, refused)) in cases.into_iter().enumerate() {
        let mut c = Connection::open(&V4, &rules);
        c.segment(true, ACK, b"GET /a HTTP/1.1\r\nHost : a\r\n\r\n");
        let answer = c.segment(false, ACK, OK).0.verdict;
        assert_eq!(answer, if refused { UNREAD } else { Verdict::Output }, "{i}");
    }
}

#[test]
fn hellos_are_guarded_as_requests_are() {
    let long = [22, 3, 1, 0x40, 0, 1, 0, 0x40, 0];
    let broken = [22, 3, 1, 0, 8, 1, 0, 0, 4, 9, 9, 9, 9];
    for said in [&long[..], &broken] {
        for (rule, refused) in [(by_name(ClassId::RESET), true), (guard(), false)] {
            let mut c = Connection::open(&V4, &[rule]);
            c.segment(true, ACK, said);
            let answer = c.segment(false, ACK, b"").0.verdict;
            assert_eq!(answer, if refused { UNREAD } else { Verdict::Output });
        }
    }
    let mut c = Connection::open(&V4, &[by_name(ClassId::RESET)]);
    c.say(&hello("a.example.net")[..40]);
    stall(&mut c);
    c.segment(true, ACK, b"");
    assert_eq!(c.segment(false, ACK, b"").0.verdict, UNREAD);
}
