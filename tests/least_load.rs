//! How long requests wait for their first token at servers of unlike speed, by how they are shared
//! out: a seeded simulation of what workers choose by, on a virtual clock.
//!
//! Servers are engines with continuous batching: prompts are read one after the other, then
//! requests generate side by side, as many as the batch and the KV cache hold; others wait in
//! line. Lengths of prompts and answers are heavy-tailed. `TIDEGATE_SIM_SEED=n` takes one seed. The
//! first seed's waits are drawn, where `--nocapture` tells.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::fmt::Write as _;
use std::path::Path;

use tidegate::base::hash::Rng;
use tidegate::base::{Addr, Nanos, Seed};
use tidegate::flow::Serving;
use tidegate::forward::load::{Known, Reading, loads};
use tidegate::forward::spec::{BackendId, BackendSpec, Balance, ForwardSpec, PoolId, PoolSpec};
use tidegate::forward::{Choosing, Tables, Turns};
use tidegate::packet::FlowKey;

const SECOND: u64 = 1_000_000_000;
const WORKERS: usize = 2;
/// How often workers hear of each other, as in the appliance.
const SHARED_EVERY: u64 = 10_000_000;
const REQUESTS: usize = 12_000;
/// Requests before that fill the servers.
const WARM_UP: usize = 2_000;
const SEEDS: u64 = 5;

/// What a server is able to.
#[derive(Clone, Copy)]
struct Engine {
    prompt_tokens_a_second: f64,
    tokens_a_second: f64,
    batch: usize,
    cache_tokens: f64,
}

const FAST: Engine = Engine {
    prompt_tokens_a_second: 24_000.0,
    tokens_a_second: 60.0,
    batch: 64,
    cache_tokens: 250_000.0,
};
const SLOW: Engine = Engine {
    prompt_tokens_a_second: 6_000.0,
    tokens_a_second: 25.0,
    batch: 16,
    cache_tokens: 50_000.0,
};
const SERVERS: [Engine; 8] = [FAST, FAST, FAST, SLOW, SLOW, SLOW, SLOW, SLOW];
const ARRIVALS_A_SECOND: f64 = 8.0;

#[derive(Clone, Copy)]
struct Request {
    at: u64,
    prompt: f64,
    answer: f64,
}

#[derive(Default)]
struct Server {
    line: VecDeque<(usize, Request)>,
    running: usize,
    cache_used: f64,
    /// Until when prompts are read.
    reads_until: u64,
}

/// What the control plane knows of the engines, and when it hears of them.
#[derive(Clone, Copy)]
struct Scrapes {
    every: u64,
    /// Nothing is heard any more from then on.
    until: u64,
    /// How old what is known may be.
    stale_after: u64,
}

const FRESH: Scrapes = Scrapes { every: SECOND, until: u64::MAX, stale_after: 3 * SECOND };

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives(usize),
    /// A request's first token, at a server; it generates from now on.
    Begins(usize, usize),
    Ends(usize, usize),
    Share,
    Scrape,
}

struct World {
    balance: Balance,
    scrapes: Scrapes,
    tables: Tables,
    servings: Vec<Serving>,
    turns: Vec<Turns>,
    servers: Vec<Server>,
    known: Vec<Option<(u64, Known)>>,
    requests: Vec<Request>,
    /// By request: worker, server, and the time to its first token.
    fates: Vec<(usize, usize, u64)>,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    now: u64,
    left: usize,
}

fn heavy(rng: &mut Rng, least: f64, shape: f64, most: f64) -> f64 {
    let u = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    (least / (1.0 - u).powf(1.0 / shape)).min(most)
}

fn requests(seed: u64) -> Vec<Request> {
    let mut rng = Rng::new(Seed(seed));
    let mut at = 0.0;
    let request = |_| {
        let u = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        at -= (1.0 - u).ln() / ARRIVALS_A_SECOND;
        Request {
            at: (at * SECOND as f64) as u64,
            prompt: heavy(&mut rng, 300.0, 1.2, 24_000.0),
            answer: heavy(&mut rng, 80.0, 1.3, 3_000.0),
        }
    };
    (0..REQUESTS).map(request).collect()
}

