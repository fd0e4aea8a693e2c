//! What both sides of the connections sent, put in order and looked into.

use super::flows::{ACK, FIN, Flow, RST, SYN, Segment};
use super::layers::TCP;
use super::record::Seen;
use crate::flow::reassembly::{Pushed, Reassembler, WINDOW_PAGES};
use crate::inspect::inspector::{App, Inspector, Pool, Side, Unknown};

/// Pages in which segments wait that came early, for all connections.
const PAGES_MAX: usize = 16_384;
/// Connections that memory is taken for at once.
const SLOTS_GROW: usize = 256;
/// Segments beyond the window, or without a page to wait in, until a connection is given up.
const STRAYS_MAX: u16 = 1_024;
/// Datagrams of a connection that are looked at.
const DATAGRAMS_MAX: u16 = 256;
/// Bytes of a stream that are looked at while it isn't decided what it is.
pub const STREAM_BYTES_MAX: u64 = 1 << 18;

/// All that is kept of connections that are looked into.
pub(super) struct Watches {
    streams: Reassembler,
    free: Vec<u32>,
    slots: u32,
    pool: Pool,
}

/// One of them.
pub(super) struct Watch {
    /// Streams of the reassembler: twice this for the client's, one more for the server's.
    slot: u32,
    sides: [Stream; 2],
    /// By which side is the client: of a connection joined later, either may be.
    inspectors: [Option<Inspector>; 2],
    strays: u16,
    datagrams: u16,
    conflicts: bool,
}

#[derive(Clone, Copy, Default)]
struct Stream {
    open: bool,
    ended: bool,
    bytes: u64,
}

impl Watches {
    pub(super) fn new(pool: Pool) -> Watches {
        Watches { streams: Reassembler::new(0, 0), free: Vec::new(), slots: 0, pool }
    }

    /// Takes memory as it is needed.
    fn grow(&mut self) {
        if self.free.is_empty() {
            self.streams.grow(2 * SLOTS_GROW, 0);
            let from = self.slots;
            self.slots += SLOTS_GROW as u32;
            self.free.extend((from..self.slots).rev());
        }
        let short = self.streams.pages_free() < WINDOW_PAGES;
        if short && self.streams.pages_made() < PAGES_MAX {
            self.streams.grow(0, WINDOW_PAGES);
        }
    }

    /// Whether the parsers of HTTP are all in use.
    pub(super) fn is_crowded(&self) -> bool {
        self.pool.is_empty()
    }

    /// A packet of a connection that isn't done.
    pub(super) fn packet(&mut self, flow: &mut Flow, segment: &Segment<'_>, side: usize) {
        self.grow();
        if flow.watch.is_none() {
            let Some(slot) = self.free.pop() else { return };
            flow.watch = Some(Box::new(Watch::new(slot, flow.opened)));
        }
        let damaged = flow.is_damaged(segment, side);
        let Some(watch) = &mut flow.watch else { return };
        let over = if segment.proto == TCP {
            let first = flow.syns[side].map(|syn| syn.wrapping_add(1));
            !damaged && watch.tcp(&mut self.streams, &mut self.pool, segment, side, first)
        } else {
            watch.datagrams += 1;
            watch.udp(&mut self.streams, &mut self.pool, segment, side);
            watch.datagrams == DATAGRAMS_MAX
        };
        if over || watch.settle(&mut self.pool) {
            self.end(flow);
        }
    }

    /// Looks no more into a connection: keeps what was seen.
    pub(super) fn end(&mut self, flow: &mut Flow) {
        let Some(mut watch) = flow.watch.take() else { return };
        let slot = watch.slot as usize;
        if (0..2).any(|side| self.streams.has_gap(2 * slot + side)) {
            watch.inspectors.iter_mut().flatten().for_each(|i| i.give_up(Unknown::Gaps));
        }
        self.streams.close(2 * slot);
        self.streams.close(2 * slot + 1);
        self.free.push(watch.slot);
        let known = |i: &Option<Inspector>| i.as_ref().is_some_and(|i| i.app() != App::None);
        let decided = watch.inspectors.iter().position(known);
        let shown = decided.or(watch.inspectors.iter().position(Option::is_some)).unwrap_or(0);
        if shown == 1 {
            std::mem::swap(&mut flow.client, &mut flow.server);
        }
        let mut seen = Box::new(Seen::default());
        for (i, inspector) in watch.inspectors.into_iter().enumerate() {
            let Some(inspector) = inspector else { continue };
            if i == shown {
                *seen = Seen::of(&inspector);
            }
            inspector.give_back(&mut self.pool);
        }
        seen.conflicts = watch.conflicts;
        flow.seen = Some(seen);
    }
}

