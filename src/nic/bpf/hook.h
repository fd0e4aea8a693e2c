// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Where the program stands: in the driver (XDP), or behind it at the beginning of traffic control
// (TCX, with TG_TC). There packets are socket buffers: merged ones of up to 64 KB, with checksums
// that are yet to be computed, their payload outside of what can be read directly. Actions have
// the numbers of XDP everywhere.

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

#ifdef TG_TC

#define HOOK struct __sk_buff

// Interface number of the companion's entry: of a veth pair of ours, whose exit has the sockets.
// What enters is segmented and completed, as packets of any sender.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} companion SEC(".maps");

static __always_inline __u32 receive_queue(const HOOK *ctx)
{
	__u32 recorded = ctx->queue_mapping;

	return recorded ? recorded - 1 : 0;
}

static __always_inline __u32 frame_len(const HOOK *ctx)
{
	return ctx->len;
}

// Whether its outer VLAN tag is not among its bytes.
static __always_inline int is_tagged_aside(const HOOK *ctx)
{
	return ctx->vlan_present != 0;
}

// A driver leaves all headers where they can be read directly. Who sends on this box may not.
static __always_inline void show_headers(HOOK *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 l3 = ctx->protocol == bpf_htons(ETH_P_IPV6) ? sizeof(struct ipv6hdr) :
							    sizeof(struct iphdr);
	__u32 need = sizeof(struct ethhdr) + l3 + sizeof(struct tcphdr);

	if (end - data < need && ctx->len > end - data)
		bpf_skb_pull_data(ctx, ctx->len < HEADERS_MAX ? ctx->len : HEADERS_MAX);
}

// Frames that a socket gets of it.
static __always_inline __u32 frames_of(const HOOK *ctx)
{
	return ctx->gso_segs > 1 ? ctx->gso_segs : 1;
}

#include "inbox.h"

// An action of this hook's own: the worker has a copy.
#define COPIED XDP_TX

static __always_inline int is_steered(int action)
{
	return action == XDP_REDIRECT || action == COPIED;
}

// To the worker of the queue, by its inbox or through the companion. Not static: so the verifier
// looks at it once, not at each call.
__attribute__((noinline)) int to_socket(HOOK *ctx, __u32 queue, __u32 fallback)
{
	__u32 zero = 0, *entry = bpf_map_lookup_elem(&companion, &zero);
	struct tg_inbox *box = bpf_map_lookup_elem(&inboxes, &queue);

	if (!entry || !*entry || !box || !bpf_map_lookup_elem(&xsks, &queue))
		return fallback;
	if (inbox_put(ctx, box))
		return COPIED;
	// A tag that is kept beside the packet comes into it when a further one takes its place, which
	// no socket sees.
	if (is_tagged_aside(ctx) && bpf_skb_vlan_push(ctx, bpf_htons(ETH_P_8021Q), 0))
		return fallback;
	// As recorded on receive: by it the entry chooses its queue, and so the socket.
	ctx->queue_mapping = queue + 1;
	__sync_fetch_and_add(&box->entered, frames_of(ctx));
	return bpf_redirect(*entry, 0) == TC_ACT_REDIRECT ? XDP_REDIRECT : fallback;
}

static __always_inline int verdict(int action)
{
	if (action == XDP_REDIRECT)
		return TC_ACT_REDIRECT;
	// What is not ours is for who comes behind us. There is no verdict for what was consumed.
	return action == XDP_DROP || action == COPIED ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

// What comes out of the companion: all that was decided.
SEC("xdp")
int tidegate_exit(struct xdp_md *ctx)
{
	return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP);
}

#define HOOK_SECTION "classifier"

#else

#define HOOK struct xdp_md

static __always_inline __u32 receive_queue(const HOOK *ctx)
{
	return ctx->rx_queue_index;
}

static __always_inline __u32 frame_len(const HOOK *ctx)
{
	return (void *)(long)ctx->data_end - (void *)(long)ctx->data;
}

static __always_inline int is_tagged_aside(const HOOK *ctx)
{
	(void)ctx;
	return 0;
}

static __always_inline void show_headers(HOOK *ctx)
{
	(void)ctx;
}

static __always_inline __u32 frames_of(const HOOK *ctx)
{
	(void)ctx;
	return 1;
}

static __always_inline int is_steered(int action)
{
	return action == XDP_REDIRECT;
}

static __always_inline int to_socket(HOOK *ctx, __u32 queue, __u32 fallback)
{
	(void)ctx;
	return bpf_redirect_map(&xsks, queue, fallback);
}

static __always_inline int verdict(int action)
{
	return action;
}

#define HOOK_SECTION "xdp"

#endif
