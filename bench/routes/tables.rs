//! Routes like the Internet's, and addresses to look up.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidegate::base::hash::Rng;
use tidegate::base::{Addr, Prefix, Seed};
use tidegate::forward::fib::{FibBuilder, Route};
use tidegate::forward::{PortLink, RouteKind, Routes};
use tidegate::packet::PortId;
use tidegate::packet::build::LinkSpec;

const GATEWAYS: u32 = 200;
/// The first 16 bits of what registries give out.
const BLOCKS_V6: [u64; 6] = [0x2001, 0x2400, 0x2600, 0x2800, 0x2a00, 0x2c00];

pub struct Table {
    pub name: String,
    prefixes: Vec<Prefix>,
    /// Prefixes that lead elsewhere.
    paths: Vec<(Prefix, Route)>,
}

/// So many prefixes, and a default route.
pub fn v4(n: usize, seed: u64) -> BTreeSet<Prefix> {
    let mut rng = Rng::new(Seed(seed));
    let mut all = BTreeSet::from([Prefix::new(Addr::v4(0), 0).expect("a length")]);
    while all.len() < n {
        let len = match rng.below(100) {
            0..=59 => 24,
            60..=69 => 22,
            70..=79 => 23,
            80..=86 => 21,
            87..=93 => 20,
            94..=96 => 19,
            97 => 18,
            98 => 17,
            _ => 16,
        };
        all.insert(Prefix::new(any_v4(&mut rng), len).expect("a length"));
    }
    all
}

/// A unicast address.
fn any_v4(rng: &mut Rng) -> Addr {
    loop {
        let bits = rng.next_u64() as u32;
        if !matches!(bits >> 24, 0 | 10 | 127 | 224..) {
            return Addr::v4(bits);
        }
    }
}

pub fn v6(n: usize) -> BTreeSet<Prefix> {
    let mut rng = Rng::new(Seed(3));
    let mut all = BTreeSet::from([Prefix::new(Addr::UNSPECIFIED, 0).expect("a length")]);
    while all.len() < n {
        let block = BLOCKS_V6[rng.below(BLOCKS_V6.len() as u32) as usize];
        let provider = (block + u64::from(rng.below(256))) << 48 | rng.next_u64() >> 19 << 35 >> 16;
        let provider = provider & !0x7_ffff_ffff;
        let mut put = |hi: u64, len: u8| {
            if all.len() < n {
                all.insert(Prefix::new(Addr { hi, lo: 0 }, len).expect("a length"));
            }
        };
        put(provider, 29 + rng.below(4) as u8);
        for _ in 0..rng.below(20) {
            let len = match rng.below(100) {
                0..=69 => 48,
                70..=84 => 44,
                85..=92 => 40,
                _ => 36,
            };
            put(provider | rng.next_u64() & 0x7_ffff_ffff, len);
        }
    }
    all
}

impl Table {
    pub fn new(name: &str, prefixes: BTreeSet<Prefix>) -> Table {
        let prefixes = prefixes.into_iter().collect();
        Table { name: name.into(), prefixes, paths: Vec::new() }
    }

    pub fn with_paths(self, paths: &[(Prefix, Route)]) -> Table {
        Table { paths: paths.to_vec(), ..self }
    }

    pub fn builder(&self) -> FibBuilder {
        let mut builder = FibBuilder::new(vec![link(0), link(1)], 0);
        for (prefix, i) in self.prefixes.iter().zip(0u32..) {
            let via = Addr::v4(0xc000_0200 + i.wrapping_mul(0x9e37_79b1) % GATEWAYS);
            let route = Route::single(RouteKind::Unicast, Some(via), 1);
            builder.set(0, *prefix, Some(&route)).expect("room");
        }
        for (prefix, route) in &self.paths {
            builder.set(0, *prefix, Some(route)).expect("room");
        }
        builder
    }

    pub fn routes(&self, generation: u32) -> Arc<Routes> {
        let fib = self.builder().build();
        let neighbours = crate::rig::neighbours_of_traffic().into_iter();
        let links = vec![link(0), link(1)];
        Arc::new(Routes::new(generation, Seed(42), fib, links, neighbours))
    }

    fn is_v4(&self) -> bool {
        self.prefixes.first().is_some_and(|p| p.is_v4())
    }

    pub fn any_addresses(&self, n: usize) -> Vec<Addr> {
        let mut rng = Rng::new(Seed(11));
        let v6 = |rng: &mut Rng| Addr { hi: 1 << 61 | rng.next_u64() >> 3, lo: rng.next_u64() };
        let v4 = self.is_v4();
        (0..n).map(|_| if v4 { any_v4(&mut rng) } else { v6(&mut rng) }).collect()
    }

    /// Any host of any route but the default one.
    pub fn addresses_within(&self, n: usize) -> Vec<Addr> {
        let mut rng = Rng::new(Seed(12));
        let routes: Vec<_> = self.prefixes.iter().filter(|p| !p.is_empty()).collect();
        let host = |_| {
            let prefix = routes[rng.below(routes.len() as u32) as usize];
            let bits = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64());
            let host = bits.checked_shr(u32::from(prefix.len128())).unwrap_or(0);
            let addr = prefix.addr();
            Addr { hi: addr.hi | (host >> 64) as u64, lo: addr.lo | host as u64 }
        };
        (0..n).map(host).collect()
    }
}

fn link(id: u16) -> PortLink {
    PortLink {
        id: PortId(id),
        ifindex: u32::from(id) + 1,
        name: format!("p{id}"),
        mac: LinkSpec::default().destination,
        mtu: 1_500,
        addrs: vec![],
    }
}
