//! Golden segments and properties of the translation.

use proptest::prelude::*;

use super::*;
use crate::base::Addr;
use crate::packet::build::{TcpSpec, tcp_packet};
use crate::packet::{eth, ipv4};

const CLIENT: Addr = Addr::v4(0x0a00_0001);
const SERVER: Addr = Addr::v4(0x0a00_0002);

/// A segment with its checksum.
fn segment(seq: u32, ack: u32, flags: u8, window: u16, options: &[u8]) -> Vec<u8> {
    let mut spec = TcpSpec::new((CLIENT, 40_000), (SERVER, 443), flags, b"odd");
    (spec.seq, spec.ack, spec.window) = (seq, ack, window);
    spec.options = options.to_vec();
    tcp_packet(&spec).split_off(eth::HEADER_LEN + ipv4::HEADER_LEN)
}

fn is_intact(segment: &[u8]) -> bool {
    tcp::View::new_checked(segment).expect("a segment").checksum_ok(CLIENT, SERVER)
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_be_bytes()).collect()
}

fn stamps(value: u32, echo: u32) -> Vec<u8> {
    [&[1, 1, 8, 10][..], &words(&[value, echo])].concat()
}

const BETWEEN: Translation = Translation {
    sequence: 1_000,
    stamp: 50,
    first_stamp: 400,
    early_echoes: true,
    window_to_client: -2,
    window_to_server: 3,
};

#[test]
fn what_the_server_counts_is_translated() {
    let mut got = segment(u32::MAX - 99, 77, flag::ACK, 403, &stamps(u32::MAX - 9, 6));
    BETWEEN.to_client(&mut got);
    assert_eq!(got, segment(900, 77, flag::ACK, 100, &stamps(40, 6)), "across both wraps");

    let sack = |a: u32, b: u32| [&[1, 1, 5, 18][..], &words(&[a, b, a + 10, b + 10])].concat();
    let before = [stamps(9, 500), sack(1_200, 1_300)].concat();
    let mut got = segment(5, 1_100, flag::ACK, 100, &before);
    let mut between = BETWEEN;
    between.to_server(&mut got);
    let after = [stamps(9, 450), sack(200, 300)].concat();
    assert_eq!(got, segment(5, 100, flag::ACK, 800, &after));
}

#[test]
fn a_syn_has_no_scaled_window_and_no_acknowledgement() {
    let mut between = BETWEEN;
    let mut got = segment(5, 0, flag::SYN, 9_000, &[]);
    between.to_server(&mut got);
    assert_eq!(got, segment(5, 0, flag::SYN, 9_000, &[]));
    let mut got = segment(5, 0, flag::RST, 9_000, &[]);
    between.to_server(&mut got);
    assert_eq!(u32_at(&got, offset::ACKNOWLEDGMENT), 0);
}

#[test]
fn echoes_from_before_the_server_are_never_seen_by_it() {
    let mut between = BETWEEN;
    let mut echo = |echo: u32| {
        let mut got = segment(5, 9, flag::ACK, 1, &stamps(1, echo));
        between.to_server(&mut got);
        assert!(is_intact(&got));
        super::super::options::stamps_of(&got[tcp::HEADER_LEN..]).expect("stamps").echo
    };
    assert_eq!(echo(440), 400, "before the server's first");
    assert_eq!(echo(460), 410);
    assert_eq!(echo(445), 400, "late");
    assert_eq!(echo(460 + (1 << 21)), 410 + (1 << 21));
    assert_eq!(echo(400 + (1 << 31)), 350 + (1 << 31), "half a circle on nothing is early");
}

#[test]
fn blocks_are_translated_wherever_they_stand() {
    let between = Translation { sequence: 1_000, ..Translation::default() };
    let blocks = |a, b| [&[5, 10][..], &words(&[a, b])].concat();
    let layouts: [fn(Vec<u8>) -> Vec<u8>; 3] = [
        |sack| [sack, vec![1, 1]].concat(),
        |sack| [vec![1, 1], sack].concat(),
        |sack| [vec![1], sack, vec![1]].concat(),
    ];
    for layout in layouts {
        let mut got = segment(5, 9_000, flag::ACK, 1, &layout(blocks(9_100, 9_200)));
        { between }.to_server(&mut got);
        assert_eq!(got, segment(5, 8_000, flag::ACK, 1, &layout(blocks(8_100, 8_200))));
    }
}

#[test]
fn windows_are_cut_to_their_field() {
    for (window, shift, want) in [
        (100, 0, 100),
        (100, 3, 800),
        (60_000, 3, u16::MAX),
        (7, -3, 0),
        (65_535, -14, 3),
        (1, 14, 16_384),
        (4, 14, u16::MAX),
    ] {
        assert_eq!(rescale(window, shift), want, "{window} by {shift}");
    }
}

#[test]
fn while_replaying_the_client_hears_what_it_was_told_before() {
    let sack = [&[1, 1, 5, 10][..], &words(&[7, 9])].concat();
    let mut got = segment(5, 50, flag::ACK, 100, &[stamps(1, 2), sack].concat());
    acknowledge(&mut got, 90, 33);
    let blank = [stamps(1, 2), vec![1; 12]].concat();
    assert_eq!(got, segment(5, 90, flag::ACK, 33, &blank));
}

fn any_options() -> impl Strategy<Value = Vec<u8>> {
    let option = prop_oneof![
        Just(vec![1]),
        any::<(u32, u32)>().prop_map(|(a, b)| [&[8, 10][..], &words(&[a, b])].concat()),
        any::<(u32, u32)>().prop_map(|(a, b)| [&[5, 10][..], &words(&[a, b])].concat()),
        Just(vec![3, 3, 7]),
        prop::collection::vec(any::<u8>(), 1..8),
    ];
    prop::collection::vec(option, 0..4).prop_map(|all| {
        let mut all = all.concat();
        all.truncate(40);
        all.resize(all.len().next_multiple_of(4), 1);
        all
    })
}

proptest! {
    /// There and back again; and whatever the options look like, the checksum stays true.
    #[test]
    fn translations_are_undone_and_sums_stay_true(
        (seq, ack, window) in any::<(u32, u32, u16)>(),
        (sequence, stamp) in any::<(u32, u32)>(),
        options in any_options(),
    ) {
        let mut between = Translation { sequence, stamp, ..Translation::default() };
        let whole = segment(seq, ack, flag::ACK, window, &options);
        let mut got = whole.clone();
        between.to_server(&mut got);
        prop_assert!(is_intact(&got));
        let mut back = Translation {
            sequence: sequence.wrapping_neg(),
            stamp: stamp.wrapping_neg(),
            ..Translation::default()
        };
        back.to_server(&mut got);
        prop_assert_eq!(&got, &whole);
        between.to_client(&mut got);
        prop_assert!(is_intact(&got));
        let inverse =
            Translation { sequence: back.sequence, stamp: back.stamp, ..Translation::default() };
        inverse.to_client(&mut got);
        prop_assert_eq!(&got, &whole);
        acknowledge(&mut got, 5, 6);
        prop_assert!(is_intact(&got));
    }

    #[test]
    fn nothing_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let mut between = BETWEEN;
        between.to_client(&mut bytes);
        between.to_server(&mut bytes);
        acknowledge(&mut bytes, 1, 2);
    }
}
