//! Scripts by name: whole lives, and the ways in which they go wrong.

use super::{form, offers, op};

const ALL: u8 = offers::STAMPS | offers::SACK | offers::SCALE | 2 << 6;
/// Services by number.
const HELLO: u8 = 0;
const HELLO_DNAT: u8 = 1;
const REQUEST: u8 = 2;
const REQUEST_DNAT: u8 = 3;
const V6: u8 = 4;
/// What is said, by number, and where to.
const HTTP1: u8 = 2;
const HTTP2: u8 = 3;
const WAITING: u8 = 4;
const WAITING_LONGER: u8 = 6;
const JUNK: u8 = 7;
const NAMED: u8 = 8;
const LONG: u8 = 16;
/// About 33 ms, and 1 s.
const WHILE: u8 = 13;
const SECOND: u8 = 18;

/// Of the first client, as all steps but those of [`Script::of`].
#[derive(Clone, Default)]
struct Script(Vec<u8>);

impl Script {
    fn new() -> Script {
        Script(vec![0])
    }

    fn step(mut self, what: u8, operands: &[u8]) -> Script {
        self.0.push(what);
        self.0.extend_from_slice(operands);
        self
    }

    fn of(self, client: u8, what: u8, operands: &[u8]) -> Script {
        self.step(what + client * op::COUNT, operands)
    }

    /// SYN and SYN-ACK.
    fn open(self, service: u8, options: u8, says: u8) -> Script {
        self.step(op::SYN, &[service, options, says]).step(op::TURN, &[])
    }

    fn client(self, from: u16, len: u16, form: u8) -> Script {
        let [from, len] = [from, len].map(u16::to_be_bytes);
        self.step(op::CLIENT, &[from[0], from[1], len[0], len[1], form])
    }

    fn server(self, from: u16, len: u16, form: u8) -> Script {
        let [from, len] = [from, len].map(u16::to_be_bytes);
        self.step(op::SERVER, &[from[0], from[1], len[0], len[1], form])
    }

    /// Both sides go on until all is said.
    fn finish(self) -> Script {
        (0..5).fold(self, |script, _| {
            script.step(op::CLIENT_GOES_ON, &[1]).step(op::SERVER_GOES_ON, &[1])
        })
    }

    /// A whole connection, with a wait before anything more is said.
    fn life(self, service: u8, options: u8, says: u8) -> Script {
        let script = self.open(service, options, says).step(op::CLIENT_GOES_ON, &[2]);
        script.step(op::TIME, &[WHILE]).finish()
    }
}

pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let new = Script::new;
    let opened = |service, says| {
        new().open(service, ALL, says).step(op::CLIENT_GOES_ON, &[2]).step(op::TURN, &[])
    };
    let greeted = new().open(REQUEST, ALL, WAITING).step(op::CLIENT_GOES_ON, &[0]);
    let greeted = greeted.step(op::TIME, &[WHILE]);
    let many = (0..9).fold(new(), |script, i| {
        let client = i % 3;
        let script = script.of(client, op::SYN, &[i, ALL, i]).step(op::TURN, &[]);
        script.of(client, op::CLIENT_GOES_ON, &[1]).of(client, op::SERVER_GOES_ON, &[1])
    });
    let seeds = [
        ("hello", new().life(HELLO, ALL, 0)),
        ("hello-named-dnat", new().life(HELLO_DNAT | V6, 0, NAMED | LONG)),
        ("http1", new().life(REQUEST, offers::SACK, HTTP1)),
        ("http2-small-segments", new().life(REQUEST_DNAT, ALL | offers::SMALL, HTTP2 | NAMED)),
        ("waiting", new().life(REQUEST, ALL, WAITING | NAMED)),
        ("waiting-longer", new().life(REQUEST_DNAT | V6, 0, WAITING_LONGER | LONG)),
        ("waiting-in-vain", new().life(HELLO, ALL, WAITING)),
        ("junk", new().life(REQUEST, ALL, JUNK)),
        ("greeting-lost", greeted.clone().step(op::TIME, &[SECOND]).finish()),
        ("greeted-and-silent", greeted.clone().step(op::TIME, &[22])),
        ("greeted-and-closed", greeted.clone().client(39, 9, 0).step(op::CLIENT_RST, &[0])),
        ("answer-too-soon", {
            let script = new().open(REQUEST, ALL, WAITING).client(0, 48, 0);
            script.step(op::TIME, &[WHILE]).finish()
        }),
        ("out-of-order", {
            let script = new().open(HELLO, ALL, LONG).client(900, 600, 0).client(0, 500, 0);
            script.client(1_500, 900, form::NOTHING).client(300, 700, form::SACK).finish()
        }),
        ("refused", opened(HELLO, 0).step(op::SERVER_RST, &[0]).step(op::TURN, &[]).finish()),
        ("silent", {
            let script = opened(REQUEST, HTTP1).step(op::TIME, &[SECOND]);
            script.step(op::TIME, &[21]).step(op::TIME, &[22]).step(op::SYN_ACK, &[ALL])
        }),
        ("no-stamps", opened(HELLO, 0).step(op::SYN_ACK, &[offers::SACK]).step(op::TURN, &[])),
        ("replay-lost", {
            let script = opened(HELLO, LONG).step(op::SYN_ACK, &[ALL]).step(op::TURN, &[]);
            script.server(0, 0, form::HALF).step(op::TIME, &[SECOND]).server(0, 300, 0).finish()
        }),
        ("no-window", {
            let script = opened(HELLO, LONG).step(op::SYN_ACK, &[ALL]).step(op::TURN, &[]);
            script.server(0, 9, form::NO_WINDOW | form::HALF).step(op::TIME, &[SECOND]).finish()
        }),
        ("too-much-acknowledged", {
            let script = opened(HELLO, 0).client(0, 0, form::TOO_MUCH).step(op::SYN_ACK, &[ALL]);
            script.server(0, 0, form::TOO_MUCH).finish()
        }),
        ("reset-under-way", new().life(HELLO, ALL, 0).step(op::SERVER_RST, &[0]).finish()),
        ("reset-aside", opened(HELLO, 0).step(op::CLIENT_RST, &[9]).finish()),
        ("again-from-the-same-port", {
            let script = new().life(HELLO_DNAT, ALL, 0).step(op::CLIENT_RST, &[0]);
            script.life(HELLO_DNAT, ALL, LONG).step(op::CLIENT_RST, &[0]).life(REQUEST, 0, HTTP2)
        }),
        ("over-a-living-one", new().life(REQUEST, ALL, HTTP2).life(REQUEST, ALL, WAITING)),
        ("reloaded", opened(HELLO, 0).step(op::RELOAD, &[]).step(op::TURN, &[]).finish()),
        ("many", many),
    ];
    seeds.map(|(name, script)| (name.to_string(), script.0)).into()
}
