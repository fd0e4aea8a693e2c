//! Trusts, maps or clears the code points that packets come with.

use crate::graph::{Cx, Stage};
use crate::packet::{Batch, PacketFlags, Verdict, ip};

/// Where packets get the code point by which they are treated here, as `[dscp.PORT]` says for the
/// port they came in by.
#[derive(Clone, Copy, Debug)]
pub struct Trust;

impl Stage for Trust {
    fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
        let meters = &cx.snapshot.meters;
        if meters.trusts_all() {
            return;
        }
        let (frames, metas) = batch.parts_mut();
        for (frame, meta) in frames.iter_mut().zip(metas) {
            // What has waited was mapped when it came.
            if meta.verdict != Verdict::Next || meta.flags.has(PacketFlags::DELAYED) {
                continue;
            }
            let dscp = meters.trusted(meta.in_port, meta.dscp());
            if dscp != meta.dscp() {
                ip::set_dscp(frame.bytes_mut(cx.arena), meta, dscp);
                cx.counters.dscp_remapped += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::rig::{CLIENT_PORT, Rig, V4, V6};
    use super::*;
    use crate::flow::FlowLimits;
    use crate::packet::PortId;
    use crate::qos::dscp::Remap;
    use crate::qos::meters::{MeteringSpec, Meters};

    const LIMITS: FlowLimits = FlowLimits { flows_max: 8, half_open_max: 8 };

    fn leaving(remap: Remap, port: PortId, tos: u8) -> [u8; 2] {
        [V4, V6].map(|family| {
            let mut rig = Rig::new(LIMITS);
            let mut trust = vec![Remap::TRUST; usize::from(port.0)];
            trust.push(remap);
            let spec = MeteringSpec { meters: Vec::new(), trust };
            rig.snapshot.meters = Arc::new(Meters::build(&spec, None));
            let outcome = rig.run_tos(&mut Trust, &family, tos);
            let first = usize::from(outcome.meta.l3);
            let head = u16::from_be_bytes([outcome.bytes[first], outcome.bytes[first + 1]]);
            let written = if outcome.meta.is_v4() { head } else { head >> 4 } as u8;
            assert_eq!(outcome.meta.tos, written, "as the packet says");
            written
        })
    }

    #[test]
    fn code_points_are_what_the_port_makes_of_them_and_ecn_stays() {
        let mut remap = Remap::all_to(8);
        remap.set(46, 34);
        let ef_ect = 46 << 2 | 1;
        assert_eq!(leaving(remap, CLIENT_PORT, ef_ect), [34 << 2 | 1; 2]);
        assert_eq!(leaving(remap, CLIENT_PORT, 10 << 2), [8 << 2; 2]);
        assert_eq!(leaving(remap, PortId(CLIENT_PORT.0 + 1), ef_ect), [ef_ect; 2]);
        assert_eq!(leaving(Remap::TRUST, CLIENT_PORT, ef_ect), [ef_ect; 2]);
    }
}
