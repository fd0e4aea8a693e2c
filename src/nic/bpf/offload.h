// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Forwards packets of flows that a worker has handed down: translated here, and out by another
// port, without a way through user space. Whatever is out of the ordinary goes to the worker.
//
// The structs are repeated in src/nic/steer/offload.rs.

#define MAX_OFFLOADS 65536
#define MAX_OFFLOAD_SLOTS 32768
#define MAX_PORTS 64
// Packets of a flow that go to the worker while it is waited for.
#define MAX_WAITED 1024
#define IP_FRAGMENT 0x3fff
#define TCP_ENDS 0x07 /* FIN, SYN, RST: the worker follows the connection's state. */
#define TCP_ACK 0x10

// Set before the program is loaded: without it the verifier takes everything here away.
const volatile __u32 offload_enabled = 0;

// A packet as it is received: the beginning of `struct packet`.
struct tg_offload_key {
	struct tg_addr src;
	struct tg_addr dst;
	__u16 sport;
	__u16 dport;
	__u8 proto;
	__u8 pad[3];
};

// What becomes of it. All as it lies in the packet, except for `mtu`.
struct tg_offload {
	// IPv4 in the last word.
	__be32 src[4];
	__be32 dst[4];
	__be16 sport;
	__be16 dport;
	// What is added to the complement of the checksums (RFC 1624); the hop is in that of IPv4.
	__u16 ip_change;
	__u16 transport_change;
	// Destination and source as it leaves.
	__u8 ethernet[12];
	// Destination as it came.
	__u8 own_mac[6];
	__u16 mtu;
	__u32 port;
	__u32 worker;
	__u32 slot;
	// Of the slot: another one, and the flow is gone.
	__u32 stamp;
	// Of the configuration and the routes: another one, and the worker must look again.
	__u32 generation;
	// Of spliced connections: what is added to the numbers of a segment.
	__u32 sequence;
	__u32 acknowledgment;
	__u32 clock;
	__u32 echo;
	// Echoes from before this one are the worker's, where TG_EARLY is set.
	__u32 first_echo;
	// Left shift of the window; negative: right.
	__s8 window;
	__u8 splice;
	__u8 pad[2];
	// Whether packets are forwarded by now: see offload_begins().
	__u32 begun;
	// Packets that went to the worker since the entry was made, and where in its queue the last one
	// stands.
	__u32 waited;
	__u32 pad2;
	__u64 mark;
};

// A receive queue's packets, counted on their way to its worker and behind it, each in a line of
// its own.
struct tg_queue {
	__u64 steered;
	__u64 pad[7];
	// Written by the worker: all before are on their way or gone.
	__u64 passed;
	__u64 pad2[7];
};

// Shared with the worker, which writes `stamp`.
struct tg_offload_slot {
	__u64 packets;
	__u64 bytes;
	__u32 stamp;
	__u32 pad[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_OFFLOADS);
	__type(key, struct tg_offload_key);
	__type(value, struct tg_offload);
} offloads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_OFFLOAD_SLOTS);
	__type(key, __u32);
	__type(value, struct tg_offload_slot);
} offload_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_QUEUES);
	__type(key, __u32);
	__type(value, struct tg_queue);
} offload_queues SEC(".maps");

_Static_assert(offsetof(struct packet, pad) == offsetof(struct tg_offload_key, pad), "see above");

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline __u16 changed(__u16 check, __u16 change)
{
	__u32 sum = (__u32)(__u16)~check + change;

	return ~((sum & 0xffff) + (sum >> 16));
}

#include "splice.h"

#ifdef TG_TC
#include "offload_tc.h"
#else
#include "offload_xdp.h"
#endif

// The packet's Ethernet destination is ours, and it is not longer than it says.
static __always_inline int offload_fits(HOOK *ctx, const struct tg_offload *o, __u32 ip_len)
{
	const __u16 *dst = (void *)(long)ctx->data, *own = (const __u16 *)o->own_mac;

	if ((void *)(dst + 3) > (void *)(long)ctx->data_end)
		return 0;
	return dst[0] == own[0] && dst[1] == own[1] && dst[2] == own[2] &&
	       ip_len + sizeof(struct ethhdr) <= frame_len(ctx);
}

