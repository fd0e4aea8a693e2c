//! Frames, batches, headers, what is known of a packet, and why one is dropped.
//!
//! [`parse`] reads all headers of a packet once, on the packet path. The files named after
//! protocols (`eth`, `ipv4`, ...) hold offsets to rewrite fields at, checked views, and
//! representations to write: for answers, generators and tests.

pub mod arp;
pub mod batch;
pub mod build;
pub mod checksum;
pub mod drop;
pub mod eth;
pub mod field;
pub mod fragment;
pub mod frame;
pub mod gre;
pub mod icmp;
pub mod ip;
pub mod ipv4;
pub mod ipv6;
pub mod meta;
mod parse;
pub mod scope;
pub mod tcp;
pub mod udp;
mod usual;

pub use batch::{Batch, Packet, PacketMut, PacketRef};
pub use checksum::complete_checksum;
pub use drop::DropReason;
pub use fragment::Fragment;
pub use frame::{Frame, FramePool};
pub use meta::{
    ClassId, CopyTo, Direction, FilesId, FlowKey, FlowRef, PacketFlags, PacketMeta, PortId,
    SHARE_ALL, Verdict,
};
pub use parse::{ParseOptions, parse};