impl World {
    fn new(balance: Balance, scrapes: Scrapes, seed: u64) -> World {
        let backend = |i: usize| BackendSpec {
            id: BackendId(i as u16),
            name: format!("b{i}"),
            addr: Addr::v4(0x0a00_0001 + i as u32),
            port: 8_000,
            weight: 1,
            ..BackendSpec::default()
        };
        let backends = (0..SERVERS.len()).map(backend).collect();
        let pool = PoolSpec { name: "p".into(), balance, backends, ..PoolSpec::default() };
        let spec = ForwardSpec { pools: vec![pool], ..ForwardSpec::default() };
        let requests = requests(seed);
        let mut events: BinaryHeap<_> =
            (0..requests.len()).map(|i| Reverse((requests[i].at, Event::Arrives(i)))).collect();
        events.push(Reverse((SHARED_EVERY, Event::Share)));
        events.push(Reverse((scrapes.every, Event::Scrape)));
        World {
            balance,
            scrapes,
            tables: Tables::build(&spec, WORKERS as u16, Seed(seed)),
            servings: (0..WORKERS).map(|_| Serving::new(SERVERS.len())).collect(),
            turns: (0..WORKERS).map(|w| Turns::new(w as u16, WORKERS as u16)).collect(),
            servers: SERVERS.map(|_| Server::default()).into(),
            known: vec![None; SERVERS.len()],
            fates: vec![(0, 0, 0); requests.len()],
            left: requests.len(),
            requests,
            events,
            now: 0,
        }
    }

    fn run(mut self) -> World {
        while self.left > 0 {
            let Reverse((at, event)) = self.events.pop().expect("requests are left");
            self.now = at;
            match event {
                Event::Arrives(request) => self.arrives(request),
                Event::Begins(server, request) => {
                    let sent = self.requests[request].at;
                    self.fates[request].2 = at - sent;
                    let worker = self.fates[request].0;
                    self.servings[worker].answered(server as u16, Nanos(at), at - sent);
                    let answer = self.requests[request].answer;
                    let takes = answer / SERVERS[server].tokens_a_second * SECOND as f64;
                    self.events.push(Reverse((at + takes as u64, Event::Ends(server, request))));
                }
                Event::Ends(server, request) => self.ends(server, request),
                Event::Share => self.share(),
                Event::Scrape => self.scrape(),
            }
        }
        self
    }

    fn arrives(&mut self, request: usize) {
        let worker = (request * 7 / 3) % WORKERS;
        let key = FlowKey {
            src: Addr::v4(0xc633_6401),
            sport: request as u16,
            dst: Addr::v4(0xcb00_7101),
            dport: 443,
            proto: 6,
        };
        let (now, serving) = (Nanos(self.now), &self.servings[worker]);
        let by = Choosing { now, turns: &mut self.turns[worker], serving };
        let server =
            usize::from(self.tables.choose(PoolId(0), &key, by).expect("all are up").place);
        serving.begin(server as u16);
        self.fates[request] = (worker, server, 0);
        self.servers[server].line.push_back((request, self.requests[request]));
        self.admit(server);
    }

    fn ends(&mut self, server: usize, request: usize) {
        let Request { prompt, answer, .. } = self.requests[request];
        self.servings[self.fates[request].0].end(server as u16);
        let s = &mut self.servers[server];
        (s.running, s.cache_used) = (s.running - 1, s.cache_used - prompt - answer);
        self.left -= 1;
        self.admit(server);
    }

