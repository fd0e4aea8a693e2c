//! Frames, batches, what is known of a packet, and why one is dropped.

pub mod batch;
pub mod drop;
pub mod frame;
pub mod meta;

pub use batch::{Batch, Packet};
pub use drop::DropReason;
pub use frame::{Frame, FramePool};
pub use meta::{ClassId, Direction, FlowKey, FlowRef, PacketMeta, PortId, Verdict};
