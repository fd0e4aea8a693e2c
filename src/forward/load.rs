//! What one more request costs at a backend, by what its engine tells of itself.

/// What an engine told, at once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Requests in work.
    pub running: f64,
    /// Requests that wait for their turn.
    pub waiting: f64,
    /// Share of the KV cache in use, 0 to 1; `None` where the engine does not tell.
    pub cache: Option<f64>,
}

/// Waiting requests of an engine that is saturated, and its share of the KV cache then: llm-d's
/// defaults for the saturation of a model server.
const WAITING_SATURATED: f64 = 5.0;
const CACHE_SATURATED: f64 = 0.8;
/// Running requests of an engine that tells nothing else, and is then taken for saturated.
const RUNNING_SATURATED: f64 = 256.0;
/// Prices are told in this part of a saturated engine.
pub const PRICE_UNIT: f64 = 1e-6;
/// How far a backend's price may lie from the pool's, either way: an engine that tells nonsense
/// neither draws all requests nor none.
const PRICE_RATIO_MAX: f64 = 16.0;

/// What a backend is chosen by, beside its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Of a request, in [`PRICE_UNIT`]; 0 is not known: then it is whatever the other one's is.
    pub price: u32,
    /// Requests of the engine beyond the connections to it: those of others, less idle
    /// connections.
    pub unseen: i32,
}

impl Reading {
    pub fn requests(&self) -> f64 {
        self.running + self.waiting
    }

    /// How far the engine is to saturation; 1 and more: what comes now waits.
    pub fn saturation(&self) -> f64 {
        let cache = self.cache.unwrap_or(0.0) / CACHE_SATURATED;
        let (waiting, running) =
            (self.waiting / WAITING_SATURATED, self.running / RUNNING_SATURATED);
        cache.max(waiting).max(running)
    }

    /// What a request takes of this engine; `None` where it has none to tell by.
    pub fn price(&self) -> Option<f64> {
        let requests = self.requests();
        (requests >= 1.0).then(|| self.saturation() / requests)
    }
}

/// What is known of a backend's engine.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub reading: Reading,
    /// Of the last reading that told one.
    pub price: Option<f64>,
    /// Connections at the time of the reading.
    pub connections: u32,
}

/// By what is known of a pool's backends; `None`: nothing, or nothing of late.
pub fn loads(known: &[Option<Known>]) -> Vec<Load> {
    let mut prices: Vec<f64> = known.iter().flatten().filter_map(|k| k.price).collect();
    prices.sort_by(f64::total_cmp);
    let Some(usual) = prices.get(prices.len() / 2).copied() else {
        return known.iter().map(|k| Load { price: 0, unseen: unseen(k.as_ref()) }).collect();
    };
    let load = |k: &Option<Known>| {
        // Of whom nothing is known a request costs what it usually does.
        let price = k.and_then(|k| k.price).unwrap_or(usual);
        let price = price.clamp(usual / PRICE_RATIO_MAX, usual * PRICE_RATIO_MAX) / PRICE_UNIT;
        Load {
            price: price.round().clamp(1.0, f64::from(u32::MAX)) as u32,
            unseen: unseen(k.as_ref()),
        }
    };
    known.iter().map(load).collect()
}

fn unseen(known: Option<&Known>) -> i32 {
    let beyond = |k: &Known| k.reading.requests() - f64::from(k.connections);
    known.map_or(0, |k| beyond(k).clamp(f64::from(i32::MIN), f64::from(i32::MAX)) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(running: f64, waiting: f64, cache: Option<f64>, connections: u32) -> Option<Known> {
        let reading = Reading { running, waiting, cache };
        Some(Known { reading, price: reading.price(), connections })
    }

    #[test]
    fn a_request_costs_what_it_takes_of_the_engine() {
        let all = [
            known(10.0, 0.0, Some(0.08), 10),
            known(10.0, 0.0, Some(0.8), 4),
            known(10.0, 10.0, Some(0.9), 30),
            None,
        ];
        let got = loads(&all);
        assert_eq!(got[0], Load { price: 10_000, unseen: 0 });
        assert_eq!(got[1], Load { price: 100_000, unseen: 6 });
        assert_eq!(got[2], Load { price: 100_000, unseen: -10 });
        assert_eq!(got[3], Load { price: 100_000, unseen: 0 }, "as usual");
    }

    #[test]
    fn nonsense_moves_a_price_only_so_far() {
        let few = known(8.0, 0.0, Some(0.1), 8);
        let all = [few, few, known(1.0, 1e30, Some(1e300), 0), known(1e12, 0.0, Some(0.0), 0)];
        let got = loads(&all);
        let usual = f64::from(got[0].price);
        let within = usual / 17.0..usual * 17.0;
        assert!(got.iter().all(|l| within.contains(&f64::from(l.price))), "{got:?}");
        assert_eq!(got[2].unseen, i32::MAX);
        assert_eq!(loads(&[None, None]), [Load::default(); 2]);
        assert_eq!(Reading::default().price(), None, "an idle engine");
        let silent = Reading { running: 64.0, ..Reading::default() };
        assert_eq!(silent.saturation(), 0.25, "an engine that tells of no cache");
    }
}
