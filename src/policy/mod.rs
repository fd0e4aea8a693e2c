//! Rules: from what is known of a flow to its class.
//!
//! Compiled so that the cost of a decision does not grow with the number of rules. The values of
//! each condition stand in a hash table (prefixes in one that is searched by length), each with the
//! rules that name it. A rule is looked for under the condition that the fewest others share, its
//! primary; its other conditions are then checked by binary search in the lists of the values that
//! were hit.

pub mod catalogue;
mod compile;
mod names;
mod prefixes;
pub mod spec;
#[cfg(test)]
mod tests;
mod values;

use crate::inspect::AlpnList;
use crate::packet::{ClassId, FlowKey};
use names::NameTable;
use prefixes::PrefixTable;
use values::{HashTable, NONE, Values};

use crate::base::Addr;
use crate::base::hash::{hash_bytes, hash_endpoint, hash1};

/// Protocols of one ALPN list that are looked at: as many as an inspected hello can hold.
pub const ALPN_MAX: usize = crate::inspect::tls::ALPN_BYTES_MAX / 2;

/// What is known of a flow when it is classified.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// As the client sent it.
    pub key: &'a FlowKey,
    /// Code point of the packet that brought the decision about.
    pub dscp: u8,
    /// Server name as sent: matched without regard to case and to a trailing dot.
    pub sni: Option<&'a [u8]>,
    pub alpn: AlpnList<'a>,
}

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub class: ClassId,
    /// Index of the pool, where the rule names one.
    pub pool: Option<u16>,
    /// Index of the rule in the configuration's order.
    pub rule: u16,
}

/// A configuration's rules, compiled. The first that matches wins.
pub struct Rules {
    rules: Box<[Rule]>,
    /// The first rule without conditions; [`NO_RULE`] where there is none.
    always: u16,
    values: Values,
    sni: NameTable,
    alpn: HashTable<Box<[u8]>>,
    vip: HashTable<Addr>,
    client: PrefixTable,
    dscp: [u32; DSCP_COUNT],
    port: HashTable<u16>,
}

struct Rule {
    class: ClassId,
    pool: Option<u16>,
    /// Bits of [`Kind`].
    needs: u8,
}

/// Kinds of condition, from the one that usually tells flows apart best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Sni,
    Client,
    Vip,
    Port,
    Alpn,
    Dscp,
}

const NO_RULE: u16 = u16::MAX;
const DSCP_COUNT: usize = 64;

impl Kind {
    const ALL: [Kind; 6] = [Kind::Sni, Kind::Client, Kind::Vip, Kind::Port, Kind::Alpn, Kind::Dscp];

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The values that a flow's facts hit, by kind. A value may lead on to wider ones that are hit too.
struct Hits {
    sni: [u32; 2],
    client: u32,
    vip: u32,
    port: u32,
    dscp: u32,
    alpn: [u32; ALPN_MAX],
    alpn_count: usize,
}

impl Rules {
    /// The first rule whose conditions all hold.
    pub fn decide(&self, facts: &Facts<'_>) -> Option<Decision> {
        let hits = self.hits(facts);
        let mut best = self.always;
        for kind in Kind::ALL {
            self.values.any(hits.of(kind), |value| {
                for rule in self.values.primaries(value) {
                    if rule >= best {
                        break;
                    }
                    if self.holds(rule, kind, &hits) {
                        best = rule;
                        break;
                    }
                }
                false
            });
        }
        let rule = self.rules.get(usize::from(best))?;
        Some(Decision { class: rule.class, pool: rule.pool, rule: best })
    }

    pub fn len(&self) -> usize {
        self.rules.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether the rule's conditions of all kinds but `known` hold.
    fn holds(&self, rule: u16, known: Kind, hits: &Hits) -> bool {
        let needs = self.rules[usize::from(rule)].needs & !known.bit();
        Kind::ALL.iter().all(|&kind| {
            needs & kind.bit() == 0
                || self.values.any(hits.of(kind), |value| self.values.names(value, rule))
        })
    }

    fn hits(&self, facts: &Facts<'_>) -> Hits {
        let key = facts.key;
        let mut hits = Hits {
            sni: facts.sni.map_or([NONE; 2], |name| self.sni.find(name)),
            client: self.client.find(key.src),
            vip: self.vip.find(addr_hash(key.dst), |&vip| vip == key.dst),
            port: self.port.find(port_hash(key.dport), |&port| port == key.dport),
            dscp: self.dscp.get(usize::from(facts.dscp)).copied().unwrap_or(NONE),
            alpn: [NONE; ALPN_MAX],
            alpn_count: 0,
        };
        if !self.alpn.is_empty() {
            for protocol in facts.alpn.iter().take(ALPN_MAX) {
                let hit = self.alpn.find(protocol_hash(protocol), |p| **p == *protocol);
                hits.alpn[hits.alpn_count] = hit;
                hits.alpn_count += usize::from(hit != NONE);
            }
        }
        hits
    }
}

impl Hits {
    fn of(&self, kind: Kind) -> &[u32] {
        match kind {
            Kind::Sni => &self.sni,
            Kind::Client => std::slice::from_ref(&self.client),
            Kind::Vip => std::slice::from_ref(&self.vip),
            Kind::Port => std::slice::from_ref(&self.port),
            Kind::Dscp => std::slice::from_ref(&self.dscp),
            Kind::Alpn => &self.alpn[..self.alpn_count],
        }
    }
}

// The keys of these tables come from the configuration, so no stranger can make them collide.

fn addr_hash(addr: Addr) -> u64 {
    hash_endpoint(values::SEED, addr, 0)
}

fn port_hash(port: u16) -> u64 {
    hash1(values::SEED, u64::from(port))
}

fn protocol_hash(protocol: &[u8]) -> u64 {
    hash_bytes(values::SEED, protocol)
}
