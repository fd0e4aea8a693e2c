//! What a QUIC client says first: the vectors of the RFCs, hellos over many frames, packets and
//! datagrams in any order, new beginnings, and what is refused.

#[path = "fuzz/targets/client_hello.rs"]
mod client_hello;
#[allow(dead_code, reason = "shared with other tests")]
mod quic_support;

use proptest::prelude::*;
use tidegate::base::Seed;
use tidegate::base::hash::Rng;
use tidegate::flow::reassembly::WINDOW_PAGES;
use tidegate::inspect::Peek;
use tidegate::inspect::quic::{
    DATAGRAMS_MAX, Failure, Proof, STRANGERS_MAX, UNDECRYPTABLE_MAX, may_be_quic,
};
use tidegate::inspect::tls;

use client_hello::ClientHello;
use quic_support::{Client, DRAFT_29, Initial, V1, V2, crypto, hex};

const CID: &[u8] = &[0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];

/// A hello's handshake message.
fn hello(name: &str, padding: u16) -> Vec<u8> {
    let hello = ClientHello {
        name: Some(name.as_bytes()),
        protocols: &[b"h3"],
        padding,
        record_len: usize::MAX,
    };
    hello.bytes()[5..].to_vec()
}

/// With PADDING up to the size that clients must send.
fn padded(mut frames: Vec<u8>) -> Vec<u8> {
    frames.resize(frames.len().max(1_150), 0);
    frames
}

fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut rng = Rng::new(Seed(seed));
    for i in (1..items.len()).rev() {
        items.swap(i, rng.below(i as u32 + 1) as usize);
    }
}

/// The hello cut at these places, as frames.
fn pieces(message: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
    let mut ends: Vec<usize> = cuts.iter().map(|c| c % message.len()).collect();
    ends.extend([0, message.len()]);
    ends.sort_unstable();
    ends.dedup();
    ends.windows(2).map(|w| crypto(w[0], &message[w[0]..w[1]])).collect()
}

/// The hello in packets of a datagram each, in order.
fn packets(first: &Initial<'_>, message: &[u8], piece: usize) -> Vec<Vec<u8>> {
    let part = |(i, bytes): (usize, &[u8])| {
        let packet = Initial { number: first.number + i as u32, ..first.clone() };
        packet.seal(&padded(crypto(i * piece, bytes)))
    };
    message.chunks(piece).enumerate().map(part).collect()
}

