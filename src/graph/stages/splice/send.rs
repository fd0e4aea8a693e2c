//! Sends the segments that are made here: in the frame of the packet that brought them about, and
//! in fresh ones.

use super::Splice;
use crate::forward::splice::{Held, Out, Segment, Toward};
use crate::graph::stages::egress::{send, wait, way_to};
use crate::graph::{Cx, REPLIES_MAX};
use crate::packet::frame::HEADROOM;
use crate::packet::{
    ClassId, Direction, DropReason, FlowKey, Frame, Packet, PacketMeta, PacketMut, Verdict,
};

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
        packet.meta.class = self.bound[slot].class;
        send_in(cx, packet, first, &key, Some((&self.held, slot)))
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
        let hash = self.slots.key(slot).1;
        send_fresh(cx, segment, &key, (hash, self.bound[slot].class), Some((&self.held, slot)));
    }

    /// The key of a segment that leaves toward one of the ends.
    fn ends(&self, cx: &Cx<'_>, slot: usize, toward: Toward) -> Option<FlowKey> {
        match toward {
            Toward::Client => Some(self.slots.key(slot).0.reversed()),
            Toward::Backend => {
                let flow = cx.flows.get(self.bound[slot].flow?);
                Some(flow.key[Direction::Reply as usize].reversed())
            }
        }
    }
}

/// Writes a segment over a packet that has done its work.
pub(super) fn send_in(
    cx: &mut Cx<'_>,
    packet: &mut PacketMut<'_>,
    segment: &Segment,
    key: &FlowKey,
    held: Option<(&Held, usize)>,
) -> Result<(), DropReason> {
    write(cx, packet.frame, packet.meta, segment, key, held)
}

/// `false`: it could not be sent.
pub(in crate::graph::stages) fn send_fresh(
    cx: &mut Cx<'_>,
    segment: &Segment,
    key: &FlowKey,
    (hash, class): (u64, ClassId),
    held: Option<(&Held, usize)>,
) -> bool {
    if cx.replies.len() >= REPLIES_MAX {
        return false;
    }
    let Some(mut frame) = cx.pool.take() else { return false };
    let mut meta = PacketMeta { hash, class, ..PacketMeta::default() };
    let written = write(cx, &mut frame, &mut meta, segment, key, held).is_ok();
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
    key: &FlowKey,
    held: Option<(&Held, usize)>,
) -> Result<(), DropReason> {
    let routes = &cx.snapshot.routes;
    let way = way_to(routes, key.dst, key)?;
    let egress = *routes.egress(way.hop.port).ok_or(DropReason::NotOurPort)?;
    if !frame.set_extent(cx.arena, HEADROOM, segment.frame_len(key.dst.is_v4())) {
        return Err(DropReason::TooBig);
    }
    let bytes = frame.bytes_mut(cx.arena);
    segment.write(bytes, key, 0, held);
    meta.key = *key;
    send(bytes, meta, egress, way.hop);
    wait(meta, &way);
    Ok(())
}
