//! Sleeping until a packet arrives or another thread calls.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// Wakes one sleeper, from any thread. Costs a load where nobody sleeps.
#[derive(Clone)]
pub struct Waker {
    shared: Arc<Shared>,
}

struct Shared {
    sleeping: AtomicBool,
    event: OwnedFd,
}

/// Sleeps on sockets and on its [`Waker`]s.
pub struct Sleeper {
    /// Its own first, then those that it heeds.
    shared: Vec<Arc<Shared>>,
    /// The events of these, in their order, then the sockets.
    fds: Vec<libc::pollfd>,
}

impl Sleeper {
    /// # Errors
    /// `eventfd` failing: no descriptor left.
    pub fn new() -> io::Result<Sleeper> {
        // SAFETY: `eventfd` takes no pointer.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was opened above and has no other owner.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        let shared = Arc::new(Shared { sleeping: AtomicBool::new(false), event });
        Ok(Waker { shared }.sleeper())
    }

    /// Wakes this sleeper.
    pub fn waker(&self) -> Waker {
        Waker { shared: Arc::clone(&self.shared[0]) }
    }

    /// Is woken by another's waker as well. Nobody else may sleep for that meanwhile.
    pub fn heed(&mut self, waker: &Waker) {
        self.fds.insert(self.shared.len(), readable(waker.shared.event.as_raw_fd()));
        self.shared.push(Arc::clone(&waker.shared));
    }

    /// Also wakes when `fd` is readable. The descriptor has to stay open as long as this sleeps.
    pub fn watch(&mut self, fd: RawFd) {
        self.fds.push(readable(fd));
    }

    /// Watches no descriptors any more, and heeds nobody else's wakers.
    pub fn forget(&mut self) {
        self.shared.truncate(1);
        self.fds.truncate(1);
    }

    /// Sleeps `ns` nanoseconds at most; not at all where `ready` says so, which is asked once
    /// wakers are sure to be heard.
    pub fn sleep(&mut self, ns: u64, ready: impl FnOnce() -> bool) {
        self.shared.iter().for_each(|s| s.sleeping.store(true, Ordering::Relaxed));
        // Pairs with the fence of `wake`: either `ready` sees what was given before the waker
        // looked at `sleeping`, or the waker sees `sleeping`.
        fence(Ordering::SeqCst);
        if !ready() {
            self.poll(ns);
        }
        self.shared.iter().for_each(|s| s.sleeping.store(false, Ordering::Relaxed));
    }

    fn poll(&mut self, ns: u64) {
        let timeout = libc::timespec {
            tv_sec: (ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (ns % 1_000_000_000) as libc::c_long,
        };
        let count = self.fds.len() as libc::nfds_t;
        // SAFETY: `fds` points to `count` initialised structures; the timeout outlives the call. An
        // error (EINTR) means waking early, which is allowed.
        let woken =
            unsafe { libc::ppoll(self.fds.as_mut_ptr(), count, &timeout, std::ptr::null()) };
        if woken <= 0 {
            return;
        }
        for (shared, fd) in self.shared.iter().zip(&self.fds) {
            if fd.revents != 0 {
                let mut value = 0u64;
                // SAFETY: reads 8 bytes into `value`; the descriptor doesn't block.
                unsafe { libc::read(shared.event.as_raw_fd(), (&raw mut value).cast(), 8) };
            }
        }
    }
}

fn readable(fd: RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}

impl Waker {
    /// A sleeper that this wakes, in place of one that is gone: only one may sleep at a time.
    pub fn sleeper(&self) -> Sleeper {
        let fds = vec![readable(self.shared.event.as_raw_fd())];
        Sleeper { shared: vec![Arc::clone(&self.shared)], fds }
    }

    /// Wakes the sleeper if it sleeps. What it is to find has to be in place before.
    #[inline]
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.shared.sleeping.load(Ordering::Relaxed) {
            self.write();
        }
    }

    #[cold]
    fn write(&self) {
        let one = 1u64;
        // SAFETY: writes the 8 bytes of `one`; the descriptor doesn't block. A full counter means
        // that the sleeper wakes anyway.
        unsafe { libc::write(self.shared.event.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    const LONG_NS: u64 = 20_000_000_000;

    #[test]
    fn sleep_ends_with_its_time() {
        let mut sleeper = Sleeper::new().expect("eventfd");
        let start = Instant::now();
        sleeper.sleep(5_000_000, || false);
        assert!(start.elapsed() >= Duration::from_millis(5));
        sleeper.sleep(LONG_NS, || true);
        assert!(start.elapsed() < Duration::from_secs(10), "ready means no sleep");
    }

    #[test]
    fn a_waker_ends_the_sleep_and_only_one() {
        let mut sleeper = Sleeper::new().expect("eventfd");
        let waker = sleeper.waker();
        let start = Instant::now();
        std::thread::scope(|s| {
            s.spawn(|| {
                while !waker.shared.sleeping.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                waker.wake();
            });
            sleeper.sleep(LONG_NS, || false);
        });
        assert!(start.elapsed() < Duration::from_secs(10));
        waker.wake();
        let again = Instant::now();
        sleeper.sleep(3_000_000, || false);
        assert!(again.elapsed() >= Duration::from_millis(3), "nobody slept: nothing was kept");
    }

    #[test]
    fn whoever_it_heeds_ends_the_sleep_until_it_is_forgotten() {
        let mut sleeper = Sleeper::new().expect("eventfd");
        let others = [0; 3].map(|_| Sleeper::new().expect("eventfd").waker());
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        sleeper.watch(socket.as_raw_fd());
        others.iter().for_each(|waker| sleeper.heed(waker));
        let start = Instant::now();
        for waker in others.iter().chain([&sleeper.waker()]) {
            std::thread::scope(|s| {
                s.spawn(|| {
                    let sleeps = || waker.shared.sleeping.load(Ordering::SeqCst);
                    while !sleeps() && start.elapsed() < Duration::from_secs(10) {
                        std::thread::yield_now();
                    }
                    waker.wake();
                });
                sleeper.sleep(LONG_NS, || false);
            });
        }
        assert!(start.elapsed() < Duration::from_secs(10));
        sleeper.forget();
        others[0].write();
        let again = Instant::now();
        sleeper.sleep(3_000_000, || others[0].shared.sleeping.load(Ordering::SeqCst));
        assert!(again.elapsed() >= Duration::from_millis(3), "nothing of theirs is left");
    }

    #[test]
    fn a_readable_socket_ends_the_sleep() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let mut sleeper = Sleeper::new().expect("eventfd");
        sleeper.watch(socket.as_raw_fd());
        socket.send_to(b"x", socket.local_addr().expect("bound")).expect("send");
        let start = Instant::now();
        sleeper.sleep(LONG_NS, || false);
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