/// RFC 9001 appendix A.2 and RFC 9369 appendix A.2: the same frame, and both ends of the packets.
/// The tag depends on all bytes, so a packet that ends alike is the same.
#[test]
fn packets_of_the_rfcs_are_read() {
    let frame =
        hex("060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e86804fe3a47f06a2b69
        484c00000413011302010000c000000010000e00000b6578616d706c652e636f6dff01000100000a0008000600
        1d0017001800100007000504616c706e000500050100000000003300260024001d00209370b2c9caa47fbabaf4
        559fedba753de171fa71f50f1ce15d43e994ec74d748002b0003020304000d0010000e04030503060302030804
        08050806002d00020101001c00024001003900320408ffffffffffffffff05048000ffff07048000ffff080110
        0104800075300901100f088394c8f03e51570806048000ffff");
    let frames = [frame, vec![0; 917]].concat();
    let cases = [
        (
            V1,
            "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11",
            "e221af44860018ab0856972e194cd934",
        ),
        (
            V2,
            "d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485",
            "a18b2faa745b6fe189cf772a9f84cbfc",
        ),
    ];
    for (version, begin, end) in cases {
        let rfc = Initial { number: 2, number_len: 4, scid: &[], ..Initial::new(version, CID) };
        let packet = rfc.seal(&frames);
        assert_eq!(packet.len(), 1_200);
        assert!(packet.starts_with(&hex(begin)) && packet.ends_with(&hex(end)), "{version:x}");
        let mut client = Client::new();
        assert!(may_be_quic(&packet));
        assert_eq!(client.sends(&packet), Peek::Found(()));
        assert_eq!(client.name(), Some("example.com"));
        assert_eq!(client.hello.alpn().iter().collect::<Vec<_>>(), [b"alpn"]);
        assert_eq!(client.hello.versions(), [0x0304]);
        let reader = &client.reader;
        assert_eq!((reader.version(), reader.proof()), (Some(version), Proof::Tag));
        assert_eq!((reader.initials(), reader.crypto_frames()), (1, 1));
        assert_eq!(client.sends(&[]), Peek::Found(()), "it stays so");
    }
}

#[test]
fn ids_numbers_and_tokens_of_every_length() {
    let message = hello("api.openai.com", 0);
    let cids: Vec<Vec<u8>> = (0..=20).map(|len| vec![0xc1; len]).collect();
    for (i, cid) in cids.iter().enumerate() {
        for number_len in 1..=4 {
            let packet = Initial {
                scid: &cids[20 - i],
                token: &vec![7; i * 37],
                number: i as u32,
                number_len,
                ..Initial::new(DRAFT_29, cid)
            };
            let mut client = Client::new();
            assert_eq!(client.sends(&packet.seal(&padded(crypto(0, &message)))), Peek::Found(()));
            assert_eq!(client.name(), Some("api.openai.com"));
        }
    }
}

#[test]
fn numbers_are_completed_from_those_before() {
    let message = hello("numbers.example.com", 1_300);
    let (first, second) = message.split_at(1_000);
    for (one, two) in [(250, 260), (260, 250), (0, 120), (0x1_02f0, 0x1_0310)] {
        let mut client = Client::new();
        let number_len = if one > 260 { 4 } else { 1 + usize::from(one > 255) };
        let start = Initial { number: one, number_len, ..Initial::new(V1, CID) };
        assert_eq!(client.sends(&start.seal(&padded(crypto(0, first)))), Peek::NeedMore);
        let next = Initial { number: two, number_len: 1, ..start };
        assert_eq!(client.sends(&next.seal(&padded(crypto(1_000, second)))), Peek::Found(()));
    }
}

#[test]
fn cut_at_every_byte_over_two_datagrams_in_both_orders() {
    let message = hello("api.anthropic.com", 0);
    for cut in 1..message.len() {
        let parts = [crypto(0, &message[..cut]), crypto(cut, &message[cut..])];
        let seal = |i: usize| {
            let packet = Initial { number: i as u32, ..Initial::new(V1, CID) };
            packet.seal(&padded(parts[i].clone()))
        };
        for order in [[0, 1], [1, 0]] {
            let mut client = Client::new();
            assert_eq!(client.sends(&seal(order[0])), Peek::NeedMore, "cut at {cut}");
            assert_eq!(client.name(), None);
            assert_eq!(client.sends(&seal(order[1])), Peek::Found(()), "cut at {cut}");
            assert_eq!(client.name(), Some("api.anthropic.com"));
            assert_eq!(client.reader.initials(), 2);
        }
    }
}

#[test]
fn any_changed_bit_gives_nothing() {
    let message = hello("api.mistral.ai", 0);
    for version in [V1, V2] {
        let good = Initial::new(version, CID).seal(&crypto(0, &message));
        for bit in 0..8 * good.len() {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let mut client = Client::new();
            assert_eq!(client.sends(&bad), Peek::NeedMore, "bit {bit} of version {version:x}");
            assert_eq!((client.name(), client.reader.initials()), (None, 0), "bit {bit}");
            // Nor does it harm the real one.
            assert_eq!(client.sends(&good), Peek::Found(()), "bit {bit}");
        }
    }
}

#[test]
fn hellos_of_many_packets() {
    for (padding, piece) in [(1_300, 1_000), (15_000, 1_000), (40_000, 980), (1_300, 30)] {
        let message = hello("large.example.com", padding);
        let all = packets(&Initial::new(V2, CID), &message, piece);
        for seed in 0..5 {
            let mut order: Vec<&Vec<u8>> = all.iter().chain(&all[all.len() / 2..]).collect();
            if seed > 0 {
                shuffle(&mut order, seed);
            }
            let mut client = Client::new();
            let peeks: Vec<_> = order.iter().map(|p| client.sends(p)).collect();
            assert!(peeks.contains(&Peek::Found(())), "{padding} B, seed {seed}");
            assert_eq!(client.name(), Some("large.example.com"));
            client.reassembler.close(0);
            assert_eq!(client.reassembler.pages_free(), WINDOW_PAGES);
        }
    }
}

#[test]
fn early_data_and_other_packets_of_the_datagram_are_passed_over() {
    let message = hello("early.example.com", 0);
    let long = |code: u8| {
        let mut p = vec![0xc0 | code << 4, 0, 0, 0, 1, 8];
        p.extend([CID, &[0], &[0x40, 0x64], &[0xee; 100]].concat());
        p
    };
    let initial = Initial::new(V1, CID).seal(&padded(crypto(0, &message)));
    let mut client = Client::new();
    assert_eq!(client.sends(&long(1)), Peek::NeedMore);
    assert_eq!(client.reader.proof(), Proof::Header);
    let coalesced = [long(1), long(2), initial.clone(), vec![0x40; 20]].concat();
    assert_eq!(client.sends(&coalesced), Peek::Found(()));
    // Behind a packet for another connection there is none for this one.
    let mut stranger = long(1);
    stranger[6] ^= 1;
    let mut client = Client::new();
    assert_eq!(client.sends(&[stranger, initial].concat()), Peek::NeedMore);
}

#[test]
fn the_servers_id_takes_over_and_is_told() {
    let message = hello("moved.example.com", 1_300);
    let (first, second) = message.split_at(1_000);
    let mut client = Client::new();
    let start = Initial { scid: b"client", ..Initial::new(V1, CID) };
    assert_eq!(client.sends(&start.seal(&padded(crypto(0, first)))), Peek::NeedMore);
    let answer = |dcid: &'static [u8], scid: &'static [u8]| {
        let packet = Initial { dcid, scid, from_client: false, ..Initial::new(V1, CID) };
        packet.seal(&padded(vec![2, 0, 0, 0, 0]))
    };
    client.gets(&answer(b"another", b"wrong"));
    assert_eq!(client.reader.server_cid(), None, "an answer to someone else");
    client.gets(&answer(b"client", b"server"));
    client.gets(&answer(b"client", b"later"));
    assert_eq!(client.reader.server_cid(), Some(&b"server"[..]));
    let moved = Initial { dcid: b"server", number: 1, ..start };
    assert_eq!(client.sends(&moved.seal(&padded(crypto(1_000, second)))), Peek::Found(()));
    assert_eq!(client.name(), Some("moved.example.com"));
}

#[test]
fn a_servers_packets_are_not_taken_for_a_clients() {
    let message = hello("server.example.com", 0);
    let server = Initial { from_client: false, ..Initial::new(V1, CID) };
    let mut client = Client::new();
    assert_eq!(client.sends(&server.seal(&padded(crypto(0, &message)))), Peek::NeedMore);
    assert_eq!((client.name(), client.reader.proof()), (None, Proof::Header));
}

#[test]
fn after_retry_the_hello_is_read_from_its_start() {
    let message = hello("retry.example.com", 1_300);
    for seen in [1, 2] {
        let before = packets(&Initial::new(V1, CID), &message, 1_000);
        let anew = Initial { number: 2, token: b"token", ..Initial::new(V1, b"retry-cid") };
        let after = packets(&anew, &message, 900);
        let mut client = Client::new();
        assert_eq!(client.sends(&before[2 - seen]), Peek::NeedMore);
        let retry = [&[0xf0, 0, 0, 0, 1, 2][..], b"me\x09retry-cidtoken", &[0; 16]].concat();
        assert_eq!(client.gets(&retry), Peek::NeedMore);
        assert_eq!(client.sends(&after[0]), Peek::NeedMore);
        assert_eq!(client.sends(&before[seen - 1]), Peek::NeedMore, "late, and of no use");
        assert_eq!(client.sends(&after[1]), Peek::Found(()));
        assert_eq!(client.name(), Some("retry.example.com"));
        assert_eq!((client.reader.initials(), client.reader.crypto_frames()), (2, 2));
    }
}

#[test]
fn hellos_of_two_connections_are_not_mixed() {
    let (one, two) = (hello("one.example.com", 1_300), hello("two.example.org", 1_300));
    let one = packets(&Initial::new(V1, CID), &one, 1_000);
    let two = packets(&Initial::new(V2, b"other-id"), &two, 1_000);
    let mut client = Client::new();
    for packet in [&one[0], &two[1], &one[1]] {
        assert_eq!(client.sends(packet), Peek::NeedMore);
    }
    assert_eq!(client.sends(&two[0]), Peek::Found(()));
    assert_eq!(client.name(), Some("two.example.org"));
    assert_eq!(client.reader.version(), Some(V2));
}

#[test]
fn the_version_may_change_within_a_connection() {
    let message = hello("both.example.com", 1_300);
    let first = packets(&Initial::new(V1, CID), &message, 1_000);
    let changed = Initial { dcid: b"server", key_cid: CID, ..Initial::new(V2, CID) };
    let second = packets(&changed, &message, 1_000);
    let mut client = Client::new();
    assert_eq!(client.sends(&first[0]), Peek::NeedMore);
    assert_eq!(client.sends(&second[1]), Peek::Found(()));
    assert_eq!(client.name(), Some("both.example.com"));
    assert_eq!(client.reader.version(), Some(V1), "that of the first packet");
}

#[test]
fn version_negotiation_begins_anew() {
    let message = hello("negotiated.example.com", 0);
    let mut unknown = Initial::new(V1, b"first-id").seal(&padded(crypto(0, &message)));
    unknown[1..5].copy_from_slice(&[0x1a, 0x2a, 0x3a, 0x4a]);
    let mut client = Client::new();
    assert_eq!(client.sends(&unknown), Peek::NeedMore);
    assert_eq!((client.reader.proof(), client.reader.version()), (Proof::Header, None));
    let versions = [&[0x80, 0, 0, 0, 0, 2][..], b"me\x08first-id", &[0, 0, 0, 1]].concat();
    assert_eq!(client.gets(&versions), Peek::NeedMore);
    assert!(!may_be_quic(&versions), "no client begins so");
    let packet = Initial::new(V1, CID).seal(&padded(crypto(0, &message)));
    assert_eq!(client.sends(&packet), Peek::Found(()));
    assert_eq!(client.name(), Some("negotiated.example.com"));
}

#[test]
fn limits_hold_and_say_why() {
    let frames = padded(crypto(0, &hello("never.example.com", 0)[..50]));
    let repeat = |payload: &[u8], count: u16| {
        let mut client = Client::new();
        for _ in 1..count {
            assert_eq!(client.sends(payload), Peek::NeedMore);
        }
        assert_eq!(client.sends(payload), Peek::NotThis);
        assert_eq!(client.sends(payload), Peek::NotThis, "it stays so");
        (client.reader.failure().expect("a reason"), client.reader.proof())
    };
    assert_eq!(repeat(b"\0\x01\0\0STUN?", STRANGERS_MAX), (Failure::NotQuic, Proof::None));
    let good = Initial::new(V1, CID).seal(&frames);
    assert_eq!(repeat(&good, DATAGRAMS_MAX), (Failure::TooLong, Proof::Tag));
    let mut bad = good.clone();
    bad[900] ^= 1;
    let (failure, proof) = repeat(&bad, UNDECRYPTABLE_MAX);
    assert_eq!((failure, proof), (Failure::Undecryptable, Proof::Header));
    let google = [&[0xc3][..], b"Q046", &[8], CID, &[0], &[0; 1_000]].concat();
    assert_eq!(repeat(&google, UNDECRYPTABLE_MAX), (Failure::Undecryptable, Proof::Header));
}

#[test]
fn packets_that_no_client_may_send_are_refused() {
    let message = hello("bad.example.com", 0);
    let refused = |frames: Vec<u8>| {
        let mut client = Client::new();
        let peek = client.sends(&Initial::new(V1, CID).seal(&frames));
        assert_eq!((peek, client.name()), (Peek::NotThis, None));
        (client.reader.failure(), client.hello.failure())
    };
    let stream = [vec![8, 0, 1, b'x'], crypto(0, &message)].concat();
    assert_eq!(refused(stream), (Some(Failure::Malformed), None));
    let cut = crypto(0, &message)[..80].to_vec();
    assert_eq!(refused(cut), (Some(Failure::Malformed), None));
    let mut server_hello = message.clone();
    server_hello[0] = 2;
    let want = (Some(Failure::Hello), Some(tls::Failure::NotTls));
    assert_eq!(refused(crypto(0, &server_hello)), want);
    // Far beyond any hello: passed over, and the hello is read all the same.
    let far = [crypto(1 << 40, b"far"), crypto(70_000, b"far"), crypto(0, &message)].concat();
    assert_eq!(Client::new().sends(&Initial::new(V1, CID).seal(&far)), Peek::Found(()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Frames cut anywhere, some twice, some overlapping, in any order and any packets, coalesced
    /// or not: the same answer.
    #[test]
    fn any_cut_and_order_says_the_same(
        padding in 0u16..3_000,
        cuts in prop::collection::vec(0usize..5_000, 0..60),
        extra in prop::collection::vec((0usize..5_000, 1usize..400), 0..8),
        per_packet in 1usize..20,
        coalesced in 1usize..4,
        seed in any::<u64>(),
        version in prop::sample::select(vec![V1, V2, DRAFT_29]),
    ) {
        let message = hello("any.example.com", padding);
        let mut frames = pieces(&message, &cuts);
        for (from, len) in extra {
            let from = from % message.len();
            frames.push(crypto(from, &message[from..(from + len).min(message.len())]));
        }
        shuffle(&mut frames, seed);
        let seal = |(i, frames): (usize, &[Vec<u8>])| {
            let mut payload = vec![1, 0, 0];
            payload.extend(frames.concat());
            payload.extend([2, 0, 0, 0, 0]);
            Initial { number: i as u32, ..Initial::new(version, CID) }.seal(&payload)
        };
        let mut all: Vec<Vec<u8>> = frames.chunks(per_packet).enumerate().map(seal).collect();
        shuffle(&mut all, seed ^ 1);
        let mut client = Client::new();
        let mut found = false;
        for datagram in all.chunks(coalesced) {
            found = client.sends(&datagram.concat()) == Peek::Found(());
        }
        prop_assert!(found);
        prop_assert_eq!(client.name(), Some("any.example.com"));
        prop_assert_eq!(client.hello.alpn().wire(), b"\x02h3");
        prop_assert!(client.hello.post_quantum() && client.hello.grease());
        prop_assert_eq!(client.reader.version(), Some(version));
    }

    #[test]
    fn frames_of_noise_never_panic_and_lose_no_page(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 4..80), 1..12),
    ) {
        let mut client = Client::new();
        for payload in &payloads {
            client.sends(&Initial::new(V1, CID).seal(&[&[6], &payload[..]].concat()));
            client.sends(payload);
            client.gets(payload);
        }
        client.reassembler.close(0);
        prop_assert_eq!(client.reassembler.pages_free(), WINDOW_PAGES);
    }
}
