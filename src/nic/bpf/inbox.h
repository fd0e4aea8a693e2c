// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The way of a packet behind the driver to its worker, where it takes one frame: copied into memory
// that both sides map. What is merged goes through the companion, and so does what finds no place
// here, or a worker asleep, whom the companion's socket wakes. Which of both ways came first is
// told by `entered`.
//
// The structs are repeated in src/nic/steer/inbox.rs, which has the reader's side.

// Of all queues of an interface: each has a part of them.
#define INBOX_SLOTS 1024
#define INBOX_BYTES 2024
// Of writers that get into each other's way.
#define INBOX_TRIES 8

struct tg_inbox {
	// Places taken by writers so far.
	__u64 head;
	// Frames that went to the companion so far.
	__u64 entered;
	__u64 pad[6];
	// All below is written by the worker. Who clears this has to wake it.
	__u32 asleep;
	// Its slots: the first one, and the logarithm of how many there are.
	__u32 first;
	__u32 shift;
	// The longest frame that is taken; 0: none is.
	__u32 frame_max;
	__u64 pad2[6];
};

struct tg_inbox_slot {
	// Twice the laps that are done at this place, and 1 more while it is full.
	__u64 turn;
	// Frames of the companion that come before it.
	__u64 entered;
	// 0: none after all. Who sets that has the frame.
	__u32 len;
	__u32 pad;
	__u8 bytes[INBOX_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_QUEUES);
	__type(key, __u32);
	__type(value, struct tg_inbox);
} inboxes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, INBOX_SLOTS);
	__type(key, __u32);
	__type(value, struct tg_inbox_slot);
} inbox_slots SEC(".maps");

// Whether it fell to the caller to wake the worker.
static __always_inline int inbox_must_wake(struct tg_inbox *box)
{
	return *(volatile __u32 *)&box->asleep && __sync_lock_test_and_set(&box->asleep, 0);
}

// A place in the inbox, whose lap is written to `lap`; NULL where there is none.
static __always_inline struct tg_inbox_slot *inbox_claim(struct tg_inbox *box, __u64 *lap)
{
	__u32 shift = box->shift & 31;

	for (int i = 0; i < INBOX_TRIES; i++) {
		__u64 at = *(volatile __u64 *)&box->head;
		__u32 index = box->first + (at & ((1u << shift) - 1));
		struct tg_inbox_slot *slot = bpf_map_lookup_elem(&inbox_slots, &index);

		*lap = at >> shift;
		if (!slot || (__s64)(*(volatile __u64 *)&slot->turn - 2 * *lap) < 0)
			return NULL;
		if (__sync_val_compare_and_swap(&box->head, at, at + 1) == at)
			return slot;
	}
	return NULL;
}

// Whether the packet is with its worker.
static __always_inline int inbox_put(HOOK *ctx, struct tg_inbox *box)
{
	struct tg_inbox_slot *slot;
	__u32 len = ctx->len;
	int loaded;
	__u64 lap;

	if (ctx->gso_size || len > box->frame_max || !len || len > INBOX_BYTES ||
	    is_tagged_aside(ctx) || inbox_must_wake(box))
		return 0;
	slot = inbox_claim(box, &lap);
	if (!slot)
		return 0;
	slot->entered = *(volatile __u64 *)&box->entered;
	loaded = !bpf_skb_load_bytes(ctx, 0, slot->bytes, len);
	slot->len = loaded ? len : 0;
	// A full barrier: either the worker finds it before it sleeps, or it is seen to sleep.
	__sync_lock_test_and_set(&slot->turn, 2 * lap + 1);
	if (inbox_must_wake(box))
		return loaded && !__sync_lock_test_and_set(&slot->len, 0);
	return loaded;
}
