//! `[qos.PORT]` and its class tree.

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;

use super::classes::{CLASSES_MAX, Classes};
use super::doubts::doubts;
use super::leaf::queue_of;
use super::parents::{parents, so_for};
use super::{Build, index};
use crate::base::units::{BitRate, ByteSize};
use crate::config::atoms::{Bytes, Rate};
use crate::config::file::{FileClass, FileConfig, FileQos, Noted, Plain};
use crate::nic::spec::PortSpec;
use crate::packet::{ClassId, PortId};
use crate::qos::spec::{ClassSpec, OVERHEAD_MAX, PortQosSpec};
use crate::qos::{Fault, Field, cbursts_min, validate};

/// Preamble, start of frame, gap and FCS of Ethernet, which the frames at hand lack.
const OVERHEAD_DEFAULT: u16 = 24;
/// The least that Ethernet spends on a frame: 64 bytes and 20 of preamble and gap.
const MPU_DEFAULT: u16 = 84;
const MTU_DEFAULT: u16 = 1_500;
const MTU: RangeInclusive<i64> = 576..=3_800;
/// Ethernet header and one VLAN tag.
const LINK_HEADER: u16 = 18;
/// `XDP_PACKET_HEADROOM`: what the kernel keeps free in front of each frame.
const XDP_HEADROOM: u16 = 256;
/// Milliseconds of its rate that a bucket holds unless told otherwise: longer than a worker that
/// shares its core is usually kept from it, since a bucket that is full meanwhile loses rate.
const BURST_MS: u64 = 4;
const PORT_BURST_FRAMES_MIN: u64 = 4;
const CLASS_BURST_FRAMES_MIN: u64 = 2;
/// Milliseconds at its ceil that a leaf holds unless told otherwise.
const LIMIT_MS: u64 = 100;
const LIMIT_MIN: u64 = 64 << 10;
const LIMIT_MAX_DEFAULT: u64 = 16 << 20;
const BYTES_MAX: u64 = u32::MAX as u64;

/// All ports' trees, and the names of their classes.
pub fn qos(
    b: &mut Build<'_>,
    file: &FileConfig,
    ports: &[PortSpec],
    frame_size: u32,
) -> (Vec<PortQosSpec>, Classes) {
    let known = index(&file.port.0);
    let mut classes = Classes::default();
    let mut specs = Vec::with_capacity(file.qos.0.len());
    for (key, table) in &file.qos.0 {
        let port = b.resolve("port", key, &known).and_then(|i| ports.get(i));
        let id = port.map_or(PortId(0), |p| p.id);
        for (name, _) in &table.get_ref().class.0 {
            b.name(name);
            classes.intern(name.get_ref());
        }
        specs.push(port_tree(b, id, table, frame_size, &mut classes));
        if classes.len() > CLASSES_MAX {
            break; // told
        }
    }
    (specs, classes)
}

/// What a class takes its defaults and shares from: its parent, or the port.
#[derive(Clone, Copy, Debug)]
struct Above {
    rate: BitRate,
    ceil: BitRate,
    burst: u32,
    priority: u8,
}

struct Tree<'t> {
    /// Bytes of the largest frame as counted: link header and overhead included.
    frame: u64,
    list: &'t [(Spanned<String>, Spanned<FileClass>)],
    names: HashMap<&'t str, usize>,
    /// By position in the file; those without an entry stand below a cycle or an unknown class.
    built: Vec<Option<Above>>,
    /// By position: `None`: not known, and told; `Some(None)`: the port itself.
    parents: Vec<Option<Option<usize>>>,
    /// Positions in the order in which they were built, parents first.
    order: Vec<usize>,
}

