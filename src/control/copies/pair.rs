//! One connection and its shadow: the bytes that wait for it, and the answers of both. Sans-io.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::speech::{Speech, is_http2};
use super::told::{Cut, Told};
use super::windows::Windows;
use crate::base::Nanos;
use crate::inspect::fields::Wanted;
use crate::inspect::http1::Side;

/// Bytes of a client that wait for its shadow at most.
pub const OUTBOX_MAX: usize = 1 << 18;
/// A shadow is given this long for what it lacks when its original has ended.
pub const LATE_AFTER_NS: u64 = 60_000_000_000;
/// Flow control may hold it up for so long.
pub const STALLED_NS: u64 = 10_000_000_000;

/// What is told of a service's shadows, shared with who shows it.
pub type SharedTold = Arc<Mutex<Told>>;

/// A connection and its shadow.
pub struct Pair {
    original: Speech,
    shadow: Speech,
    outbox: VecDeque<u8>,
    /// Bytes of that which may be sent.
    allowed: usize,
    /// `None` before the client's first bytes tell.
    is_http2: Option<bool>,
    /// Of HTTP/2.
    windows: Option<Box<Windows>>,
    /// Since when flow control holds it up.
    stalled: Option<Nanos>,
    /// The original's server has taken it.
    accepted: bool,
    /// Since when the original has ended.
    ended: Option<Nanos>,
    /// The shadow's server has closed its side.
    closed: bool,
    over: bool,
    told: SharedTold,
}

impl Pair {
    pub fn new(wanted: &Wanted, told: SharedTold) -> Pair {
        Pair {
            original: Speech::new(wanted),
            shadow: Speech::new(wanted),
            outbox: VecDeque::new(),
            allowed: 0,
            is_http2: None,
            windows: None,
            stalled: None,
            accepted: false,
            ended: None,
            closed: false,
            over: false,
            told,
        }
    }

    /// The original's server has taken the connection: so may the shadow's. Before, nobody knows
    /// whether rules let it through.
    pub fn accept(&mut self) {
        self.accepted = true;
    }

    /// See [`Pair::accept`].
    pub fn is_accepted(&self) -> bool {
        self.accepted
    }

    /// Whether the shadow has something to say and may.
    pub fn is_due(&self) -> bool {
        self.accepted && !self.over && self.allowed > 0
    }

    /// It has no more part in what happens.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The shadow's connection is begun.
    pub fn begin(&mut self) {
        self.tell(|told| {
            told.counts.connections += 1;
            told.counts.open += 1;
        });
    }

    /// The shadow's connection is over, however it ended.
    pub fn end(&mut self) {
        self.over = true;
        self.tell(|told| told.counts.open -= 1);
    }

    /// What one side of the original said, in order.
    pub fn original_said(&mut self, now: Nanos, side: Side, bytes: &[u8]) {
        if self.over {
            return;
        }
        let read = match side {
            Side::Client => {
                if self.outbox.len() + bytes.len() > OUTBOX_MAX {
                    return self.cut(Cut::Slow);
                }
                self.outbox.extend(bytes);
                self.begins();
                self.original.client(now, bytes)
            }
            Side::Server => self.original.server(now, bytes),
        };
        self.go_on(now, read.is_ok());
    }

    /// The original's server has said all, or nothing more of the original will come at all.
    pub fn original_ended(&mut self, now: Nanos, wholly: bool) {
        self.original.end(now);
        if wholly {
            self.ended.get_or_insert(now);
        }
        self.go_on(now, true);
    }

    /// What may be sent to the shadow.
    pub fn outbox(&self) -> &[u8] {
        let (first, second) = self.outbox.as_slices();
        let part = if first.is_empty() { second } else { first };
        &part[..part.len().min(self.allowed)]
    }

