//! What is looked at in all that the box sends.

use tidegate::forward::splice::options::stamps_of;
use tidegate::inspect::h2::SETTINGS;
use tidegate::packet::tcp::flag::{ACK, FIN, SYN};
use tidegate::packet::{PacketMeta, ParseOptions, parse, tcp};

use super::Play;
use super::model::{FAR, Parts, Served};
use crate::targets::pipeline::check_sent;
use crate::targets::setup::SEED;

/// Backends' sides of connections at most: their first numbers are all different.
const SERVED_MAX: usize = 64;

/// A segment as it was sent.
struct Seen<'a> {
    meta: PacketMeta,
    stamp: Option<u32>,
    payload: &'a [u8],
}

impl<'a> Seen<'a> {
    fn read(bytes: &'a [u8]) -> Option<Seen<'a>> {
        let mut meta = PacketMeta::default();
        let options = ParseOptions { verify_transport_checksum: true };
        parse(bytes, SEED, options, &mut meta).ok()?;
        if meta.key.proto != tcp::PROTOCOL {
            return None;
        }
        let payload = usize::from(meta.payload);
        let stamps = stamps_of(&bytes[usize::from(meta.l4) + tcp::HEADER_LEN..payload]);
        let payload = &bytes[payload..usize::from(meta.end)];
        Some(Seen { meta, stamp: stamps.map(|s| s.value), payload })
    }

    fn has(&self, flag: u8) -> bool {
        self.meta.tcp_flags & flag != 0
    }

    /// Where its payload lies in the stream that begins behind this number, if it is of that.
    fn place(&self, isn: u32) -> Option<u32> {
        let place = self.meta.tcp_seq.wrapping_sub(isn.wrapping_add(1));
        (place < FAR).then_some(place)
    }

    /// How much of the stream behind this number it acknowledges.
    fn acknowledges(&self, isn: u32) -> Option<u32> {
        let acked = self.meta.tcp_ack.wrapping_sub(isn.wrapping_add(1));
        (self.has(ACK) && acked < FAR).then_some(acked)
    }

    fn arrive(&self, at: u32, parts: &mut Parts) {
        parts.add(at, self.payload.len() as u32);
        parts.finished |= self.has(FIN) && parts.next == at + self.payload.len() as u32;
    }
}

impl Play {
    pub(super) fn look(&mut self, port: usize, bytes: &[u8]) {
        check_sent(true, port, bytes);
        match (Seen::read(bytes), port) {
            (Some(seen), 0) => self.at_client(&seen),
            (Some(seen), _) if seen.has(SYN) && !seen.has(ACK) => self.backend_opened(&seen),
            (Some(seen), _) => self.at_backend(&seen),
            (None, _) => {}
        }
    }

    fn at_client(&mut self, seen: &Seen<'_>) {
        let key = &seen.meta.key;
        let ends = ((key.dst, key.dport), (key.src, key.sport));
        for c in self.conns.iter_mut().rev().filter(|c| (c.client, c.vip) == ends) {
            if seen.has(SYN) && seen.meta.tcp_ack == c.isn.wrapping_add(1) {
                c.our_isn.get_or_insert(seen.meta.tcp_seq);
                c.stamp = seen.stamp.unwrap_or(c.stamp);
                return;
            }
            let Some(at) = c.our_isn.and_then(|isn| seen.place(isn)) else { continue };
            if seen.has(ACK) && seen.acknowledges(c.isn).is_none() {
                continue; // of an older connection of the same ends, whose numbers here lie near
            }
            if !seen.payload.is_empty() {
                let wanted = c.toward_client(at, seen.payload.len());
                assert_eq!(wanted.as_deref(), Some(seen.payload), "at a client, from {at} on");
            }
            seen.arrive(at, &mut c.heard);
            c.stamp = seen.stamp.unwrap_or(c.stamp);
            if let Some(acked) = seen.acknowledges(c.isn).filter(|_| !c.misled) {
                assert!(acked <= c.sent.end(), "{acked} acknowledged of {}", c.sent.end());
            }
            return;
        }
    }

    /// A first segment to a backend: whose it is follows from its number.
    fn backend_opened(&mut self, seen: &Seen<'_>) {
        let (key, syn) = (&seen.meta.key, seen.meta.tcp_seq);
        let cut = |isn: u32| syn.wrapping_sub(isn);
        // One whose client has no answer yet was sent on within an older connection.
        let of = |c: &super::Conn| c.our_isn.is_some() && cut(c.isn) <= SETTINGS.len() as u32;
        let Some(conn) = self.conns.iter().rposition(of) else { return };
        let c = &mut self.conns[conn];
        let cut = cut(c.isn);
        if *c.cut.get_or_insert(cut) != cut {
            return; // the client's own, sent on
        }
        if cut > 0 {
            assert_eq!(cut, SETTINGS.len() as u32);
            assert!(c.ack_at.is_some() && c.heard.next >= cut, "an answer to nothing");
        }
        let (local, remote) = ((key.dst, key.dport), (key.src, key.sport));
        let known = |s: &&mut Served| (s.local, s.remote, s.syn) == (local, remote, syn);
        if let Some(known) = self.served.iter_mut().find(known) {
            known.stamp = seen.stamp.unwrap_or_default();
        } else if self.served.len() < SERVED_MAX {
            self.served.push(Served {
                conn,
                local,
                remote,
                syn,
                isn: (self.served.len() as u32) << 26 | 0x0200_0000,
                has_answered: false,
                options: 0,
                stamp: seen.stamp.unwrap_or_default(),
                said: Parts::default(),
                got: Parts::default(),
            });
        }
    }

    fn at_backend(&mut self, seen: &Seen<'_>) {
        let key = &seen.meta.key;
        let ends = ((key.dst, key.dport), (key.src, key.sport));
        for s in self.served.iter_mut().rev().filter(|s| (s.local, s.remote) == ends) {
            let Some(at) = seen.place(s.syn) else { continue };
            let c = &self.conns[s.conn];
            // Where something was taken out of the client's stream, what it repeats from before that
            // comes at another place; the backend takes nothing twice.
            let known = if c.cut > Some(0) { s.got.next.saturating_sub(at) } else { 0 };
            let new = seen.payload.get(known as usize..).unwrap_or_default();
            if !new.is_empty() {
                let wanted = c.toward_backend(at + known, new.len());
                assert_eq!(wanted.as_deref(), Some(new), "at a backend, from {} on", at + known);
            }
            seen.arrive(at, &mut s.got);
            s.stamp = seen.stamp.unwrap_or(s.stamp);
            if let Some(acked) = seen.acknowledges(s.isn).filter(|_| !c.lied) {
                // Only the client knows what it has got, and only the backend can say it again.
                let has = c.heard.end().saturating_sub(c.cut.unwrap_or_default());
                assert!(acked <= has, "{acked} acknowledged, and the client has {has}");
            }
            return;
        }
    }
}
