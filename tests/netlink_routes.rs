//! Routes from a real kernel to the forwarding table: several ways, other tables, many at once.
//!
//! Each test moves its thread into an anonymous namespace, which is gone with the thread. Needs
//! root.

#[path = "common/kernel.rs"]
mod kernel;

use std::time::Duration;

use kernel::{addr, in_namespace, ip, ip_batch, until, veth};
use tidegate::base::{Addr, Prefix, Seed};
use tidegate::control::netlink::{Mirror, Netlink, NetlinkOptions};
use tidegate::control::routes::{RouteFeed, other_tables};
use tidegate::forward::Routes;
use tidegate::nic::spec::PortSpec;
use tidegate::packet::{DropReason, FlowKey, PortId};

const TABLE: u32 = 1_000;

/// Two ports: `v0` follows the kernel's usual tables, what comes in by `v1` another one.
fn ports() -> [PortSpec; 2] {
    let port = |id, name: &str| PortSpec::in_memory(PortId(id), name);
    [port(0, "v0"), PortSpec { table: Some(TABLE), ..port(1, "v1") }]
}

async fn connect(receive_buffer: usize) -> Netlink {
    let options = NetlinkOptions { receive_buffer, tables: other_tables(&ports()) };
    Netlink::connect(options).await.expect("netlink")
}

/// Follows the kernel until its routes are as they should.
async fn until_routes(
    netlink: &mut Netlink,
    feed: &mut RouteFeed,
    what: &str,
    holds: impl Fn(&Routes) -> bool,
) {
    let wait = async {
        while !holds(&feed.routes(netlink.mirror())) {
            tokio::select! {
                heard = netlink.heard() => {
                    heard.expect("netlink");
                    let changes = netlink.take_changes();
                    feed.update(netlink.mirror(), changes);
                }
                () = feed.built() => {}
            }
        }
    };
    if tokio::time::timeout(kernel::LIMIT, wait).await.is_err() {
        panic!("not seen: {what}");
    }
}

fn flow(i: u16) -> FlowKey {
    FlowKey { src: addr("192.0.2.200"), sport: i, ..FlowKey::default() }
}

/// How many of 1,000 flows to `dst` go by each gateway.
fn shares(routes: &Routes, in_port: u16, dst: &str, gateways: &[&str]) -> Vec<usize> {
    let to = |i| routes.resolve_transit(PortId(in_port), addr(dst), &flow(i)).map(|r| r.next_hop);
    let got: Vec<Result<Addr, DropReason>> = (0..1_000).map(to).collect();
    gateways.iter().map(|g| got.iter().filter(|to| **to == Ok(addr(g))).count()).collect()
}

#[test]
fn several_ways_and_other_tables_are_followed() {
    in_namespace(|| async {
        veth();
        let (a, b, c) = ("192.0.2.9", "192.0.2.10", "192.0.2.11");
        let mut n = connect(1 << 20).await;
        let mut feed = RouteFeed::new(&ports(), Seed(1)).expect("a thread");
        feed.start(n.mirror()).await;
        ip(&format!("route add 10.0.0.0/8 nexthop via {a} weight 3 nexthop via {b}"));
        ip(&format!("route add 10.0.0.0/8 via {c} table {TABLE}"));
        let near = |n: usize, want: usize| n.abs_diff(want) < 60;
        until_routes(&mut n, &mut feed, "3 of 4 by the first", |r| {
            let got = shares(r, 0, "10.1.2.3", &[a, b, c]);
            near(got[0], 750) && near(got[1], 250) && got[2] == 0
        })
        .await;
        until_routes(&mut n, &mut feed, "the other table's way", |r| {
            shares(r, 1, "10.1.2.3", &[a, b, c]) == [0, 0, 1_000]
        })
        .await;
        ip(&format!("route replace 10.0.0.0/8 nexthop via {b} nexthop via {c}"));
        until_routes(&mut n, &mut feed, "other ways", |r| {
            let got = shares(r, 0, "10.1.2.3", &[a, b, c]);
            got[0] == 0 && near(got[1], 500) && near(got[2], 500)
        })
        .await;
        ip(&format!("route add unreachable 10.1.0.0/16 table {TABLE}"));
        until_routes(&mut n, &mut feed, "unreachable by the other table alone", |r| {
            let way = |port| r.resolve_transit(PortId(port), addr("10.1.2.3"), &flow(0)).err();
            way(1) == Some(DropReason::RouteUnreachable) && way(0).is_none()
        })
        .await;
        let (x, y) = ("2001:db8::9", "2001:db8::a");
        ip(&format!("-6 route add 2001:db8:1::/48 nexthop via {x} weight 3 nexthop via {y}"));
        until_routes(&mut n, &mut feed, "3 of 4 of IPv6, too", |r| {
            let got = shares(r, 0, "2001:db8:1::7", &[x, y]);
            near(got[0], 750) && near(got[1], 250)
        })
        .await;
    });
}