    /// So much of that was sent.
    pub fn sent(&mut self, now: Nanos, count: usize) {
        let before = self.shadow.requests();
        let (first, second) = self.outbox.as_slices();
        let part = if first.is_empty() { second } else { first };
        let part = &part[..count.min(part.len())];
        let read = self.shadow.client(now, part);
        if let Some(windows) = &mut self.windows {
            windows.sent(part);
        }
        self.outbox.drain(..count.min(self.outbox.len()));
        let new = self.shadow.requests() - before;
        self.tell(|told| told.counts.requests += new);
        self.go_on(now, read.is_ok());
    }

    /// What the shadow's server answers.
    pub fn shadow_said(&mut self, now: Nanos, bytes: &[u8]) {
        if !self.over {
            let read = self.shadow.server(now, bytes);
            if let Some(windows) = &mut self.windows {
                windows.received(bytes);
            }
            self.go_on(now, read.is_ok());
        }
    }

    /// The shadow's server has closed its side: in order, where it owes no answer.
    pub fn shadow_ended(&mut self, now: Nanos) {
        self.shadow.end(now);
        self.closed = true;
        self.go_on(now, true);
    }

    /// Whether the shadow's server says nothing more.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// When to cut it, and why, if nothing happens until then.
    pub fn late_at(&self) -> Option<(Nanos, Cut)> {
        let ended = self.ended.map(|at| (at.saturating_add(LATE_AFTER_NS), Cut::Late));
        let stalled = self.stalled.map(|at| (at.saturating_add(STALLED_NS), Cut::Window));
        ended.into_iter().chain(stalled).min_by_key(|(at, _)| *at)
    }

    /// Ends it before its time.
    pub fn cut(&mut self, why: Cut) {
        if !self.over {
            self.over = true;
            (self.outbox, self.allowed) = (VecDeque::new(), 0);
            self.tell(|told| told.cuts[why as usize] += 1);
        }
    }

    /// Compares what is complete on both sides, and sees whether there is more to come.
    fn go_on(&mut self, now: Nanos, is_read: bool) {
        while let Some(answers) = self.original.take_both(&mut self.shadow) {
            self.tell(|told| told.compare(answers));
        }
        self.allow(now);
        if !is_read {
            self.cut(Cut::Unread);
        }
        let owes_nothing = self.outbox.is_empty() && self.shadow.waiting() == 0;
        match owes_nothing {
            true => self.over |= self.ended.is_some(),
            false if self.closed => self.cut(Cut::Closed),
            false => {}
        }
    }

    /// Sees what the client speaks, as soon as that can be seen.
    fn begins(&mut self) {
        if self.is_http2.is_none() {
            let begins: Vec<u8> = self.outbox.iter().take(4).copied().collect();
            self.is_http2 = is_http2(&begins);
            self.windows = (self.is_http2 == Some(true)).then(|| Box::new(Windows::new()));
        }
    }

    /// Sees how much may be sent.
    fn allow(&mut self, now: Nanos) {
        let outbox = &self.outbox;
        self.allowed = match &mut self.windows {
            None if self.is_http2.is_none() => 0,
            None => outbox.len(),
            Some(windows) => windows.allow(outbox.len(), |from, room| {
                room.iter_mut().zip(outbox.range(from..)).for_each(|(to, byte)| *to = *byte);
            }),
        };
        let is_awaited = |stream| self.original.is_awaited(stream);
        let is_stalled = self.windows.as_ref().is_some_and(|w| w.is_stalled(is_awaited));
        self.stalled = is_stalled.then(|| self.stalled.unwrap_or(now));
    }

