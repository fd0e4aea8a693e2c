//! One worker's counters: plain integers that only their worker writes.

use crate::packet::DropReason;

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Counted by one worker since its start. Every packet that was received or made here is in
        /// exactly one of: transmitted, dropped, absorbed, handed over, held.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Counters {
            /// By [`DropReason`], which is the index.
            pub drops: [u64; DropReason::COUNT],
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            /// How many there are beside the drops.
            pub const FIELDS: usize = [$(stringify!($name)),+].len();

            /// Names of the counters beside the drops; part of the names of their metrics.
            pub const NAMES: [&str; Counters::FIELDS] = [$(stringify!($name)),+];

            /// One sentence for operators, in the order of [`Counters::NAMES`].
            pub const MEANINGS: [&str; Counters::FIELDS] = [$(concat!($($doc),+)),+];

            /// The values in the order of [`Counters::NAMES`].
            pub fn values(&self) -> [u64; Counters::FIELDS] {
                [$(self.$name),+]
            }

            /// The counters whose values in the order of [`Counters::NAMES`] are these.
            pub fn from_values(values: &[u64; Counters::FIELDS]) -> Counters {
                let [$($name),+] = *values;
                Counters { drops: [0; DropReason::COUNT], $($name),+ }
            }
        }

        impl Default for Counters {
            fn default() -> Counters {
                Counters { drops: [0; DropReason::COUNT], $($name: 0),+ }
            }
        }
    };
}

counters! {
    /// Packets received from ports.
    rx_packets,
    /// Bytes received from ports, without FCS.
    rx_bytes,
    /// Packets given to ports.
    tx_packets,
    /// Bytes given to ports, without FCS.
    tx_bytes,
    /// Flows cut, because their backend is down or they were flushed.
    flows_cut,
    /// Packets made here: answers such as ICMP errors.
    created,
    /// ICMP and ICMPv6 errors sent; part of `created`.
    icmp_sent,
    /// ICMP errors not sent for the rate limit or for want of a frame.
    icmp_limited,
    /// Packets that waited for their neighbour's address.
    parked,
    /// Packets that waited for the token of a limit.
    delayed,
    /// Packets given to the worker that owns their flow.
    handed_over,
    /// Packets taken from other workers.
    taken_over,
    /// Packets that were for the appliance itself: of connections that are being bound.
    absorbed,
    /// SYNs answered with a cookie, for services with delayed binding.
    cookies_sent,
    /// Connections whose client brought its cookie back, or began with QUIC.
    bindings_begun,
    /// Connections that were joined to a backend after what their client said.
    bindings_joined,
    /// Clients of HTTP/2 that waited for the server's settings and were sent empty ones.
    bindings_greeted,
    /// Connections reset, or of QUIC forgotten, because their client did not say in time where to.
    bindings_timed_out,
    /// Connections reset or forgotten for newer ones because too many waited.
    bindings_crowded_out,
    /// Connections whose client gave up before they were joined.
    bindings_abandoned,
    /// Connections reset or forgotten because no backend took them, or rules refuse them.
    bindings_unserved,
    /// Backends that refused a connection, did not answer, or do not keep what clients are
    /// promised.
    backends_unwilling,
    /// Flows of QUIC whose client came back from another address, known by its connection id.
    clients_followed,
    /// Copies of packets sent to a mirror's port or collector.
    mirrored,
    /// Copies of which only as much was sent as fits the way to the collector.
    mirror_cut,
    /// Copies that were not made, because frames were scarce, the port takes no packet so large, or
    /// files are not written as fast.
    mirror_missed,
    /// Segments of shadowed connections that were copied for their shadows.
    shadow_copied,
    /// Segments that were not, because shadows are not served as fast; their shadows are cut.
    shadow_missed,
    /// Flows whose packets are not treated as their rule says, because rules have said too many
    /// different things.
    treatments_refused,
    /// Packets whose code point was not the one that their port trusts.
    dscp_remapped,
    /// Packets that a meter found to keep to their rate.
    metered_green,
    /// Packets that a meter found to be within the excess burst or the peak rate.
    metered_yellow,
    /// Packets that a meter found to be beyond that, dropped or not.
    metered_red,
    /// Flows entered into the table.
    flows_opened,
    /// Flows removed for their age.
    flows_expired,
    /// Packets whose partial checksum was completed.
    checksums_completed,
    /// Handshakes forgotten for newer ones.
    handshakes_evicted,
    /// ClientHellos read that name a server.
    names_found,
    /// ClientHellos read that name none.
    hellos_without_name,
    /// Flows whose ClientHello contradicts itself.
    hellos_malformed,
    /// Flows of TLS over TCP.
    apps_tls,
    /// Flows of QUIC.
    apps_quic,
    /// Flows of HTTP/1.
    apps_http1,
    /// Flows of HTTP/2 without TLS.
    apps_http2,
    /// Flows that begin with none of the protocols that are read.
    apps_other,
    /// Flows whose ClientHello is longer than is looked at.
    unknown_hello_too_long,
    /// Flows whose first request contradicts itself, or leaves open where it ends.
    unknown_head_malformed,
    /// Flows whose first request is longer than is looked at.
    unknown_head_too_long,
    /// Flows that show no protocol within the bytes that are looked at.
    unknown_stream_too_long,
    /// Flows whose first bytes came in an order that there is no room for, or not at all.
    unknown_gaps,
    /// Flows that were no longer inspected because too many were.
    unknown_crowded,
    /// Flows whose first bytes stopped coming.
    unknown_stalled,
    /// Requests of HTTP read.
    requests_read,
    /// Requests refused: rules ask for what they were too long to tell.
    requests_too_long,
    /// Flows refused: rules refuse by what clients say, which can't be read of them.
    flows_unread,
    /// Flows whose further requests are not read, because there was no room left for others.
    flows_unfollowed,
    /// Answers of HTTP read.
    responses_read,
    /// Decisions by a rule: of a flow's first packet, and again when its server name is known.
    classifications,
    /// Flows whose class does not change with their size, because flows have too many different
    /// changes before them.
    steps_refused,
    /// TCP resets sent because a rule says so.
    resets_sent,
}

