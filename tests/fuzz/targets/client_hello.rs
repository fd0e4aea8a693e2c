//! ClientHellos in TLS records, as RFC 8446 writes them.

/// What a hello holds; names go in as they are, however wrong.
pub struct ClientHello<'a> {
    pub name: Option<&'a [u8]>,
    pub protocols: &'a [&'a [u8]],
    /// Bytes of an extension that says nothing (RFC 7685): post-quantum hellos are that long.
    pub padding: u16,
    /// Bytes of the message in one record at most.
    pub record_len: usize,
}

impl ClientHello<'_> {
    /// The stream, from its first record header on.
    pub fn bytes(&self) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(32);
        body.extend([9; 32]);
        body.extend(with_len(&[0x13, 0x01, 0x13, 0x02, 0x1a, 0x1a]));
        body.extend([1, 0]);
        body.extend(with_len(&self.extensions()));
        let mut message = vec![1];
        message.extend_from_slice(&(body.len() as u32).to_be_bytes()[1..]);
        message.extend(body);
        let record = |part: &[u8]| [&[22, 3, 1][..], &with_len(part)].concat();
        message.chunks(self.record_len.max(1)).flat_map(record).collect()
    }

    fn extensions(&self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut push = |kind: u16, data: &[u8]| {
            all.extend(kind.to_be_bytes());
            all.extend(with_len(data));
        };
        push(0x0a0a, &[]);
        if let Some(name) = self.name {
            push(0, &with_len(&[&[0][..], &with_len(name)].concat()));
        }
        if !self.protocols.is_empty() {
            let entry = |p: &&[u8]| [&[p.len() as u8][..], p].concat();
            push(16, &with_len(&self.protocols.iter().flat_map(entry).collect::<Vec<_>>()));
        }
        push(43, &[4, 3, 4, 3, 3]);
        // One key share: X25519MLKEM768, too short to be real.
        push(51, &with_len(&[0x11, 0xec, 0, 2, 1, 2]));
        if self.padding > 0 {
            push(21, &vec![0; usize::from(self.padding)]);
        }
        all
    }
}

fn with_len(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}
