//! The mirror of the kernel's tables against a real kernel, in network namespaces of the test's
//! own.
//!
//! Each test moves its thread into an anonymous namespace, which is gone with the thread. Needs
//! root.

#[path = "common/kernel.rs"]
mod kernel;

use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use kernel::{addr, connect, in_namespace, ip, until, until_quietly, veth};
use tidegate::base::{Addr, Prefix};
use tidegate::control::netlink::{Mirror, Neighbour, NeighbourState, RouteKind};

/// A neighbouring host in a namespace of its own: it holds `v1` and answers for its addresses.
struct Host {
    stop: mpsc::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Host {
    fn with(addresses: &'static [&'static str]) -> Host {
        let (path_tx, path) = mpsc::channel();
        let (moved, moved_rx) = mpsc::channel::<()>();
        let (ready_tx, ready) = mpsc::channel();
        let (stop, stop_rx) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            let id = nix::unistd::gettid();
            let pid = std::process::id();
            path_tx.send(format!("/proc/{pid}/task/{id}/ns/net")).expect("the test waits");
            moved_rx.recv().expect("the test goes on");
            for address in addresses {
                ip(&format!("addr add {address} dev v1 nodad"));
            }
            ip("link set v1 up");
            ready_tx.send(()).expect("the test waits");
            let _ = stop_rx.recv();
        });
        let path = path.recv().expect("a namespace");
        ip(&format!("link set v1 netns {path}"));
        moved.send(()).expect("the host waits");
        ready.recv().expect("the host");
        Host { stop, thread: Some(thread) }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn route(mirror: &Mirror, prefix: &str) -> Option<(RouteKind, Option<Addr>, u32)> {
    let prefix: Prefix = prefix.parse().expect("literal");
    mirror
        .routes()
        .find(|(key, _)| key.prefix == prefix)
        .map(|(_, hop)| (hop.kind, hop.via, hop.ifindex))
}

fn ifindex(mirror: &Mirror, name: &str) -> u32 {
    mirror.link_named(name).expect(name).ifindex
}

#[test]
fn the_first_dump_holds_what_was_there() {
    in_namespace(|| async {
        veth();
        ip("link set v0 mtu 1400");
        ip("route add 10.0.0.0/8 via 192.0.2.9");
        ip("route add default via 192.0.2.254 metric 50");
        ip("-6 route add 2001:db8:1::/48 via 2001:db8::9");
        for kind in ["blackhole", "unreachable", "prohibit"] {
            ip(&format!("route add {kind} 198.51.100.{}/32", kind.len()));
        }
        ip("neigh add 192.0.2.7 lladdr 02:00:00:00:00:07 dev v0 nud permanent");
        ip("route add 203.0.113.0/24 via 192.0.2.9 table 77");

        let netlink = connect().await;
        let m = netlink.mirror();
        let a = ifindex(m, "v0");
        let link = m.link(a).expect("v0");
        assert!(link.up && link.mac.is_some());
        assert_eq!(link.mtu, 1400);
        assert!(m.addresses().any(|x| x == (a, addr("192.0.2.1"))));
        assert!(m.addresses().any(|x| x == (a, addr("2001:db8::1"))));
        let via = |s| (RouteKind::Unicast, Some(addr(s)), a);
        assert_eq!(route(m, "10.0.0.0/8"), Some(via("192.0.2.9")));
        assert_eq!(route(m, "0.0.0.0/0"), Some(via("192.0.2.254")));
        assert_eq!(route(m, "2001:db8:1::/48"), Some(via("2001:db8::9")));
        assert_eq!(route(m, "192.0.2.0/24"), Some((RouteKind::Unicast, None, a)));
        assert_eq!(route(m, "192.0.2.1/32").map(|r| r.0), Some(RouteKind::Local));
        assert_eq!(route(m, "192.0.2.255/32").map(|r| r.0), Some(RouteKind::Local));
        assert_eq!(route(m, "198.51.100.9/32").map(|r| r.0), Some(RouteKind::Blackhole));
        assert_eq!(route(m, "198.51.100.11/32").map(|r| r.0), Some(RouteKind::Unreachable));
        assert_eq!(route(m, "198.51.100.8/32").map(|r| r.0), Some(RouteKind::Prohibit));
        assert_eq!(route(m, "203.0.113.0/24"), None, "another table's route");
        let mac = Some([2, 0, 0, 0, 0, 7]);
        let fixed = Neighbour { state: NeighbourState::Fixed, mac };
        assert_eq!(m.neighbour(a, addr("192.0.2.7")), Some(fixed));
    });
}

