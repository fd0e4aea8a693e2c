//! Connections as scripts: who sends which records when, and what is heard of it.

use proptest::prelude::*;

use super::*;
use Direction::{Forward, Reply};

const MS: u64 = 1_000_000;

/// Both streams of a connection as segments, in the order of time.
#[derive(Clone, Default)]
struct Script {
    segments: Vec<(Direction, u64, u32, Vec<u8>)>,
    next: [u32; 2],
}

impl Script {
    fn new() -> Script {
        Script { segments: Vec::new(), next: [u32::MAX - 100, 5] }
    }

    fn send(mut self, at_ms: u64, direction: Direction, bytes: &[u8]) -> Script {
        let next = &mut self.next[direction as usize];
        self.segments.push((direction, at_ms * MS, *next, bytes.to_vec()));
        *next = next.wrapping_add(bytes.len() as u32);
        self
    }

    fn heard(&self) -> Vec<Heard> {
        hear(self.segments.iter().map(|(d, at, seq, bytes)| (*d, *at, *seq, &bytes[..])))
    }
}

fn hear<'a>(segments: impl Iterator<Item = (Direction, u64, u32, &'a [u8])>) -> Vec<Heard> {
    let mut timer: Option<AnswerTimer> = None;
    let mut heard = Vec::new();
    for (direction, at, seq, bytes) in segments {
        if timer.is_none() {
            timer = AnswerTimer::begin(7, direction, Nanos(at), bytes);
        }
        let Some(timer) = &mut timer else { continue };
        match timer.feed(direction, Nanos(at), seq, bytes) {
            Heard::Nothing => {}
            told => heard.push(told),
        }
    }
    heard
}

fn record(kind: u8, len: u16) -> Vec<u8> {
    [&[kind, 3, 3][..], &len.to_be_bytes(), &vec![0x17; usize::from(len)]].concat()
}

fn data(len: u16) -> Vec<u8> {
    record(record::APPLICATION_DATA, len)
}

/// TLS 1.3 up to the tickets, which OpenSSL sends in answer to the Finished.
fn handshake() -> Script {
    Script::new()
        .send(100, Forward, &record(record::HANDSHAKE, 512))
        .send(104, Reply, &[record(record::HANDSHAKE, 122), record(20, 1), data(27)].concat())
        .send(105, Reply, &[data(900), data(69)].concat())
        .send(110, Forward, &[record(20, 1), data(69)].concat())
}

/// An answer whose records come at these times.
fn answer(script: Script, times: &[u64]) -> Script {
    times.iter().fold(script, |s, at| s.send(*at, Reply, &data(180)))
}

#[test]
fn an_answer_is_timed_from_the_requests_last_bytes() {
    let script = handshake().send(111, Forward, &data(300)).send(
        113,
        Reply,
        &[data(234), data(234)].concat(),
    );
    assert_eq!(script.heard(), [], "tickets are no answer");
    let script = script.send(120, Forward, &data(2_000)).send(125, Reply, &data(26));
    let heard = answer(script, &[300, 320, 345]).heard();
    assert_eq!(heard, [Heard::First(180 * MS), Heard::Next(20 * MS), Heard::Next(25 * MS)]);
}

#[test]
fn tickets_of_a_busy_server_are_no_answer_either() {
    let script = handshake().send(110, Forward, &data(300)).send(119, Reply, &data(234));
    assert_eq!(answer(script, &[300]).heard(), [Heard::First(190 * MS)]);
}

#[test]
fn a_long_request_ends_with_its_last_segment() {
    let request = data(9_000);
    let script = handshake()
        .send(120, Forward, &request[..4_000])
        .send(150, Forward, &request[4_000..])
        .send(152, Forward, &data(30));
    assert_eq!(answer(script, &[250]).heard(), [Heard::First(100 * MS)]);
}

#[test]
fn the_next_request_begins_anew_and_control_frames_do_not() {
    let script = answer(handshake().send(120, Forward, &data(300)), &[200, 210]);
    let script = script.send(215, Forward, &data(43)).send(216, Reply, &data(30));
    let script = answer(script, &[220]).send(400, Forward, &data(300));
    let heard = answer(script, &[450, 460]).heard();
    let wanted = [80, 10, 10, 50, 10].map(|ms| ms * MS);
    let [a, b, c, d, e] = wanted;
    let wanted = [Heard::First(a), Heard::Next(b), Heard::Next(c), Heard::First(d), Heard::Next(e)];
    assert_eq!(heard, wanted);
}

#[test]
fn records_of_one_moment_are_one_and_a_long_silence_ends_an_answer() {
    let script = handshake().send(120, Forward, &data(300));
    let script = script.send(200, Reply, &[data(100), data(100), data(100)].concat());
    let script = answer(script, &[200, 230, 230 + 61_000, 230 + 61_001]);
    assert_eq!(script.heard(), [Heard::First(80 * MS), Heard::Next(30 * MS)]);
}

#[test]
fn duplicates_reorder_and_loss_within_records_do_no_harm() {
    let script = handshake().send(120, Forward, &data(300));
    let long = data(8_000);
    let script = script.send(200, Reply, &long[..1_000]).send(201, Reply, &long[1_000..5_000]);
    let script = answer(script.send(202, Reply, &long[5_000..]), &[230, 250]);
    let whole = [Heard::First(80 * MS), Heard::Next(30 * MS), Heard::Next(20 * MS)];
    assert_eq!(script.heard(), whole);
    let mut twice = script.clone();
    let again = twice.segments[twice.segments.len() - 2].clone();
    twice.segments.push((again.0, 260 * MS, again.2, again.3));
    assert_eq!(twice.heard(), whole, "sent again");
    let mut lossy = script.clone();
    let middle = lossy.segments.len() - 4;
    let lost = lossy.segments.remove(middle);
    assert_eq!(lossy.heard(), whole, "the middle of a record lost");
    lossy.segments.push((lost.0, 270 * MS, lost.2, lost.3));
    assert_eq!(lossy.heard(), whole, "and sent again");
}

