//! Sends the segments that are made here: in the frame of the packet that brought them about, and
//! in fresh ones.

use super::{Bound, Splice};
use crate::forward::splice::{Held, Out, Segment, Toward};
use crate::graph::stages::egress::{send, wait, way_to};
use crate::graph::{Cx, REPLIES_MAX};
use crate::packet::frame::HEADROOM;
use crate::packet::{ClassId, DropReason, FlowKey, Frame, Packet, PacketMeta, PacketMut, Verdict};

/// Bits below the code point in a packet's traffic class (RFC 3168, section 5).
const ECN_BITS: u8 = 2;

impl Splice {
    /// Sends all of it: the first segment in the packet's frame, which is absorbed where there is
    /// none.
    pub(super) fn answer(
        &mut self,
        cx: &mut Cx<'_>,
        packet: &mut PacketMut<'_>,
        slot: usize,
        out: &Out,
    ) -> Result<(), DropReason> {
        let Some((first, rest)) = out.segments().split_first() else {
            packet.meta.verdict = Verdict::Absorb;
            return Ok(());
        };
        for segment in rest {
            self.send_one(cx, slot, segment);
        }
        let key = self.ends(cx, slot, first.toward).ok_or(DropReason::NoFlow)?;
        // In the flow of the others, whoever's packet it is.
        packet.meta.hash = self.slots.key(slot).1;
        packet.meta.class = self.class(cx, slot);
        let dscp = self.code_point(cx, slot, first.toward);
        send_in(cx, packet, first, (&key, dscp), Some((&self.held, slot)))
    }

    /// Sends all of it in fresh frames.
    pub(super) fn send_all(&mut self, cx: &mut Cx<'_>, slot: usize, out: &Out) {
        for segment in out.segments() {
            self.send_one(cx, slot, segment);
        }
    }

    /// What can't be sent is as good as lost on its way: it is sent again.
    fn send_one(&mut self, cx: &mut Cx<'_>, slot: usize, segment: &Segment) {
        let Some(key) = self.ends(cx, slot, segment.toward) else { return };
        let made = Made {
            hash: self.slots.key(slot).1,
            class: self.class(cx, slot),
            dscp: self.code_point(cx, slot, segment.toward),
        };
        send_fresh(cx, segment, &key, made, Some((&self.held, slot)));
    }

    /// The class of segments that are made: the flow's, which is that of the last request that was
    /// read, not of the one that its backend was chosen by. What follows leaves in that one, too.
    fn class(&self, cx: &Cx<'_>, slot: usize) -> ClassId {
        let Bound { flow, class, .. } = self.bound[slot];
        // A refused one is told so all the same.
        flow.map(|flow| cx.flows.get(flow).class).filter(|c| !c.is_refused()).unwrap_or(class)
    }

    /// The code point of a segment that leaves toward one of the ends: what rules say, else what
    /// the client's packets have toward the backend.
    fn code_point(&self, cx: &Cx<'_>, slot: usize, toward: Toward) -> u8 {
        let Bound { flow, marking, dscp, .. } = self.bound[slot];
        let marked = match flow {
            Some(flow) => cx.flows.steps().treatments.get(cx.flows.get(flow).treatment).dscp,
            None => marking,
        };
        marked.unwrap_or(if toward == Toward::Backend { dscp } else { 0 })
    }

    /// The key of a segment that leaves toward one of the ends.
    fn ends(&self, cx: &Cx<'_>, slot: usize, toward: Toward) -> Option<FlowKey> {
        match toward {
            Toward::Client => Some(self.slots.key(slot).0.reversed()),
            Toward::Backend => {
                let flow = cx.flows.get(self.bound[slot].flow?);
                Some(flow.server_key().reversed())
            }
        }
    }
}

/// What a segment that is made here is known by.
#[derive(Clone, Copy, Debug)]
pub(in crate::graph::stages) struct Made {
    pub hash: u64,
    pub class: ClassId,
    pub dscp: u8,
}

/// Writes a segment over a packet that has done its work.
pub(super) fn send_in(
    cx: &mut Cx<'_>,
    packet: &mut PacketMut<'_>,
    segment: &Segment,
    to: (&FlowKey, u8),
    held: Option<(&Held, usize)>,
) -> Result<(), DropReason> {
    write(cx, packet.frame, packet.meta, segment, to, held)
}

/// `false`: it could not be sent.
pub(in crate::graph::stages) fn send_fresh(
    cx: &mut Cx<'_>,
    segment: &Segment,
    key: &FlowKey,
    Made { hash, class, dscp }: Made,
    held: Option<(&Held, usize)>,
) -> bool {
    if cx.replies.len() >= REPLIES_MAX {
        return false;
    }
    let Some(mut frame) = cx.pool.take() else { return false };
    let mut meta = PacketMeta { hash, class, ..PacketMeta::default() };
    let written = write(cx, &mut frame, &mut meta, segment, (key, dscp), held).is_ok();
    match written {
        true => cx.replies.push(Packet { frame, meta }),
        false => cx.pool.put(frame),
    }
    written
}

fn write(
    cx: &Cx<'_>,
    frame: &mut Frame,
    meta: &mut PacketMeta,
    segment: &Segment,
    (key, dscp): (&FlowKey, u8),
    held: Option<(&Held, usize)>,
) -> Result<(), DropReason> {
    let routes = &cx.snapshot.routes;
    let way = way_to(routes, key.dst, key)?;
    let egress = *routes.egress(way.hop.port).ok_or(DropReason::NotOurPort)?;
    if !frame.set_extent(cx.arena, HEADROOM, segment.frame_len(key.dst.is_v4())) {
        return Err(DropReason::TooBig);
    }
    let bytes = frame.bytes_mut(cx.arena);
    segment.write(bytes, key, dscp << ECN_BITS, held);
    (meta.key, meta.tos) = (*key, dscp << ECN_BITS);
    send(bytes, meta, egress, way.hop);
    wait(meta, &way);
    Ok(())
}
