//! Ports that checks ask from: each is used by one at a time, and the longest unused one first.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::locked;

/// A range of ports.
pub struct Ports {
    range: RangeInclusive<u16>,
    free: Mutex<VecDeque<u16>>,
    count: Arc<Semaphore>,
}

/// A port in use.
pub struct Seat {
    port: u16,
    of: Arc<Ports>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Ports {
    pub fn new(range: RangeInclusive<u16>) -> Ports {
        let free: VecDeque<u16> = range.clone().collect();
        let count = Arc::new(Semaphore::new(free.len()));
        Ports { range, free: Mutex::new(free), count }
    }

    pub fn range(&self) -> RangeInclusive<u16> {
        self.range.clone()
    }

    /// Waits for one where all are in use.
    pub async fn seat(self: Arc<Ports>) -> Seat {
        // Nobody closes it.
        let permit = Arc::clone(&self.count).acquire_owned().await.ok();
        let port = locked(&self.free).pop_front().unwrap_or(*self.range.start());
        Seat { port, of: self, _permit: permit }
    }
}

impl Seat {
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        locked(&self.of.free).push_back(self.port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn a_port_has_one_user_and_rests_as_long_as_it_can() {
        let ports = Arc::new(Ports::new(7..=9));
        let mut seats: Vec<_> =
            (0..3).map(|_| Arc::clone(&ports).seat().now_or_never().expect("free")).collect();
        assert_eq!(seats.iter().map(Seat::port).collect::<Vec<_>>(), [7, 8, 9]);
        assert!(Arc::clone(&ports).seat().now_or_never().is_none(), "all are in use");
        drop(seats.remove(1));
        drop(seats.remove(0));
        let next = Arc::clone(&ports).seat().now_or_never().expect("free again");
        assert_eq!(next.port(), 8);
    }
}
