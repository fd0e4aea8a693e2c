//! The two ways of packets to a worker where the program stands behind the driver: copied into its
//! inbox, and through the companion.

use std::time::{Duration, Instant};

use tidegate::nic::Port;
use tidegate::nic::link::index_of;
use tidegate::nic::spec::{AttachMode, PortSpec};
use tidegate::nic::wake::Sleeper;
use tidegate::worker::spec::WorkersSpec;

use crate::net::{Side, ip, ip_says, port_spec, with_veth, workers_spec};
use crate::packets::{V4, padded, same, udp};

const CLIENT: V4 = ([198, 51, 100, 7], 40_000);
const SERVER: V4 = ([203, 0, 113, 1], 443);
/// Longer than what the inbox takes.
const LONG: usize = 2_500;
const LIMIT: Duration = Duration::from_secs(60);

fn sides() -> [Side; 2] {
    for link in ["v0", "v1"] {
        ip(&["link", "set", link, "mtu", "3000"]);
    }
    let workers = WorkersSpec { frame_size: 4_096, ..workers_spec(1) };
    [("v0", AttachMode::Tc), ("v1", AttachMode::Native)].map(|(interface, attach)| {
        let spec = PortSpec { attach, ..port_spec(0, interface) };
        Side::with(&[spec], &workers).expect("open").takes_everything()
    })
}

/// What has come out of the companion of `v0`.
fn through_companion() -> u64 {
    let exit = format!("tgx{}", index_of("v0").expect("an interface"));
    let told = ip_says(&["-j", "-s", "link", "show", &exit]);
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    told[0]["stats64"]["rx"]["packets"].as_u64().expect("a number")
}

#[test]
fn frames_of_both_ways_keep_their_order() {
    with_veth(1, || {
        let [mut a, mut b] = sides();
        let sent: Vec<_> = (0..600u16)
            .map(|i| {
                let frame = udp((CLIENT.0, i), SERVER);
                if i % 7 < 3 { padded(frame, LONG) } else { frame }
            })
            .collect();
        for chunk in sent.chunks(60) {
            b.send(0, chunk);
            same(&a.receive(0, chunk.len()), chunk);
        }
        let long = sent.iter().filter(|frame| frame.len() >= LONG).count();
        assert_eq!(through_companion(), long as u64);
        a.close();
        b.close();
    });
}

#[test]
fn a_worker_asleep_is_woken_once() {
    with_veth(1, || {
        let [mut a, mut b] = sides();
        for round in 0..3u16 {
            let frames = [0, 1, 2].map(|i| udp((CLIENT.0, 3 * round + i), SERVER));
            let port = &a.nic.ports[0][0];
            port.doze(true);
            let (mut sleeper, start) = (Sleeper::new().expect("eventfd"), Instant::now());
            port.fds().for_each(|fd| sleeper.watch(fd));
            sleeper.sleep(LIMIT.as_nanos() as u64, || {
                assert!(!port.has_arrivals());
                b.send(0, &frames);
                false
            });
            assert!(start.elapsed() < LIMIT, "it sleeps on");
            port.doze(false);
            same(&a.receive(0, frames.len()), &frames);
            assert_eq!(through_companion(), u64::from(round) + 1, "one wakes, the others wait");
            // Awake it finds them itself.
            b.send(0, &frames);
            same(&a.receive(0, frames.len()), &frames);
            assert_eq!(through_companion(), u64::from(round) + 1);
        }
        a.close();
        b.close();
    });
}
