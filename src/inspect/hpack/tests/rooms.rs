//! Tables that begin in little room, and get more or none.

use super::*;

fn small() -> Decoder {
    let mut decoder = Decoder::bare(TABLE_BYTES);
    *decoder.room() = Room::small();
    decoder
}

fn lend(decoder: &mut Decoder) {
    if decoder.room().is_small() {
        *decoder.spare() = Some(Room::whole(TABLE_BYTES));
    }
}

proptest! {
    #[test]
    fn what_moves_to_larger_room_stays_known(
        blocks in any_blocks(TABLE_BYTES),
        piece in 1usize..300,
    ) {
        let (wanted, mut encoder) = (wanted(), Encoder::new(TABLE_BYTES));
        let mut decoder = small();
        for blocks in &blocks {
            let block = write(&mut encoder, blocks);
            let expected: Vec<_> = blocks.1.iter().map(|(f, _)| told(&wanted, f)).collect();
            lend(&mut decoder);
            prop_assert_eq!(decode(&mut decoder, &block, piece), Ok(expected));
        }
    }

    /// Larger room is there with the block `from` only, or never.
    #[test]
    fn what_is_forgotten_is_never_told_wrong(
        blocks in any_blocks(TABLE_BYTES),
        piece in 1usize..300,
        from in 0usize..25,
        bare in any::<bool>(),
    ) {
        let (wanted, mut encoder) = (wanted(), Encoder::new(TABLE_BYTES));
        let mut decoder = if bare { Decoder::bare(TABLE_BYTES) } else { small() };
        for (i, blocks) in blocks.iter().enumerate() {
            let block = write(&mut encoder, blocks);
            if i >= from {
                lend(&mut decoder);
            }
            let got = decode(&mut decoder, &block, piece).unwrap();
            prop_assert_eq!(got.len(), blocks.1.len());
            for (got, (field, _)) in got.iter().zip(&blocks.1) {
                if got.0 != b"unknown" {
                    prop_assert_eq!(got, &told(&wanted, field));
                }
            }
        }
    }
}

/// `x-a: N`, to be added.
fn numbered(n: usize) -> Vec<u8> {
    let mut block = Vec::new();
    let how = How { index: true, index_name: false, add: true, never: false, code: false };
    Encoder::new(TABLE_BYTES).field(&(b"x-a".to_vec(), vec![b'0' + n as u8]), how, &mut block);
    block
}

/// A value moves with its table while it comes, from wherever it had begun.
#[test]
fn a_value_that_outgrows_little_room_stays_whole() {
    let how = How { index: false, index_name: false, add: true, never: false, code: false };
    let (mut encoder, mut decoder) = (Encoder::new(TABLE_BYTES), small());
    let mut read = |size: usize, fields: &[Field]| {
        let mut block = Vec::new();
        encoder.resize(size, &mut block);
        fields.iter().for_each(|field| encoder.field(field, how, &mut block));
        lend(&mut decoder);
        assert_eq!(decode(&mut decoder, &block, 9).as_deref(), Ok(fields));
        let last = decode(&mut decoder, &[0x80 | 62], 9);
        assert_eq!(last.as_deref(), Ok(&fields[fields.len() - 1..]));
        decoder.room().is_small()
    };
    // Of these only the last one stays.
    assert!(read(100, &[0, 1, 2].map(|n| (b"x-a".to_vec(), vec![b'a' + n; 20]))));
    assert!(!read(TABLE_BYTES, &[(b"x-b".to_vec(), (0..200).chain(0..200).collect())]));
}

#[test]
fn larger_room_is_taken_when_it_is_needed_and_not_before() {
    let mut decoder = small();
    for n in 0..24 {
        lend(&mut decoder);
        decode(&mut decoder, &numbered(n), 9).unwrap();
        assert!(decoder.room().is_small(), "{n}");
    }
    // One more entry than there is room for, and the oldest of all is still known.
    decode(&mut decoder, &numbered(24), 9).unwrap();
    assert!(!decoder.room().is_small());
    assert!(decoder.spare().take().is_some_and(|room| room.is_small()), "is free again");
    let oldest = [0x80 | (61 + 25)];
    assert_eq!(decode(&mut decoder, &oldest, 9), Ok(pairs(&[("x-a", "0")])));
    // Without larger room it is not, and the newest is; from size 0 on all is known again.
    let mut decoder = small();
    for n in 0..25 {
        decode(&mut decoder, &numbered(n), 9).unwrap();
    }
    let forgotten = decode(&mut decoder, &oldest, 9).unwrap();
    assert_eq!(forgotten, [(b"unknown".to_vec(), vec![])]);
    let newest = [(b"x-a".to_vec(), vec![b'0' + 24])];
    assert_eq!(decode(&mut decoder, &[0x80 | 62], 9).unwrap(), newest);
    assert_eq!(decode(&mut decoder, &[0x20, 0x80 | 62], 9), Err(Error::BadIndex));
}
