//! AF_XDP ports and the XDP program on real veth pairs. Needs root; says so and passes without.

mod lifecycle;
mod net;
mod offload;
mod packets;
mod pktgen;
mod splice;
mod steering;
mod ways;