// The transport checksum, or NULL for what the worker must see. Adds the bytes of its header.
static __always_inline __u16 *offload_check(void *l4, void *end, __u8 proto, __u64 pseudo,
					    __u32 len, __u32 *headers)
{
	__u16 *check;

	pseudo += bpf_htons(proto) + bpf_htons((__u16)len);
	if (proto == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > end || tcp->doff < 5 || tcp->doff * 4u > len ||
		    (((__u8 *)l4)[13] & (TCP_ENDS | TCP_ACK)) != TCP_ACK)
			return NULL;
		*headers += tcp->doff * 4u;
		check = &tcp->check;
	} else {
		struct udphdr *udp = l4;

		if ((void *)(udp + 1) > end || bpf_ntohs(udp->len) != len || len < sizeof(*udp))
			return NULL;
		*headers += sizeof(*udp);
		check = &udp->check;
	}
	return offload_sum_is_known(*check, pseudo) ? check : NULL;
}

static __always_inline int offload_layout(void *l4, void *end, const struct tg_offload *o,
					  __u8 proto)
{
	return proto == IPPROTO_TCP && o->splice ? splice_layout(l4, end, o) : 0;
}

static __always_inline void offload_ethernet(void *data, const struct tg_offload *o)
{
	for (__u32 i = 0; i < 6; i++)
		((__u16 *)data)[i] = ((const __u16 *)o->ethernet)[i];
}

// What an address that becomes another one changes in a checksum.
static __always_inline __u64 offload_moved(__be32 from, __be32 to)
{
	return (__u64)(__u32)~from + to;
}

// Returns the bytes of the headers behind the Ethernet one where the packet is on its way; 0 where
// it is as it was.
static __always_inline __u32 offload_v4(HOOK *ctx, const struct tg_offload *o, __u8 proto)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + sizeof(struct ethhdr);
	const __u32 *words = (const __u32 *)ip;
	void *l4 = ip + 1;
	__u64 pseudo, moved, edited;
	__u32 len, headers = sizeof(*ip);
	__u16 *check, sum;
	int layout;

	if (l4 + sizeof(struct udphdr) > end || ip->ihl != 5 || ip->ttl <= 1 ||
	    ip->frag_off & bpf_htons(IP_FRAGMENT))
		return 0;
	len = bpf_ntohs(ip->tot_len);
	if (len < sizeof(*ip) || !offload_fits(ctx, o, len))
		return 0;
	pseudo = (__u64)ip->saddr + ip->daddr;
	if (fold(pseudo + words[0] + words[1] + words[2]) != 0xffff)
		return 0;
	check = offload_check(l4, end, proto, pseudo, len - sizeof(*ip), &headers);
	layout = check ? offload_layout(l4, end, o, proto) : NO_LAYOUT;
	if (layout < 0 || offload_largest(ctx, len, headers, proto) > o->mtu ||
	    !offload_redirects(o->port))
		return 0;
	moved = offload_moved(ip->saddr, o->src[3]) + offload_moved(ip->daddr, o->dst[3]);
	ip->saddr = o->src[3];
	ip->daddr = o->dst[3];
	ip->ttl--;
	sum = changed(ip->check, o->ip_change);
	ip->check = sum == 0xffff ? 0 : sum;
	edited = proto == IPPROTO_TCP && o->splice ? splice_edit(l4, end, o, layout) : 0;
	offload_ethernet(data, o);
	offload_sums(ctx, l4, check, proto, o, moved, edited);
	return headers;
}