#[test]
fn routes_follow_the_kernel_as_they_come_change_and_go() {
    in_namespace(|| async {
        veth();
        let mut n = connect().await;
        let a = ifindex(n.mirror(), "v0");
        for (family, prefix, one, two) in [
            ("-4", "10.0.0.0/8", "192.0.2.9", "192.0.2.10"),
            ("-6", "2001:db8:1::/48", "2001:db8::9", "2001:db8::a"),
        ] {
            let via = |s| Some((RouteKind::Unicast, Some(addr(s)), a));
            ip(&format!("{family} route add {prefix} via {one}"));
            until(&mut n, "an added route", |m| route(m, prefix) == via(one)).await;
            ip(&format!("{family} route replace {prefix} via {two}"));
            until(&mut n, "a replaced route", |m| route(m, prefix) == via(two)).await;
            ip(&format!("{family} route add unreachable {prefix} metric 1"));
            let kind = |m: &Mirror| route(m, prefix).map(|r| r.0);
            // 0 is the metric of an IPv4 route that names none, 1024 of an IPv6 one.
            let wins = if family == "-4" { RouteKind::Unicast } else { RouteKind::Unreachable };
            until(&mut n, "the preferred of two", |m| kind(m) == Some(wins)).await;
            ip(&format!("{family} route del {prefix} metric 1"));
            ip(&format!("{family} route del {prefix}"));
            until(&mut n, "both gone", |m| route(m, prefix).is_none()).await;
        }
    });
}

#[test]
fn multipath_and_stacked_routes_are_seen_whole() {
    in_namespace(|| async {
        veth();
        let mut n = connect().await;
        let ways = |m: &Mirror, p: &str| {
            let prefix: Prefix = p.parse().expect("literal");
            m.routes().filter(|(k, _)| k.prefix == prefix).map(|(_, h)| h.via).collect::<Vec<_>>()
        };
        let (x, y) = (Some(addr("192.0.2.9")), Some(addr("192.0.2.10")));
        ip("route add 10.0.0.0/8 nexthop via 192.0.2.9 nexthop via 192.0.2.10");
        until(&mut n, "two ways", |m| ways(m, "10.0.0.0/8") == [x, y]).await;

        ip("route append 11.0.0.0/8 via 192.0.2.9");
        ip("route append 11.0.0.0/8 via 192.0.2.10");
        until(&mut n, "two stacked", |m| ways(m, "11.0.0.0/8") == [x, y]).await;
        ip("route del 11.0.0.0/8 via 192.0.2.9");
        until(&mut n, "the second alone", |m| ways(m, "11.0.0.0/8") == [y]).await;

        let (x, y) = (Some(addr("2001:db8::9")), Some(addr("2001:db8::a")));
        ip("-6 route add 2001:db8:1::/48 via 2001:db8::9");
        ip("-6 route append 2001:db8:1::/48 via 2001:db8::a");
        until(&mut n, "two ways", |m| ways(m, "2001:db8:1::/48") == [x, y]).await;
        ip("-6 route del 2001:db8:1::/48 via 2001:db8::9");
        until(&mut n, "the second alone", |m| ways(m, "2001:db8:1::/48") == [y]).await;
    });
}

