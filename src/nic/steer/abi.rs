//! The structs and numbers shared with `src/nic/bpf/steer.c`.

use crate::base::Addr;

/// Queues of an interface at most.
pub const MAX_QUEUES: u32 = 64;
/// Workers at most.
pub const MAX_WORKERS: u32 = 64;
/// Services, over all addresses.
pub const MAX_SERVICES: u32 = 4_096;
/// Ends that answers or errors come from: two for each backend of a service.
pub const MAX_RETURNS: u32 = 65_536;
/// Addresses: the box's own, those of services and of NAT.
pub const MAX_ADDRS: u32 = 16_384;
/// Transit prefixes.
pub const MAX_PREFIXES: u32 = 65_536;
/// A canary share that takes everybody, in hundredths of a percent.
pub const SHARE_ALL: u32 = 10_000;
/// In place of a share: where tunnels lead, of which only errors are told.
pub const SHARE_TUNNEL: u32 = 65_535;
/// From which bit on a share's word has the one that it was lowered from, while it is not known
/// which flows began before.
pub const SHARE_BEFORE: u32 = 16;
/// And its largest value.
pub const SHARE_BEFORE_MAX: u32 = 16_383;
/// In a share's word: flows outside of it are kept.
pub const SHARE_KEEPS: u32 = 1 << 30;
/// Flows that are kept though their services' shares are smaller by now.
pub const MAX_KEPT: u32 = 65_536;

const _: () = assert!(SHARE_ALL <= SHARE_BEFORE_MAX);

/// `struct tg_endpoint`: the key of services and of DNAT returns. Byte for byte, hence `pad`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Endpoint {
    pub addr: Addr,
    pub port: u16,
    pub proto: u8,
    pub pad: [u8; 5],
}

/// `struct tg_addr_info`: what a destination address means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AddrInfo {
    pub flags: u32,
    pub fragment_share: u32,
    pub nat_first: u16,
    pub nat_last: u16,
    pub pad: u32,
}

pub const ADDR_LOCAL: u32 = 1;
pub const ADDR_VIP: u32 = 2;
pub const ADDR_NAT: u32 = 4;
pub const ADDR_CHECKS: u32 = 8;

/// `struct tg_config`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    pub heartbeat_limit_ns: u64,
    pub on_failure: u32,
    pub transit_share: u32,
    pub workers: u32,
    /// Of the flows that the program forwards; 0: none are.
    pub generation: u32,
}

/// `struct tg_heartbeat`: one cache line a worker.
#[repr(C)]
pub struct HeartbeatLine {
    pub ns: std::sync::atomic::AtomicU64,
    pad: [u64; 7],
}

/// `struct tg_addr` as a map key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct AddrKey(pub Addr);

// SAFETY: plain integers without implicit padding (`layouts_agree` compares size and offsets with
// the C side), and any bit pattern is a value.
unsafe impl aya::Pod for Endpoint {}
// SAFETY: as above.
unsafe impl aya::Pod for AddrInfo {}
// SAFETY: as above.
unsafe impl aya::Pod for Config {}
// SAFETY: two u64.
unsafe impl aya::Pod for AddrKey {}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal, $c:literal,)+) => {
        /// What the XDP program did with a packet, and why. `enum tg_reason`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum SteerReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl SteerReason {
            pub const ALL: &[SteerReason] = &[$(SteerReason::$name,)+];

            /// Stable, lower case, words joined by `_`.
            pub const fn label(self) -> &'static str {
                match self { $(SteerReason::$name => $label,)+ }
            }

            /// One sentence for operators.
            pub const fn meaning(self) -> &'static str {
                match self { $(SteerReason::$name => concat!($($doc),+),)+ }
            }

            #[cfg(test)]
            const fn c_name(self) -> &'static str {
                match self { $(SteerReason::$name => $c,)+ }
            }
        }
    };
}

