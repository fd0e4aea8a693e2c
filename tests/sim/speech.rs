//! What clients of delayed binding say first: a ClientHello, or a request of HTTP/1 or HTTP/2.

/// A ClientHello that names a server, `padding` bytes longer than it needs to be.
pub fn hello(name: &str, padding: usize) -> Vec<u8> {
    let sized = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &sized(body)].concat();
    let entry = [&[0][..], &sized(name.as_bytes())].concat();
    let versions = extension(43, &[2, 3, 4]);
    let extensions =
        [extension(21, &vec![0; padding]), versions, extension(0, &sized(&entry))].concat();
    let body =
        [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &sized(&extensions)].concat();
    let length = (body.len() as u32).to_be_bytes();
    let message = [&[1][..], &length[1..], &body].concat();
    let record = |part: &[u8]| [&[22, 3, 1][..], &sized(part)].concat();
    message.chunks(16_000).flat_map(record).collect()
}

/// The head of a request of HTTP/1.
pub fn http1(name: &str, padding: usize) -> Vec<u8> {
    let filler = "a".repeat(padding);
    format!("POST /v1/chat HTTP/1.1\r\nX-Filler: {filler}\r\nHost: {name}\r\n\r\n").into_bytes()
}

/// Preface, SETTINGS, and a request's HEADERS and CONTINUATION (RFC 9113, RFC 7541).
pub fn http2(name: &str, padding: usize) -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u8, body: &[u8]| {
        let length = (body.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], body].concat()
    };
    // :method POST, :scheme http, :path /, then literals that are not indexed.
    let mut block = vec![0x83, 0x86, 0x84];
    let mut literal = |name: &[u8], value: &[u8]| {
        block.push(0);
        for text in [name, value] {
            // An integer with a prefix of seven bits (RFC 7541, section 5.1).
            let mut rest = text.len();
            match rest {
                0..127 => block.push(rest as u8),
                _ => {
                    block.push(127);
                    rest -= 127;
                    while rest >= 128 {
                        block.push(rest as u8 | 128);
                        rest >>= 7;
                    }
                    block.push(rest as u8);
                }
            }
            block.extend(text);
        }
    };
    literal(b":authority", name.as_bytes());
    literal(b"x-filler", "a".repeat(padding).as_bytes());
    let mut says = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    says.extend(frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]));
    let mut parts = block.chunks(9_000).peekable();
    let mut kind = 1;
    while let Some(part) = parts.next() {
        let end_headers = if parts.peek().is_none() { 4 } else { 0 };
        says.extend(frame(kind, end_headers, 1, part));
        kind = 9;
    }
    says
}

/// Another request of the same connection.
pub fn http2_more(stream: u8, name: &str) -> Vec<u8> {
    let block = [&[0x83, 0x86, 0x84, 0x01, name.len() as u8][..], name.as_bytes()].concat();
    [&[0, 0, block.len() as u8, 1, 4, 0, 0, 0, stream][..], &block].concat()
}

/// A body of so many bytes in frames of HTTP/2.
pub fn data(len: usize) -> Vec<u8> {
    let body: Vec<u8> = (0..len).map(|i| (i ^ i >> 8) as u8).collect();
    let frame = |part: &[u8]| {
        let length = (part.len() as u32).to_be_bytes();
        [&length[1..], &[0, 0, 0, 0, 0, 1], part].concat()
    };
    body.chunks(9_000).flat_map(frame).collect()
}
