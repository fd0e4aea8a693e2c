//! What a class tree must fulfil for its guarantees to hold.

use super::pacing::FLOW_RATE_MIN;
use super::spec::{
    ClassSpec, Counting, DEPTH_MAX, MPU_MAX, OVERHEAD_MAX, PRIORITIES, PortQosSpec,
    QUANTUM_BYTES_MAX, QueueSpec, WEIGHT_MAX,
};
use crate::base::units::{BitRate, ByteSize};
use crate::packet::ClassId;

/// One thing that is wrong with a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `None`: the port itself.
    pub class: Option<ClassId>,
    /// The value at fault.
    pub field: Field,
    pub what: String,
}

/// Values of a class or a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Its place in the tree.
    Parent,
    Rate,
    Ceil,
    Burst,
    Cburst,
    Priority,
    Weight,
    Quantum,
    Overhead,
    Mpu,
    Limit,
    FlowRate,
    /// Of a port: its default class.
    Default,
}

/// What a class is held against: its parent, or the port.
struct Above {
    name: String,
    rate: BitRate,
    ceil: BitRate,
    burst: u32,
    depth: usize,
    /// Guaranteed to the classes below it that were seen so far.
    promised: u64,
    has_children: bool,
}

/// Checks a port's tree: the guarantees below a class fit its own; a ceil is between the rate and
/// the parent's ceil; bursts, quanta and limits hold a frame, and a burst fits the parent's; at
/// most [`DEPTH_MAX`] levels; the default class is a leaf. Linux accepts two leaves of 60 % and
/// then sends 120 %.
///
/// # Errors
/// All faults. What only follows from a fault in the parent's rates is not told again.
pub fn validate(spec: &PortQosSpec) -> Result<(), Vec<Fault>> {
    let mut faults = Vec::new();
    let countings = spec.countings();
    port(spec, &mut |field, what| faults.push(Fault { class: None, field, what }));
    let mut above = vec![Above {
        name: "the port".to_string(),
        rate: spec.rate,
        ceil: spec.rate,
        burst: spec.burst,
        depth: 0,
        promised: 0,
        has_children: false,
    }];
    let mut position = vec![None; usize::from(u16::MAX) + 1];
    for (class, counting) in spec.classes.iter().zip(countings) {
        let id = Some(class.id);
        let mut tell = |field, what| faults.push(Fault { class: id, field, what });
        let at = match class.parent {
            None => 0,
            Some(parent) => position[usize::from(parent.0)].unwrap_or_else(|| {
                tell(Field::Parent, "its parent is none of the classes before it".to_string());
                0
            }),
        };
        let frame = largest(spec, counting);
        against(class, &mut above[at], frame, &mut tell);
        sizes(class, frame, &mut tell);
        if class.id == ClassId::UNSET || position[usize::from(class.id.0)].is_some() {
            tell(Field::Parent, "its id is taken".to_string());
        }
        position[usize::from(class.id.0)] = Some(above.len());
        above.push(Above {
            name: format!("`{}`", class.name),
            rate: class.rate,
            ceil: class.ceil,
            burst: class.burst,
            depth: above[at].depth + 1,
            promised: 0,
            has_children: false,
        });
    }
    let default = position[usize::from(spec.default_class.0)].map(|at| &above[at]);
    let what = match default {
        None => Some("the default class is none of the port's".to_string()),
        Some(class) if class.has_children => {
            Some(format!("{} has classes below it, so it carries no packets", class.name))
        }
        Some(_) => None,
    };
    faults.extend(what.map(|what| Fault { class: None, field: Field::Default, what }));
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// Checks the port itself.
fn port(spec: &PortQosSpec, tell: &mut impl FnMut(Field, String)) {
    if spec.rate.0 == 0 {
        tell(Field::Rate, "the port has no rate".to_string());
    }
    let frame = largest(spec, spec.counting());
    if spec.burst < frame {
        tell(Field::Burst, small("burst", spec.burst, frame));
    }
    counted(Some(spec.overhead), Some(spec.mpu), tell);
}

/// Checks one class against its parent.
fn against(class: &ClassSpec, above: &mut Above, frame: u32, tell: &mut impl FnMut(Field, String)) {
    let ClassSpec { rate, ceil, burst, cburst, .. } = *class;
    above.has_children = true;
    above.promised = above.promised.saturating_add(rate.0);
    if above.depth == DEPTH_MAX {
        tell(Field::Parent, format!("classes nest {DEPTH_MAX} deep at most"));
    }
    if above.rate.0 == 0 {
        // The parent's own fault.
    } else if rate.0 == 0 {
        tell(Field::Rate, "it has no rate".to_string());
    } else if rate > above.rate {
        let (most, by) = (above.rate, excess(rate.0, above.rate));
        tell(Field::Rate, format!("{rate} is over the {most} of {}, by {by}", above.name));
    } else if above.promised > above.rate.0 {
        let what = format!(
            "with these {rate} the guarantees below {} come to {}, over its {} by {}",
            above.name,
            BitRate(above.promised),
            above.rate,
            excess(above.promised, above.rate),
        );
        tell(Field::Rate, what);
    }
    if ceil < rate {
        tell(Field::Ceil, format!("a ceil of {ceil} is below the rate of {rate}"));
    } else if ceil > above.ceil && above.ceil.0 != 0 {
        let (most, by) = (above.ceil, excess(ceil.0, above.ceil));
        tell(
            Field::Ceil,
            format!("a ceil of {ceil} is over the {most} of {}, by {by}", above.name),
        );
    }
    if burst < frame {
        tell(Field::Burst, small("burst", burst, frame));
    } else if burst > above.burst {
        let (size, most) = (ByteSize(burst.into()), ByteSize(above.burst.into()));
        tell(Field::Burst, format!("a burst of {size} is over the {most} of {}", above.name));
    }
    // It may be over the parent's: what it holds is also what came while the siblings had turns.
    if cburst < frame {
        tell(Field::Cburst, small("cburst", cburst, frame));
    }
}

/// Checks what of a class does not depend on others.
fn sizes(class: &ClassSpec, frame: u32, tell: &mut impl FnMut(Field, String)) {
    if usize::from(class.priority) >= PRIORITIES {
        tell(Field::Priority, format!("priorities are 0 to {}", PRIORITIES - 1));
    }
    if !(1..=WEIGHT_MAX).contains(&class.weight) {
        tell(Field::Weight, format!("weights are 1 to {WEIGHT_MAX}"));
    }
    if let Some(quantum) = class.quantum {
        if quantum < frame {
            // A turn might send nothing.
            tell(Field::Quantum, small("quantum", quantum, frame));
        } else if quantum > QUANTUM_BYTES_MAX {
            let (quantum, most) = (ByteSize(quantum.into()), ByteSize(QUANTUM_BYTES_MAX.into()));
            tell(Field::Quantum, format!("a quantum of {quantum} is over {most}"));
        }
    }
    if class.limit < frame {
        tell(Field::Limit, small("limit", class.limit, frame));
    }
    if let Some(rate) = class.flow_rate {
        if class.queue == QueueSpec::Fifo {
            let what = "a `fifo` does not tell flows apart: only `fq-codel` takes this";
            tell(Field::FlowRate, what.to_string());
        } else if rate < FLOW_RATE_MIN {
            tell(Field::FlowRate, format!("a flow's rate is {FLOW_RATE_MIN} at least"));
        }
    }
    counted(class.overhead, class.mpu, tell);
}

/// Checks how frames are counted.
fn counted(overhead: Option<u16>, mpu: Option<u16>, tell: &mut impl FnMut(Field, String)) {
    if overhead.is_some_and(|n| n > OVERHEAD_MAX) {
        tell(Field::Overhead, format!("an overhead is 0 to {OVERHEAD_MAX} bytes"));
    }
    if mpu.is_some_and(|n| n > MPU_MAX) {
        tell(Field::Mpu, format!("an mpu is 0 to {MPU_MAX} bytes"));
    }
}

/// The largest frame as counted, as far as what it is counted by is not itself at fault.
fn largest(spec: &PortQosSpec, counting: Counting) -> u32 {
    let overhead = counting.overhead.min(OVERHEAD_MAX);
    Counting { overhead, mpu: counting.mpu.min(MPU_MAX) }.counted(usize::from(spec.mtu))
}

/// By how much a rate is too high: two that differ may be written alike.
fn excess(rate: u64, most: BitRate) -> BitRate {
    BitRate(rate.saturating_sub(most.0))
}

fn small(what: &str, size: u32, frame: u32) -> String {
    format!("a {what} of {} is below one frame ({frame}B)", ByteSize(size.into()))
}
