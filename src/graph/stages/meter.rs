//! Measures the packets of classes, and drops or marks what is beyond its rate.

use crate::graph::{Cx, Stage};
use crate::packet::{Batch, DropReason, PacketFlags, Verdict, ip};
use crate::qos::dscp::{colour_of, with_colour};
use crate::qos::meter::Colour;
use crate::qos::meters::Action;

/// The meters of RFC 2697 and RFC 2698. Length is that of the IP packet; the colour that a packet
/// comes with is the drop precedence of its code point.
#[derive(Clone, Copy, Debug)]
pub struct Meter;

impl Stage for Meter {
    fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
        let meters = &cx.snapshot.meters;
        if meters.is_empty() {
            return;
        }
        let (frames, metas) = batch.parts_mut();
        for (frame, meta) in frames.iter_mut().zip(metas) {
            // What has waited since it was measured passes here again.
            if meta.verdict != Verdict::Next || meta.flags.has(PacketFlags::METERED) {
                continue;
            }
            let Some(entry) = meters.of(meta.class, meta.in_port) else { continue };
            meta.flags.set(PacketFlags::METERED);
            let bytes = u32::from(meta.end.saturating_sub(meta.l3));
            let colour = entry.meter.colour(cx.now, bytes, colour_of(meta.dscp()));
            let count = match colour {
                Colour::Green => &mut cx.counters.metered_green,
                Colour::Yellow => &mut cx.counters.metered_yellow,
                Colour::Red => &mut cx.counters.metered_red,
            };
            *count += 1;
            let dscp = match entry.actions[colour as usize] {
                Action::Pass => continue,
                Action::Drop => {
                    meta.drop_for(DropReason::MeterDrop);
                    continue;
                }
                Action::Dscp(dscp) => dscp,
                Action::Precedence => with_colour(meta.dscp(), colour),
            };
            ip::mark(frame.bytes_mut(cx.arena), meta, dscp);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::rig::{Rig, V4, V6};
    use super::*;
    use crate::base::units::BitRate;
    use crate::flow::FlowLimits;
    use crate::packet::{ClassId, PacketMeta};
    use crate::qos::meter::{MeterSpec, Second};
    use crate::qos::meters::{ClassMeterSpec, MeteringSpec, Meters};

    const LIMITS: FlowLimits = FlowLimits { flows_max: 8, half_open_max: 8 };

    /// A rig whose packets, of class `UNSET`, have a meter for two of them and one more.
    fn rig(actions: [Action; 3], is_colour_aware: bool) -> Rig {
        let mut rig = Rig::new(LIMITS);
        let second = Second::Excess { burst: 100 };
        let meter = MeterSpec { rate: BitRate(8), burst: 200, second, is_colour_aware };
        let classes = vec![ClassId::UNSET];
        let meters = vec![ClassMeterSpec { name: "m".into(), meter, classes, port: None, actions }];
        let spec = MeteringSpec { meters, trust: Vec::new() };
        rig.snapshot.meters = Arc::new(Meters::build(&spec, None));
        rig
    }

    #[test]
    fn each_colour_has_its_action() {
        for family in [V4, V6] {
            let actions = [Action::Pass, Action::Dscp(8), Action::Drop];
            let mut rig = rig(actions, false);
            let mut left = Vec::new();
            let mut last = Verdict::Next;
            for _ in 0..12 {
                let outcome = rig.run_tos(&mut Meter, &family, 46 << 2 | 2);
                last = outcome.verdict;
                if last == Verdict::Next {
                    left.push(outcome.meta.tos);
                }
            }
            assert_eq!(last, Verdict::Drop(DropReason::MeterDrop));
            let green = left.iter().filter(|&&tos| tos == 46 << 2 | 2).count() as u64;
            let yellow = left.iter().filter(|&&tos| tos == 8 << 2 | 2).count() as u64;
            assert!(green > 1 && yellow > 0, "{left:?}");
            let c = &rig.counters;
            assert_eq!((c.metered_green, c.metered_yellow), (green, yellow));
            assert_eq!(c.metered_red, 12 - green - yellow);
        }
    }

    #[test]
    fn what_has_waited_is_measured_once() {
        let mut rig = rig([Action::Dscp(8); 3], false);
        let out = rig.run_tos(&mut Meter, &V4, 46 << 2);
        assert_eq!((out.meta.dscp(), out.meta.dscp_for_rules()), (8, 46));
        let again = |meta: &mut PacketMeta| meta.flags = out.meta.flags;
        rig.run_with(&mut Meter, std::slice::from_ref(&out.bytes), again);
        let c = &rig.counters;
        assert_eq!(c.metered_green + c.metered_yellow + c.metered_red, 1);
    }

    #[test]
    fn an_aware_meter_reads_drop_precedences_and_writes_them() {
        let af = [Action::Precedence; 3];
        for (is_aware, from, to) in
            [(true, 12, 12), (true, 14, 14), (true, 46, 46), (false, 14, 10)]
        {
            let outcome = rig(af, is_aware).run_tos(&mut Meter, &V4, from << 2);
            assert_eq!(outcome.meta.tos >> 2, to, "{is_aware} {from}");
            assert_eq!(outcome.bytes[15] >> 2, to, "as the packet says");
        }
    }
}
