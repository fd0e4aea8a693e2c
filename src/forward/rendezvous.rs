//! Weighted rendezvous hashing: who of several wins a key, in proportion to weights, without a
//! table.

/// How far a candidate is from a key, by the hash of both and the candidate's weight, above 0: the
/// nearest wins (C. Schindelhauer and G. Schomaker, "Weighted Distributed Hash Tables", SPAA 2005,
/// the logarithmic method). A weight that changes moves keys to or from its own candidate only.
#[inline]
pub fn distance(hash: u64, weight: u16) -> f64 {
    // Above 0 and below 1, in steps that an f64 holds exactly.
    let chance = ((hash >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
    -chance.ln() / f64::from(weight)
}
