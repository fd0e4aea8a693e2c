//! TCP options: what a SYN offers, and what segments carry (RFC 9293, section 3.1; RFC 7323; RFC
//! 2018).

use crate::packet::field::{put_u32, u16_at, u32_at};

/// Kinds of options.
pub mod kind {
    pub const END: u8 = 0;
    pub const NOP: u8 = 1;
    pub const MSS: u8 = 2;
    pub const WINDOW_SCALE: u8 = 3;
    pub const SACK_PERMITTED: u8 = 4;
    pub const SACK: u8 = 5;
    pub const TIMESTAMPS: u8 = 8;
}

/// Largest shift of a window (RFC 7323, section 2.3).
pub const WINDOW_SCALE_MAX: u8 = 14;
/// Bytes of options at most.
pub const OPTIONS_LEN_MAX: usize = 40;
/// Bytes that timestamps take in a segment, padding included.
pub const TIMESTAMPS_LEN: usize = 12;
/// Segments of a peer that names no size (RFC 9293, section 3.7.1), IPv4 and IPv6.
pub const MSS_DEFAULT: [u16; 2] = [536, 1_220];

/// A segment's timestamps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamps {
    /// TSval: the sender's clock.
    pub value: u32,
    /// TSecr: the other side's clock, as the sender saw it last.
    pub echo: u32,
}

/// The options of a SYN or SYN-ACK.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    pub mss: Option<u16>,
    /// At most [`WINDOW_SCALE_MAX`]: a larger one counts as that.
    pub window_scale: Option<u8>,
    pub sack: bool,
    pub stamps: Option<Stamps>,
}

impl Offer {
    /// Reads what it knows; stops where the options contradict themselves.
    pub fn parse(options: &[u8]) -> Offer {
        let mut offer = Offer::default();
        for option in walk(options) {
            match (option.kind, option.body) {
                (kind::MSS, body) if body.len() == 2 => offer.mss = Some(u16_at(body, 0)),
                (kind::WINDOW_SCALE, &[shift]) => {
                    offer.window_scale = Some(shift.min(WINDOW_SCALE_MAX));
                }
                (kind::SACK_PERMITTED, []) => offer.sack = true,
                (kind::TIMESTAMPS, body) => offer.stamps = stamps(body).or(offer.stamps),
                _ => {}
            }
        }
        offer
    }

    /// The options of a SYN that offers this, in the order that Linux has them.
    pub fn bytes(&self) -> OptionBytes {
        let mut out = OptionBytes::default();
        if let Some(mss) = self.mss {
            let [high, low] = mss.to_be_bytes();
            out.push(&[kind::MSS, 4, high, low]);
        }
        match (self.sack, self.stamps) {
            (true, Some(stamps)) => {
                out.push(&[kind::SACK_PERMITTED, 2]);
                out.push_stamps(stamps);
            }
            (false, Some(stamps)) => {
                out.push(&[kind::NOP, kind::NOP]);
                out.push_stamps(stamps);
            }
            (true, None) => out.push(&[kind::NOP, kind::NOP, kind::SACK_PERMITTED, 2]),
            (false, None) => {}
        }
        if let Some(shift) = self.window_scale {
            out.push(&[kind::NOP, kind::WINDOW_SCALE, 3, shift]);
        }
        out
    }
}

/// The timestamps of any segment.
pub fn stamps_of(options: &[u8]) -> Option<Stamps> {
    // As nearly all senders lay them out (RFC 7323, appendix A).
    if let Some([kind::NOP, kind::NOP, kind::TIMESTAMPS, 10, body @ ..]) =
        options.first_chunk::<TIMESTAMPS_LEN>()
    {
        return stamps(body);
    }
    walk(options).filter(|o| o.kind == kind::TIMESTAMPS).find_map(|o| stamps(o.body))
}

fn stamps(body: &[u8]) -> Option<Stamps> {
    (body.len() == 8).then(|| Stamps { value: u32_at(body, 0), echo: u32_at(body, 4) })
}

