// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Later fragments go where the first one of their packet went, as far as that was seen; only the
// first one has ports.

#define MAX_FRAGMENTED 4096
// The worker's time for them: see src/forward/fragments.rs.
#define FRAGMENTED_NS 2000000000ULL

// What all fragments of a packet have in common; of IPv6 without a protocol, since later ones may
// name another header.
struct fragmented {
	struct tg_addr src;
	struct tg_addr dst;
	__u32 identification;
	__u32 proto;
};

struct fragmented_to {
	__u64 ns;
	__u64 steered;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_FRAGMENTED);
	__type(key, struct fragmented);
	__type(value, struct fragmented_to);
} fragmenteds SEC(".maps");

static __always_inline struct fragmented fragmented_of(const struct packet *p)
{
	int v4 = p->src.hi == 0 && p->src.lo >> 32 == 0xffff;
	struct fragmented key = { p->src, p->dst, p->identification, v4 ? p->proto : 0 };

	return key;
}

// A first fragment: the others are to follow it.
static __always_inline void leads(const struct packet *p, int action)
{
	struct fragmented key = fragmented_of(p);
	struct fragmented_to to = { bpf_ktime_get_ns(), is_steered(action) };

	bpf_map_update_elem(&fragmenteds, &key, &to, BPF_ANY);
}

// Of a later fragment: whether the first one was steered to us, or -1 where that is not known.
static __always_inline int follows(const struct packet *p)
{
	struct fragmented key = fragmented_of(p);
	struct fragmented_to *to = bpf_map_lookup_elem(&fragmenteds, &key);

	if (!to || bpf_ktime_get_ns() - to->ns > FRAGMENTED_NS)
		return -1;
	return to->steered != 0;
}