    fn tell(&self, what: impl FnOnce(&mut Told)) {
        what(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::super::streams::tests::{data, frame, get, head, preface};
    use super::*;
    use crate::inspect::h2::frame::{flag, kind};

    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    const BAD: &[u8] = b"HTTP/1.1 500 No\r\ncontent-length: 3\r\n\r\nbad";

    type Happens = fn(&mut Pair);

    fn at(ms: u64) -> Nanos {
        Nanos(ms * 1_000_000)
    }

    fn pair() -> (Pair, SharedTold) {
        let told = SharedTold::default();
        (Pair::new(&Wanted::new([]).expect("the fixed names"), Arc::clone(&told)), told)
    }

    fn send_all(pair: &mut Pair, now: Nanos) -> Vec<u8> {
        let mut sent = Vec::new();
        while !pair.outbox().is_empty() {
            let count = pair.outbox().len().min(7);
            sent.extend_from_slice(&pair.outbox()[..count]);
            pair.sent(now, count);
        }
        sent
    }

    #[test]
    fn answers_are_compared_request_by_request_whoever_is_first() {
        let (mut pair, told) = pair();
        pair.original_said(at(0), Side::Client, GET);
        assert!(!pair.is_due(), "nobody has taken the original yet");
        pair.accept();
        assert!(pair.is_due());
        pair.begin();
        assert_eq!(send_all(&mut pair, at(2)), GET);
        pair.original_said(at(10), Side::Server, OK);
        assert_eq!(told.lock().expect("whole").counts.status_same, 0, "the shadow's is missing");
        pair.shadow_said(at(5), OK);
        pair.original_said(at(20), Side::Client, GET);
        send_all(&mut pair, at(20));
        pair.shadow_said(at(21), BAD);
        pair.original_said(at(25), Side::Server, OK);
        pair.original_ended(at(30), true);
        assert!(pair.is_over());
        pair.end();
        let told = told.lock().expect("whole");
        let counts = &told.counts;
        assert_eq!((counts.connections, counts.open, counts.requests), (1, 0, 2));
        assert_eq!((counts.status_same, counts.status_different), (1, 1));
        assert_eq!((counts.size_same, counts.size_different), (1, 1));
        assert_eq!((counts.original_bytes, counts.shadow_bytes), (4, 5));
        assert_eq!(told.first.each_ref().map(|first| first.sum_us), [15_000, 4_000]);
        assert_eq!(told.cuts, [0; Cut::COUNT]);
    }

    #[test]
    fn a_shadow_is_cut_once_with_its_reason() {
        let cases: [(Cut, Happens); 4] = [
            (Cut::Slow, |p| {
                let body =
                    format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", 1 << 20);
                p.original_said(at(0), Side::Client, body.as_bytes());
                (0..64).for_each(|_| p.original_said(at(0), Side::Client, &[0; 8_192]));
            }),
            (Cut::Closed, |p| {
                p.original_said(at(0), Side::Client, GET);
                p.shadow_ended(at(1));
            }),
            (Cut::Unread, |p| p.original_said(at(0), Side::Client, b"\x16\x03\x01")),
            (Cut::Gap, |p| p.cut(Cut::Gap)),
        ];
        for (why, happens) in cases {
            let (mut pair, told) = pair();
            pair.accept();
            happens(&mut pair);
            assert!(pair.is_over() && !pair.is_due(), "{why:?}");
            pair.cut(Cut::Late);
            pair.original_said(at(2), Side::Client, GET);
            let mut wanted = [0; Cut::COUNT];
            wanted[why as usize] = 1;
            assert_eq!(told.lock().expect("whole").cuts, wanted, "{why:?}");
        }
    }

    /// As servers do that are asked to, or whose connection was idle for long.
    #[test]
    fn a_server_may_close_what_it_has_answered() {
        let (mut pair, told) = pair();
        pair.accept();
        pair.original_said(at(0), Side::Client, GET);
        send_all(&mut pair, at(1));
        pair.shadow_said(at(2), b"HTTP/1.0 200 OK\r\n\r\nok");
        pair.shadow_ended(at(3));
        assert!(pair.is_closed() && !pair.is_over(), "the original's answer is missing");
        pair.original_said(at(50), Side::Server, OK);
        let sizes = |told: &SharedTold| told.lock().expect("whole").counts.size_same;
        assert_eq!((sizes(&told), pair.is_over()), (1, false));
        pair.original_said(at(60), Side::Client, GET);
        assert!(pair.is_over(), "nobody would hear it");
        assert_eq!(told.lock().expect("whole").cuts[Cut::Closed as usize], 1);
    }

    #[test]
    fn what_its_original_has_left_is_waited_for() {
        let (mut pair, _) = pair();
        pair.accept();
        pair.original_said(at(0), Side::Client, GET);
        pair.original_said(at(1), Side::Server, OK);
        pair.original_ended(at(2), true);
        let late = Some((Nanos(2_000_000 + LATE_AFTER_NS), Cut::Late));
        assert!(!pair.is_over() && pair.late_at() == late);
        send_all(&mut pair, at(3));
        assert!(!pair.is_over(), "the answer is missing");
        pair.shadow_said(at(9), OK);
        assert!(pair.is_over());
    }

    #[test]
    fn http2_is_compared_by_stream_and_held_up_by_the_shadows_own_windows() {
        let (mut pair, told) = pair();
        pair.accept();
        let asks = [preface(), get(1), get(3)].concat();
        pair.original_said(at(0), Side::Server, &frame(kind::SETTINGS, 0, 0, &[]));
        pair.original_said(at(0), Side::Client, &asks[..2]);
        assert!(!pair.is_due(), "nobody can tell what it speaks");
        pair.original_said(at(0), Side::Client, &asks[2..]);
        assert!(pair.is_due());
        assert_eq!(send_all(&mut pair, at(1)), asks);
        let answer = |id| [head(id, true), data(id, 9, flag::END_STREAM)].concat();
        pair.original_said(at(2), Side::Server, &[answer(1), answer(3)].concat());
        let greets = frame(kind::SETTINGS, 0, 0, &[]);
        pair.shadow_said(at(3), &[greets, answer(3), answer(1)].concat());
        assert_eq!((told.lock().expect("whole").counts.size_same, pair.late_at()), (2, None));

        // The original's server takes more at once than the shadow's.
        let post = frame(kind::HEADERS, flag::END_HEADERS, 5, &[0x83, 0x86, 0x84]);
        let body = data(5, 16_000, 0).repeat(5);
        pair.original_said(at(4), Side::Client, &[post, body].concat());
        send_all(&mut pair, at(5));
        assert!(!pair.is_over() && pair.outbox().is_empty());
        let late = (at(5).saturating_add(STALLED_NS), Cut::Window);
        assert_eq!(pair.late_at(), Some(late));
        pair.shadow_said(at(6), &frame(kind::WINDOW_UPDATE, 0, 0, &[0, 1, 0, 0]));
        assert_eq!(pair.late_at(), Some(late), "not the stream's");
        pair.shadow_said(at(7), &frame(kind::WINDOW_UPDATE, 0, 5, &[0, 1, 0, 0]));
        assert_eq!(pair.late_at(), None);
        assert_eq!(send_all(&mut pair, at(8)).len(), 16_009);
        assert_eq!(told.lock().expect("whole").cuts, [0; Cut::COUNT]);
    }

    /// A client that pauses a download pauses both.
    #[test]
    fn a_shadow_that_waits_with_its_original_is_not_late() {
        let (mut pair, _) = pair();
        pair.accept();
        pair.original_said(at(0), Side::Client, &[preface(), get(1)].concat());
        send_all(&mut pair, at(1));
        let full = [head(1, true), data(1, 16_000, 0).repeat(4), data(1, 1_535, 0)].concat();
        pair.shadow_said(at(2), &full);
        pair.original_said(at(3), Side::Server, &full);
        assert_eq!(pair.late_at(), None);
        // The client has its own answer, and grants nothing more.
        pair.original_said(at(4), Side::Server, &data(1, 0, flag::END_STREAM));
        let late = (at(4).saturating_add(STALLED_NS), Cut::Window);
        assert_eq!(pair.late_at(), Some(late));
    }
}
