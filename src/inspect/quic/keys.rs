//! Keys of a client's Initial packets and the removal of their protection (RFC 9001, section 5).

use std::ops::Range;

use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey, quic};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};

const SECRET_BYTES: usize = 32;
const KEY_BYTES: usize = 16;
const IV_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const SAMPLE_BYTES: usize = 16;
/// The sample is where it would be if the packet's number had this length.
const NUMBER_BYTES_MAX: usize = 4;

/// Versions that protect their Initial packets alike.
#[derive(Debug)]
pub(super) struct Edition {
    salt: [u8; 20],
    labels: &'static Labels,
    /// What the long header of an Initial packet says of its kind.
    pub initial_code: u8,
}

#[derive(Debug)]
struct Labels {
    key: &'static [u8],
    iv: &'static [u8],
    hp: &'static [u8],
}

/// RFC 9001, section 5.1.
const LABELS_V1: Labels = Labels { key: b"quic key", iv: b"quic iv", hp: b"quic hp" };
/// RFC 9369, section 3.3.2.
const LABELS_V2: Labels = Labels { key: b"quicv2 key", iv: b"quicv2 iv", hp: b"quicv2 hp" };
/// RFC 9001, section 5.2.
const CLIENT_LABEL: &[u8] = b"client in";

const fn edition(salt: u128, salt_end: u32, labels: &'static Labels, initial_code: u8) -> Edition {
    let (a, b) = (salt.to_be_bytes(), salt_end.to_be_bytes());
    let mut all = [0; 20];
    let mut i = 0;
    while i < 20 {
        all[i] = if i < 16 { a[i] } else { b[i - 16] };
        i += 1;
    }
    Edition { salt: all, labels, initial_code }
}

/// draft-ietf-quic-tls-22.
static DRAFT_22: Edition =
    edition(0x7fbc_db0e_7c66_bbe9_193a_96cd_2151_9ebd, 0x7a02_644a, &LABELS_V1, 0);
/// draft-ietf-quic-tls-23 to -28.
static DRAFT_23: Edition =
    edition(0xc3ee_f712_c72e_bb5a_11a7_d243_2bb4_6365, 0xbef9_f502, &LABELS_V1, 0);
/// draft-ietf-quic-tls-29 to -32.
static DRAFT_29: Edition =
    edition(0xafbf_ec28_9993_d24c_9e97_86f1_9c61_11e0, 0x4390_a899, &LABELS_V1, 0);
/// RFC 9001, section 5.2, and its last drafts.
static V1: Edition = edition(0x3876_2cf7_f559_34b3_4d17_9ae6_a4c8_0cad, 0xccbb_7f0a, &LABELS_V1, 0);
/// RFC 9369, section 3.3.1.
static V2: Edition = edition(0x0ded_e3de_f700_a6db_8193_81be_6e26_9dcb, 0xf9bd_2ed9, &LABELS_V2, 1);

impl Edition {
    /// `None` for versions whose keys are not known.
    pub fn of(version: u32) -> Option<&'static Edition> {
        Some(match version {
            1 | 0xff00_0021 | 0xff00_0022 => &V1,
            0x6b33_43cf => &V2,
            0xff00_001d..=0xff00_0020 => &DRAFT_29,
            // Facebook's two follow draft 27.
            0xff00_0017..=0xff00_001c | 0xface_b002 | 0xface_b00e => &DRAFT_23,
            0xff00_0016 | 0xface_b001 => &DRAFT_22,
            _ => return None,
        })
    }
}

/// What protects the Initial packets that a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    key: [u8; KEY_BYTES],
    iv: [u8; IV_BYTES],
    hp: [u8; KEY_BYTES],
}

/// An Initial packet without its protection.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub number: u64,
    /// Where its frames are in the scratch memory.
    pub frames: Range<usize>,
}

impl Keys {
    /// From the connection id that the client chose for the server. `None` never comes: lengths
    /// are constants that HKDF allows.
    pub fn derive(edition: &Edition, dcid: &[u8]) -> Option<Keys> {
        let initial = Salt::new(HKDF_SHA256, &edition.salt).extract(dcid);
        let mut secret = [0; SECRET_BYTES];
        expand_label(&initial, CLIENT_LABEL, &mut secret)?;
        let secret = Prk::new_less_safe(HKDF_SHA256, &secret);
        let mut keys = Keys { key: [0; KEY_BYTES], iv: [0; IV_BYTES], hp: [0; KEY_BYTES] };
        expand_label(&secret, edition.labels.key, &mut keys.key)?;
        expand_label(&secret, edition.labels.iv, &mut keys.iv)?;
        expand_label(&secret, edition.labels.hp, &mut keys.hp)?;
        Some(keys)
    }