#[test]
fn routes_that_the_kernel_flushes_silently_go_too() {
    in_namespace(|| async {
        veth();
        // Of IPv6 addresses that go the kernel does tell, which would give the rest away.
        for file in ["v0/disable_ipv6", "v1/disable_ipv6"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{file}"), "1").expect("sysctl");
        }
        ip("route add 10.0.0.0/8 via 192.0.2.9");
        let mut n = connect().await;
        assert!(route(n.mirror(), "10.0.0.0/8").is_some());
        ip("link set v0 down");
        until(&mut n, "no route by v0", |m| route(m, "10.0.0.0/8").is_none()).await;
        ip("link set v0 up");
        ip("route add 10.0.0.0/8 via 192.0.2.9");
        until(&mut n, "the route again", |m| route(m, "10.0.0.0/8").is_some()).await;
        ip("addr del 192.0.2.1/24 dev v0");
        until(&mut n, "no route without the address", |m| {
            route(m, "10.0.0.0/8").is_none() && route(m, "192.0.2.0/24").is_none()
        })
        .await;
        ip("link del v0");
        until(&mut n, "no link", |m| m.link_named("v0").is_none()).await;
    });
}

#[test]
fn neighbours_follow_the_kernel() {
    in_namespace(|| async {
        veth();
        let mut n = connect().await;
        let a = ifindex(n.mirror(), "v0");
        let mac = |m: &Mirror, who: &str| m.neighbour(a, addr(who)).and_then(|n| n.mac);
        for who in ["192.0.2.7", "2001:db8::7"] {
            ip(&format!("neigh add {who} lladdr 02:00:00:00:00:07 dev v0 nud reachable"));
            until(&mut n, "added", |m| mac(m, who) == Some([2, 0, 0, 0, 0, 7])).await;
            ip(&format!("neigh replace {who} lladdr 02:00:00:00:00:08 dev v0 nud reachable"));
            until(&mut n, "changed", |m| mac(m, who) == Some([2, 0, 0, 0, 0, 8])).await;
            ip(&format!("neigh del {who} dev v0"));
            until(&mut n, "removed", |m| mac(m, who).is_none()).await;
            // The kernel tells first that it fails, then that it is gone.
            until_quietly(&mut n, "gone", |m| m.neighbour(a, addr(who)).is_none()).await;
        }
    });
}

#[test]
fn neighbours_of_a_link_go_with_it() {
    in_namespace(|| async {
        veth();
        let mut n = connect().await;
        let a = ifindex(n.mirror(), "v0");
        let add = || {
            for who in ["192.0.2.7", "2001:db8::7"] {
                ip(&format!("neigh add {who} lladdr 02:00:00:00:00:07 dev v0 nud reachable"));
            }
        };
        let usable = |m: &Mirror| {
            let mine = m.neighbours().filter(|(ifindex, _, _)| *ifindex == a);
            mine.filter(|(_, _, n)| n.mac == Some([2, 0, 0, 0, 0, 7])).count()
        };
        add();
        until(&mut n, "both", |m| usable(m) == 2).await;
        ip("link set v0 down");
        until_quietly(&mut n, "none of a link that is down", |m| usable(m) == 0).await;
        ip("link set v0 up");
        ip("addr replace 2001:db8::1/64 dev v0 nodad");
        add();
        until(&mut n, "both again", |m| usable(m) == 2).await;
        ip("link del v0");
        let none = |m: &Mirror| m.neighbours().all(|(ifindex, _, _)| ifindex != a);
        until_quietly(&mut n, "none of a link that is gone", none).await;
    });
}

#[test]
fn the_kernel_resolves_what_it_is_asked_for() {
    in_namespace(|| async {
        veth();
        let _host = Host::with(&["192.0.2.2/24", "2001:db8::2/64"]);
        ip("link set v0 up");
        let mut n = connect().await;
        until(&mut n, "a carrier", |m| m.link_named("v0").is_some_and(|l| l.carrier)).await;
        let a = ifindex(n.mirror(), "v0");
        for who in ["192.0.2.2", "2001:db8::2"] {
            n.resolve(a, addr(who)).expect("asked");
            let fresh = |m: &Mirror| {
                m.neighbour(a, addr(who))
                    .is_some_and(|n| n.mac.is_some() && n.state == NeighbourState::Fresh)
            };
            until(&mut n, "resolved", fresh).await;
        }
    });
}

