//! The `HTTP2-Settings` field (RFC 7540, section 3.2.1): base64url without padding.

/// Bytes of settings that are read: 32 of them.
pub const BYTES_MAX: usize = 192;

/// Decodes into `out`; tells how many bytes. `None`: not base64url, or too long.
pub fn decode(text: &[u8], out: &mut [u8; BYTES_MAX]) -> Option<usize> {
    let text = text.trim_ascii_end();
    let end = text.iter().rposition(|b| *b != b'=').map_or(0, |last| last + 1);
    let (mut bits, mut count, mut n) = (0u32, 0, 0);
    for byte in &text[..end] {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' | b'+' => 62,
            b'_' | b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            *out.get_mut(n)? = (bits >> count) as u8;
            n += 1;
        }
    }
    Some(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_an_upgrade() {
        let mut out = [0; BYTES_MAX];
        assert_eq!(decode(b"AAMAAABkAAQAAP__", &mut out), Some(12));
        assert_eq!(out[..12], [0, 3, 0, 0, 0, 100, 0, 4, 0, 0, 0xff, 0xff]);
        assert_eq!(decode(b"AA==", &mut out), Some(1));
        assert_eq!(decode(b"", &mut out), Some(0));
        assert_eq!(decode(b"A A", &mut out), None);
        assert_eq!(decode(&[b'A'; 258], &mut out), None);
    }
}
