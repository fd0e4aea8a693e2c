//! Rules as configured. Built by `config`, compiled by [`super`].

use super::catalogue::Operation;
use crate::base::{Addr, Prefix};
use crate::packet::{ClassId, CopyTo, SHARE_ALL};

pub use super::paths::{PathPattern, SEGMENTS_MAX, SHAPES_MAX, shapes};
pub use super::schedule::{Hours, TimeSpec, Weekdays, Zone};

/// Rules of one configuration at most.
pub const RULES_MAX: usize = 65_535;
/// Different header names of one configuration at most.
pub const HEADERS_MAX: usize = 16;
/// Different sizes in `bytes_over` of one configuration at most.
pub const SIZES_MAX: usize = 4;
/// Different sizes with what becomes of a flow beyond them, of one configuration at most.
pub const OUTCOMES_MAX: usize = 255;
/// Different `time` conditions of one configuration at most.
pub const TIMES_MAX: usize = 1_024;

/// A server name to match, lower case, without trailing dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamePattern {
    /// The whole name.
    Exact(String),
    /// `*.suffix`: any name with at least one more label; holds the suffix.
    Suffix(String),
}

/// The value of a header field to match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderPattern {
    /// Any value: the field is there.
    Any,
    Exact(String),
}

/// A header field to match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderSpec {
    /// Lower case.
    pub name: String,
    /// Any of these.
    pub values: Vec<HeaderPattern>,
}

/// One rule: every condition that is given must hold; of one condition's values any may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSpec {
    pub name: String,
    pub sni: Vec<NamePattern>,
    /// Host of a request, without port.
    pub authority: Vec<NamePattern>,
    /// Protocol names of ALPN, such as `h2`.
    pub alpn: Vec<String>,
    /// Fingerprints as text.
    pub ja4: Vec<String>,
    pub method: Vec<String>,
    pub path: Vec<PathPattern>,
    /// Each must hold.
    pub header: Vec<HeaderSpec>,
    /// `package.Service` or `package.Service/Method`.
    pub grpc: Vec<String>,
    /// As the catalogue names them.
    pub provider: Vec<String>,
    pub operation: Vec<Operation>,
    /// Destination as the client addressed it.
    pub vip: Vec<Addr>,
    /// Source of the flow's first packet.
    pub client: Vec<Prefix>,
    /// Destination of the flow's first packet.
    pub server: Vec<Prefix>,
    /// Code points, 0 to 63.
    pub dscp: Vec<u8>,
    /// Destination port as the client addressed it.
    pub port: Vec<u16>,
    /// The flow has more bytes than this, both directions together.
    pub bytes_over: Option<u64>,
    pub time: Option<TimeSpec>,
    /// [`ClassId::REFUSED`] and [`ClassId::RESET`] where the rule ends flows.
    pub class: ClassId,
    /// Pool of services with delayed binding, by its index; `None`: the service's own.
    pub pool: Option<u16>,
    /// Index of the tenant that flows count for.
    pub tenant: Option<u16>,
    /// Code point that packets leave with.
    pub mark: Option<u8>,
    /// Copies of packets, and where they go.
    pub mirror: Option<Mirror>,
    /// A limit counts the requests that it matches.
    pub counts_requests: bool,
}

/// Copies of some flows' packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mirror {
    pub to: CopyTo,
    /// Share of the flows, in hundredths of a percent: 1 to [`Mirror::ALL`].
    pub share: u16,
}

impl Mirror {
    pub const ALL: u16 = SHARE_ALL;
}

impl RuleSpec {
    /// Whether a flow's first packet can't tell if the rule matches: that takes what is said in it.
    pub fn reads_content(&self) -> bool {
        !(self.sni.is_empty() && self.alpn.is_empty() && self.ja4.is_empty())
            || self.reads_requests()
    }

    /// Whether it takes requests to tell: each anew, since one connection carries many.
    pub fn reads_requests(&self) -> bool {
        !(self.authority.is_empty()
            && self.method.is_empty()
            && self.path.is_empty()
            && self.header.is_empty()
            && self.grpc.is_empty()
            && self.provider.is_empty()
            && self.operation.is_empty())
    }

    /// Whether a ClientHello can tell.
    pub fn reads_hellos(&self) -> bool {
        let RuleSpec { sni, alpn, ja4, provider, operation, .. } = self;
        let names = sni.is_empty() && provider.is_empty() && operation.is_empty();
        let shape = alpn.is_empty() && ja4.is_empty();
        !(self.needs_request() || names && shape)
    }

    /// Whether it is for the same flows as another, but for what their clients say.
    pub fn is_for_the_same(&self, other: &RuleSpec) -> bool {
        (self.client == other.client && self.server == other.server && self.vip == other.vip)
            && (self.port == other.port && self.dscp == other.dscp && self.time == other.time)
    }

    /// Whether nothing but a request in the clear can match.
    pub fn needs_request(&self) -> bool {
        let RuleSpec { authority, method, path, header, grpc, .. } = self;
        let requests = authority.is_empty() && method.is_empty() && path.is_empty();
        !(requests && header.is_empty() && grpc.is_empty())
    }

    /// Whether every flow matches at any time.
    pub fn is_catch_all(&self) -> bool {
        let RuleSpec { vip, client, server, dscp, port, bytes_over, time, .. } = self;
        !self.reads_content()
            && (vip.is_empty() && client.is_empty() && server.is_empty())
            && (dscp.is_empty() && port.is_empty())
            && (bytes_over.is_none() && time.is_none())
    }
}

/// The header names that rules ask for, in the order in which they are first met.
pub fn header_names(rules: &[RuleSpec]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for header in rules.iter().flat_map(|rule| &rule.header) {
        if !names.contains(&header.name) {
            names.push(header.name.clone());
        }
    }
    names
}
