//! What servers call themselves: connection ids, by which a client is known when its address has
//! changed (RFC 9000, section 9).

use crate::base::Seed;
use crate::base::hash::{hash_bytes, hash_endpoint};
use crate::packet::FlowKey;

/// Shorter ids are not learned: strangers would hit them by chance.
pub const ID_BYTES_MIN: usize = 4;
/// Bytes at most (RFC 9000, section 17.2).
pub const ID_BYTES_MAX: usize = crate::inspect::quic::CID_BYTES_MAX;
/// Ids that one worker remembers at most.
const IDS_MAX: usize = 1 << 16;
/// Places in which an id may lie.
const WAYS: usize = 4;

/// Connection ids with the flow that had each last. Where there is no room, an older one goes.
pub struct ConnectionIds {
    seed: Seed,
    entries: Box<[[Entry; WAYS]]>,
    /// A bit for each length seen: in a packet only the server could tell where its id ends.
    lengths: u32,
    /// The way that gives room next.
    hand: usize,
}

/// The tag 0 is that of a vacant one.
#[derive(Clone, Copy, Default)]
struct Entry {
    tag: u64,
    key: FlowKey,
}

const _: () = assert!(ID_BYTES_MAX < 32);

impl ConnectionIds {
    /// Room for about `count` of them.
    pub fn new(count: usize, seed: Seed) -> ConnectionIds {
        let buckets = count.clamp(WAYS, IDS_MAX).next_power_of_two() / WAYS;
        let entries = vec![[Entry::default(); WAYS]; buckets].into_boxed_slice();
        ConnectionIds { seed, entries, lengths: 0, hand: 0 }
    }

    /// The flow with this client's key is called so.
    pub fn learn(&mut self, id: &[u8], key: &FlowKey) {
        if !(ID_BYTES_MIN..=ID_BYTES_MAX).contains(&id.len()) {
            return;
        }
        self.lengths |= 1 << id.len();
        let tag = self.tag(key, id);
        let bucket = &mut self.entries[tag as usize & (self.entries.len() - 1)];
        let known = bucket.iter().position(|e| e.tag == tag);
        let place = known.or_else(|| bucket.iter().position(|e| e.tag == 0));
        let place = place.unwrap_or_else(|| {
            self.hand = (self.hand + 1) % WAYS;
            self.hand
        });
        bucket[place] = Entry { tag, key: *key };
    }

    /// The id that a packet with a short header begins with behind its first byte, and its flow.
    /// The longest that is known wins; `key` is the packet's, which goes to the same service.
    pub fn find<'a>(&self, key: &FlowKey, rest: &'a [u8]) -> Option<(&'a [u8], FlowKey)> {
        let known = (ID_BYTES_MIN..=ID_BYTES_MAX).rev().filter(|len| self.lengths >> len & 1 == 1);
        known.filter_map(|len| rest.get(..len)).find_map(|id| {
            let tag = self.tag(key, id);
            let bucket = &self.entries[tag as usize & (self.entries.len() - 1)];
            bucket.iter().find(|e| e.tag == tag).map(|e| (id, e.key))
        })
    }

    /// By where the client sends to: services are numbered anew by each reload.
    fn tag(&self, key: &FlowKey, id: &[u8]) -> u64 {
        let about = hash_endpoint(self.seed, key.dst, key.dport) ^ id.len() as u64;
        (hash_bytes(self.seed, id) ^ about.rotate_left(23)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u16) -> FlowKey {
        FlowKey { sport: n, dport: 443, ..FlowKey::default() }
    }

    #[test]
    fn ids_are_found_at_the_head_of_a_packet() {
        let mut ids = ConnectionIds::new(64, Seed(1));
        let (one, two) = (&key(9), &FlowKey { dport: 444, ..key(9) });
        ids.learn(b"server-1", &key(1));
        ids.learn(b"serv", &key(2));
        ids.learn(b"abc", &key(3));
        assert_eq!(ids.find(one, b"server-1 and more"), Some((&b"server-1"[..], key(1))));
        assert_eq!(ids.find(one, b"server-2 and more"), Some((&b"serv"[..], key(2))));
        assert_eq!(ids.find(one, b"serv"), Some((&b"serv"[..], key(2))));
        assert_eq!(ids.find(one, b"ser"), None);
        assert_eq!(ids.find(one, b"abcdefgh"), None, "too short to be learned");
        assert_eq!(ids.find(two, b"server-1 and more"), None, "another service's");
        ids.learn(b"server-1", &key(4));
        assert_eq!(ids.find(one, b"server-1"), Some((&b"server-1"[..], key(4))), "moved");
    }

    #[test]
    fn the_newest_is_there_however_many_came_before() {
        let mut ids = ConnectionIds::new(16, Seed(1));
        for n in 0..1_000u16 {
            let id = [&n.to_be_bytes()[..], b"server"].concat();
            ids.learn(&id, &key(n));
            assert_eq!(ids.find(&key(n), &id).map(|f| f.1), Some(key(n)));
        }
    }
}
