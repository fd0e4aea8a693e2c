//! The class tree as configured. Built and validated by `config`, compiled by the scheduler.

use std::collections::HashMap;

use crate::base::units::BitRate;
use crate::packet::{ClassId, PortId};

/// Levels below the port at most.
pub const DEPTH_MAX: usize = 8;
/// Priorities among borrowers; 0 is served first.
pub const PRIORITIES: usize = 8;
/// Weights are 1 to this.
pub const WEIGHT_MAX: u32 = 1_000_000;
/// Bytes a round at most.
pub const QUANTUM_BYTES_MAX: u32 = 16 << 20;
/// Bytes that may be added to a frame's length.
pub const OVERHEAD_MAX: u16 = 256;
/// Bytes that a frame may be counted as at least.
pub const MPU_MAX: u16 = 1_600;

/// One class, inner or leaf. A class with children carries no packets of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClassSpec {
    pub id: ClassId,
    pub name: String,
    /// `None`: directly under the port.
    pub parent: Option<ClassId>,
    /// Guaranteed.
    pub rate: BitRate,
    /// Never exceeded; `rate` at least.
    pub ceil: BitRate,
    /// Bytes that may go at once after idling, against `rate`.
    pub burst: u32,
    /// Bytes that may go at once after idling, against `ceil`.
    pub cburst: u32,
    /// 0 (first) to 7 among siblings that borrow.
    pub priority: u8,
    /// Share of borrowed bandwidth relative to siblings of the same priority.
    pub weight: u32,
    /// Bytes a round among siblings that borrow; `None`: as `weight` says.
    pub quantum: Option<u32>,
    /// Bytes added to the length of each of its frames; `None`: as the parent has it. Frames count
    /// as their leaf says, at the leaf and in all classes above it, the port included.
    pub overhead: Option<u16>,
    /// Bytes that each of its frames counts as at least; otherwise as `overhead`.
    pub mpu: Option<u16>,
    /// Bytes the leaf may hold, in all workers together; beyond that packets are lost.
    pub limit: u32,
    /// How the leaf holds its packets.
    pub queue: QueueSpec,
    /// What each flow of the leaf sends at most, over longer than 4 ms; of FQ-CoDel only.
    pub flow_rate: Option<BitRate>,
}

impl ClassSpec {
    /// A FIFO below the port that holds whatever comes, for tests, simulations and benchmarks to
    /// change as they need.
    pub fn plain(id: u16, rate: BitRate, ceil: BitRate) -> ClassSpec {
        ClassSpec {
            id: ClassId(id),
            name: format!("c{id}"),
            parent: None,
            rate,
            ceil,
            burst: 2_000,
            cburst: 1 << 20,
            priority: 0,
            weight: 1,
            quantum: None,
            overhead: None,
            mpu: None,
            limit: u32::MAX,
            queue: QueueSpec::Fifo,
            flow_rate: None,
        }
    }
}

/// How a leaf holds its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueueSpec {
    /// FQ-CoDel (RFC 8290): flows take turns, and one whose packets wait too long is told so. When
    /// the leaf is over its limit, its fattest flow loses packets.
    FqCodel {
        /// Nanoseconds that packets of a flow may wait.
        target: u64,
        /// Nanoseconds that they may wait longer, before the flow is told.
        interval: u64,
    },
    /// First in, first out. A packet that would bring the leaf over its limit is lost.
    Fifo,
}

impl QueueSpec {
    /// For the way to clients on the Internet: the defaults of RFC 8290, section 5.2.
    pub const INTERNET: QueueSpec = QueueSpec::FqCodel { target: 5_000_000, interval: 100_000_000 };
}

impl Default for QueueSpec {
    fn default() -> QueueSpec {
        QueueSpec::INTERNET
    }
}

/// How a frame's length is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counting {
    /// Bytes added to each frame's length.
    pub overhead: u16,
    /// The least that a frame counts as, overhead included.
    pub mpu: u16,
}

impl Counting {
    /// Bytes that a frame takes of the link.
    #[inline(always)]
    pub fn counted(self, frame_len: usize) -> u32 {
        (frame_len as u32 + u32::from(self.overhead)).max(u32::from(self.mpu))
    }
}

/// The shaper of one port. The same class ids stand under several ports if configured so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortQosSpec {
    pub port: PortId,
    /// The root's rate and ceil: what the link, or the contract behind it, carries.
    pub rate: BitRate,
    /// Bytes that the port may send at once.
    pub burst: u32,
    /// Added to the length of every frame whose class says nothing else: preamble, gap and FCS (24
    /// for Ethernet without FCS).
    pub overhead: u16,
    /// Frames whose class says nothing else count as this many bytes at least, overhead included.
    pub mpu: u16,
    /// Largest frame, for quanta.
    pub mtu: u16,
    /// The leaf of packets without a class, or whose class is not under this port.
    pub default_class: ClassId,
    /// Parents stand before their children.
    pub classes: Vec<ClassSpec>,
}

impl PortQosSpec {
    /// How frames are counted where their class says nothing else.
    pub fn counting(&self) -> Counting {
        Counting { overhead: self.overhead, mpu: self.mpu }
    }

    /// How frames of each class are counted, in the order of `classes`.
    pub fn countings(&self) -> Vec<Counting> {
        let mut known: HashMap<ClassId, Counting> = HashMap::new();
        let mut list = Vec::with_capacity(self.classes.len());
        for class in &self.classes {
            let above = class.parent.and_then(|id| known.get(&id).copied());
            let above = above.unwrap_or_else(|| self.counting());
            let own = Counting {
                overhead: class.overhead.unwrap_or(above.overhead),
                mpu: class.mpu.unwrap_or(above.mpu),
            };
            known.entry(class.id).or_insert(own);
            list.push(own);
        }
        list
    }
}