/// As FRR installs its routes.
#[test]
fn nexthop_objects_are_followed() {
    in_namespace(|| async {
        veth();
        let mut n = connect(1 << 20).await;
        let mut feed = RouteFeed::new(&ports(), Seed(1)).expect("a thread");
        feed.start(n.mirror()).await;
        let (a, b, c) = ("192.0.2.9", "192.0.2.10", "192.0.2.11");
        for (id, via) in [(1, a), (2, b), (3, c)] {
            ip(&format!("nexthop add id {id} via {via} dev v0"));
        }
        ip("nexthop add id 10 group 1/2");
        ip("route add 10.0.0.0/8 nhid 10");
        until_routes(&mut n, &mut feed, "both of the group", |r| {
            let got = shares(r, 0, "10.1.2.3", &[a, b, c]);
            got[0] > 400 && got[1] > 400
        })
        .await;
        ip("nexthop replace id 10 group 2/3");
        until_routes(&mut n, &mut feed, "a changed group", |r| {
            let got = shares(r, 0, "10.1.2.3", &[a, b, c]);
            got[1] > 400 && got[2] > 400
        })
        .await;
        ip("nexthop del id 2");
        until_routes(&mut n, &mut feed, "one of the group gone", |r| {
            shares(r, 0, "10.1.2.3", &[a, b, c]) == [0, 0, 1_000]
        })
        .await;
        ip("nexthop del id 10");
        until_routes(&mut n, &mut feed, "the route gone with its group", |r| {
            r.resolve(addr("10.1.2.3"), &flow(0)) == Err(DropReason::NoRoute)
        })
        .await;
    });
}

fn host_routes(m: &Mirror) -> usize {
    m.routes().filter(|(k, _)| k.prefix.len() == 32).count()
}

fn batch(n: u32, line: impl Fn(Prefix) -> String) -> String {
    let prefix = |i: u32| Prefix::new(Addr::v4(0x0a00_0000 + i), 32).expect("a length");
    (0..n).map(|i| line(prefix(i))).collect()
}

#[test]
fn an_overrun_is_made_good_by_a_resync() {
    in_namespace(|| async {
        veth();
        let mut n = connect(2_304).await;
        let before = host_routes(n.mirror());
        // This thread runs the runtime, so nothing reads the socket while `ip` writes.
        ip_batch(&batch(2_000, |p| format!("route add {p} via 192.0.2.9\n")));
        until(&mut n, "all routes", |m| host_routes(m) == before + 2_000).await;
        assert!(n.resyncs() >= 1, "2,000 notifications can't have fitted the buffer");
        ip_batch(&batch(2_000, |p| format!("route del {p}\n")));
        until(&mut n, "none of them", |m| host_routes(m) == before).await;
    });
}

/// The control thread does other things while it reads everything anew.
#[test]
fn a_resync_that_is_interrupted_goes_on() {
    in_namespace(|| async {
        veth();
        let mut n = connect(2_304).await;
        let before = host_routes(n.mirror());
        ip_batch(&batch(5_000, |p| format!("route add {p} via 192.0.2.9\n")));
        let mut interrupted = 0;
        let wait = async {
            while host_routes(n.mirror()) != before + 5_000 {
                if tokio::time::timeout(Duration::ZERO, n.heard()).await.is_err() {
                    interrupted += 1;
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::time::timeout(kernel::LIMIT, wait).await.expect("all routes");
        assert!(interrupted > 1, "read in one go");
        let changes = n.take_changes();
        // The kernel may add routes of its own for a link that has just come up.
        let ours = changes.places.iter().filter(|(_, p)| p.is_v4() && p.len() == 32).count();
        assert_eq!(ours, 5_000, "what differs from before, each once");
    });
}
