//! A server's TCP as far as it hears its client (RFC 9293, section 3.10.7; RFC 5961), and what it
//! takes for requests of HTTP/1.

use std::collections::BTreeMap;

use super::*;

#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub says: Vec<u8>,
}

/// In what servers differ.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manners {
    /// Any RST or SYN in its window ends a connection (RFC 793).
    pub old_rst: bool,
    pub old_syn: bool,
    /// A FIN ahead of a gap is not kept.
    pub fin_in_order: bool,
    /// Its ports wait for a while before they are used again.
    pub lingers: bool,
    /// It closes as soon as its client does.
    pub closes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Listens,
    SynReceived,
    Open,
    /// It has closed, its client has not.
    Closed,
    /// Its client has closed.
    Ended,
    TimeWait,
}

#[derive(Debug)]
pub(super) struct Server {
    manners: Manners,
    state: State,
    /// Of its own last connection.
    own_first: u32,
    first: u32,
    next: u32,
    /// Bytes ahead of what is next, by how far they are from the first.
    early: BTreeMap<u32, u8>,
    fin: Option<u32>,
    silent_ms: u32,
    reader: Reader,
}

const WINDOW: u32 = 1 << 16;
const FORGETS_MS: u32 = 60_000;

impl Server {
    pub fn new(manners: Manners) -> Server {
        Server {
            manners,
            state: State::Listens,
            own_first: 5_000,
            first: 0,
            next: 0,
            early: BTreeMap::new(),
            fin: None,
            silent_ms: 0,
            reader: Reader::default(),
        }
    }

    pub fn next(&self) -> u32 {
        self.next
    }

    pub fn first(&self) -> Option<u32> {
        (self.state != State::Listens).then_some(self.first)
    }

    pub fn was_asked_for_secrets(&self) -> bool {
        self.reader.secrets
    }

    pub fn forget(&mut self) {
        self.state = State::Listens;
    }

    /// Whether it has this byte.
    pub fn has(&self, at: u32) -> bool {
        let place = at.wrapping_sub(self.first);
        self.state != State::Listens
            && (place < self.next.wrapping_sub(self.first) || self.early.contains_key(&place))
    }

    pub fn wait(&mut self, ms: u32) {
        self.silent_ms += ms;
        let over = matches!(self.state, State::Closed | State::TimeWait | State::SynReceived);
        if over && self.silent_ms > FORGETS_MS {
            self.forget();
        }
    }

    /// Closes, resets, or forgets its connection.
    pub fn act(&mut self, how: u8) -> Option<Segment> {
        let open = matches!(self.state, State::Open | State::Ended);
        let flags = match how {
            0 if open => FIN | ACK,
            1 if open => RST | ACK,
            2 if self.state == State::Closed => {
                self.forget();
                return None;
            }
            _ => return None,
        };
        let says = self.says(flags);
        self.state = match (flags & RST != 0, self.state) {
            (true, _) | (_, State::Ended) => State::Listens,
            _ => State::Closed,
        };
        self.silent_ms = 0;
        Some(says)
    }

    fn says(&self, flags: u8) -> Segment {
        let begun = u32::from(flags & SYN == 0);
        Segment { seq: self.own_first.wrapping_add(begun), ack: self.next, flags, says: Vec::new() }
    }

    pub fn hear(&mut self, segment: &Segment) -> Vec<Segment> {
        let answer = self.take(segment);
        answer.into_iter().collect()
    }