    /// Takes requests from the line into the batch.
    fn admit(&mut self, server: usize) {
        let (engine, s) = (SERVERS[server], &mut self.servers[server]);
        while let Some((request, Request { prompt, answer, .. })) = s.line.front().copied()
            && s.running < engine.batch
            && s.cache_used + prompt + answer <= engine.cache_tokens
        {
            s.line.pop_front();
            (s.running, s.cache_used) = (s.running + 1, s.cache_used + prompt + answer);
            let takes = prompt / engine.prompt_tokens_a_second * SECOND as f64;
            s.reads_until = s.reads_until.max(self.now) + takes as u64;
            self.events.push(Reverse((s.reads_until, Event::Begins(server, request))));
        }
    }

    fn connections(&self, server: usize) -> u32 {
        self.servings.iter().map(|s| s.own_connections(server as u16)).sum()
    }

    fn share(&mut self) {
        for server in 0..SERVERS.len() {
            let all = self.connections(server);
            let place = server as u16;
            let peak = |s: &Serving| s.own_peak_us(place, Nanos(self.now));
            let peak = self.servings.iter().map(peak).max().unwrap_or(0);
            for serving in &self.servings {
                serving.tell_connections(place, all - serving.own_connections(place));
                serving.tell_peak(place, peak);
            }
        }
        self.events.push(Reverse((self.now + SHARED_EVERY, Event::Share)));
    }

    fn scrape(&mut self) {
        for (i, server) in self.servers.iter().enumerate() {
            if self.now > self.scrapes.until {
                continue;
            }
            let reading = Reading {
                running: server.running as f64,
                waiting: server.line.len() as f64,
                cache: Some(server.cache_used / SERVERS[i].cache_tokens),
            };
            let before = self.known[i].and_then(|(_, k)| k.price);
            let price = reading.price().or(before);
            self.known[i] =
                Some((self.now, Known { reading, price, connections: self.connections(i) }));
        }
        let fresh = |k: &Option<(u64, Known)>| {
            k.filter(|(at, _)| self.now - at <= self.scrapes.stale_after).map(|(_, k)| k)
        };
        let known: Vec<_> = self.known.iter().map(fresh).collect();
        if self.balance == Balance::LeastLoad {
            for (place, load) in (0u16..).zip(loads(&known)) {
                self.servings.iter().for_each(|s| s.tell_load(place, load.price, load.unseen));
            }
        }
        self.events.push(Reverse((self.now + self.scrapes.every, Event::Scrape)));
    }

    /// Seconds that this share of the requests did not wait longer for.
    fn quantile(&self, share: f64) -> f64 {
        let mut all: Vec<u64> = self.fates[WARM_UP..].iter().map(|f| f.2).collect();
        all.sort_unstable();
        all[(all.len() as f64 * share) as usize] as f64 / SECOND as f64
    }
}

fn seeds() -> Vec<u64> {
    match std::env::var("TIDEGATE_SIM_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (1..=SEEDS).collect(),
    }
}

fn p99(balance: Balance, scrapes: Scrapes, seed: u64) -> f64 {
    waits(balance, scrapes, seed).quantile(0.99)
}

fn waits(balance: Balance, scrapes: Scrapes, seed: u64) -> World {
    let world = World::new(balance, scrapes, seed).run();
    let [p50, p99] = [0.5, 0.99].map(|share| world.quantile(share));
    println!(
        "seed {seed}: {balance:?}, every {} s: p50 {p50:.2} s, p99 {p99:.2} s",
        scrapes.every / SECOND
    );
    world
}

const BALANCES: [Balance; 4] =
    [Balance::RoundRobin, Balance::LeastConnections, Balance::LeastLoad, Balance::PeakEwma];
/// Told apart by people who see few colours, too (Okabe and Ito).
const COLOURS: [&str; 4] = ["#d55e00", "#e69f00", "#0072b2", "#009e73"];
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 480.0;
const EDGE: f64 = 60.0;

