//! The parser on any bytes, whole and cut off everywhere.

use tidegate::packet::icmp::quoted;
use tidegate::packet::{
    DropReason, PacketFlags, PacketMeta, ParseOptions, arp, complete_checksum, eth, icmp, ipv4,
    ipv6, parse, tcp, udp,
};

use super::setup::SEED;

/// Longer ones are cut off at fewer places.
const EVERY_BYTE_UP_TO: usize = 256;

/// Input: a frame.
pub fn run(frame: &[u8]) {
    let lax = read(frame, false);
    let strict = read(frame, true);
    match (&lax, &strict) {
        (_, Err(DropReason::BadTransportChecksum)) => assert!(lax.is_ok(), "{lax:?}"),
        _ => assert_eq!(lax, strict),
    }
    views(frame);
    if let Ok(meta) = &lax {
        check(frame, meta);
    }
    let step = 1 + frame.len() / EVERY_BYTE_UP_TO;
    for cut in (0..frame.len()).step_by(step) {
        match (&lax, read(&frame[..cut], false)) {
            (_, Err(_)) => {}
            (Ok(meta), Ok(short)) if cut >= usize::from(meta.end) => assert_eq!(short, *meta),
            (whole, short) => panic!("{cut} bytes: {short:?}, all: {whole:?}"),
        }
    }
}

fn read(frame: &[u8], verify_transport_checksum: bool) -> Result<PacketMeta, DropReason> {
    let mut meta = PacketMeta::default();
    let options = ParseOptions { verify_transport_checksum };
    parse(frame, SEED, options, &mut meta).map(|()| meta)
}

fn check(frame: &[u8], meta: &PacketMeta) {
    let at = [meta.l3, meta.l4, meta.payload, meta.end];
    assert!(at.is_sorted() && usize::from(meta.end) <= frame.len(), "{meta:?}");
    assert_eq!(meta.hash, meta.key.hash(SEED));
    assert_eq!(meta.key.src.is_v4(), meta.key.dst.is_v4());
    assert!(meta.ttl > 0);
    if let Some(quote) = quoted(frame, meta) {
        assert!(meta.flags.has(PacketFlags::ICMP_ERROR));
        assert!(quote.l3 <= quote.l4 && usize::from(quote.l4) <= frame.len());
    }
    if meta.flags.has(PacketFlags::PARTIAL_CHECKSUM) {
        let (mut bytes, mut known) = (frame.to_vec(), meta.clone());
        complete_checksum(&mut bytes, &mut known);
        assert!(!known.flags.has(PacketFlags::PARTIAL_CHECKSUM));
        assert!(read(&bytes, true).is_ok(), "the completed sum is wrong");
    }
}

/// Nothing that the views offer may panic on any bytes.
fn views(frame: &[u8]) {
    let _ =
        (eth::Repr::parse(frame), arp::View::new_checked(frame).map(|v| (v.sender(), v.target())));
    for at in [0, eth::HEADER_LEN, eth::HEADER_LEN + eth::TAG_LEN, 34] {
        let bytes = frame.get(at..).unwrap_or_default();
        let _ = ipv4::Repr::parse(bytes);
        let _ = ipv6::Repr::parse(bytes);
        let _ = tcp::Repr::parse(bytes);
        let _ = udp::Repr::parse(bytes);
        let _ = icmp::Repr::parse(bytes);
        let _ = arp::View::new_checked(bytes).map(|v| (v.operation(), v.sender(), v.target()));
        if let Ok(view) = ipv6::View::new_checked(bytes)
            && let Ok(upper) = view.upper()
        {
            assert!(upper.at <= view.payload().len());
        }
    }
}