/// Options ready to be sent: whole words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OptionBytes {
    bytes: [u8; OPTIONS_LEN_MAX / 2 + 4],
    len: u8,
}

// MSS, SACK permitted with timestamps, window scale.
const _: () = assert!(4 + 12 + 4 <= OPTIONS_LEN_MAX / 2 + 4);

impl OptionBytes {
    /// What a segment behind the handshake carries.
    pub fn of_segment(stamps: Option<Stamps>) -> OptionBytes {
        let mut out = OptionBytes::default();
        if let Some(stamps) = stamps {
            out.push(&[kind::NOP, kind::NOP]);
            out.push_stamps(stamps);
        }
        out
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    fn push(&mut self, bytes: &[u8]) {
        let from = usize::from(self.len);
        self.bytes[from..from + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u8;
    }

    fn push_stamps(&mut self, stamps: Stamps) {
        let mut option = [kind::TIMESTAMPS, 10, 0, 0, 0, 0, 0, 0, 0, 0];
        put_u32(&mut option, 2, stamps.value);
        put_u32(&mut option, 6, stamps.echo);
        self.push(&option);
    }
}

/// One option with a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOption<'a> {
    pub kind: u8,
    /// Where its body begins within the options.
    pub at: usize,
    pub body: &'a [u8],
}

/// All options but padding, until the end or the first that contradicts itself.
pub fn walk(options: &[u8]) -> impl Iterator<Item = TcpOption<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            match *options.get(at)? {
                kind::END => return None,
                kind::NOP => at += 1,
                kind => {
                    let len = usize::from(*options.get(at + 1)?);
                    let body = options.get(at + 2..at + len)?;
                    let option = TcpOption { kind, at: at + 2, body };
                    at += len;
                    return Some(option);
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_round_trip() {
        let stamps = Some(Stamps { value: 0x0102_0304, echo: 0xfffe_fdfc });
        for bits in 0..16u8 {
            let offer = Offer {
                mss: (bits & 1 != 0).then_some(1_460),
                window_scale: (bits & 2 != 0).then_some(7),
                sack: bits & 4 != 0,
                stamps: stamps.filter(|_| bits & 8 != 0),
            };
            let bytes = offer.bytes();
            assert!(bytes.as_slice().len().is_multiple_of(4), "{offer:?}");
            assert_eq!(Offer::parse(bytes.as_slice()), offer);
            assert_eq!(stamps_of(bytes.as_slice()), offer.stamps);
        }
    }

    #[test]
    fn a_linux_syn_and_segment() {
        let syn = [
            2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0, 1, 3, 3,
            7, // as tcpdump has it
        ];
        let stamps = Stamps { value: 9, echo: 0 };
        let offer =
            Offer { mss: Some(1_460), window_scale: Some(7), sack: true, stamps: Some(stamps) };
        assert_eq!(Offer::parse(&syn), offer);
        assert_eq!(offer.bytes().as_slice(), syn);
        let segment = OptionBytes::of_segment(Some(stamps));
        assert_eq!(segment.as_slice(), [1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0]);
        assert!(OptionBytes::of_segment(None).as_slice().is_empty());
    }

    #[test]
    fn broken_options_are_read_up_to_the_break() {
        let cases: [(&[u8], Option<u16>); 6] = [
            (&[2], None),
            (&[2, 0, 5, 5], None),
            (&[2, 1, 5, 5], None),
            (&[2, 40, 5, 5], None),
            (&[0, 2, 4, 5, 0xb4], None),
            (&[1, 2, 4, 5, 0xb4, 3], Some(1_460)),
        ];
        for (options, mss) in cases {
            assert_eq!(Offer::parse(options).mss, mss, "{options:?}");
        }
        assert_eq!(Offer::parse(&[3, 3, 200]).window_scale, Some(WINDOW_SCALE_MAX));
    }
}
