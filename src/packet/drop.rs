//! Why a packet was dropped: one reason a packet, one counter a reason.

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// Why a packet was dropped. The label is the counter's name in metrics and in `show
        /// drops`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl DropReason {
            pub const ALL: &[DropReason] = &[$(DropReason::$name,)+];

            /// Stable, lower case, words joined by `_`.
            pub const fn label(self) -> &'static str {
                match self {
                    $(DropReason::$name => $label,)+
                }
            }

            /// One sentence for operators.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(DropReason::$name => concat!($($doc),+),)+
                }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than the headers it announces.
    Truncated = "truncated",
    /// An EtherType other than IPv4 and IPv6 (ARP goes to the kernel and never comes here).
    NotIp = "not_ip",
    /// The Ethernet destination is another host's address.
    NotOurMac = "not_our_mac",
    /// The version nibble of the IP header contradicts the EtherType.
    BadIpVersion = "bad_ip_version",
    /// IPv4 header length below 5 words or beyond the packet.
    BadIpHeaderLength = "bad_ip_header_length",
    /// The IP total or payload length contradicts the frame.
    BadIpLength = "bad_ip_length",
    /// The IPv4 header checksum is wrong.
    BadIpChecksum = "bad_ip_checksum",
    /// The TCP, UDP or ICMP checksum is wrong.
    BadTransportChecksum = "bad_transport_checksum",
    /// TCP data offset or UDP length contradicts the packet.
    BadTransportLength = "bad_transport_length",
    /// More IPv6 extension headers than are followed, or one of unknown kind.
    BadExtensionHeader = "bad_extension_header",
    /// Source equals destination (a LAND packet), or would: a backend that calls a `dnat` service
    /// of its own and is chosen itself.
    SelfAddressed = "self_addressed",
    /// A source or destination that may not appear on the wire or be forwarded: unspecified,
    /// loopback, reserved, IPv4 within IPv6, limited broadcast, or a multicast or link-local
    /// source.
    Martian = "martian",
    /// A flag combination that no TCP sends (SYN with FIN, none at all).
    BadTcpFlags = "bad_tcp_flags",
    /// TTL or hop limit used up; an ICMP answer was sent unless the rate limit forbade it (none to
    /// a packet that arrives with 0, which no router may send).
    TtlExceeded = "ttl_exceeded",
    /// A fragment where rules or a delayed binding go by what clients say, a later one whose first
    /// was dropped, or one that would overwrite TCP's flags.
    Fragment = "fragment",
    /// A later fragment whose first one did not come in time, or while too many others waited.
    FragmentAlone = "fragment_alone",
    /// A fragment that overlaps others of its datagram or contradicts them, or one behind such a
    /// one.
    FragmentOverlap = "fragment_overlap",
    /// A fragment that brings nothing, or one of more than a datagram may have.
    FragmentTiny = "fragment_tiny",
    /// A packet of a service's protocol that opens no flow and belongs to none.
    NoFlow = "no_flow",
    /// A TCP packet to a service with delayed binding that belongs to no connection and brings
    /// no SYN cookie back.
    BadCookie = "bad_cookie",
    /// An ICMP error about a packet of ours: nobody can help it, or it belongs to no flow.
    IcmpIgnored = "icmp_ignored",
    /// As many connections wait for their binding as may, none of which can be pushed out.
    BindingsFull = "bindings_full",
    /// More bytes of a connection without a backend than are held for it, or than there is room
    /// for.
    HoldFull = "hold_full",
    /// A TCP segment that the state of a connection being bound does not allow.
    NotExpected = "not_expected",
    /// A SYN that brings data already (TCP Fast Open, RFC 7413), where what flows begin with is
    /// inspected: it would pass unread. The client sends both again, the data apart.
    SynData = "syn_data",
    /// The flow table holds as many flows as it was configured for.
    FlowTableFull = "flow_table_full",
    /// The limit for half-open connections is reached.
    SynLimit = "syn_limit",
    /// No backend of the pool takes new flows: all have weight zero, or are drained or down.
    NoBackend = "no_backend",
    /// Every backend of the pool that takes new flows has as many connections as it may.
    BackendsFull = "backends_full",
    /// A new flow of a service that is being drained.
    ServiceDrained = "service_drained",
    /// A packet of a flow that was cut: its backend is down, or its flows were flushed.
    FlowCut = "flow_cut",
    /// All source ports of the worker's slice toward this backend are taken.
    NatPortsExhausted = "nat_ports_exhausted",
    /// The appliance has no address of the backend's family to send a tunnel's packets from.
    NoTunnelSource = "no_tunnel_source",
    /// No route to the destination; of transit, an ICMP answer was sent unless the rate limit
    /// forbade it.
    NoRoute = "no_route",
    /// A blackhole route.
    RouteBlackhole = "route_blackhole",
    /// An unreachable route; of transit, an ICMP answer was sent unless the rate limit forbade it.
    RouteUnreachable = "route_unreachable",
    /// A prohibit route; of transit, an ICMP answer was sent unless the rate limit forbade it.
    RouteForbids = "route_forbids",
    /// The route leads out of an interface that is no port of the appliance.
    NotOurPort = "not_our_port",
    /// The neighbour did not answer within the limit, or too many packets wait for it.
    NeighbourUnresolved = "neighbour_unresolved",
    /// Larger than the egress link's MTU; an ICMP answer was sent unless the rate limit forbade it.
    TooBig = "too_big",
    /// No stage of the pipeline forwards this packet.
    NotHandled = "not_handled",
    /// A rule of the policy drops it.
    PolicyDrop = "policy_drop",
    /// Rules go by what its request says, and that was too long to be read in full.
    RequestTooLong = "request_too_long",
    /// Rules refuse flows by what clients say, and this one's can't be read: it is damaged, leaves
    /// open where it ends, is longer than is looked at, or too many were being read.
    Unread = "unread",
    /// Rules refuse flows by what clients say, answers are not seen, and another connection would
    /// begin on the port of one that its server may still have, where that one's numbers may be.
    PortReused = "port_reused",
    /// A part of the hello of another QUIC connection on addresses and ports on which one was read,
    /// and the other parts have not come: nothing of it passes before. The client sends it again.
    HelloAwaited = "hello_awaited",
    /// Another QUIC connection on the addresses and ports of one that is alive, whose name leads to
    /// another pool than that one is in.
    BoundElsewhere = "bound_elsewhere",
    /// Rules refuse flows by what clients say, and this is too far ahead of what is missing of its
    /// connection to be read in its turn. The client sends it again.
    TooFarAhead = "too_far_ahead",
    /// Its client begins more connections or requests than its limit allows.
    OverLimit = "over_limit",
    /// A meter found it to be beyond its rate, and drops that colour.
    MeterDrop = "meter_drop",
    /// The leaf's or the scheduler's queue is full.
    QueueFull = "queue_full",
    /// The active queue management chose it.
    AqmDrop = "aqm_drop",
    /// No free frame to receive or to answer into.
    NoFrames = "no_frames",
    /// The owner's hand-over ring is full.
    HandoverFull = "handover_full",
    /// Seen by the `tap` stage, which transmits nothing: no loss.
    TapOnly = "tap_only",
    /// The protocol is neither TCP, UDP nor ICMP and no stage routes it.
    UnsupportedProtocol = "unsupported_protocol",
    /// Held by a queue when the appliance shut down.
    Shutdown = "shutdown",
}

impl DropReason {
    /// How many there are: the size of a counter array.
    pub const COUNT: usize = DropReason::ALL.len();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn labels_are_unique_and_plain() {
        let labels: HashSet<_> = DropReason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), DropReason::COUNT);
        for (i, r) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*r as usize, i);
            assert!(r.label().chars().all(|c| c.is_ascii_lowercase() || c == '_'));
            assert!(r.meaning().ends_with('.'), "{}", r.meaning());
        }
    }
}