static __always_inline __u32 offload_v6(HOOK *ctx, const struct tg_offload *o, __u8 proto)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ipv6hdr *ip = data + sizeof(struct ethhdr);
	void *l4 = ip + 1;
	__u64 pseudo = 0, moved = 0, edited;
	__u32 len, headers = sizeof(*ip);
	__u16 *check;
	int layout;

	if (l4 + sizeof(struct udphdr) > end || ip->nexthdr != proto || ip->hop_limit <= 1)
		return 0;
	len = bpf_ntohs(ip->payload_len);
	if (!offload_fits(ctx, o, len + sizeof(*ip)))
		return 0;
	for (int i = 0; i < 4; i++)
		pseudo += (__u64)ip->saddr.in6_u.u6_addr32[i] + ip->daddr.in6_u.u6_addr32[i];
	check = offload_check(l4, end, proto, pseudo, len, &headers);
	// Without a sum: not allowed but in tunnels (RFC 6935), the worker's to judge.
	layout = check && *check ? offload_layout(l4, end, o, proto) : NO_LAYOUT;
	if (layout < 0 ||
	    offload_largest(ctx, len + sizeof(*ip), headers, proto) > o->mtu ||
	    !offload_redirects(o->port))
		return 0;
	for (int i = 0; i < 4; i++) {
		moved += offload_moved(ip->saddr.in6_u.u6_addr32[i], o->src[i]);
		moved += offload_moved(ip->daddr.in6_u.u6_addr32[i], o->dst[i]);
		ip->saddr.in6_u.u6_addr32[i] = o->src[i];
		ip->daddr.in6_u.u6_addr32[i] = o->dst[i];
	}
	ip->hop_limit--;
	edited = proto == IPPROTO_TCP && o->splice ? splice_edit(l4, end, o, layout) : 0;
	offload_ethernet(data, o);
	offload_sums(ctx, l4, check, proto, o, moved, edited);
	offload_whole_v6(ctx, moved);
	return headers;
}

// Counts a packet that goes to the worker of its queue.
static __always_inline void offload_steered(__u32 queue, __u32 frames)
{
	struct tg_queue *q = bpf_map_lookup_elem(&offload_queues, &queue);

	if (q)
		__sync_fetch_and_add(&q->steered, frames);
}

// Whether a flow's packets are forwarded here by now. What came before must not be overtaken: until
// the worker has passed the last one on, further ones follow it. One that never keeps up is not
// waited for for ever.
static __always_inline int offload_begins(struct tg_offload *o, __u32 queue, __u32 frames)
{
	struct tg_queue *q;

	if (o->begun)
		return 1;
	q = bpf_map_lookup_elem(&offload_queues, &queue);
	if (!q)
		return 0;
	if (o->waited >= MAX_WAITED ||
	    (o->waited && *(volatile __u64 *)&q->passed >= o->mark)) {
		o->begun = 1;
		return 1;
	}
	o->waited++;
	o->mark = *(volatile __u64 *)&q->steered + frames;
	return 0;
}

// Forwards a packet of a flow that was handed down, or returns 0.
static __always_inline int offload(HOOK *ctx, const struct tg_config *cfg, const struct packet *p)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct tg_offload *o;
	struct tg_offload_slot *slot;
	__u32 at, headers, packets;

	if (!cfg->generation || (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP))
		return 0;
	o = bpf_map_lookup_elem(&offloads, p);
	if (!o || o->generation != cfg->generation ||
	    (void *)(eth + 1) > (void *)(long)ctx->data_end)
		return 0;
	at = o->slot;
	slot = bpf_map_lookup_elem(&offload_slots, &at);
	// The clock of ticks costs a tenth of the other one; a dead worker is noticed a tick later.
	if (!slot || *(volatile __u32 *)&slot->stamp != o->stamp ||
	    is_stale(cfg, o->worker, bpf_ktime_get_coarse_ns()) ||
	    !offload_begins(o, receive_queue(ctx), frames_of(ctx)) || is_tagged_aside(ctx))
		return 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		headers = offload_v4(ctx, o, p->proto);
	else if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		headers = offload_v6(ctx, o, p->proto);
	else
		return 0; // tagged
	if (!headers)
		return 0;
	headers += sizeof(*eth);
	packets = packets_of(ctx, headers);
	__sync_fetch_and_add(&slot->packets, packets);
	__sync_fetch_and_add(&slot->bytes, frame_len(ctx) + (__u64)(packets - 1) * headers);
	return 1;
}