    fn take(&mut self, segment: &Segment) -> Option<Segment> {
        let Segment { seq, ack, flags, ref says } = *segment;
        let ahead = seq.wrapping_sub(self.next) as i32;
        let opens = flags & (SYN | ACK | RST | FIN) == SYN;
        match self.state {
            State::Listens => return self.listen(segment, opens),
            State::TimeWait if opens && ahead > 0 => return self.listen(segment, opens),
            _ => {}
        }
        let len = says.len() as i32 + i32::from(flags & FIN != 0) + i32::from(flags & SYN != 0);
        let window = WINDOW as i32;
        let fits = ahead < window && ahead + len.max(1) > 0;
        if !fits {
            let again = self.state == State::SynReceived && opens && ahead == -1;
            let answer = if again { SYN | ACK } else { ACK };
            return (flags & RST == 0).then(|| self.says(answer));
        }
        if flags & RST != 0 {
            if ahead == 0 || self.manners.old_rst {
                self.forget();
                return None;
            }
            return Some(self.says(ACK));
        }
        if flags & SYN != 0 {
            if self.state == State::SynReceived && opens && ahead == -1 {
                return Some(self.says(SYN | ACK));
            }
            if self.manners.old_syn {
                let says = self.says(RST | ACK);
                self.forget();
                return Some(says);
            }
            return Some(self.says(ACK));
        }
        if flags & ACK == 0 {
            return None;
        }
        if ack != self.own_first.wrapping_add(1) {
            return (self.state != State::SynReceived).then(|| self.says(ACK));
        }
        if self.state == State::SynReceived {
            self.state = State::Open;
        }
        if !matches!(self.state, State::Open | State::Closed) {
            return Some(self.says(ACK));
        }
        self.silent_ms = 0;
        self.read(segment, ahead)
    }

    fn listen(&mut self, segment: &Segment, opens: bool) -> Option<Segment> {
        if !opens {
            let reset = segment.flags & RST == 0;
            return reset.then(|| Segment { seq: segment.ack, ..self.says(RST) });
        }
        self.own_first = self.own_first.wrapping_add(100_003);
        self.first = segment.seq.wrapping_add(1);
        self.next = self.first;
        (self.state, self.fin, self.silent_ms) = (State::SynReceived, None, 0);
        self.early.clear();
        self.reader = Reader { secrets: self.reader.secrets, ..Reader::default() };
        Some(self.says(SYN | ACK))
    }

    /// The first copy of each byte is believed.
    fn read(&mut self, segment: &Segment, ahead: i32) -> Option<Segment> {
        let end = segment.seq.wrapping_add(segment.says.len() as u32);
        for (at, byte) in numbered(segment) {
            let fits =
                (at.wrapping_sub(self.next) as i32) >= 0 && at.wrapping_sub(self.next) < WINDOW;
            if fits {
                self.early.entry(at.wrapping_sub(self.first)).or_insert(byte);
            }
        }
        if segment.flags & FIN != 0 && (!self.manners.fin_in_order || ahead <= 0) {
            self.fin = self.fin.or(Some(end));
        }
        while let Some(byte) = self.early.remove(&self.next.wrapping_sub(self.first)) {
            self.reader.read(byte);
            self.next = self.next.wrapping_add(1);
        }
        if self.fin == Some(self.next) {
            self.next = self.next.wrapping_add(1);
            self.state = match (self.state, self.manners) {
                (State::Closed, Manners { lingers: true, .. }) => State::TimeWait,
                (State::Closed, _) | (_, Manners { closes: true, .. }) => State::Listens,
                _ => State::Ended,
            };
        }
        Some(self.says(ACK))
    }
}

/// Tells requests of HTTP/1 in what a client says, as far as they can be read.
#[derive(Debug, Default)]
struct Reader {
    head: Vec<u8>,
    body: usize,
    /// It is no HTTP/1.
    is_lost: bool,
    secrets: bool,
}

impl Reader {
    fn read(&mut self, byte: u8) {
        if self.is_lost {
            return;
        }
        if self.body > 0 {
            self.body -= 1;
            return;
        }
        self.head.push(byte);
        if !self.head.ends_with(b"\r\n\r\n") {
            return;
        }
        let head = String::from_utf8_lossy(&std::mem::take(&mut self.head)).into_owned();
        let line: Vec<_> =
            head.trim_start().lines().next().unwrap_or_default().split(' ').collect();
        match line[..] {
            [method, path, "HTTP/1.1"] if method.bytes().all(|b| b.is_ascii_uppercase()) => {
                self.secrets |= path.starts_with("/secret/");
                let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
                self.body = length.and_then(|n| n.parse().ok()).unwrap_or(0);
            }
            _ => self.is_lost = true,
        }
    }
}