/// An SVG image: across the share of requests, by how few wait longer, up the seconds of these.
fn draw(worlds: &[World; 4]) -> String {
    // From all to one in a thousand, and from 10 ms to 100 s.
    let x = |share: f64| EDGE - (1.0 - share).log10() / 3.0 * (WIDTH - 4.0 * EDGE);
    let y = |s: f64| HEIGHT - EDGE - (s.max(0.01).log10() + 2.0) / 4.0 * (HEIGHT - 2.0 * EDGE);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{EDGE}\" y=\"30\">time to the first token by share of requests</text>\n"
    );
    let mut line = |from: (f64, f64), to: (f64, f64), at: (f64, f64), words: String| {
        let _ = writeln!(
            svg,
            "<path d=\"M{:.1},{:.1}L{:.1},{:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{words}</text>",
            from.0, from.1, to.0, to.1, at.0, at.1
        );
    };
    for share in [0.0, 0.5, 0.9, 0.99, 0.999] {
        let at = x(share);
        line(
            (at, y(0.01)),
            (at, y(100.0)),
            (at - 12.0, HEIGHT - 36.0),
            format!("{}", share * 100.0) + " %",
        );
    }
    for seconds in [0.01, 0.1, 1.0, 10.0, 100.0] {
        let at = y(seconds);
        line((x(0.0), at), (x(0.999), at), (8.0, at + 4.0), format!("{seconds} s"));
    }
    for ((world, balance), colour) in worlds.iter().zip(BALANCES).zip(COLOURS) {
        let points = (0..=300).map(|i| 1.0 - 10f64.powf(-f64::from(i) / 100.0));
        let points =
            points.map(|share| format!("{:.1},{:.1} ", x(share), y(world.quantile(share))));
        let points: String = points.collect();
        let last = y(world.quantile(0.999));
        let _ = writeln!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" \
             stroke-width=\"2\"/><text x=\"{:.1}\" y=\"{last:.1}\" fill=\"{colour}\">{balance:?}\
             </text>",
            x(0.999) + 8.0,
        );
    }
    svg + "</svg>\n"
}

#[test]
fn least_load_has_the_shortest_tail() {
    let mut drawn = None;
    for seed in seeds() {
        let worlds = BALANCES.map(|balance| waits(balance, FRESH, seed));
        drawn.get_or_insert_with(|| draw(&worlds));
        let [turns, connections, load, peak] = worlds.map(|world| world.quantile(0.99));
        assert!(load < turns && load < connections, "seed {seed}");
        assert!(peak < turns, "seed {seed}");
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("least-load.svg");
    std::fs::write(&path, drawn.expect("a seed")).expect("written");
    println!("drawn in {}", path.display());
}

#[test]
fn without_fresh_metrics_it_is_no_worse_than_taking_turns() {
    let gone = Scrapes { until: 60 * SECOND, ..FRESH };
    let slow = Scrapes { every: 15 * SECOND, until: u64::MAX, stale_after: 45 * SECOND };
    for seed in seeds().into_iter().take(2) {
        let turns = p99(Balance::RoundRobin, FRESH, seed);
        for scrapes in [gone, slow] {
            let load = p99(Balance::LeastLoad, scrapes, seed);
            assert!(load <= turns, "seed {seed}");
        }
    }
}

#[test]
fn nobody_is_run_over_between_two_scrapes() {
    for seed in seeds().into_iter().take(2) {
        let world = World::new(Balance::LeastLoad, FRESH, seed).run();
        let mut worst = 0.0f64;
        let mut from = WARM_UP;
        while from + 60 <= REQUESTS {
            let burst = &world.fates[from..from + 60];
            let servers: BTreeSet<_> = burst.iter().map(|f| f.1).collect();
            let most = servers.iter().map(|s| burst.iter().filter(|f| f.1 == *s).count()).max();
            worst = worst.max(most.unwrap_or(0) as f64 / 60.0);
            from += 60;
        }
        println!(
            "seed {seed}: at most {:.0} % of 60 requests in a row at one server",
            worst * 100.0
        );
        assert!(worst <= 0.6, "seed {seed}: {worst}");
    }
}
