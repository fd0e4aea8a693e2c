//! Bytes of strangers as text that may be shown.

/// Printable ASCII but for the backslash as it is; other bytes as `\xNN`.
pub fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b' '..=b'[' | b']'..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("\\x{byte:02x}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_drive_a_terminal_is_spelt_out() {
        assert_eq!(printable(b"/v1/a b~"), "/v1/a b~");
        assert_eq!(printable("\x1b[2Jä\\".as_bytes()), "\\x1b[2J\\xc3\\xa4\\x5c");
    }
}
