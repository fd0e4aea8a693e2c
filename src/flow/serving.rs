//! What each backend is busy with, as one worker sees it, and what it is told of the others.
//!
//! A backend's place is its number here. It stays over reloads for as long as flows may count on
//! it, which the numbers of a configuration do not.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::entry::NONE_U16;

/// Places there are: all numbers but that of none.
pub const PLACES_MAX: usize = NONE_U16 as usize;
/// Places whose memory is taken together.
const CHUNK: usize = 256;
const CHUNKS_MAX: usize = PLACES_MAX.div_ceil(CHUNK);

/// One worker's counts, by place. Written by the worker, with plain stores; read by the control
/// plane, which writes back what the other workers' counts come to.
///
/// Places without memory are not counted: the control plane reserves it before it gives a place to
/// a backend, so the worker allocates nothing.
pub struct Serving {
    chunks: Box<[OnceLock<Box<[Place]>>]>,
}

/// Two lines, because they have two writers.
#[derive(Default)]
struct Place {
    seen: Seen,
    told: Told,
}

/// Written by the worker.
#[derive(Default)]
#[repr(align(64))]
struct Seen {
    connections: AtomicU32,
}

/// Written by the control plane.
#[derive(Default)]
#[repr(align(64))]
struct Told {
    connections_elsewhere: AtomicU32,
}

impl Serving {
    /// With memory for the first places.
    pub fn new(places: usize) -> Serving {
        let chunks = (0..CHUNKS_MAX).map(|_| OnceLock::new()).collect();
        let serving = Serving { chunks };
        serving.reserve(places);
        serving
    }

    /// Takes the memory for the places below this one; for the control plane.
    pub fn reserve(&self, places: usize) {
        for chunk in self.chunks.iter().take(places.div_ceil(CHUNK)) {
            chunk.get_or_init(|| (0..CHUNK).map(|_| Place::default()).collect());
        }
    }

    /// Flows that have begun and not ended, on all workers: exact for this one, and as of some
    /// milliseconds ago for the others.
    #[inline]
    pub fn connections(&self, place: u16) -> u32 {
        self.at(place).map_or(0, |p| {
            let elsewhere = p.told.connections_elsewhere.load(Ordering::Relaxed);
            p.seen.connections.load(Ordering::Relaxed).saturating_add(elsewhere)
        })
    }

    /// The same, on this worker alone.
    pub fn own_connections(&self, place: u16) -> u32 {
        self.at(place).map_or(0, |p| p.seen.connections.load(Ordering::Relaxed))
    }

    /// What the other workers have; for the control plane.
    pub fn tell_connections(&self, place: u16, elsewhere: u32) {
        let Some(place) = self.at(place) else { return };
        let cell = &place.told.connections_elsewhere;
        // Most are what they were: their lines stay with the worker.
        if cell.load(Ordering::Relaxed) != elsewhere {
            cell.store(elsewhere, Ordering::Relaxed);
        }
    }

    /// A flow begins. Only ever called by the one worker that this belongs to, as is
    /// [`Serving::end`].
    #[inline]
    pub(super) fn begin(&self, place: u16) {
        if let Some(place) = self.at(place) {
            change(&place.seen.connections, |n| n.saturating_add(1));
        }
    }

    /// A flow has ended.
    #[inline]
    pub(super) fn end(&self, place: u16) {
        if let Some(place) = self.at(place) {
            change(&place.seen.connections, |n| n.saturating_sub(1));
        }
    }

    #[inline]
    fn at(&self, place: u16) -> Option<&Place> {
        if place == NONE_U16 {
            return None;
        }
        let place = usize::from(place);
        self.chunks.get(place / CHUNK)?.get()?.get(place % CHUNK)
    }
}

/// One writer: no other change can come between.
#[inline]
fn change(cell: &AtomicU32, to: impl FnOnce(u32) -> u32) {
    cell.store(to(cell.load(Ordering::Relaxed)), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_each_for_itself() {
        let serving = Serving::new(1);
        serving.begin(3);
        serving.begin(3);
        serving.end(4);
        assert_eq!((serving.connections(3), serving.connections(4)), (2, 0));
        serving.tell_connections(3, 5);
        assert_eq!((serving.connections(3), serving.own_connections(3)), (7, 2));
        serving.end(3);
        assert_eq!(serving.connections(3), 6);
    }

    #[test]
    fn what_has_no_memory_is_not_counted() {
        let serving = Serving::new(0);
        serving.begin(0);
        assert_eq!(serving.connections(0), 0);
        serving.reserve(PLACES_MAX);
        for place in [0, 255, 256, PLACES_MAX as u16 - 1] {
            serving.begin(place);
            assert_eq!(serving.connections(place), 1, "{place}");
        }
        serving.begin(NONE_U16);
        assert_eq!(serving.own_connections(NONE_U16), 0, "transit");
    }
}