/// All questions of a moment reach the kernel, not only the first of them.
#[test]
fn many_neighbours_can_be_asked_for_at_once() {
    in_namespace(|| async {
        veth();
        // Nobody answers, and nothing is sent twice: what is asked for is there, unresolved.
        let mut n = connect().await;
        let a = ifindex(n.mirror(), "v0");
        let who: Vec<Addr> = (10..60).map(|i| addr(&format!("192.0.2.{i}"))).collect();
        for addr in &who {
            n.resolve(a, *addr).expect("asked");
        }
        let known = Command::new("ip").args(["neigh", "show", "dev", "v0"]).output().expect("ip");
        let known = String::from_utf8(known.stdout).expect("UTF-8");
        for addr in who {
            assert!(known.contains(&format!("{addr} ")), "{addr} was not asked for:\n{known}");
        }
    });
}

#[test]
fn a_neighbour_that_was_silent_is_found_when_asked_for_again() {
    in_namespace(|| async {
        veth();
        ip("ntable change name arp_cache dev v0 retrans 50 mcast_probes 2");
        let mut n = connect().await;
        let a = ifindex(n.mirror(), "v0");
        let who = addr("192.0.2.2");
        let state = |m: &Mirror| m.neighbour(a, who).map(|n| n.state);
        n.resolve(a, who).expect("asked");
        // Not told of as a change: nothing became usable.
        let failed = |m: &Mirror| state(m) == Some(NeighbourState::Failed);
        until_quietly(&mut n, "given up by the kernel", failed).await;
        let _host = Host::with(&["192.0.2.2/24"]);
        until(&mut n, "a carrier", |m| m.link_named("v0").is_some_and(|l| l.carrier)).await;
        n.resolve(a, who).expect("asked again");
        until(&mut n, "resolved", |m| m.neighbour(a, who).is_some_and(|n| n.mac.is_some())).await;
    });
}

#[test]
fn a_stale_neighbour_is_confirmed_or_found_gone() {
    in_namespace(|| async {
        veth();
        ip("ntable change name arp_cache dev v0 delay_probe 50 ucast_probes 1 retrans 50");
        let host = Host::with(&["192.0.2.2/24"]);
        let mut n = connect().await;
        let a = ifindex(n.mirror(), "v0");
        // Stale with an address that nobody has any more: the probe finds out, and asks all.
        ip("neigh replace 192.0.2.2 lladdr 02:00:00:00:00:99 dev v0 nud stale");
        let mac = |m: &Mirror| m.neighbour(a, addr("192.0.2.2")).and_then(|n| n.mac);
        until(&mut n, "the old address", |m| mac(m) == Some([2, 0, 0, 0, 0, 0x99])).await;
        n.resolve(a, addr("192.0.2.2")).expect("asked");
        let gone = |m: &Mirror| mac(m) != Some([2, 0, 0, 0, 0, 0x99]);
        until(&mut n, "no longer the old address", gone).await;
        n.resolve(a, addr("192.0.2.2")).expect("asked");
        until(&mut n, "the new address", |m| mac(m).is_some() && gone(m)).await;
        drop(host);
    });
}

#[test]
fn asking_leaves_entries_set_by_hand_alone() {
    in_namespace(|| async {
        veth();
        ip("neigh add 192.0.2.7 lladdr 02:00:00:00:00:07 dev v0 nud permanent");
        let mut n = connect().await;
        let a = ifindex(n.mirror(), "v0");
        n.resolve(a, addr("192.0.2.7")).expect("asked");
        let _ = tokio::time::timeout(Duration::from_millis(200), n.changed()).await;
        let known = connect().await.mirror().neighbour(a, addr("192.0.2.7"));
        assert_eq!(known.map(|n| n.state), Some(NeighbourState::Fixed));
    });
}
