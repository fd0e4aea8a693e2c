//! The meters of a configuration: whose packets each measures, and what becomes of them.

use std::sync::Arc;

use super::dscp::Remap;
use super::meter::{Meter, MeterSpec};
use crate::packet::{ClassId, PortId};

/// Meters of one configuration at most.
pub const METERS_MAX: usize = 65_000;

/// All meters, and what ports make of code points.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeteringSpec {
    pub meters: Vec<ClassMeterSpec>,
    /// By port; those beyond the end trust what comes.
    pub trust: Vec<Remap>,
}

/// A meter and the packets it measures, all classes together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassMeterSpec {
    pub name: String,
    pub meter: MeterSpec,
    /// Leaves. A class has one meter at most.
    pub classes: Vec<ClassId>,
    /// Only packets that come in here; `None`: by any port.
    pub port: Option<PortId>,
    /// By [`Colour`](super::meter::Colour).
    pub actions: [Action; 3],
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Pass,
    Drop,
    /// It goes on with this code point.
    Dscp(u8),
    /// It goes on with the drop precedence of its colour (RFC 2597), if its code point has one.
    Precedence,
}

/// Meters ready for use. Their buckets are all workers'.
#[derive(Debug, Default)]
pub struct Meters {
    list: Vec<Entry>,
    /// By class: an index in the list, or `NONE`.
    of_class: Vec<u16>,
    trust: Vec<Remap>,
}

const NONE: u16 = u16::MAX;
const _: () = assert!(METERS_MAX <= NONE as usize);

/// One meter and what becomes of packets.
#[derive(Debug)]
pub struct Entry {
    pub meter: Arc<Meter>,
    pub actions: [Action; 3],
    name: String,
    spec: MeterSpec,
    port: Option<PortId>,
}

impl Meters {
    /// Meters with full buckets; those that `old` has under the same name keep their tokens.
    pub fn build(spec: &MeteringSpec, old: Option<&Meters>) -> Meters {
        let mut of_class = Vec::new();
        let mut list = Vec::with_capacity(spec.meters.len());
        for (i, m) in spec.meters.iter().take(METERS_MAX).enumerate() {
            for class in m.classes.iter().map(|class| usize::from(class.0)) {
                if of_class.len() <= class {
                    of_class.resize(class + 1, NONE);
                }
                of_class[class] = i as u16;
            }
            let known = old.and_then(|old| old.list.iter().find(|e| e.name == m.name));
            let meter = match known {
                Some(known) if known.spec == m.meter => Arc::clone(&known.meter),
                Some(known) => Arc::new(Meter::replacing(&m.meter, &known.meter)),
                None => Arc::new(Meter::new(&m.meter)),
            };
            let (actions, name) = (m.actions, m.name.clone());
            list.push(Entry { meter, actions, name, spec: m.meter, port: m.port });
        }
        Meters { list, of_class, trust: spec.trust.clone() }
    }

    /// Whether nothing is measured.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The meter of packets of a class that come in by a port.
    #[inline]
    pub fn of(&self, class: ClassId, port: PortId) -> Option<&Entry> {
        let at = self.of_class.get(usize::from(class.0))?;
        let entry = self.list.get(usize::from(*at))?;
        entry.port.is_none_or(|only| only == port).then_some(entry)
    }

    /// Whether all ports trust all code points.
    #[inline]
    pub fn trusts_all(&self) -> bool {
        self.trust.is_empty()
    }

    /// Whether a port trusts all code points.
    pub fn trusts(&self, port: PortId) -> bool {
        self.trust.get(usize::from(port.0)).is_none_or(|remap| *remap == Remap::TRUST)
    }

    /// What a packet's code point becomes that comes in by a port.
    #[inline]
    pub fn trusted(&self, port: PortId, dscp: u8) -> u8 {
        self.trust.get(usize::from(port.0)).map_or(dscp, |remap| remap.of(dscp))
    }
}

#[cfg(test)]
mod tests {
    use super::super::meter::{Colour, Second};
    use super::*;
    use crate::base::Nanos;
    use crate::base::units::BitRate;

    fn spec(name: &str, burst: u32, classes: &[u16], port: Option<u16>) -> ClassMeterSpec {
        let second = Second::Excess { burst: 0 };
        ClassMeterSpec {
            name: name.into(),
            meter: MeterSpec { rate: BitRate(8), burst, second, is_colour_aware: false },
            classes: classes.iter().map(|&c| ClassId(c)).collect(),
            port: port.map(PortId),
            actions: [Action::Pass, Action::Pass, Action::Drop],
        }
    }

    fn colour(meters: &Meters, class: u16, bytes: u32) -> Colour {
        let entry = meters.of(ClassId(class), PortId(0)).expect("a meter");
        entry.meter.colour(Nanos(0), bytes, Colour::Green)
    }

    #[test]
    fn classes_find_their_meter() {
        let meters = vec![spec("a", 100, &[7, 2], None), spec("b", 100, &[0], Some(1))];
        let m = Meters::build(&MeteringSpec { meters, trust: Vec::new() }, None);
        let name = |class, port| m.of(ClassId(class), PortId(port)).map(|e| e.name.as_str());
        assert_eq!([name(7, 0), name(2, 3), name(0, 1)], [Some("a"), Some("a"), Some("b")]);
        assert_eq!([name(0, 0), name(1, 0), name(9, 0), name(u16::MAX, 0)], [None; 4]);
        assert!(!m.is_empty() && m.trusts_all() && m.trusted(PortId(3), 46) == 46);
        assert_eq!(colour(&m, 7, 60), Colour::Green);
        assert_eq!(colour(&m, 2, 60), Colour::Red, "classes of a meter share its tokens");
    }

    #[test]
    fn a_reload_keeps_the_tokens_of_meters_that_stay() {
        let of = |meters| MeteringSpec { meters, trust: Vec::new() };
        let old = Meters::build(&of(vec![spec("a", 100, &[1], None)]), None);
        assert_eq!(colour(&old, 1, 60), Colour::Green);
        let same = of(vec![spec("new", 100, &[3], None), spec("a", 100, &[2], None)]);
        let same = Meters::build(&same, Some(&old));
        assert_eq!([colour(&same, 3, 60), colour(&same, 2, 60)], [Colour::Green, Colour::Red]);
        let larger = Meters::build(&of(vec![spec("a", 1_000, &[1], None)]), Some(&same));
        assert_eq!([41, 40].map(|n| colour(&larger, 1, n)), [Colour::Red, Colour::Green]);
    }
}