/// One port's tree, whose classes' names join `classes`.
pub fn port_tree(
    b: &mut Build<'_>,
    port: PortId,
    table: &Spanned<FileQos>,
    frame_size: u32,
    classes: &mut Classes,
) -> PortQosSpec {
    let q = table.get_ref();
    let at = table.span();
    let what = "what the link, or the contract behind it, carries";
    let rate = match b.need(&at, "rate", &q.rate, what).map(|r| (r.get_ref().0, r.span())) {
        Some((Rate::Absolute(rate), _)) => rate,
        Some((Rate::Percent(_), span)) => {
            b.error(&span, "a port has no parent: give its rate as in \"10Gbit/s\"");
            BitRate(0)
        }
        None => BitRate(0),
    };
    let mtu = mtu(b, table, frame_size);
    let overhead = number(&q.overhead, u16::MAX).unwrap_or(OVERHEAD_DEFAULT);
    let frame = u64::from(mtu) + u64::from(overhead.min(OVERHEAD_MAX));
    let burst_default = (bytes_in(rate, BURST_MS)).max(PORT_BURST_FRAMES_MIN * frame);
    let burst = bytes(b, &q.burst, burst_default);
    let top = Above { rate, ceil: rate, burst, priority: 0 };
    let list = q.class.0.as_slice();
    let (names, built) = (index(list), vec![None; list.len()]);
    let (parents, order) = (Vec::new(), Vec::with_capacity(list.len()));
    let mut tree = Tree { frame, list, names, built, parents, order };
    let specs = tree.build(b, top, classes);
    let default_class = default_class(b, table, &tree, classes);
    let mpu = number(&q.mpu, u16::MAX).unwrap_or(MPU_DEFAULT);
    let mut spec =
        PortQosSpec { port, rate, burst, overhead, mpu, mtu, default_class, classes: specs };
    if classes.len() > CLASSES_MAX {
        // Not all have ids of their own, and what follows goes by these.
        b.error(&at, format!("there are {CLASSES_MAX} classes at most"));
        return spec;
    }
    settle_cbursts(b, &tree, &mut spec);
    if let Err(faults) = validate(&spec) {
        tell(b, table, &tree, &spec, &faults);
    }
    doubts(b, list, &tree.parents);
    for (class, &at) in spec.classes.iter().zip(&tree.order) {
        if let (Some(rate), Some(given)) = (class.flow_rate, &list[at].1.get_ref().flow_rate)
            && rate > class.ceil
            && class.ceil.0 > 0
        {
            let what = format!("{rate} is over the class's own ceil of {}: no effect", class.ceil);
            b.warning(&given.span(), what);
        }
    }
    spec
}

/// A bucket of a ceil that is the parent's is in nobody's way from so many frames on.
const CBURST_FRAMES_MIN: u64 = 2;

/// Ceil buckets that nobody gave a size hold what comes while the siblings have their turns; of one
/// that was given too little for that it is told. A ceil that is the parent's holds what its does.
fn settle_cbursts(b: &mut Build<'_>, tree: &Tree<'_>, spec: &mut PortQosSpec) {
    let (least, enough) = (cbursts_min(spec), CBURST_FRAMES_MIN * tree.frame);
    let mut known = HashMap::with_capacity(spec.classes.len());
    for ((class, least), &at) in spec.classes.iter_mut().zip(least).zip(&tree.order) {
        let above = class.parent.and_then(|id| known.get(&id).copied());
        let (ceil_above, cburst_above) = above.unwrap_or((spec.rate, spec.burst));
        let is_held = class.ceil < ceil_above;
        match &tree.list[at].1.get_ref().cburst {
            None if is_held => class.cburst = class.cburst.max(least),
            None => class.cburst = cburst_above,
            Some(given) if is_held && class.cburst < least => {
                let what = format!(
                    "with less than {least} bytes the class may miss its ceil of {}: what comes \
                     while its siblings have their turns does not fit",
                    class.ceil,
                );
                b.warning(&given.span(), what);
            }
            Some(given) if (tree.frame..enough).contains(&class.cburst.into()) => {
                let what = format!(
                    "with less than {enough} bytes, two frames, the class may miss its rate of {} \
                     where workers share it",
                    class.rate,
                );
                b.warning(&given.span(), what);
            }
            Some(_) => {}
        }
        known.insert(class.id, (class.ceil, class.cburst));
    }
}

