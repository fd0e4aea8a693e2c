//! Rules as configured. Built by `config`, compiled by [`super`].

use crate::base::{Addr, Prefix};
use crate::packet::ClassId;

/// Rules of one configuration at most.
pub const RULES_MAX: usize = 65_535;

/// A server name to match, lower case, without trailing dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamePattern {
    /// The whole name.
    Exact(String),
    /// `*.suffix`: any name with at least one more label; holds the suffix.
    Suffix(String),
}

/// One rule: every condition that is given must hold; of one condition's values any may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSpec {
    pub name: String,
    pub sni: Vec<NamePattern>,
    /// Protocol names of ALPN, such as `h2`.
    pub alpn: Vec<String>,
    /// Destination as the client addressed it.
    pub vip: Vec<Addr>,
    /// Source of the flow's first packet.
    pub client: Vec<Prefix>,
    /// Code points, 0 to 63.
    pub dscp: Vec<u8>,
    /// Destination port as the client addressed it.
    pub port: Vec<u16>,
    pub class: ClassId,
    /// Pool of services with delayed binding, by its index; `None`: the service's own.
    pub pool: Option<u16>,
}
