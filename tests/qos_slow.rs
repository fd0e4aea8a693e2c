//! Slow links, on which a packet takes long and a round of all classes longer.

mod qos_support;

use qos_support::{Link, class, greedy, port};

/// On a slow link, too, shares are right within seconds: nobody's turn takes long because of what
/// siblings weigh.
#[test]
fn heavy_siblings_have_their_shares_on_slow_links_soon() {
    for weights in
        [[200_000, 160_000, 1_000], [200, 160, 1], [30, 10, 1], [7, 11, 13], [100, 12, 11]]
    {
        // 2 and 6 Mbit/s.
        for rate_mb in [0.25, 0.75] {
            let of = |(id, weight)| class(id, rate_mb / 20.0).weight(weight).bursts(3_036);
            let classes: Vec<_> = (1..).zip(weights).map(of).collect();
            let mut link = Link::new(&port(rate_mb, &classes), 1.01 * rate_mb, 1_024);
            let sources = [1, 2, 3].map(greedy);
            let start = link.now.saturating_add(2_000_000_000);
            link.run(&sources, start, |_| ());
            let (end, mut bytes) = (link.now.saturating_add(8_000_000_000), [0.0; 3]);
            link.run(&sources, end, |sent| {
                bytes[usize::from(sent.class.0) - 1] += f64::from(sent.len);
            });
            let whole: f64 = bytes.iter().sum();
            for (bytes, weight) in bytes.into_iter().zip(weights) {
                let part = f64::from(weight) / f64::from(weights.iter().sum::<u32>());
                // Each is promised a 20th.
                let want = whole * (0.05 + 0.85 * part);
                let most = 0.005 * want + 2.0 * 1_500.0;
                assert!((bytes - want).abs() < most, "{weights:?}: {bytes} of {want}");
            }
            link.finish();
        }
    }
}