#[test]
fn after_a_missed_header_the_next_one_that_begins_a_segment_counts() {
    let script = answer(handshake().send(120, Forward, &data(300)), &[200, 210, 220, 230]);
    let mut lossy = script.clone();
    let second = lossy.segments.len() - 3;
    lossy.segments.remove(second);
    let wanted = [Heard::First(80 * MS), Heard::Next(20 * MS), Heard::Next(10 * MS)];
    assert_eq!(lossy.heard(), wanted);
    let joined = Script { segments: script.segments[4..].to_vec(), next: [0; 2] };
    assert_eq!(joined.heard(), script.heard(), "the handshake was not seen");
}

#[test]
fn tls_1_2_has_no_sealed_handshake() {
    let script = Script::new()
        .send(0, Forward, &record(record::HANDSHAKE, 300))
        .send(1, Reply, &record(record::HANDSHAKE, 3_000))
        .send(2, Forward, &[record(22, 70), record(20, 1), record(22, 40)].concat())
        .send(3, Reply, &[record(20, 1), record(22, 40)].concat())
        .send(10, Forward, &data(300));
    assert_eq!(answer(script, &[11, 15]).heard(), [Heard::First(MS), Heard::Next(4 * MS)]);
}

#[test]
fn clear_text_is_timed_likewise() {
    let script = Script::new()
        .send(1, Forward, b"POST /v1/chat/completions HTTP/1.1\r\n\r\n")
        .send(3, Forward, b"{}")
        .send(50, Reply, b"HTTP/1.1 200 OK\r\n\r\n")
        .send(60, Reply, b"data: {}\n\n");
    assert_eq!(script.heard(), [Heard::First(47 * MS), Heard::Next(10 * MS)]);

    let frame = |kind: u8, len: usize| {
        [&[0, 0, len as u8, kind, 0, 0, 0, 0, 1][..], &vec![7; len]].concat()
    };
    let script = Script::new()
        .send(1, Forward, HTTP2_PREFACE)
        .send(1, Forward, &frame(4, 12))
        .send(2, Reply, &[frame(4, 0), frame(8, 4)].concat())
        .send(5, Forward, &frame(1, 40))
        .send(6, Reply, &frame(4, 0))
        .send(6, Forward, &frame(0, 100))
        .send(8, Forward, &frame(8, 4))
        .send(30, Reply, &[frame(6, 8), frame(1, 20)].concat())
        .send(45, Reply, &frame(0, 30))
        .send(47, Reply, &frame(6, 8));
    assert_eq!(script.heard(), [Heard::First(24 * MS), Heard::Next(15 * MS)]);
}

#[test]
fn other_streams_are_not_timed() {
    for bytes in [&b"SSH-2.0-OpenSSH\r\n"[..], b"\x16\x02", b"\x17\x03\x03\xff\xff", b"get / "] {
        assert!(AnswerTimer::begin(7, Forward, Nanos(1), bytes).is_none(), "{bytes:?}");
    }
    assert!(AnswerTimer::begin(7, Reply, Nanos(1), b"GET / HTTP/1.1").is_none());
}

proptest! {
    /// However records are cut into segments, those of one moment tell the same.
    #[test]
    fn cuts_change_nothing(cuts in prop::collection::vec(1..1_500usize, 1..40)) {
        let script = handshake().send(120, Forward, &data(3_000));
        let script = answer(script, &[300, 320, 345]).send(346, Forward, &data(500));
        let script = answer(script, &[400, 401]);
        let mut lengths = cuts.iter().cycle();
        let mut cut = Vec::new();
        for (direction, at, seq, bytes) in &script.segments {
            let (mut seq, mut rest) = (*seq, &bytes[..]);
            while !rest.is_empty() {
                let n = (*lengths.next().expect("endless")).min(rest.len());
                cut.push((*direction, *at, seq, &rest[..n]));
                (seq, rest) = (seq.wrapping_add(n as u32), &rest[n..]);
            }
        }
        // The first segment of each side has to show what it is.
        for side in [Forward, Reply] {
            let first = cut.iter().find(|c| c.0 == side).map_or(0, |c| c.3.len());
            prop_assume!(first >= TLS_HEADER_BYTES);
        }
        prop_assert_eq!(hear(cut.into_iter()), script.heard());
    }

    #[test]
    fn any_bytes_do(segments in prop::collection::vec(
        (any::<bool>(), 0..50u64, any::<u16>(), prop::collection::vec(0..24u8, 0..40)), 1..60,
    )) {
        let mut timer = None;
        let mut now = 0;
        for (reply, ms, seq, bytes) in segments {
            now += ms * MS;
            let direction = if reply { Reply } else { Forward };
            if timer.is_none() {
                timer = AnswerTimer::begin(7, direction, Nanos(now), &bytes);
            }
            if let Some(timer) = &mut timer {
                timer.feed(direction, Nanos(now), u32::from(seq) << 8, &bytes);
            }
        }
    }
}
