//! What a class tree must fulfil for its guarantees to hold.

use super::spec::{ClassSpec, DEPTH_MAX, PRIORITIES, PortQosSpec};
use crate::base::units::{BitRate, ByteSize};
use crate::packet::ClassId;

/// What a class is held against: its parent, or the port.
struct Above {
    name: String,
    rate: BitRate,
    ceil: BitRate,
    burst: u32,
    cburst: u32,
    depth: usize,
    /// Guaranteed to the classes below it that were seen so far.
    promised: u64,
    has_children: bool,
}

/// Checks a port's tree: the guarantees below a class fit its own; a ceil is between the rate and
/// the parent's ceil; bursts hold a frame and fit the parent's; at most [`DEPTH_MAX`] levels; the
/// default class is a leaf. Linux accepts two leaves of 60 % and then sends 120 %.
///
/// # Errors
/// All faults with the class each is in; `None` for the port itself.
pub fn validate(spec: &PortQosSpec) -> Result<(), Vec<(Option<ClassId>, String)>> {
    let mut faults = Vec::new();
    let frame = u32::from(spec.mtu) + u32::from(spec.overhead);
    if spec.rate.0 == 0 {
        faults.push((None, "the port has no rate".to_string()));
    }
    if spec.burst < frame {
        faults.push((None, small("burst", spec.burst, frame)));
    }
    let mut above = vec![Above {
        name: "the port".to_string(),
        rate: spec.rate,
        ceil: spec.rate,
        burst: spec.burst,
        cburst: spec.burst,
        depth: 0,
        promised: 0,
        has_children: false,
    }];
    let mut position = vec![None; usize::from(u16::MAX) + 1];
    for class in &spec.classes {
        let mut tell = |what: String| faults.push((Some(class.id), what));
        let at = match class.parent {
            None => 0,
            Some(parent) => position[usize::from(parent.0)].unwrap_or_else(|| {
                tell("its parent is none of the classes before it".to_string());
                0
            }),
        };
        against(class, &mut above[at], frame, &mut tell);
        if class.id == ClassId::UNSET || position[usize::from(class.id.0)].is_some() {
            tell("its id is taken".to_string());
        }
        position[usize::from(class.id.0)] = Some(above.len());
        above.push(Above {
            name: format!("`{}`", class.name),
            rate: class.rate,
            ceil: class.ceil,
            burst: class.burst,
            cburst: class.cburst,
            depth: above[at].depth + 1,
            promised: 0,
            has_children: false,
        });
    }
    match position[usize::from(spec.default_class.0)].map(|at| &above[at]) {
        None => faults.push((None, "the default class is none of the port's".to_string())),
        Some(class) if class.has_children => {
            let what = format!("{} has classes below it, so it carries no packets", class.name);
            faults.push((Some(spec.default_class), what));
        }
        Some(_) => {}
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// Checks one class against its parent.
fn against(class: &ClassSpec, above: &mut Above, frame: u32, tell: &mut impl FnMut(String)) {
    let ClassSpec { rate, ceil, burst, cburst, .. } = *class;
    above.has_children = true;
    above.promised = above.promised.saturating_add(rate.0);
    if above.depth == DEPTH_MAX {
        tell(format!("classes nest {DEPTH_MAX} deep at most"));
    }
    if rate.0 == 0 {
        tell("it has no rate".to_string());
    }
    if rate > above.rate {
        tell(format!("{rate} is over the {} of {}", above.rate, above.name));
    } else if above.promised > above.rate.0 {
        tell(format!(
            "with these {rate} the guarantees below {} come to {}, over its {}",
            above.name,
            BitRate(above.promised),
            above.rate,
        ));
    }
    if ceil < rate {
        tell(format!("a ceil of {ceil} is below the rate of {rate}"));
    } else if ceil > above.ceil {
        tell(format!("a ceil of {ceil} is over the {} of {}", above.ceil, above.name));
    }
    for (what, size, most) in [("burst", burst, above.burst), ("cburst", cburst, above.cburst)] {
        if size < frame {
            tell(small(what, size, frame));
        } else if size > most {
            let (size, most) = (ByteSize(size.into()), ByteSize(most.into()));
            tell(format!("a {what} of {size} is over the {most} of {}", above.name));
        }
    }
    if usize::from(class.priority) >= PRIORITIES {
        tell(format!("priorities are 0 to {}", PRIORITIES - 1));
    }
    if class.weight == 0 {
        tell("a weight of 0 would never have its turn".to_string());
    }
}

fn small(what: &str, size: u32, frame: u32) -> String {
    let (size, frame) = (ByteSize(size.into()), ByteSize(frame.into()));
    format!("a {what} of {size} is below one frame ({frame})")
}