reasons! {
    /// To a service: steered to us.
    Vip = "vip", "TG_VIP",
    /// To a port of our NAT: steered to us.
    NatReturn = "nat_return", "TG_NAT_RETURN",
    /// From a backend of a `dnat` pool: steered to us.
    DnatReturn = "dnat_return", "TG_DNAT_RETURN",
    /// To a transit prefix: steered to us.
    Transit = "transit", "TG_TRANSIT",
    /// A later fragment, whose first one was steered to us or is yet to come: steered to us.
    Fragment = "fragment", "TG_FRAGMENT",
    /// Neither IPv4 nor IPv6 (ARP, LLDP): passed to the kernel.
    NotIp = "not_ip", "TG_NOT_IP",
    /// Nothing of ours matches: passed to the kernel.
    NotOurs = "not_ours", "TG_NOT_OURS",
    /// To an address of the box itself: passed to the kernel.
    Local = "local", "TG_LOCAL",
    /// Outside the canary share: passed to the kernel.
    Canary = "canary", "TG_CANARY",
    /// Multicast, broadcast or link-local: passed to the kernel.
    Group = "group", "TG_GROUP",
    /// Neighbour discovery, or other ICMP to a service or NAT address: passed to the kernel.
    Icmp = "icmp", "TG_ICMP",
    /// Too short for its headers: passed to the kernel.
    Malformed = "malformed", "TG_MALFORMED",
    /// Ours, but the worker's heartbeat is stale: passed to the kernel.
    StalePass = "stale_pass", "TG_STALE_PASS",
    /// Ours, but the worker's heartbeat is stale: dropped.
    StaleDrop = "stale_drop", "TG_STALE_DROP",
    /// Ours, but the queue has no socket: passed or dropped as `on_failure` says.
    NoSocket = "no_socket", "TG_NO_SOCKET",
    /// Of a flow that a worker has handed down: forwarded by the program itself.
    Offloaded = "offloaded", "TG_OFFLOADED",
    /// An ICMP error about a packet of ours: steered to us.
    Error = "icmp_error", "TG_ERROR",
    /// A later fragment whose first one went to the kernel: passed to the kernel.
    FragmentPass = "fragment_pass", "TG_FRAGMENT_PASS",
}

impl SteerReason {
    /// How many there are: the size of a counter array.
    pub const COUNT: usize = SteerReason::ALL.len();
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::mem::offset_of;

    use aya::maps::lpm_trie::Key;

    use super::super::offload::{
        MAX_OFFLOAD_SLOTS, MAX_OFFLOADS, MAX_PORTS, MAX_WAITED, OffloadEntry, OffloadKey,
        OffloadQueue, OffloadSlot,
    };
    use super::*;

    /// The table that the C side exports: name to (offset or number, size).
    fn c_layouts() -> BTreeMap<String, (usize, usize)> {
        let rows = section(super::super::program::OBJECT, "tg_layout").expect("section tg_layout");
        rows.chunks_exact(40)
            .map(|row| {
                let name = row[..32].split(|&b| b == 0).next().expect("split yields one");
                let name = String::from_utf8(name.to_vec()).expect("ASCII");
                (name, (u32_at(row, 32) as usize, u32_at(row, 36) as usize))
            })
            .collect()
    }

