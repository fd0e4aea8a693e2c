//! What is known of a flow when it is classified, and what the rules make of it.

use super::spec::SIZES_MAX;
use crate::inspect::AlpnList;
use crate::inspect::inspector::Request;
use crate::packet::{ClassId, CopyTo, FlowKey};

/// What is known of a flow when it is classified.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// As the client sent it.
    pub key: &'a FlowKey,
    /// Code point of the packet that brought the decision about.
    pub dscp: u8,
    /// Bytes of the flow so far, both directions together.
    pub bytes: u64,
    /// Server name as sent: matched without regard to case and to a trailing dot.
    pub sni: Option<&'a [u8]>,
    pub alpn: AlpnList<'a>,
    /// Fingerprint of the ClientHello, as text.
    pub ja4: Option<&'a [u8]>,
    /// The request that brought the decision about.
    pub request: Option<Request<'a>>,
}

impl<'a> Facts<'a> {
    /// What a packet tells by itself.
    pub fn of(key: &'a FlowKey, dscp: u8) -> Facts<'a> {
        let (sni, alpn) = (None, AlpnList::EMPTY);
        Facts { key, dscp, bytes: 0, sni, alpn, ja4: None, request: None }
    }

    /// The host that is asked for, by whichever name was seen.
    pub(super) fn host(&self) -> Option<&'a [u8]> {
        self.sni.or_else(|| self.request?.authority)
    }

    pub(super) fn path(&self) -> Option<&'a [u8]> {
        self.request?.path
    }
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Index of the rule in the configuration's order; `None` where none matches.
    pub rule: Option<u16>,
    /// [`ClassId::REFUSED`] or [`ClassId::RESET`] where the flow is to end; without a rule the one
    /// that the catalogue gives, else [`ClassId::UNSET`].
    pub class: ClassId,
    /// Index of the pool, where the rule names one.
    pub pool: Option<u16>,
    /// Index of the tenant, where the rule names one.
    pub tenant: Option<u16>,
    /// Code point that packets leave with, where the rule names one.
    pub mark: Option<u8>,
    /// Where copies of packets go, where the rule says so.
    pub mirror: Option<CopyTo>,
}

impl Decision {
    /// Nothing is known that matters.
    pub const NONE: Decision = Decision {
        rule: None,
        class: ClassId::UNSET,
        pool: None,
        tenant: None,
        mark: None,
        mirror: None,
    };

    /// It is refused, as what its client says can't be read.
    pub const UNREAD: Decision = Decision { class: ClassId::UNREAD, ..Decision::NONE };
}

/// What becomes of a flow once it has more bytes than now, in ascending order of their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    pub(super) steps: [(u64, Decision); SIZES_MAX],
    pub(super) count: usize,
}

impl Steps {
    pub const NONE: Steps = Steps { steps: [(0, Decision::NONE); SIZES_MAX], count: 0 };

    /// More bytes than these, and what is decided then.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, Decision)> {
        self.steps[..self.count].iter().copied()
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn push(&mut self, bytes: u64, decision: Decision) {
        if let Some(step) = self.steps.get_mut(self.count) {
            *step = (bytes, decision);
            self.count += 1;
        }
    }
}