/// Bytes of the largest frame, link header included.
fn mtu(b: &mut Build<'_>, table: &Spanned<FileQos>, frame_size: u32) -> u16 {
    let given = &table.get_ref().mtu;
    let mtu = b.number(given, MTU, MTU_DEFAULT);
    if u32::from(mtu + LINK_HEADER + XDP_HEADROOM) > frame_size {
        let span = given.as_ref().map_or(table.span(), Spanned::span);
        let what = format!(
            "an MTU of {mtu} does not fit frames of {frame_size} bytes, of which {} are taken: set \
             `frame_size = 4096` in `[workers]`",
            LINK_HEADER + XDP_HEADROOM,
        );
        b.error(&span, what);
    }
    mtu + LINK_HEADER
}

/// The class of packets that no rule names. An explicit one, since what goes out unshaped by
/// accident is never noticed.
fn default_class(
    b: &mut Build<'_>,
    table: &Spanned<FileQos>,
    tree: &Tree<'_>,
    classes: &Classes,
) -> ClassId {
    let q = table.get_ref();
    if tree.list.is_empty() && !b.faulty.contains(&table.span(), "class") {
        b.error(&table.span(), "the port has no class: add a `[qos.PORT.class.NAME]`");
        return ClassId::UNSET;
    }
    let what = "the class of packets that no rule names";
    let Some(name) = b.need(&table.span(), "default", &q.default, what) else {
        return ClassId::UNSET;
    };
    if b.resolve("class of this port", name, &tree.names).is_none() {
        return ClassId::UNSET;
    }
    classes.id(name.get_ref()).unwrap_or(ClassId::UNSET)
}

/// Tells faults of a tree at the values they are in. A value that was not written, or of which
/// something else is told, is at fault only because of that; should nothing be told at all, it is
/// told after all.
fn tell(
    b: &mut Build<'_>,
    table: &Spanned<FileQos>,
    tree: &Tree<'_>,
    spec: &PortQosSpec,
    faults: &[Fault],
) {
    let positions: HashMap<ClassId, usize> =
        spec.classes.iter().map(|c| c.id).zip(tree.order.iter().copied()).collect();
    let mut untold = Vec::new();
    let at_of = |fault: &Fault| fault.class.and_then(|id| positions.get(&id)).copied();
    let made = Made::new(tree, faults.iter().filter_map(|f| Some((at_of(f)?, f))));
    for fault in faults {
        let at = at_of(fault);
        let class = at.map(|at| &tree.list[at].1);
        let span = match class {
            Some(class) => class_value(class, fault.field),
            // A class that was not built has a fault of its own.
            None if fault.field == Field::Default
                && !positions.contains_key(&spec.default_class) =>
            {
                None
            }
            None => port_value(table, fault.field),
        };
        let what = at.map_or(fault.what.clone(), |at| made.told(tree, at, fault));
        match span.filter(|span| !b.out.tells_of(b.source, span)) {
            Some(span) => b.error(&span, what),
            None => untold.push((class.map_or(table.span(), Spanned::span), what)),
        }
    }
    if !b.out.has_errors() {
        for (span, what) in untold {
            b.error(&span, what);
        }
    }
}

/// Of classes that a template made, which ones a fault is of: all have their values in one place.
struct Made<'f> {
    /// By where a class's name stands: classes that have it from there.
    classes: HashMap<usize, usize>,
    /// Of those, the ones of which this is told.
    faults: HashMap<(usize, &'f str), usize>,
}

