//! Kinds of condition, and what a flow's facts hit of each.

use super::spec::HEADERS_MAX;
use super::values::NONE;
use super::{ALPN_MAX, paths};

/// A kind of condition: a number, smaller for those that usually tell flows apart better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(u8);

impl Kind {
    pub const SNI: Kind = Kind(0);
    pub const AUTHORITY: Kind = Kind(1);
    pub const PATH: Kind = Kind(2);
    pub const GRPC: Kind = Kind(3);
    pub const JA4: Kind = Kind(4);
    pub const CLIENT: Kind = Kind(5);
    pub const SERVER: Kind = Kind(6);
    pub const VIP: Kind = Kind(7);
    pub const PORT: Kind = Kind(8);
    pub const PROVIDER: Kind = Kind(9);
    pub const OPERATION: Kind = Kind(10);
    pub const METHOD: Kind = Kind(11);
    pub const ALPN: Kind = Kind(12);
    pub const DSCP: Kind = Kind(13);
    const HEADERS: u8 = 14;
    pub const COUNT: usize = Kind::HEADERS as usize + HEADERS_MAX;

    /// Of the header field with this number.
    pub const fn header(number: usize) -> Kind {
        Kind(Kind::HEADERS + number as u8)
    }

    pub const fn number(self) -> u8 {
        self.0
    }
}

/// A set of kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds(u32);

const _: () = assert!(Kind::COUNT <= u32::BITS as usize);

impl Kinds {
    pub const NONE: Kinds = Kinds(0);

    pub const fn of(kinds: &[Kind]) -> Kinds {
        let (mut all, mut i) = (0, 0);
        while i < kinds.len() {
            all |= 1 << kinds[i].0;
            i += 1;
        }
        Kinds(all)
    }

    #[inline]
    pub fn has(self, kind: Kind) -> bool {
        self.0 >> kind.0 & 1 != 0
    }

    pub fn insert(&mut self, kind: Kind) {
        self.0 |= 1 << kind.0;
    }

    #[inline]
    pub fn without(self, kind: Kind) -> Kinds {
        Kinds(self.0 & !(1 << kind.0))
    }

    pub const fn and(self, other: Kinds) -> Kinds {
        Kinds(self.0 | other.0)
    }

    /// Those that are in both.
    pub fn both(self, kinds: Kinds) -> Kinds {
        Kinds(self.0 & kinds.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[inline]
    pub fn iter(self) -> impl Iterator<Item = Kind> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let kind = Kind(u8::try_from(rest.trailing_zeros()).ok().filter(|n| *n < 32)?);
            rest &= rest - 1;
            Some(kind)
        })
    }
}

/// The values that a flow's facts hit, by kind. A value may lead on to wider ones that are hit too.
pub struct Hits {
    /// By kind; of these there are two at most.
    few: [[u32; 2]; Kind::COUNT],
    pub path: [u32; paths::HITS_MAX],
    pub path_count: usize,
    alpn: [u32; ALPN_MAX],
    alpn_count: usize,
}

impl Hits {
    pub fn none() -> Hits {
        Hits {
            few: [[NONE; 2]; Kind::COUNT],
            path: [NONE; paths::HITS_MAX],
            path_count: 0,
            alpn: [NONE; ALPN_MAX],
            alpn_count: 0,
        }
    }

    pub fn set(&mut self, kind: Kind, hits: [u32; 2]) {
        self.few[usize::from(kind.0)] = hits;
    }

    pub fn add_alpn(&mut self, hit: u32) {
        if let Some(place) = self.alpn.get_mut(self.alpn_count) {
            *place = hit;
            self.alpn_count += usize::from(hit != NONE);
        }
    }

    #[inline]
    pub fn of(&self, kind: Kind) -> &[u32] {
        match kind {
            Kind::PATH => &self.path[..self.path_count],
            Kind::ALPN => &self.alpn[..self.alpn_count],
            Kind(n) => &self.few[usize::from(n)],
        }
    }
}