    /// Decrypts a copy of the packet in `scratch`. `None` unless its tag is right.
    pub fn open(
        &self,
        packet: &[u8],
        number_at: usize,
        largest: Option<u64>,
        scratch: &mut [u8],
    ) -> Option<Opened> {
        let sample_at = number_at + NUMBER_BYTES_MAX;
        let sample = packet.get(sample_at..sample_at + SAMPLE_BYTES)?;
        let hp = quic::HeaderProtectionKey::new(&quic::AES_128, &self.hp).ok()?;
        let [first_mask, number_mask @ ..] = hp.new_mask(sample).ok()?;
        let copy = scratch.get_mut(..packet.len())?;
        copy.copy_from_slice(packet);
        let first = copy.first_mut()?;
        *first ^= first_mask & 0x0f;
        let number_len = usize::from(*first & 3) + 1;
        let header_len = number_at + number_len;
        let mut truncated = 0;
        for (byte, mask) in copy.get_mut(number_at..header_len)?.iter_mut().zip(number_mask) {
            *byte ^= mask;
            truncated = truncated << 8 | u64::from(*byte);
        }
        let number = full_number(truncated, number_len, largest);
        let mut nonce = self.iv;
        for (byte, n) in nonce[IV_BYTES - 8..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= n;
        }
        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &self.key).ok()?);
        let (header, body) = copy.split_at_mut_checked(header_len)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.open_in_place(nonce, Aad::from(&*header), body).ok()?;
        Some(Opened { number, frames: header_len..packet.len() - TAG_BYTES })
    }
}

/// HKDF-Expand-Label with an empty context (RFC 8446, section 7.1).
fn expand_label(secret: &Prk, label: &[u8], out: &mut [u8]) -> Option<()> {
    const PREFIX: &[u8] = b"tls13 ";
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let length = (out.len() as u16).to_be_bytes();
    let label_length = [(PREFIX.len() + label.len()) as u8];
    let info: [&[u8]; 5] = [&length, &label_length, PREFIX, label, &[0]];
    secret.expand(&info, Length(out.len())).ok()?.fill(out).ok()
}

/// The packet's number from its last bytes (RFC 9000, appendix A.3).
fn full_number(truncated: u64, bytes: usize, largest: Option<u64>) -> u64 {
    let expected = largest.map_or(0, |n| n + 1);
    let window = 1u64 << (8 * bytes);
    let candidate = expected & !(window - 1) | truncated;
    if candidate + window / 2 <= expected && candidate < (1 << 62) - window {
        candidate + window
    } else if candidate > expected + window / 2 && candidate >= window {
        candidate - window
    } else {
        candidate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DCID: [u8; 8] = [0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn keys_are_those_of_the_rfcs() {
        // RFC 9001, appendix A.1, and RFC 9369, appendix A.1.
        let cases = [
            (
                1,
                "1f369613dd76d5467730efcbe3b1a22d",
                "fa044b2f42a3fd3b46fb255c",
                "9f50449e04a0e810283a1e9933adedd2",
            ),
            (
                0x6b33_43cf,
                "8b1a0bc121284290a29e0971b5cd045d",
                "91f73e2351d8fa91660e909f",
                "45b95e15235d6f45a6b19cbcb0294ba9",
            ),
        ];
        for (version, key, iv, hp) in cases {
            let edition = Edition::of(version).expect("a known version");
            let keys = Keys::derive(edition, &DCID).expect("keys");
            assert_eq!(
                (hex(&keys.key), hex(&keys.iv), hex(&keys.hp)),
                (key.into(), iv.into(), hp.into())
            );
        }
    }

    #[test]
    fn numbers_are_completed_from_the_largest() {
        // RFC 9000, appendix A.3.
        assert_eq!(full_number(0x9b32, 2, Some(0xa82f_30ea)), 0xa82f_9b32);
        assert_eq!(full_number(2, 4, None), 2);
        assert_eq!(full_number(0xff, 1, None), 0xff, "nothing is below zero");
        assert_eq!(full_number(1, 1, Some(0xff)), 0x101);
        assert_eq!(full_number(0xfe, 1, Some(0x101)), 0xfe, "late");
    }
}
