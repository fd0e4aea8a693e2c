//! A flood of SYNs at a service with delayed binding, from addresses that never answer, while real
//! clients go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use tidegate::nic::flood::{Flood, interruptible};
use tidegate::packet::build::{LinkSpec, TcpSpec, tcp_packet};
use tidegate::packet::tcp::flag::SYN;

use crate::common::VIP4;
use crate::site::Site;

/// Sources of the flood: addresses and ports in turn.
const SOURCES: u32 = 4_000_000;
const CLIENTS: usize = 100;
const ROUNDS: usize = 10;
/// SYNs of one call of the kernel's, and how often it is called: 400,000 a second.
const CALL: u32 = 10_000;
const CALL_EVERY: Duration = Duration::from_millis(25);
/// SYNs, and answers to them, that make a flood; at what rate is printed.
const FLOOD_MIN: u64 = 200_000;
/// Of them, so many while clients are served.
const MEANWHILE_MIN: u64 = 100_000;
const COOKIES_MIN: u64 = 20_000;

fn mac(site: &Site, appliance: bool) -> [u8; 6] {
    let (ns, name) = match appliance {
        true => (&site.net.appliance, "wan"),
        false => (&site.net.client, "wan0"),
    };
    let text = ns.ip(&format!("-o link show {name}")).expect("a device");
    let text = text.split_whitespace().skip_while(|w| *w != "link/ether").nth(1).expect("a MAC");
    let bytes: Vec<u8> =
        text.split(':').map(|b| u8::from_str_radix(b, 16).expect("hexadecimal")).collect();
    bytes.try_into().expect("six bytes")
}

/// Resident memory of the appliance, KiB.
fn resident(site: &Site) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", site.edge_id()));
    let status = status.expect("it runs");
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("its size");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

/// What this thread has had of a processor.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock").into()
}

fn counter(site: &Site, name: &str) -> u64 {
    site.net.ask_json(&["show", "counters"])["total"][name].as_u64().unwrap_or(0)
}

#[test]
fn a_flood_of_syns_takes_no_memory_and_harms_no_client() {
    let site = Site::new("nat", VIP4);
    // So that answers have a way; nobody is there.
    site.net.appliance.ip("route add 198.18.0.0/15 via 10.0.1.2").expect("route");
    site.crowd(CLIENTS);
    let mut syn = TcpSpec::new(
        ("198.18.0.1".parse().expect("v4"), 1),
        (VIP4.parse().expect("v4"), 443),
        SYN,
        &[],
    );
    syn.link = LinkSpec {
        destination: mac(&site, true),
        source: mac(&site, false),
        ..LinkSpec::default()
    };
    let frame = tcp_packet(&syn);
    let over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&over);
    let asked = Arc::new(AtomicU64::new(0));
    let sent_by_now = Arc::clone(&asked);
    let begun = Instant::now();
    let flood = site.net.client.thread("flood", move || {
        let mut flood = Flood::new("wan0", &frame, SOURCES).expect("a generator");
        interruptible(
            || stop.load(Ordering::Relaxed),
            || {
                let start = Instant::now();
                for call in 1.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    flood.send(CALL).expect("frames");
                    sent_by_now.fetch_add(CALL.into(), Ordering::Relaxed);
                    let next = start + CALL_EVERY * call;
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            },
        )
        .expect("a signal's action");
        (flood.frames().expect("a count"), cpu_time())
    });
    let flood = flood.expect("a thread");
    std::thread::sleep(Duration::from_millis(500));
    let (start, before, cookies) =
        (Instant::now(), resident(&site), counter(&site, "cookies_sent"));
    let asked_before = asked.load(Ordering::Relaxed);
    for _ in 0..ROUNDS {
        site.crowd(CLIENTS);
    }
    let meanwhile = asked.load(Ordering::Relaxed) - asked_before;
    let sent = counter(&site, "cookies_sent") - cookies;
    let (rate, after) = (sent * 1_000 / start.elapsed().as_millis() as u64, resident(&site));
    over.store(true, Ordering::Relaxed);
    let (frames, cpu) = flood.join().expect("no panic");
    let offered = frames * 1_000 / begun.elapsed().as_millis() as u64;
    let by_cpu = frames * 1_000 / (cpu.as_millis() as u64).max(1);
    println!("{offered} SYNs/s, {by_cpu} a second of the sender's CPU time; {rate} cookies/s");
    println!("{meanwhile} SYNs while clients were served; {before} KiB before, {after} KiB after");
    assert!(meanwhile >= MEANWHILE_MIN, "only {meanwhile} SYNs while clients were served");
    assert!(frames >= FLOOD_MIN && sent >= COOKIES_MIN, "{frames} SYNs, {sent} cookies: no flood");
    assert!(after <= before + 4_096, "grown from {before} to {after} KiB");
    site.nothing_went_wrong(((1 + ROUNDS) * CLIENTS) as u64);
    assert_eq!(counter(&site, "bindings_begun"), ((1 + ROUNDS) * CLIENTS) as u64);
}
