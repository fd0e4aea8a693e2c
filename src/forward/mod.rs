//! Where a packet goes: services, pools and their Maglev tables, NAT, routes, neighbours, ICMP.

pub mod spec;
