//! A shadow's connection: an ordinary socket, one task each.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::pair::Pair;
use super::told::Cut;
use crate::base::Nanos;
use crate::worker::Clock;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 14;

/// A pair, as its task and whoever follows the original have it.
pub struct Talk {
    pub pair: RefCell<Pair>,
    /// The pair has changed.
    pub wake: Notify,
    /// Tells how many there are.
    _live: Rc<()>,
}

impl Talk {
    pub fn new(pair: Pair, live: Rc<()>) -> Rc<Talk> {
        Rc::new(Talk { pair: RefCell::new(pair), wake: Notify::new(), _live: live })
    }
}

/// Says to a server what the original's client says, until either is over.
pub async fn converse(talk: Rc<Talk>, to: SocketAddr, clock: Clock) {
    talk.pair.borrow_mut().begin();
    match timeout(CONNECT_WITHIN, TcpStream::connect(to)).await {
        Ok(Ok(stream)) => {
            // What the client has sent at once goes at once.
            let _ = stream.set_nodelay(true);
            exchange(&talk, &stream, &clock).await;
        }
        Ok(Err(_)) => talk.pair.borrow_mut().cut(Cut::Refused),
        Err(_) => talk.pair.borrow_mut().cut(Cut::Silent),
    }
    talk.pair.borrow_mut().end();
}

async fn exchange(talk: &Talk, stream: &TcpStream, clock: &Clock) {
    let mut room = vec![0; READ_BYTES];
    loop {
        let (over, closed, has_more, late) = {
            let pair = talk.pair.borrow();
            (pair.is_over(), pair.is_closed(), !pair.outbox().is_empty(), pair.late_at())
        };
        if over {
            return;
        }
        tokio::select! {
            () = talk.wake.notified() => {}
            _ = stream.readable(), if !closed => read(talk, stream, clock, &mut room),
            _ = stream.writable(), if has_more => write(talk, stream, clock),
            why = until(late, clock) => talk.pair.borrow_mut().cut(why),
        }
    }
}

fn read(talk: &Talk, stream: &TcpStream, clock: &Clock, room: &mut [u8]) {
    let mut pair = talk.pair.borrow_mut();
    match stream.try_read(room) {
        Ok(count @ 1..) => pair.shadow_said(clock.now(), room.get(..count).unwrap_or_default()),
        Ok(0) => pair.shadow_ended(clock.now()),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
        Err(_) => pair.cut(Cut::Closed),
    }
}

fn write(talk: &Talk, stream: &TcpStream, clock: &Clock) {
    let mut pair = talk.pair.borrow_mut();
    let now = clock.now();
    match stream.try_write(pair.outbox()) {
        Ok(count) => pair.sent(now, count),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
        Err(_) => pair.cut(Cut::Closed),
    }
}

async fn until(late: Option<(Nanos, Cut)>, clock: &Clock) -> Cut {
    match late {
        Some((at, why)) => {
            sleep(Duration::from_nanos(at.since(clock.now()))).await;
            why
        }
        None => std::future::pending().await,
    }
}
