//! Builds forwarding tables aside: a thread that holds the routes in use.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc as tokio_mpsc;

use crate::control::netlink::TablePrefix;
use crate::forward::PortLink;
use crate::forward::fib::{Fib, FibBuilder, Route};

/// After a build there is none for so many times as long as it worked: with many routes and ever
/// changing ones a quarter of a core goes into it ...
const REST: u32 = 3;
/// ... or more, so that a change among a million routes is used within a second.
const REST_MAX: Duration = Duration::from_millis(300);

/// The thread, and the two ways to it.
pub struct FibThread {
    orders: Option<mpsc::Sender<Order>>,
    built: tokio_mpsc::UnboundedReceiver<Built>,
    thread: Option<JoinHandle<()>>,
}

struct Order {
    links: Vec<PortLink>,
    routes: Vec<(TablePrefix, Option<Route>)>,
}

/// A forwarding table by all orders up to some moment.
pub struct Built {
    pub fib: Arc<Fib>,
    /// Routes that it holds.
    pub routes: usize,
    /// Routes that there was no room for, since the start.
    pub refused: usize,
    /// Orders that it knows, since the start.
    pub orders: u64,
}

impl FibThread {
    /// With so many tables beside the main one.
    ///
    /// # Errors
    /// The system refusing a thread.
    pub fn start(others: usize) -> std::io::Result<FibThread> {
        let (orders, given) = mpsc::channel();
        let (tell, built) = tokio_mpsc::unbounded_channel();
        let body = move || build(&given, &tell, FibBuilder::new(Vec::new(), others));
        let thread = std::thread::Builder::new().name("routes".into()).spawn(body)?;
        Ok(FibThread { orders: Some(orders), built, thread: Some(thread) })
    }

    /// Has a table built with these links and, where they are named, these routes; `None`: the
    /// prefix has none.
    pub fn order(&self, links: Vec<PortLink>, routes: Vec<(TablePrefix, Option<Route>)>) {
        if let Some(orders) = &self.orders {
            // The thread ends only with us; if it panicked, `built` says so.
            let _ = orders.send(Order { links, routes });
        }
    }

    /// Waits for the next table.
    ///
    /// # Panics
    /// If the thread did.
    pub async fn built(&mut self) -> Built {
        self.built.recv().await.expect("the thread that builds forwarding tables lives as we do")
    }
}

impl Drop for FibThread {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn build(
    orders: &mpsc::Receiver<Order>,
    tell: &tokio_mpsc::UnboundedSender<Built>,
    mut builder: FibBuilder,
) {
    let (mut not_before, mut due, mut refused, mut taken) = (Instant::now(), false, 0, 0);
    loop {
        // All orders that wait are taken in before a table is built.
        let wait = if due { not_before.saturating_duration_since(Instant::now()) } else { FOREVER };
        match orders.recv_timeout(wait) {
            Ok(order) => {
                builder.set_ports(order.links);
                for ((table, prefix), route) in order.routes {
                    refused += usize::from(builder.set(table, prefix, route.as_ref()).is_err());
                }
                (due, taken) = (true, taken + 1);
            }
            Err(RecvTimeoutError::Timeout) if due => {
                let before = worked();
                let (fib, routes) = (builder.build(), builder.len());
                let built = Built { fib, routes, refused, orders: taken };
                if tell.send(built).is_err() {
                    return;
                }
                not_before = Instant::now() + rest(worked().saturating_sub(before));
                due = false;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// What this thread has had of a processor: what others take of it is none of the build.
fn worked() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.map(Duration::from).unwrap_or_default()
}

/// How long there is no build after one that worked for so long.
fn rest(worked: Duration) -> Duration {
    (worked * REST).min(REST_MAX)
}

const FOREVER: Duration = Duration::from_secs(3_600);
