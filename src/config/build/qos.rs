//! `[qos.PORT]` and its class tree.

use std::collections::HashMap;
use std::ops::Range;

use toml::Spanned;

use super::classes::{CLASSES_MAX, Classes};
use super::leaf::queue_of;
use super::{Build, index};
use crate::base::units::{BitRate, ByteSize};
use crate::config::atoms::{Bytes, Rate};
use crate::config::file::{FileClass, FileConfig, FileQos, Noted};
use crate::nic::spec::PortSpec;
use crate::packet::{ClassId, PortId};
use crate::qos::spec::{ClassSpec, DEPTH_MAX, PRIORITIES, PortQosSpec};

/// Preamble, start of frame, gap and FCS of Ethernet, which the frames at hand lack.
const OVERHEAD_DEFAULT: u16 = 24;
/// The least that Ethernet spends on a frame: 64 bytes and 20 of preamble and gap.
const MPU_DEFAULT: u16 = 84;
const MTU_DEFAULT: u16 = 1_500;
const MTU: std::ops::RangeInclusive<i64> = 576..=3_800;
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
const QUANTUM_BYTES_MAX: u64 = 16 << 20;
const WEIGHT_MAX: i64 = 1_000_000;

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
            b.error(&table.span(), format!("there are {CLASSES_MAX} classes at most"));
            break;
        }
    }
    (specs, classes)
}

/// What a class is held against: its parent, or the port.
#[derive(Clone, Debug)]
struct Above {
    name: String,
    rate: BitRate,
    ceil: BitRate,
    burst: u32,
    cburst: u32,
    depth: usize,
    /// Guaranteed to the classes below it that were seen so far.
    promised: u64,
}

struct Tree<'t> {
    /// Bytes of the largest frame as counted: link header and overhead included.
    frame: u64,
    list: &'t [(Spanned<String>, Spanned<FileClass>)],
    names: HashMap<&'t str, usize>,
    /// By position in the file; those without an entry stand below a cycle or an unknown class.
    built: Vec<Option<Above>>,
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
    let mtu = b.number(&q.mtu, MTU, MTU_DEFAULT);
    if u32::from(mtu + LINK_HEADER + XDP_HEADROOM) > frame_size {
        let span = q.mtu.as_ref().map_or(at.clone(), Spanned::span);
        let what = format!(
            "an MTU of {mtu} does not fit frames of {frame_size} bytes, of which {} are taken: set \
             `frame_size = 4096` in `[workers]`",
            LINK_HEADER + XDP_HEADROOM,
        );
        b.error(&span, what);
    }
    let overhead = b.number(&q.overhead, 0..=256, OVERHEAD_DEFAULT);
    let frame = u64::from(mtu + LINK_HEADER + overhead);
    let burst_default = (bytes_in(rate, BURST_MS)).max(PORT_BURST_FRAMES_MIN * frame);
    let burst = bytes(b, &q.burst, frame, burst_default);
    let top = Above {
        name: "the port".to_string(),
        rate,
        ceil: rate,
        burst,
        cburst: burst,
        depth: 0,
        promised: 0,
    };
    let list = q.class.0.as_slice();
    let mut tree = Tree { frame, list, names: index(list), built: vec![None; list.len()] };
    let specs = tree.build(b, top, classes);
    PortQosSpec {
        port,
        rate,
        burst,
        overhead,
        mpu: b.number(&q.mpu, 0..=1_600, MPU_DEFAULT),
        mtu: mtu + LINK_HEADER,
        default_class: default_class(b, table, &tree, &specs, classes),
        classes: specs,
    }
}

/// The class of packets that no rule names. An explicit one, since what goes out unshaped by
/// accident is never noticed.
fn default_class(
    b: &mut Build<'_>,
    table: &Spanned<FileQos>,
    tree: &Tree<'_>,
    specs: &[ClassSpec],
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
    let id = classes.id(name.get_ref()).unwrap_or(ClassId::UNSET);
    if specs.iter().any(|s| s.parent == Some(id)) {
        let what = format!("`{}` has classes below it, so it carries no packets", name.get_ref());
        b.error(&name.span(), what);
    }
    id
}

