//! Paths of requests in one spelling, so that no rule is passed by with another.
//!
//! Servers take `/v1/%63hat` and `/v1/./chat` for `/v1/chat` (RFC 3986, section 6.2.2): characters
//! that needn't be encoded are decoded, and dot segments are removed. Nothing else is changed: what
//! a server makes of an encoded slash, or of two slashes, is its own affair.

use crate::inspect::fields::PATH_BYTES;

/// Room for the longest path that is read; taken only where a path needs it, which few do.
pub type Scratch = Option<[u8; PATH_BYTES]>;

/// The path in its normal spelling. One that is longer than [`PATH_BYTES`] stays as it is.
pub fn normal<'a>(path: &'a [u8], scratch: &'a mut Scratch) -> &'a [u8] {
    let dots = |pair: &[u8]| pair == b"/.";
    let plain = !path.contains(&b'%') && !path.windows(2).any(dots);
    if plain || path.len() > PATH_BYTES || path.first() != Some(&b'/') {
        return path;
    }
    let out = scratch.get_or_insert([0; PATH_BYTES]);
    let len = decode(path, out);
    let len = remove_dots(&mut out[..len]);
    &out[..len]
}

/// Whether each `%` stands before two hexadecimal digits.
pub fn is_encoded(text: &str) -> bool {
    text.split('%').skip(1).all(|after| {
        let digits = after.as_bytes().first_chunk::<2>();
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// Decodes what stands for unreserved characters (RFC 3986, section 2.3). Returns the length.
fn decode(path: &[u8], out: &mut [u8]) -> usize {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let unreserved = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    let (mut rest, mut len) = (path, 0);
    while let Some((&byte, after)) = rest.split_first() {
        let decoded = match rest {
            [b'%', high, low, ..] => digit(*high).zip(digit(*low)).map(|(h, l)| h << 4 | l),
            _ => None,
        };
        let decoded = decoded.filter(unreserved);
        rest = if decoded.is_some() { &rest[3..] } else { after };
        out[len] = decoded.unwrap_or(byte);
        len += 1;
    }
    len
}

/// Removes segments `.` and `..`, the latter with the one before (RFC 3986, section 5.2.4). Returns
/// the length.
fn remove_dots(path: &mut [u8]) -> usize {
    let (mut from, mut to) = (0, 0);
    while from < path.len() {
        let end = path[from + 1..].iter().position(|&byte| byte == b'/');
        let end = end.map_or(path.len(), |slash| from + 1 + slash);
        let last = end == path.len();
        match &path[from + 1..end] {
            dots @ (b"." | b"..") => {
                if dots.len() == 2 {
                    to = path[..to].iter().rposition(|&byte| byte == b'/').unwrap_or(0);
                }
                if last {
                    path[to] = b'/';
                    to += 1;
                }
            }
            _ => {
                path.copy_within(from..end, to);
                to += end - from;
            }
        }
        from = end;
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spelt(path: &str) -> String {
        let mut scratch: Scratch = None;
        String::from_utf8(normal(path.as_bytes(), &mut scratch).to_vec()).expect("ASCII")
    }

    #[test]
    fn spellings_of_one_path() {
        for (path, want) in [
            ("/v1/%63hat", "/v1/chat"),
            ("/v1/%2E%2e/admin", "/admin"),
            ("/v1/./chat", "/v1/chat"),
            ("/v1/x/../chat", "/v1/chat"),
            ("/../../a", "/a"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/a/b/..", "/a/"),
            ("/..", "/"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a%2fb/%7Euser", "/a%2fb/~user"),
            ("/a%", "/a%"),
            ("/a%4", "/a%4"),
            ("/a%zz", "/a%zz"),
            ("/.hidden/..x", "/.hidden/..x"),
            ("/a//./b", "/a//b"),
            ("*", "*"),
            ("%41", "%41"),
        ] {
            assert_eq!(spelt(path), want, "{path}");
        }
    }

    proptest! {
        #[test]
        fn a_normal_path_stays(path in "/([ab./]|%2e|%61|%2F){0,40}") {
            let once = spelt(&path);
            prop_assert!(once.starts_with('/') && once.len() <= path.len());
            let dots = once.split('/').any(|segment| segment == "." || segment == "..");
            prop_assert!(!dots, "{} of {}", once, path);
            prop_assert_eq!(spelt(&once), once);
        }
    }
}
