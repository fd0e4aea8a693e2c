//! The order in which backends take turns.

/// Turns of one round at most.
const TURNS_MAX: u32 = 4_096;

/// Positions in the order of their turns: each as often as its weight says, and as evenly spread as
/// may be ("smooth weighted round robin": who has waited most for its weight is next). Where the
/// weights have no common measure, a round is long; beyond [`TURNS_MAX`] they are rounded.
pub fn rotation(weights: &[u16]) -> Box<[u16]> {
    let common = weights.iter().fold(0, |a, w| gcd(a, u32::from(*w))).max(1);
    let whole: u32 = weights.iter().map(|w| u32::from(*w) / common).sum();
    let turns = |w: u16| {
        let w = u32::from(w) / common;
        match whole > TURNS_MAX && w > 0 {
            true => (u64::from(w) * u64::from(TURNS_MAX) / u64::from(whole)).max(1) as u32,
            false => w,
        }
    };
    let turns: Vec<i64> = weights.iter().map(|w| i64::from(turns(*w))).collect();
    let all: i64 = turns.iter().sum();
    let mut waited = vec![0i64; turns.len()];
    let next = |_| {
        waited.iter_mut().zip(&turns).for_each(|(waited, turns)| *waited += turns);
        // Of equals the first.
        let next = (0..waited.len()).rev().max_by_key(|i| waited[*i]).unwrap_or(0);
        waited[next] -= all;
        next as u16
    };
    (0..all).map(next).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_evenly_spread() {
        assert_eq!(*rotation(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(*rotation(&[500, 100, 100]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(*rotation(&[2, 0, 4]), [2, 0, 2]);
        assert!(rotation(&[]).is_empty() && rotation(&[0]).is_empty());
    }

    #[test]
    fn rounds_are_bounded_and_forget_nobody() {
        let weights = [65_535, 1, 65_534, 7];
        let round = rotation(&weights);
        assert!(round.len() <= TURNS_MAX as usize + weights.len());
        let count = |of: u16| round.iter().filter(|i| **i == of).count();
        assert_eq!([1, 3].map(count), [1, 1]);
        assert!(count(0).abs_diff(count(2)) <= 1);
        let many: Vec<u16> = (1..=655).collect();
        let round = rotation(&many);
        assert!((0..655).all(|i| round.contains(&i)));
    }
}
