//! ICMP errors about packets of services, taken to who sent those packets: a client, or the backend
//! that answered it.

use super::egress::{Way, begin, forbidden, refuse, send, wait, way_to};
use super::splice::Splice;
use super::tunnel::send_within;
use crate::base::Addr;
use crate::flow::FlowKind;
use crate::forward::errors::{About, of_tunnel, translate, unwrap};
use crate::forward::icmp::IcmpError;
use crate::forward::tunnel::Encap;
use crate::forward::{Choosing, Egress, nat};
use crate::graph::Cx;
use crate::packet::icmp::Quoted;
use crate::packet::{Direction, DropReason, FlowKey, FlowRef, PacketMut, Verdict};

/// Passes an error on. What is about no packet of a service is left to the stages behind.
#[cold]
#[inline(never)]
pub(super) fn pass_on(
    cx: &mut Cx<'_>,
    packet: &mut PacketMut<'_>,
    splice: Option<&mut Splice>,
) -> Result<(), DropReason> {
    let tables = &cx.snapshot.forward;
    let bytes = packet.frame.bytes(cx.arena);
    match About::read(bytes, packet.meta, tables.tunnels()) {
        Some(About::Within(about, encap)) => {
            let key = &about.key;
            let service = tables.service(key.dst, key.dport, key.proto);
            match service.is_some_and(|s| s.mode.is_tunnel()) {
                true => tell_client(cx, packet, &about, encap),
                false => Ok(()),
            }
        }
        Some(About::Packet(about)) => tell_sender(cx, packet, &about, splice),
        None => Ok(()),
    }
}

/// Of a packet to a backend that was within another one.
fn tell_client(
    cx: &mut Cx<'_>,
    packet: &mut PacketMut<'_>,
    about: &Quoted,
    encap: Encap,
) -> Result<(), DropReason> {
    let meta = &*packet.meta;
    let error = of_tunnel(packet.frame.bytes(cx.arena), meta, encap.overhead(meta.is_v4()));
    let error = error.ok_or(DropReason::IcmpIgnored)?;
    let (way, egress) = way_out(cx, about.key.src, &about.key)?;
    unwrap(packet.frame, cx.arena, packet.meta, about, error)?;
    send(packet.frame.bytes_mut(cx.arena), packet.meta, egress, way.hop);
    wait(packet.meta, &way);
    Ok(())
}

/// Of a packet that was sent on as another, or as it was.
fn tell_sender(
    cx: &mut Cx<'_>,
    packet: &mut PacketMut<'_>,
    about: &Quoted,
    splice: Option<&mut Splice>,
) -> Result<(), DropReason> {
    let back = about.key.reversed();
    let hash = back.hash(cx.snapshot.seed);
    // An error goes the way of the flow's packets whose hash it takes on.
    packet.meta.hash = hash;
    let (kind, sent, sequence) = match cx.flows.lookup(&back, hash) {
        Some((flow, way)) => {
            let known = cx.flows.get(flow);
            let (kind, sent) = (known.kind, known.key(way.flip()));
            let sequence = match (kind, splice) {
                (FlowKind::Transit, _) => return Ok(()),
                (FlowKind::Spliced, Some(splice)) => match spliced(cx, packet, splice, (flow, way))
                {
                    Some(change) => change,
                    None => {
                        packet.meta.verdict = Verdict::Absorb;
                        return Ok(());
                    }
                },
                _ => 0,
            };
            (kind, sent, sequence)
        }
        None => match stateless(cx, &back)? {
            Some((kind, sent)) => (kind, sent, 0),
            None => return Ok(()),
        },
    };
    let (way, egress) = way_out(cx, sent.src, &back)?;
    if let Some(encap) = Encap::of(kind) {
        send_within(cx, packet, encap, sent.src, (way.hop, egress))?;
    } else {
        if let Some(error) = forbidden(packet.meta, &egress) {
            return Err(refuse(cx, packet.as_ref(), error));
        }
        let tags = packet.meta.l3;
        let bytes = begin(cx.arena, cx.counters, packet.frame, packet.meta);
        if kind.is_one_way() {
            nat::hop(bytes, packet.meta)?;
        } else {
            let gone = tags - packet.meta.l3;
            let about = Quoted { l3: about.l3 - gone, l4: about.l4 - gone, ..*about };
            translate(bytes, packet.meta, &about, &sent, sequence)?;
        }
        send(bytes, packet.meta, egress, way.hop);
    }
    wait(packet.meta, &way);
    Ok(())
}

/// What is added to the quoted sequence number, for an error about a packet of a spliced flow.
/// `None`: the error was for us.
fn spliced(
    cx: &Cx<'_>,
    packet: &PacketMut<'_>,
    splice: &mut Splice,
    (flow, way): (FlowRef, Direction),
) -> Option<u32> {
    if way == Direction::Reply && splice.is_binding(flow) {
        // It is about what we have sent ourselves, of what is held.
        let bytes = packet.frame.bytes(cx.arena);
        if let Some(IcmpError::TooBig { mtu }) = of_tunnel(bytes, packet.meta, 0) {
            splice.send_smaller(flow, mtu, packet.meta.is_v4());
        }
        return None;
    }
    Some(splice.quoted_change(flow, way))
}

/// How packets of a key go where no flow of it is known: another appliance has it, and an error
/// came here. Where every appliance chooses alike, that is known. `None`: not a service's key.
fn stateless(cx: &mut Cx<'_>, key: &FlowKey) -> Result<Option<(FlowKind, FlowKey)>, DropReason> {
    let tables = &cx.snapshot.forward;
    let Some(service) = tables.service(key.dst, key.dport, key.proto) else {
        let of_nat = tables.nat().is_some_and(|n| n.owner(key.dst, key.dport).is_some());
        return if of_nat { Err(DropReason::IcmpIgnored) } else { Ok(None) };
    };
    let kind = tables.adopts(service).ok_or(DropReason::IcmpIgnored)?;
    let by = Choosing { now: cx.now, turns: cx.turns, serving: cx.flows.serving() };
    let backend = tables.choose(service.pool, key, by)?;
    let (src, sport) = (backend.addr, backend.port);
    Ok(Some((kind, FlowKey { src, sport, dst: key.src, dport: key.sport, proto: key.proto })))
}

fn way_out(cx: &Cx<'_>, target: Addr, flow: &FlowKey) -> Result<(Way, Egress), DropReason> {
    let routes = &cx.snapshot.routes;
    let way = way_to(routes, target, flow)?;
    let egress = *routes.egress(way.hop.port).ok_or(DropReason::NotOurPort)?;
    Ok((way, egress))
}

#[cfg(test)]
mod tests;