impl<'f> Made<'f> {
    fn new(tree: &Tree<'_>, faults: impl Iterator<Item = (usize, &'f Fault)>) -> Made<'f> {
        let mut made = Made { classes: HashMap::new(), faults: HashMap::new() };
        for (at, fault) in faults {
            let key = tree.list[at].0.span().start;
            *made.faults.entry((key, fault.what.as_str())).or_default() += 1;
        }
        if !made.faults.is_empty() {
            for (key, _) in tree.list {
                *made.classes.entry(key.span().start).or_default() += 1;
            }
        }
        made
    }

    /// What is told of a fault: for whom it is, unless it is for all.
    fn told(&self, tree: &Tree<'_>, at: usize, fault: &Fault) -> String {
        let key = &tree.list[at].0;
        let of = |list: Option<&usize>| list.copied().unwrap_or_default();
        let all = of(self.classes.get(&key.span().start));
        let (what, name) = (fault.what.as_str(), key.get_ref());
        match of(self.faults.get(&(key.span().start, what))) {
            some if some == all => what.to_string(),
            some => so_for(what, name, some),
        }
    }
}

/// Where a value of a class stands, if it is written.
fn class_value(table: &Spanned<FileClass>, field: Field) -> Option<Range<usize>> {
    let c = table.get_ref();
    match field {
        Field::Parent => Some(table.span()),
        Field::Rate => c.rate.as_ref().map(Spanned::span),
        Field::Ceil => c.ceil.as_ref().map(Spanned::span),
        Field::Burst => c.burst.as_ref().map(Spanned::span),
        Field::Cburst => c.cburst.as_ref().map(Spanned::span),
        Field::Priority => c.priority.as_ref().map(Spanned::span),
        Field::Weight => c.weight.as_ref().map(Spanned::span),
        Field::Quantum => c.quantum.as_ref().map(Spanned::span),
        Field::Overhead => c.overhead.as_ref().map(Spanned::span),
        Field::Mpu => c.mpu.as_ref().map(Spanned::span),
        Field::Limit => c.limit.as_ref().map(Spanned::span),
        Field::FlowRate => c.flow_rate.as_ref().map(Spanned::span),
        Field::Default => None,
    }
}

/// Where a value of a port stands, if it is written.
fn port_value(table: &Spanned<FileQos>, field: Field) -> Option<Range<usize>> {
    let q = table.get_ref();
    match field {
        Field::Rate => q.rate.as_ref().map(Spanned::span),
        Field::Burst => q.burst.as_ref().map(Spanned::span),
        Field::Overhead => q.overhead.as_ref().map(Spanned::span),
        Field::Mpu => q.mpu.as_ref().map(Spanned::span),
        Field::Default => q.default.as_ref().map(Spanned::span),
        _ => None,
    }
}