    /// A section of a little-endian ELF64 file.
    fn section<'a>(elf: &'a [u8], wanted: &str) -> Option<&'a [u8]> {
        let u16_at = |at: usize| usize::from(u16::from_le_bytes([elf[at], elf[at + 1]]));
        let u64_at = |at: usize| u32_at(elf, at) as usize;
        let headers = u64_at(0x28);
        let (size, count, names) = (u16_at(0x3a), u16_at(0x3c), u16_at(0x3e));
        let data = |i: usize| {
            let h = headers + i * size;
            &elf[u64_at(h + 0x18)..][..u64_at(h + 0x20)]
        };
        let name_of = |i: usize| {
            let name = &data(names)[u32_at(elf, headers + i * size) as usize..];
            name.split(|&b| b == 0).next().unwrap_or_default()
        };
        (0..count).find(|&i| name_of(i) == wanted.as_bytes()).map(data)
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    }

    macro_rules! rust_layouts {
        ($map:ident, $($t:ty = $c:literal { $($f:ident : $ft:ty),* })+) => {
            $($map.insert($c.to_owned(), (0, size_of::<$t>()));
            $($map.insert(
                format!("{}.{}", $c, stringify!($f)),
                (offset_of!($t, $f), size_of::<$ft>()),
            );)*)+
        };
    }

    #[test]
    fn layouts_agree() {
        let mut ours = BTreeMap::new();
        rust_layouts! { ours,
            Addr = "tg_addr" { hi: u64, lo: u64 }
            Endpoint = "tg_endpoint" { addr: Addr, port: u16, proto: u8 }
            AddrInfo = "tg_addr_info" {
                flags: u32, fragment_share: u32, nat_first: u16, nat_last: u16
            }
            Config = "tg_config" {
                heartbeat_limit_ns: u64, on_failure: u32, transit_share: u32, workers: u32,
                generation: u32
            }
            HeartbeatLine = "tg_heartbeat" { ns: u64 }
            OffloadKey = "tg_offload_key" {
                src: Addr, dst: Addr, sport: u16, dport: u16, proto: u8
            }
            OffloadEntry = "tg_offload" {
                src: [u8; 16], dst: [u8; 16], sport: [u8; 2], dport: [u8; 2], ip_change: u16,
                transport_change: u16, ethernet: [u8; 12], own_mac: [u8; 6], mtu: u16, port: u32,
                worker: u32, slot: u32, stamp: u32, generation: u32, sequence: u32,
                acknowledgment: u32, clock: u32, echo: u32, first_echo: u32, window: i8,
                splice: u8, begun: u32, waited: u32, mark: u64
            }
            OffloadQueue = "tg_queue" { steered: u64, passed: u64 }
            OffloadSlot = "tg_offload_slot" { packets: u64, bytes: u64, stamp: u32 }
        }
        // aya's key type keeps its fields private: length first, then the data, packed.
        ours.insert("tg_prefix".to_owned(), (0, size_of::<Key<[u8; 16]>>()));
        ours.insert("tg_prefix.len".to_owned(), (0, 4));
        ours.insert("tg_prefix.addr".to_owned(), (4, 16));
        for (name, value) in [
            ("TG_ADDR_LOCAL", ADDR_LOCAL),
            ("TG_ADDR_VIP", ADDR_VIP),
            ("TG_ADDR_NAT", ADDR_NAT),
            ("TG_ADDR_CHECKS", ADDR_CHECKS),
            ("MAX_WORKERS", MAX_WORKERS),
            ("MAX_QUEUES", MAX_QUEUES),
            ("MAX_SERVICES", MAX_SERVICES),
            ("MAX_RETURNS", MAX_RETURNS),
            ("MAX_ADDRS", MAX_ADDRS),
            ("MAX_PREFIXES", MAX_PREFIXES),
            ("SHARE_ALL", SHARE_ALL),
            ("SHARE_TUNNEL", SHARE_TUNNEL),
            ("SHARE_BEFORE", SHARE_BEFORE),
            ("SHARE_BEFORE_MAX", SHARE_BEFORE_MAX),
            ("SHARE_KEEPS", SHARE_KEEPS),
            ("MAX_KEPT", MAX_KEPT),
            ("MAX_OFFLOADS", MAX_OFFLOADS),
            ("MAX_OFFLOAD_SLOTS", MAX_OFFLOAD_SLOTS),
            ("MAX_PORTS", MAX_PORTS),
            ("MAX_WAITED", MAX_WAITED),
            ("TG_REASONS", SteerReason::COUNT as u32),
        ] {
            ours.insert(name.to_owned(), (value as usize, 0));
        }
        for &reason in SteerReason::ALL {
            ours.insert(reason.c_name().to_owned(), (reason as usize, 0));
        }
        assert_eq!(ours, c_layouts());
    }

    #[test]
    fn labels_are_unique() {
        let labels: std::collections::HashSet<_> =
            SteerReason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), SteerReason::COUNT);
        assert!(SteerReason::ALL.iter().all(|r| r.meaning().ends_with('.')));
    }
}
