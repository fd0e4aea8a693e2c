//! A scenario as it is run: valid, with all names resolved.

use std::path::PathBuf;
use std::time::Duration;

use crate::base::Seed;
use crate::base::units::BitRate;
use crate::packet::ClassId;
use crate::qos::spec::{Counting, PortQosSpec};

/// How long a scenario lasts at most.
pub const DURATION_MAX: Duration = Duration::from_secs(3_600);
/// Workers of a scenario at most: as many as the appliance has.
pub const WORKERS_MAX: usize = 64;
/// Sources of a scenario at most.
pub const SOURCES_MAX: usize = 4_096;
/// Flows of one source at most.
pub const FLOWS_MAX: u32 = 100_000;
/// Bytes of the shortest frame: Ethernet and IPv6 headers, and a little to say.
pub const PACKET_MIN: u16 = 60;
/// Bytes of the longest: a jumbo frame with its header and tag.
pub const PACKET_MAX: u16 = 9_018;

/// Traffic, a class tree, and the workers and the link behind it.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: String,
    pub duration: Duration,
    /// What is sent before is not counted.
    pub warmup: Duration,
    /// Length of a slice of time, for what is told over time.
    pub slice: Duration,
    pub seed: Seed,
    pub workers: Workers,
    pub link: Link,
    pub tree: PortQosSpec,
    /// By class id.
    pub class_names: Vec<String>,
    /// Limits and meters of the configuration that the tree is from, as they stand there: packets
    /// of sources are what has passed them.
    pub not_simulated: Vec<String>,
    pub sources: Vec<Source>,
    pub expectations: Vec<Expectation>,
}

#[derive(Clone, Debug)]
pub struct Workers {
    pub count: usize,
    /// How often each looks at its queues, in turn where there are fewer.
    pub poll: Vec<Duration>,
    /// Packets that each may hold.
    pub frames: u32,
}

/// What is behind the class tree.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// `None`: it takes whatever the tree lets go.
    pub rate: Option<BitRate>,
    /// Bytes that each worker's queue of the device holds; `None`: as the appliance sets it.
    pub ring: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct Source {
    pub name: String,
    pub class: ClassId,
    pub flows: u32,
    /// Bytes of its frames, in turn.
    pub packets: Vec<u16>,
    /// Its flows understand marks of congestion.
    pub ecn: bool,
    pub start: Duration,
    /// `None`: never.
    pub stop: Option<Duration>,
    /// How many flows of so many each worker gets; empty: as many as any other.
    pub skew: Vec<u32>,
    pub kind: Kind,
}

/// When a source sends. Rates are of the source as a whole, counted as the scheduler counts.
#[derive(Clone, Debug)]
pub enum Kind {
    /// In even steps.
    Constant { rate: BitRate },
    /// Whenever chance wants it.
    Poisson { rate: BitRate },
    /// At a constant rate for a time, then not.
    OnOff { rate: BitRate, on: Duration, off: Duration, is_random: bool },
    /// Always as much as makes its class wait for bandwidth.
    Greedy,
    /// So many bytes at once, again and again; each flow at times of its own.
    Tokens { bytes: u32, every: Duration },
    /// A transfer that never ends, by each flow.
    Tcp { rtt: Duration, control: Control },
    /// As a capture has it.
    Trace { file: PathBuf, speed: f64, repeats: bool },
}

/// How a TCP answers to congestion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// RFC 5681.
    Reno,
    /// RFC 9438.
    Cubic,
}

/// What a class should get, once the warm-up is over.
#[derive(Clone, Debug)]
pub struct Expectation {
    pub class: ClassId,
    pub rate: Option<BitRate>,
    /// Of the rate, in percent.
    pub tolerance_percent: f64,
    pub delay_p99_max: Option<Duration>,
    pub dropped_max: Option<u64>,
    pub marked_min: Option<u64>,
}

impl Scenario {
    /// How a class's frames are counted.
    pub fn counting(&self, class: ClassId) -> Counting {
        let at = self.tree.classes.iter().position(|c| c.id == class);
        let counting = at.and_then(|at| self.tree.countings().get(at).copied());
        counting.unwrap_or_else(|| self.tree.counting())
    }

    /// Nothing where it has no such class.
    pub fn class_name(&self, class: ClassId) -> &str {
        self.class_names.get(usize::from(class.0)).map_or("", String::as_str)
    }
}