impl Tree<'_> {
    /// Builds parents before their children, whatever the file's order.
    fn build(&mut self, b: &mut Build<'_>, top: Above, classes: &mut Classes) -> Vec<ClassSpec> {
        self.parents = parents(b, self.list, &self.names);
        let mut has_children = vec![false; self.list.len()];
        for parent in self.parents.iter().flatten().flatten() {
            has_children[*parent] = true;
        }
        let mut specs = Vec::with_capacity(self.list.len());
        let mut left: Vec<usize> = (0..self.list.len()).collect();
        loop {
            let before = left.len();
            let mut later = Vec::new();
            for i in left {
                let above = match self.parents[i] {
                    None => continue, // told already
                    Some(None) => top,
                    Some(Some(p)) => match self.built[p] {
                        Some(above) => above,
                        None => {
                            later.push(i);
                            continue;
                        }
                    },
                };
                specs.push(self.class(b, i, above, has_children[i], classes));
                self.order.push(i);
            }
            left = later;
            if left.is_empty() {
                return specs;
            }
            if left.len() == before {
                self.tell_cycles(b, &left);
                return specs;
            }
        }
    }

    /// Classes that are left stand on a cycle or below one, or below a class at fault.
    fn tell_cycles(&self, b: &mut Build<'_>, left: &[usize]) {
        for &i in left {
            let mut at = i;
            for _ in 0..left.len() {
                let Some(Some(parent)) = self.parents[at] else { break };
                at = parent;
                if at == i {
                    let (key, table) = &self.list[i];
                    let span = table.get_ref().parent.as_ref().map_or(key.span(), Spanned::span);
                    b.error(&span, format!("`{}` stands below itself", key.get_ref()));
                    return;
                }
            }
        }
    }

    fn class(
        &mut self,
        b: &mut Build<'_>,
        i: usize,
        above: Above,
        has_children: bool,
        classes: &mut Classes,
    ) -> ClassSpec {
        let (key, table) = &self.list[i];
        let c = table.get_ref();
        let id = classes.intern(key.get_ref());
        if has_children {
            classes.mark_inner(id);
        }
        let rate = match b.need(&table.span(), "rate", &c.rate, "what the class is guaranteed") {
            Some(given) => {
                let rate = absolute(given.get_ref().0, above.rate);
                if let Rate::Percent(percent) = given.get_ref().0
                    && (percent > 0.0 && rate.0 == 0 && above.rate.0 > 0)
                {
                    let what = format!("{percent}% of {} is less than 1bit/s", above.rate);
                    b.error(&given.span(), what);
                }
                rate
            }
            None => BitRate(0),
        };
        let ceil = c.ceil.as_ref().map_or(above.ceil, |g| absolute(g.get_ref().0, above.ceil));
        let bucket = |rate| bytes_in(rate, BURST_MS).max(CLASS_BURST_FRAMES_MIN * self.frame);
        let burst = bytes(b, &c.burst, bucket(rate).min(u64::from(above.burst)));
        let cburst = bytes(b, &c.cburst, bucket(ceil));
        let limit_default = bytes_in(ceil, LIMIT_MS).clamp(LIMIT_MIN, LIMIT_MAX_DEFAULT);
        let priority = number(&c.priority, u8::MAX).unwrap_or(above.priority);
        self.built[i] = Some(Above { rate, ceil, burst, priority });
        ClassSpec {
            id,
            name: key.get_ref().clone(),
            parent: c.parent.as_ref().and_then(|p| classes.id(p.get_ref())),
            rate,
            ceil,
            burst,
            cburst,
            priority,
            weight: number(&c.weight, u32::MAX).unwrap_or(1),
            quantum: c.quantum.as_ref().map(|_| bytes(b, &c.quantum, 0)),
            overhead: number(&c.overhead, u16::MAX),
            mpu: number(&c.mpu, u16::MAX),
            limit: bytes(b, &c.limit, limit_default),
            queue: queue_of(b, c, has_children),
            flow_rate: c.flow_rate.as_ref().map(|g| absolute(g.get_ref().0, ceil)),
        }
    }
}

/// Bytes at `rate` in so many milliseconds.
fn bytes_in(rate: BitRate, ms: u64) -> u64 {
    rate.bytes_per_sec().saturating_mul(ms) / 1_000
}

fn bytes(b: &mut Build<'_>, given: &Noted<Bytes>, default: u64) -> u32 {
    let n = match given {
        Some(given) if given.get_ref().0.0 > BYTES_MAX => {
            b.error(&given.span(), format!("{} is over 4GiB", ByteSize(given.get_ref().0.0)));
            default
        }
        Some(given) => given.get_ref().0.0,
        None => default,
    };
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// A number; one that does not fit becomes the largest, which [`validate`] refuses.
fn number<T: TryFrom<i64>>(given: &Plain<i64>, largest: T) -> Option<T> {
    given.as_ref().map(|given| T::try_from(*given.get_ref()).unwrap_or(largest))
}

fn absolute(rate: Rate, whole: BitRate) -> BitRate {
    match rate {
        Rate::Absolute(rate) => rate,
        // Rounded down, so that shares of 100 % in sum never exceed the whole.
        Rate::Percent(p) => BitRate((whole.0 as f64 * p / 100.0).floor() as u64),
    }
}