impl Watch {
    fn new(slot: u32, opened: bool) -> Watch {
        Watch {
            slot,
            sides: [Stream::default(); 2],
            inspectors: [Some(Inspector::new(!opened)), (!opened).then(|| Inspector::new(true))],
            strays: 0,
            datagrams: 0,
            conflicts: false,
        }
    }

    pub(super) fn has_parsers(&self) -> bool {
        self.inspectors.iter().flatten().any(Inspector::has_parsers)
    }

    /// `true`: nothing more is to be seen.
    fn tcp(
        &mut self,
        streams: &mut Reassembler,
        pool: &mut Pool,
        segment: &Segment<'_>,
        side: usize,
        first: Option<u32>,
    ) -> bool {
        let stream = &mut self.sides[side];
        let (syn, flags) = (segment.flags & SYN != 0, segment.flags);
        // Without ACK, or with RST, a receiver takes no data (RFC 9293, section 3.10.7.4).
        if flags & RST != 0 || (!syn && flags & ACK == 0) {
            return false;
        }
        let slot = 2 * self.slot as usize + side;
        if !stream.open {
            stream.open = true;
            let first = first.unwrap_or(segment.seq.wrapping_add(u32::from(syn)));
            streams.open(slot, first);
        }
        let (inspectors, bytes) = (&mut self.inspectors, &mut stream.bytes);
        let pushed = streams.push(slot, segment.seq, syn, segment.payload, |part| {
            *bytes += part.len() as u64;
            for (client, inspector) in inspectors.iter_mut().enumerate() {
                let from = if client == side { Side::Client } else { Side::Server };
                if let Some(inspector) = inspector {
                    inspector.stream(pool, from, part);
                }
            }
        });
        stream.ended |= flags & FIN != 0 && !streams.has_gap(slot);
        self.conflicts |= streams.conflicts(slot);
        let strays = matches!(pushed, Pushed::OutOfWindow | Pushed::NoPage);
        self.strays += u16::from(strays);
        let undecided = self.inspectors.iter().flatten().all(|i| !i.knows());
        let long = undecided && self.sides.iter().any(|s| s.bytes > STREAM_BYTES_MAX);
        let why = if long {
            Unknown::StreamTooLong
        } else if self.strays == STRAYS_MAX {
            Unknown::Gaps
        } else {
            return self.sides.iter().all(|s| s.ended);
        };
        self.inspectors.iter_mut().flatten().for_each(|inspector| inspector.give_up(why));
        true
    }

    fn udp(
        &mut self,
        streams: &mut Reassembler,
        pool: &mut Pool,
        segment: &Segment<'_>,
        side: usize,
    ) {
        for (client, inspector) in self.inspectors.iter_mut().enumerate() {
            let from = if client == side { Side::Client } else { Side::Server };
            let slot = 2 * self.slot as usize + client;
            if let Some(inspector) = inspector {
                inspector.datagram(pool, streams, slot, from, segment.payload);
            }
        }
    }

    /// Drops what can't be any more. `true`: nothing is left to look for.
    fn settle(&mut self, pool: &mut Pool) -> bool {
        if let Some(known) =
            self.inspectors.iter().position(|i| i.as_ref().is_some_and(|i| i.knows()))
            && let Some(other) = self.inspectors[1 - known].take()
        {
            other.give_back(pool);
        }
        self.inspectors.iter().flatten().all(Inspector::is_done)
    }
}
