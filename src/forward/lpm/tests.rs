//! Every form of a node against a linear search.

use super::build::Form;
use super::*;
use proptest::prelude::*;

use crate::base::Prefix;

fn prefix(s: &str) -> Prefix {
    s.parse().expect(s)
}

fn table(prefixes: &[&str]) -> Lpm {
    let list: Vec<_> = (0u32..).zip(prefixes).map(|(i, s)| (prefix(s), i)).collect();
    Lpm::build(&list)
}

fn look(lpm: &Lpm, addr: &str) -> Option<u32> {
    lpm.lookup(addr.parse().expect(addr))
}

#[test]
fn the_longest_prefix_wins() {
    let t = table(&["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/23", "10.1.2.3/32"]);
    assert_eq!(look(&t, "192.0.2.1"), Some(0));
    assert_eq!(look(&t, "10.2.0.1"), Some(1));
    assert_eq!(look(&t, "10.1.4.1"), Some(2));
    assert_eq!(look(&t, "10.1.3.255"), Some(3));
    assert_eq!(look(&t, "10.1.2.3"), Some(4));
    assert_eq!(look(&t, "2001:db8::1"), None);
}

#[test]
fn skipped_bytes_are_checked() {
    let t = table(&["::/0", "2001:db8::/32", "2001:db8::7/128", "2001:db8:0:1::/64"]);
    assert_eq!(look(&t, "2001:db8::7"), Some(2));
    assert_eq!(look(&t, "2001:db8::8"), Some(1));
    assert_eq!(look(&t, "2001:db8:0:0:1::7"), Some(1));
    assert_eq!(look(&t, "2001:db8:0:1:ffff::7"), Some(3));
    assert_eq!(look(&t, "2001:db9::7"), Some(0));
    assert_eq!(look(&t, "10.0.0.1"), None);
}

#[test]
fn an_empty_table_and_a_host_alone() {
    assert_eq!(look(&table(&[]), "10.0.0.1"), None);
    let t = table(&["10.0.0.1/32"]);
    assert_eq!(look(&t, "10.0.0.1"), Some(0));
    assert_eq!(look(&t, "10.0.0.2"), None);
    assert_eq!(look(&t, "11.0.0.1"), None);
    assert!(t.memory_bytes() < 2048, "one node");
}

#[test]
fn of_equal_prefixes_the_last_counts() {
    assert_eq!(look(&table(&["10.0.0.0/8", "10.0.0.0/8"]), "10.0.0.1"), Some(1));
    assert_eq!(look(&table(&["0.0.0.0/0", "0.0.0.0/0"]), "10.0.0.1"), Some(1));
}