impl Counters {
    #[inline]
    pub fn drop(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
    }

    /// Packets dropped, whatever the reason.
    pub fn drops_total(&self) -> u64 {
        self.drops.iter().sum()
    }

    /// Adds another worker's counters to these.
    pub fn add(&mut self, other: &Counters) {
        let mut values = self.values();
        for (v, o) in values.iter_mut().zip(other.values()) {
            *v += o;
        }
        let mut drops = self.drops;
        for (d, o) in drops.iter_mut().zip(other.drops) {
            *d += o;
        }
        *self = Counters { drops, ..Counters::from_values(&values) };
    }

    /// Packets that came in or were made here and have neither left nor been dropped. The worker
    /// compares it with what its queues hold.
    pub fn held(&self) -> i128 {
        let came = i128::from(self.rx_packets + self.created + self.taken_over);
        let left = self.tx_packets + self.handed_over + self.absorbed;
        let went = i128::from(left + self.drops_total());
        came - went
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_trip_and_add_up() {
        let mut a =
            Counters { rx_packets: 5, handed_over: 1, tx_packets: 2, ..Counters::default() };
        a.drop(DropReason::NoRoute);
        assert_eq!(a.held(), 1);
        let mut b = Counters { drops: a.drops, ..Counters::from_values(&a.values()) };
        assert_eq!(a, b);
        b.add(&a);
        assert_eq!((b.rx_packets, b.drops_total(), b.held()), (10, 2, 2));
        assert_eq!(Counters::NAMES.len(), Counters::MEANINGS.len());
    }
}