impl Tree<'_> {
    /// Builds parents before their children, whatever the file's order.
    fn build(
        &mut self,
        b: &mut Build<'_>,
        mut top: Above,
        classes: &mut Classes,
    ) -> Vec<ClassSpec> {
        let parents: Vec<Option<Option<usize>>> =
            self.list.iter().map(|(key, table)| self.parent(b, key, table.get_ref())).collect();
        let mut has_children = vec![false; self.list.len()];
        for parent in parents.iter().flatten().flatten() {
            has_children[*parent] = true;
        }
        let mut specs = Vec::with_capacity(self.list.len());
        let mut left: Vec<usize> = (0..self.list.len()).collect();
        loop {
            let before = left.len();
            let mut later = Vec::new();
            for i in left {
                let mut above = match parents[i] {
                    None => continue, // told already
                    Some(None) => top.clone(),
                    Some(Some(p)) => match &self.built[p] {
                        Some(above) => above.clone(),
                        None => {
                            later.push(i);
                            continue;
                        }
                    },
                };
                specs.push(self.class(b, i, &mut above, has_children[i], classes));
                match parents[i] {
                    Some(Some(p)) => self.built[p] = Some(above),
                    _ => top = above,
                }
            }
            left = later;
            if left.is_empty() {
                return specs;
            }
            if left.len() == before {
                self.tell_cycles(b, &left, &parents);
                return specs;
            }
        }
    }

    /// `None`: not known, and told. `Some(None)`: the port itself.
    fn parent(
        &self,
        b: &mut Build<'_>,
        key: &Spanned<String>,
        class: &FileClass,
    ) -> Option<Option<usize>> {
        let Some(name) = &class.parent else { return Some(None) };
        if name.get_ref() == key.get_ref() {
            b.error(&name.span(), format!("`{}` can't be its own parent", name.get_ref()));
            return None;
        }
        b.resolve("class of this port", name, &self.names).map(Some)
    }

    /// Classes that are left stand on a cycle or below one, or below a class at fault.
    fn tell_cycles(&self, b: &mut Build<'_>, left: &[usize], parents: &[Option<Option<usize>>]) {
        for &i in left {
            let mut at = i;
            for _ in 0..left.len() {
                let Some(Some(parent)) = parents[at] else { break };
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
        above: &mut Above,
        has_children: bool,
        classes: &mut Classes,
    ) -> ClassSpec {
        let (key, table) = &self.list[i];
        let c = table.get_ref();
        let at = table.span();
        let id = classes.intern(key.get_ref());
        if has_children {
            classes.mark_inner(id);
        }
        if above.depth == DEPTH_MAX {
            b.error(&at, format!("classes nest {DEPTH_MAX} deep at most"));
        }
        let rate = rate_of(b, &at, c, above);
        let ceil = ceil_of(b, c, above, rate);
        let smallest = CLASS_BURST_FRAMES_MIN * self.frame;
        let burst = bucket(
            b,
            &c.burst,
            self.frame,
            bytes_in(rate, BURST_MS).max(smallest),
            above,
            above.burst,
        );
        let cburst = bucket(
            b,
            &c.cburst,
            self.frame,
            bytes_in(ceil, BURST_MS).max(smallest),
            above,
            above.cburst,
        );
        let limit_default = bytes_in(ceil, LIMIT_MS).clamp(LIMIT_MIN, LIMIT_MAX_DEFAULT);
        self.built[i] = Some(Above {
            name: format!("`{}`", key.get_ref()),
            rate,
            ceil,
            burst,
            cburst,
            depth: above.depth + 1,
            promised: 0,
        });
        ClassSpec {
            id,
            name: key.get_ref().clone(),
            parent: c.parent.as_ref().and_then(|p| classes.id(p.get_ref())),
            rate,
            ceil,
            burst,
            cburst,
            priority: b.number(&c.priority, 0..=PRIORITIES as i64 - 1, 0u8),
            weight: b.number(&c.weight, 1..=WEIGHT_MAX, 1u32),
            quantum: quantum_of(b, &c.quantum, self.frame),
            limit: bytes(b, &c.limit, self.frame, limit_default),
            queue: queue_of(b, c, has_children),
        }
    }
}

/// Bytes at `rate` in so many milliseconds.
fn bytes_in(rate: BitRate, ms: u64) -> u64 {
    rate.bytes_per_sec().saturating_mul(ms) / 1_000
}

fn bytes(b: &mut Build<'_>, given: &Noted<Bytes>, low: u64, default: u64) -> u32 {
    let given = given.as_ref().map(|g| (g.get_ref().0.0, g.span()));
    let value = match given {
        Some((n, span)) if !(low..=BYTES_MAX).contains(&n) => {
            let shown = ByteSize(n);
            b.error(&span, format!("{shown} is not within {low}B (one frame) to 4GiB"));
            default
        }
        Some((n, _)) => n,
        None => default,
    };
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Bytes a round, where they are given: a frame at least, or a turn might send nothing.
fn quantum_of(b: &mut Build<'_>, given: &Noted<Bytes>, frame: u64) -> Option<u32> {
    let given = given.as_ref()?;
    let n = given.get_ref().0.0;
    if (frame..=QUANTUM_BYTES_MAX).contains(&n) {
        return Some(n as u32);
    }
    let (shown, most) = (ByteSize(n), ByteSize(QUANTUM_BYTES_MAX));
    let what = format!("{shown} is not within {frame}B (one frame) to {most}");
    b.error(&given.span(), what);
    None
}

/// A burst or cburst, which may not be over the parent's.
fn bucket(
    b: &mut Build<'_>,
    given: &Noted<Bytes>,
    frame: u64,
    default: u64,
    above: &Above,
    most: u32,
) -> u32 {
    let size = bytes(b, given, frame, default.min(u64::from(most)));
    if let Some(g) = given
        && size > most
    {
        let (size, most) = (ByteSize(size.into()), ByteSize(most.into()));
        b.error(&g.span(), format!("{size} is over the {most} of {}", above.name));
    }
    size
}

fn absolute(rate: Rate, whole: BitRate) -> BitRate {
    match rate {
        Rate::Absolute(rate) => rate,
        // Rounded down, so that shares of 100 % in sum never exceed the whole.
        Rate::Percent(p) => BitRate((whole.0 as f64 * p / 100.0).floor() as u64),
    }
}

fn rate_of(b: &mut Build<'_>, at: &Range<usize>, c: &FileClass, above: &mut Above) -> BitRate {
    let Some(given) = b.need(at, "rate", &c.rate, "what the class is guaranteed") else {
        return BitRate(0);
    };
    let rate = absolute(given.get_ref().0, above.rate);
    above.promised = above.promised.saturating_add(rate.0);
    if above.rate.0 == 0 {
        return rate; // the parent's own rate is missing, and told
    }
    if rate > above.rate {
        let what = format!("{rate} is over the {} of {}", above.rate, above.name);
        b.error(&given.span(), what);
    } else if above.promised > above.rate.0 {
        let what = format!(
            "with these {rate} the guarantees below {} come to {}, over its {}",
            above.name,
            BitRate(above.promised),
            above.rate,
        );
        b.error(&given.span(), what);
    }
    rate
}

fn ceil_of(b: &mut Build<'_>, c: &FileClass, above: &Above, rate: BitRate) -> BitRate {
    let Some(given) = &c.ceil else { return above.ceil };
    let ceil = absolute(given.get_ref().0, above.ceil);
    if ceil < rate {
        b.error(&given.span(), format!("a ceil of {ceil} is below the rate of {rate}"));
    } else if ceil > above.ceil && above.ceil.0 != 0 {
        let what = format!("a ceil of {ceil} is over the {} of {}", above.ceil, above.name);
        b.error(&given.span(), what);
    }
    ceil
}