/// Few distinct bytes, so that prefixes nest and share.
fn any_addr() -> impl Strategy<Value = Addr> {
    let byte = prop_oneof![Just(0u8), Just(1), Just(0x80), Just(0xff), any::<u8>()];
    let v4 = prop::array::uniform4(byte.clone()).prop_map(|b| Addr::v4(u32::from_be_bytes(b)));
    let v6 = prop::array::uniform16(byte).prop_map(Addr::from_v6_bytes);
    prop_oneof![v4, v6]
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    (any_addr(), 0u8..=128).prop_map(|(addr, len)| {
        let len = if addr.is_v4() { len % 33 } else { len };
        Prefix::new(addr, len).expect("length in range")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn agrees_with_a_linear_search(
        prefixes in prop::collection::vec(any_prefix(), 0..60),
        probes in
            prop::collection::vec((any_addr(), any::<prop::sample::Index>(), 0u8..128), 60),
    ) {
        let list: Vec<_> = prefixes.iter().copied().zip(0u32..).collect();
        let naive = |a: Addr| {
            let hits = list.iter().filter(|(p, _)| p.contains(a));
            hits.max_by_key(|(p, i)| (p.len(), *i)).map(|&(_, i)| i)
        };
        // Beginning with two bytes at once takes long to build; other tests do that.
        let forms = [(false, false), (true, false), (true, true)];
        for lpm in forms.map(|(lists_runs, ranges)| {
            Lpm::build_as(&list, Form { lists_runs, direct: false, flat: false, ranges })
        }) {
            for (random, index, bit) in &probes {
                prop_assert_eq!(lpm.lookup(*random), naive(*random));
                // Near a prefix: its address with one bit turned over.
                if let Some(p) = (!prefixes.is_empty()).then(|| index.get(&prefixes)) {
                    let bit = if p.is_v4() { 96 + bit % 32 } else { *bit };
                    let flipped = u128::from_be_bytes(p.addr().to_bytes()) ^ 1u128 << (127 - bit);
                    let near = Addr::from_v6_bytes(flipped.to_be_bytes());
                    prop_assert_eq!(lpm.lookup(near), naive(near), "{} near {}", near, p);
                    prop_assert_eq!(lpm.lookup(p.addr()), naive(p.addr()));
                }
            }
        }
    }
}

/// Every way to store a table.
fn all_forms(list: &[(Prefix, u32)]) -> impl Iterator<Item = Lpm> {
    let forms = [(false, false), (true, false), (false, true), (true, true)];
    let form = |(lists_runs, direct)| Form { lists_runs, direct, flat: false, ranges: false };
    forms.into_iter().map(move |of| Lpm::build_as(list, form(of)))
}

/// Nodes of every number of runs: one prefix of each of `n` values of a byte.
#[test]
fn nodes_of_any_number_of_runs() {
    for n in [1u32, 5, 6, 7, 12, 13, 31, 32, 33, 63, 64, 127, 128, 256] {
        for (base, below) in [(0x0a00_0000, false), (0x0a01_0200, true)] {
            let host = |i: u32| Addr::v4(base + ((i * 256 / n) & 255));
            let mut list: Vec<_> = (0..n).map(|i| (Prefix::host(host(i)), i + 1)).collect();
            if below {
                list.push((prefix("10.1.2.0/24"), 0));
            }
            for lpm in all_forms(&list) {
                for byte in 0..=255u32 {
                    let addr = Addr::v4(base + byte);
                    let hit = list.iter().rfind(|(p, _)| p.len() == 32 && p.contains(addr));
                    let want = hit.map(|&(_, i)| i).or(below.then_some(0));
                    assert_eq!(lpm.lookup(addr), want, "{n} runs, {addr}");
                }
            }
        }
    }
}

#[test]
fn many_routes_take_little_memory() {
    let list: Vec<_> = (0..40_000u32)
        .map(|i| (Prefix::new(Addr::v4(i.wrapping_mul(0x9e37_79b1)), 24).expect("a length"), i))
        .collect();
    let all = Form { lists_runs: false, direct: false, flat: false, ranges: false };
    let (lists_all, as_runs) = (Lpm::build_as(&list, all), Lpm::build(&list));
    assert!(lists_all.memory_bytes() > 20 << 20, "{}", lists_all.memory_bytes());
    assert!(as_runs.memory_bytes() < 4 << 20, "{}", as_runs.memory_bytes());
    for i in 0..200_000u32 {
        let addr = Addr::v4(i.wrapping_mul(0x85eb_ca6b));
        assert_eq!(as_runs.lookup(addr), lists_all.lookup(addr), "{addr}");
    }
}

/// Routes around, at and within blocks of 256 addresses.
#[test]
fn three_bytes_at_once() {
    let net = |addr: u32, len: u8| Prefix::new(Addr::v4(addr), len).expect("a length");
    let mut list = vec![(net(0, 0), 0), (net(0xffff_ff00, 24), 1), (net(0xffff_ffff, 32), 2)];
    for i in 0..3_000u32 {
        let (addr, len) = (i.wrapping_mul(0x9e37_79b1), (i % 33) as u8);
        list.push((net(addr, len.max(9)), 3 + i));
        list.push((net(addr ^ 0x80, 25), 4_000 + i));
    }
    let trie = Form { lists_runs: true, direct: false, flat: false, ranges: false };
    let (flat, trie) =
        (Lpm::build_as(&list, Form { flat: true, ..trie }), Lpm::build_as(&list, trie));
    assert!(flat.flat.is_in_use());
    let near = list.iter().flat_map(|(p, _)| {
        let addr = p.addr().v4_bits();
        [addr, addr | 1, addr ^ 0x80, addr ^ 0x100, addr.wrapping_sub(1)]
    });
    for addr in near.map(Addr::v4) {
        assert_eq!(flat.lookup(addr), trie.lookup(addr), "{addr}");
    }
}

#[test]
fn what_two_bytes_cannot_tell_apart_is_not_flat() {
    let host = |i: u32| Prefix::host(Addr::v4(i << 8));
    let fits = |blocks: u32, value: u32| {
        let list: Vec<_> = (0..blocks).map(|i| (host(i), value)).collect();
        Lpm::fits_flat(&list)
    };
    assert!(fits(32_768, 7) && !fits(32_769, 7));
    assert!(fits(1, 32_766) && !fits(1, 32_767));
    assert!(Lpm::fits_flat(&[(host(1), 7); 40_000]), "one block");
}

/// Slots of one range, of a line's, of many lines', and of too many for a bucket; with prefixes
/// around them and, longer than any range, within them.
#[test]
fn ranges_of_any_number() {
    let net = |hi: u64, len: u8| Prefix::new(Addr { hi, lo: 0 }, len).expect("a length");
    let mut list = vec![(net(0x2001 << 48, 20), 1), (net(0x2001_0d00 << 32, 24), 2)];
    for (provider, count) in [
        (0x2001_0d00u64, 3u64),
        (0x2001_0d01, 9),
        (0x2001_0d02, 60),
        (0x2001_0d03, 119),
        (0x2001_0d04, 120),
        (0x2001_0d05, 300),
        (0x2001_0d06, 65_536),
        (0x2a00_0000, 1),
    ] {
        let step = 65_536 / count;
        list.push((net(provider << 32, 32), 3));
        for i in 0..count {
            let site = provider << 32 | (i * step) << 16;
            list.push((net(site, 48), 10 + (i % 5) as u32));
            if i % 7 == 0 {
                list.push((net(site | 1, 64), 20));
                list.push((Prefix::host(Addr { hi: site | 1, lo: 5 }), 21));
            }
        }
    }
    let form = Form { lists_runs: true, direct: false, flat: false, ranges: true };
    let (by_ranges, by_trie) =
        (Lpm::build_as(&list, form), Lpm::build_as(&list, Form { ranges: false, ..form }));
    assert_eq!(Lpm::build(&list).root_v6, by_ranges.root_v6, "used where there are many");
    let near = list.iter().flat_map(|(p, _)| {
        let (a, last) = (p.addr(), u64::MAX >> p.len128().min(63));
        [(0, 0), (0, 5), (0, 6), (1, 5), (last, 1)].map(|(hi, lo)| Addr { hi: a.hi | hi, lo })
    });
    let beside = list.iter().map(|(p, _)| Addr { hi: p.addr().hi.wrapping_sub(1), lo: 0 });
    for addr in near.chain(beside) {
        assert_eq!(by_ranges.lookup(addr), by_trie.lookup(addr), "{addr}");
    }
}
