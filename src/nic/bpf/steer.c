// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Decides for each received packet whether it is ours. Ours go to the AF_XDP socket of the receive
// queue; everything else goes on to the kernel as if we were not there.
//
// Compiled twice: hook.h has what differs.
//
// The structs and numbers here are repeated in src/nic/steer/abi.rs; the table at the end of this
// file lets a test there compare both sides.

#include <stddef.h>
#include <linux/bpf.h>
#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "parse.h"

#define MAX_QUEUES 64
#define MAX_WORKERS 64
#define MAX_SERVICES 4096
#define MAX_RETURNS 65536
#define MAX_ADDRS 16384
#define MAX_PREFIXES 65536
#define MAX_VLAN_TAGS 2
// With tags, an IPv6 header and the longest of TCP.
#define HEADERS_MAX 128
// Behind an Ethernet header; what is quoted may stand behind all extension headers that are read.
#define L3_AT_MAX 0x3fff
#define SHARE_ALL 10000
// In place of a share: where our tunnels lead. What comes from there is nothing of ours.
#define SHARE_TUNNEL 65535
// A share's word has 16 bits of it, then 14 of the one that it was lowered from, while it is not
// known yet which flows began before.
#define SHARE_BEFORE 16
#define SHARE_BEFORE_MAX 16383
// Flows outside of it are kept.
#define SHARE_KEEPS 1073741824
#define MAX_KEPT 65536

// An address, port and protocol: of a service (destination) or of a DNAT backend (source), whose
// later fragments have port 0.
struct tg_endpoint {
	struct tg_addr addr;
	__u16 port;
	__u8 proto;
	__u8 pad[5];
};

// What the destination address means to us. Flags: TG_ADDR_*.
struct tg_addr_info {
	__u32 flags;
	// Smallest canary share of the services at this address: later fragments carry no port.
	__u32 fragment_share;
	// Ports that our NAT uses, or at the box's own addresses health checks; inclusive.
	__u16 nat_first;
	__u16 nat_last;
	__u32 pad;
};

#define TG_ADDR_LOCAL 1
#define TG_ADDR_VIP 2
#define TG_ADDR_NAT 4
// The box's own, of which health checks have some ports.
#define TG_ADDR_CHECKS 8

// Key of the longest-prefix trie; the address in network order.
struct tg_prefix {
	__u32 len;
	__u8 addr[16];
};

struct tg_config {
	__u64 heartbeat_limit_ns;
	// 0: pass, 1: drop.
	__u32 on_failure;
	// Hundredths of a percent.
	__u32 transit_share;
	// Queue q belongs to worker q % workers.
	__u32 workers;
	// Of the flows that are forwarded here; 0: none are.
	__u32 generation;
};

// One cache line a worker, so that they don't disturb each other.
struct tg_heartbeat {
	// CLOCK_MONOTONIC.
	__u64 ns;
	__u64 pad[7];
};

enum tg_reason {
	TG_VIP,
	TG_NAT_RETURN,
	TG_DNAT_RETURN,
	TG_TRANSIT,
	TG_FRAGMENT,
	TG_NOT_IP,
	TG_NOT_OURS,
	TG_LOCAL,
	TG_CANARY,
	TG_GROUP,
	TG_ICMP,
	TG_MALFORMED,
	TG_STALE_PASS,
	TG_STALE_DROP,
	TG_NO_SOCKET,
	TG_OFFLOADED,
	TG_ERROR,
	TG_FRAGMENT_PASS,
	TG_REASONS,
};

#include "hook.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tg_config);
} config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_WORKERS);
	__type(key, __u32);
	__type(value, struct tg_heartbeat);
} heartbeats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_ADDRS);
	__type(key, struct tg_addr);
	__type(value, struct tg_addr_info);
} addrs SEC(".maps");

// Value: canary share.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SERVICES);
	__type(key, struct tg_endpoint);
	__type(value, __u32);
} services SEC(".maps");

// Value: canary share, or SHARE_TUNNEL.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_RETURNS);
	__type(key, struct tg_endpoint);
	__type(value, __u32);
} returns SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PREFIXES);
	__type(key, struct tg_prefix);
	__type(value, __u32);
} transit SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TG_REASONS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline int count(__u32 reason, int action)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &reason);

	if (n)
		*n += 1;
	return action;
}

// True for `share` hundredths of a percent of all hashes.
static __always_inline int in_share(__u64 hash, __u32 share)
{
	return share >= SHARE_ALL || (((hash >> 32) * SHARE_ALL) >> 32) < share;
}

static __always_inline int is_stale(const struct tg_config *cfg, __u32 worker, __u64 now)
{
	struct tg_heartbeat *beat = bpf_map_lookup_elem(&heartbeats, &worker);
	__u64 last = beat ? *(volatile __u64 *)&beat->ns : 0;

	return now > last && now - last > cfg->heartbeat_limit_ns;
}

#include "offload.h"
#include "fragments.h"

// Flows that began while their service's share was larger: as the client sends, and with `dnat` as
// its backend sees that.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_KEPT);
	__type(key, struct tg_offload_key);
	__type(value, __u32);
} kept SEC(".maps");

// Whether a flow outside of its service's share is one that began while the share was larger. Until
// those are known, who comes by the share before is noted here.
static __always_inline int stays(const struct tg_offload_key *key, __u64 hash, __u32 share)
{
	__u32 one = 1;

	if (in_share(hash, share >> SHARE_BEFORE & SHARE_BEFORE_MAX)) {
		bpf_map_update_elem(&kept, key, &one, BPF_ANY);
		return 1;
	}
	return bpf_map_lookup_elem(&kept, key) != NULL;
}

static __always_inline int is_ours(const struct tg_addr *client, __u16 client_port,
				   const struct tg_addr *server, __u16 server_port, __u8 proto,
				   __u32 share)
{
	__u64 hash = hash_endpoint(client, client_port);

	if (in_share(hash, share & 0xffff))
		return 1;
	if (share <= 0xffff)
		return 0;
	struct tg_offload_key key = { *client, *server, client_port, server_port, proto, {} };
	return stays(&key, hash, share);
}

// Hands a packet of ours to the queue's socket, unless its worker has stopped beating.
static __always_inline int steer(HOOK *ctx, struct tg_config *cfg, __u32 reason)
{
	__u32 queue = receive_queue(ctx);
	__u32 fallback = cfg->on_failure ? XDP_DROP : XDP_PASS;
	__u32 worker = cfg->workers ? queue % cfg->workers : MAX_WORKERS;
	int action;

	if (is_stale(cfg, worker, bpf_ktime_get_ns()))
		return count(cfg->on_failure ? TG_STALE_DROP : TG_STALE_PASS, fallback);
	action = to_socket(ctx, queue, fallback);
	if (offload_enabled && is_steered(action))
		offload_steered(queue, frames_of(ctx));
	return count(is_steered(action) ? reason : TG_NO_SOCKET, action);
}

// What the IP packet says that begins at `at` in the frame. Returns 0 where that is not all there.
// Not static: so the verifier looks at it once, and at what follows it once for all kinds of
// packets in place of once for each.
__attribute__((noinline)) int parse(HOOK *ctx, struct packet *p, __u32 at, __be16 proto)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (!p || at > L3_AT_MAX)
		return 0;
	return proto == bpf_htons(ETH_P_IP) ? parse_ipv4(p, data, data + at, end) :
					      parse_ipv6(p, data, data + at, end);
}

static __always_inline struct tg_endpoint endpoint(const struct tg_addr *addr, __u16 port,
						   __u8 proto)
{
	struct tg_endpoint e = { *addr, port, proto, {} };

	return e;
}

// An ICMP error about a packet that we have sent: its flow's worker knows whom to tell. Returns an
// action, or -1 where it is about none.
static __always_inline int decide_error(HOOK *ctx, struct tg_config *cfg,
					const struct packet *p)
{
	__be16 proto = bpf_htons(p->proto == IPPROTO_ICMP ? ETH_P_IP : ETH_P_IPV6);
	struct tg_addr_info *info;
	struct tg_endpoint key;
	struct packet q = {};
	__u32 *share;

	// Whom it is for has sent what it quotes.
	if (!parse(ctx, &q, p->quoted, proto) || q.later_fragment || q.src.hi != p->dst.hi ||
	    q.src.lo != p->dst.lo)
		return -1;
	key = endpoint(&q.src, q.sport, q.proto);
	share = bpf_map_lookup_elem(&services, &key);
	if (share)
		return is_ours(&q.dst, q.dport, &q.src, q.sport, q.proto, *share) ?
			steer(ctx, cfg, TG_ERROR) : count(TG_CANARY, XDP_PASS);
	info = bpf_map_lookup_elem(&addrs, &q.src);
	if (info && info->flags & TG_ADDR_NAT &&
	    (q.proto == IPPROTO_TCP || q.proto == IPPROTO_UDP) &&
	    q.sport >= info->nat_first && q.sport <= info->nat_last)
		return steer(ctx, cfg, TG_ERROR);
	key = endpoint(&q.dst, q.dport, q.proto);
	share = bpf_map_lookup_elem(&returns, &key);
	if (!share)
		return -1;
	return is_ours(&q.src, q.sport, &q.dst, q.dport, q.proto, *share) ?
		steer(ctx, cfg, TG_ERROR) : count(TG_CANARY, XDP_PASS);
}

// The destination is one of our addresses. Returns an action, or -1 where the rest must decide.
static __always_inline int decide_address(HOOK *ctx, struct tg_config *cfg,
					  const struct packet *p, const struct tg_addr_info *info)
{
	if (info->flags & (TG_ADDR_VIP | TG_ADDR_NAT)) {
		if (p->proto == IPPROTO_ICMP || p->proto == IPPROTO_ICMPV6)
			return count(TG_ICMP, XDP_PASS);
		if (p->later_fragment)
			return info->fragment_share >= SHARE_ALL ?
				steer(ctx, cfg, TG_FRAGMENT) : count(TG_CANARY, XDP_PASS);
	}
	if (info->flags & TG_ADDR_VIP) {
		struct tg_endpoint key = endpoint(&p->dst, p->dport, p->proto);
		__u32 *share = bpf_map_lookup_elem(&services, &key);

		if (share) {
			if (!is_ours(&p->src, p->sport, &p->dst, p->dport, p->proto, *share))
				return count(TG_CANARY, XDP_PASS);
			return steer(ctx, cfg, TG_VIP);
		}
	}
	if (info->flags & (TG_ADDR_NAT | TG_ADDR_CHECKS) &&
	    (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP) &&
	    p->dport >= info->nat_first && p->dport <= info->nat_last)
		return steer(ctx, cfg, TG_NAT_RETURN);
	return info->flags & TG_ADDR_LOCAL ? count(TG_LOCAL, XDP_PASS) : -1;
}

static __always_inline int decide_transit(HOOK *ctx, struct tg_config *cfg,
					  const struct packet *p)
{
	struct tg_prefix key = { .len = 128 };
	__be32 *w = (__be32 *)key.addr;
	__u64 hash;

	w[0] = bpf_htonl((__u32)(p->dst.hi >> 32));
	w[1] = bpf_htonl((__u32)p->dst.hi);
	w[2] = bpf_htonl((__u32)(p->dst.lo >> 32));
	w[3] = bpf_htonl((__u32)p->dst.lo);
	if (!bpf_map_lookup_elem(&transit, &key))
		return count(TG_NOT_OURS, XDP_PASS);
	// A sum, so that both directions of a flow have the same hash. Later fragments have no ports.
	hash = mix(hash_endpoint(&p->src, p->sport) + hash_endpoint(&p->dst, p->dport));
	if (!in_share(hash, cfg->transit_share))
		return count(TG_CANARY, XDP_PASS);
	return steer(ctx, cfg, TG_TRANSIT);
}

static __always_inline int decide(HOOK *ctx, struct tg_config *cfg, const struct packet *p)
{
	struct tg_addr_info *info = bpf_map_lookup_elem(&addrs, &p->dst);
	struct tg_endpoint key = endpoint(&p->src, p->sport, p->proto);
	__u32 *share = NULL;

	if (p->discovery)
		return count(TG_ICMP, XDP_PASS);
	if (p->quoted) {
		int action = decide_error(ctx, cfg, p);

		if (action >= 0)
			return action;
	}
	if (info) {
		int action = decide_address(ctx, cfg, p, info);

		if (action >= 0)
			return action;
	}
	// An entry of port 0 is for later fragments, and not for whoever sends from that port.
	if (p->sport || p->later_fragment)
		share = bpf_map_lookup_elem(&returns, &key);
	if (share && *share != SHARE_TUNNEL && p->later_fragment)
		return *share >= SHARE_ALL ?
			steer(ctx, cfg, TG_FRAGMENT) : count(TG_CANARY, XDP_PASS);
	if (share && *share != SHARE_TUNNEL)
		// The client's endpoint is hashed, as on its way in.
		return is_ours(&p->dst, p->dport, &p->src, p->sport, p->proto, *share) ?
			steer(ctx, cfg, TG_DNAT_RETURN) : count(TG_CANARY, XDP_PASS);
	if (is_link_scope(&p->dst))
		return count(TG_GROUP, XDP_PASS);
	return decide_transit(ctx, cfg, p);
}

static __always_inline int decide_frame(HOOK *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	void *l3 = eth + 1;
	struct packet p = {};
	__u32 zero = 0;
	struct tg_config *cfg = bpf_map_lookup_elem(&config, &zero);
	__be16 proto;
	int action;

	if (!cfg || (void *)(eth + 1) > end)
		return count(TG_MALFORMED, XDP_PASS);
	if (eth->h_dest[0] & 1)
		return count(TG_GROUP, XDP_PASS);
	proto = eth->h_proto;
	for (int i = 0; i < MAX_VLAN_TAGS; i++) {
		if (i + is_tagged_aside(ctx) >= MAX_VLAN_TAGS)
			break;
		if (proto != bpf_htons(ETH_P_8021Q) && proto != bpf_htons(ETH_P_8021AD))
			break;
		if (l3 + 4 > end)
			return count(TG_MALFORMED, XDP_PASS);
		proto = *(__be16 *)(l3 + 2);
		l3 += 4;
	}
	if (proto != bpf_htons(ETH_P_IP) && proto != bpf_htons(ETH_P_IPV6))
		return count(TG_NOT_IP, XDP_PASS);
	if (!parse(ctx, &p, l3 - data, proto))
		return count(TG_MALFORMED, XDP_PASS);
	if (p.later_fragment) {
		int steered = follows(&p);

		if (steered >= 0)
			return steered ? steer(ctx, cfg, TG_FRAGMENT) : count(TG_FRAGMENT_PASS, XDP_PASS);
	} else if (offload_enabled && offload(ctx, cfg, &p)) {
		return count(TG_OFFLOADED, XDP_REDIRECT);
	}
	action = decide(ctx, cfg, &p);
	if (p.fragment && !p.later_fragment)
		leads(&p, action);
	return action;
}

SEC(HOOK_SECTION)
int tidegate_steer(HOOK *ctx)
{
	show_headers(ctx);
	return verdict(decide_frame(ctx));
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";

// What this side takes the shared structs and numbers to be: read by a test, not by the kernel.
struct tg_layout {
	char name[32];
	__u32 offset;
	__u32 size;
};

#define WHOLE(T) { #T, 0, sizeof(struct T) }
#define FIELD(T, f) { #T "." #f, offsetof(struct T, f), sizeof(((struct T *)0)->f) }
#define NUMBER(n) { #n, n, 0 }

const struct tg_layout tg_layouts[] __attribute__((section("tg_layout"), used)) = {
	WHOLE(tg_addr), FIELD(tg_addr, hi), FIELD(tg_addr, lo),
	WHOLE(tg_endpoint), FIELD(tg_endpoint, addr), FIELD(tg_endpoint, port),
	FIELD(tg_endpoint, proto),
	WHOLE(tg_addr_info), FIELD(tg_addr_info, flags), FIELD(tg_addr_info, fragment_share),
	FIELD(tg_addr_info, nat_first), FIELD(tg_addr_info, nat_last),
	WHOLE(tg_prefix), FIELD(tg_prefix, len), FIELD(tg_prefix, addr),
	WHOLE(tg_config), FIELD(tg_config, heartbeat_limit_ns), FIELD(tg_config, on_failure),
	FIELD(tg_config, transit_share), FIELD(tg_config, workers),
	FIELD(tg_config, generation),
	WHOLE(tg_heartbeat), FIELD(tg_heartbeat, ns),
	NUMBER(TG_ADDR_LOCAL), NUMBER(TG_ADDR_VIP), NUMBER(TG_ADDR_NAT), NUMBER(TG_ADDR_CHECKS),
	NUMBER(MAX_WORKERS), NUMBER(MAX_SERVICES), NUMBER(MAX_RETURNS), NUMBER(MAX_ADDRS),
	NUMBER(MAX_PREFIXES),
	NUMBER(MAX_QUEUES), NUMBER(SHARE_ALL),
	NUMBER(TG_VIP), NUMBER(TG_NAT_RETURN), NUMBER(TG_DNAT_RETURN), NUMBER(TG_TRANSIT),
	NUMBER(TG_FRAGMENT), NUMBER(TG_NOT_IP), NUMBER(TG_NOT_OURS), NUMBER(TG_LOCAL),
	NUMBER(TG_CANARY), NUMBER(TG_GROUP), NUMBER(TG_ICMP), NUMBER(TG_MALFORMED),
	NUMBER(TG_STALE_PASS), NUMBER(TG_STALE_DROP), NUMBER(TG_NO_SOCKET), NUMBER(TG_OFFLOADED),
	NUMBER(TG_ERROR), NUMBER(TG_FRAGMENT_PASS), NUMBER(TG_REASONS), NUMBER(SHARE_TUNNEL),
	NUMBER(SHARE_BEFORE), NUMBER(SHARE_BEFORE_MAX), NUMBER(SHARE_KEEPS), NUMBER(MAX_KEPT),
	WHOLE(tg_offload_key), FIELD(tg_offload_key, src), FIELD(tg_offload_key, dst),
	FIELD(tg_offload_key, sport), FIELD(tg_offload_key, dport), FIELD(tg_offload_key, proto),
	WHOLE(tg_offload), FIELD(tg_offload, src), FIELD(tg_offload, dst),
	FIELD(tg_offload, sport), FIELD(tg_offload, dport), FIELD(tg_offload, ip_change),
	FIELD(tg_offload, transport_change), FIELD(tg_offload, ethernet),
	FIELD(tg_offload, own_mac), FIELD(tg_offload, mtu), FIELD(tg_offload, port),
	FIELD(tg_offload, worker), FIELD(tg_offload, slot), FIELD(tg_offload, stamp),
	FIELD(tg_offload, generation), FIELD(tg_offload, sequence),
	FIELD(tg_offload, acknowledgment), FIELD(tg_offload, clock), FIELD(tg_offload, echo),
	FIELD(tg_offload, first_echo), FIELD(tg_offload, window), FIELD(tg_offload, splice),
	FIELD(tg_offload, begun), FIELD(tg_offload, waited), FIELD(tg_offload, mark),
	WHOLE(tg_queue), FIELD(tg_queue, steered), FIELD(tg_queue, passed), NUMBER(MAX_WAITED),
	WHOLE(tg_offload_slot), FIELD(tg_offload_slot, packets), FIELD(tg_offload_slot, bytes),
	FIELD(tg_offload_slot, stamp), NUMBER(MAX_OFFLOADS), NUMBER(MAX_OFFLOAD_SLOTS),
	NUMBER(MAX_PORTS),
#ifdef TG_TC
	WHOLE(tg_inbox), FIELD(tg_inbox, head), FIELD(tg_inbox, entered), FIELD(tg_inbox, asleep),
	FIELD(tg_inbox, first), FIELD(tg_inbox, shift), FIELD(tg_inbox, frame_max),
	WHOLE(tg_inbox_slot), FIELD(tg_inbox_slot, turn), FIELD(tg_inbox_slot, entered),
	FIELD(tg_inbox_slot, len), FIELD(tg_inbox_slot, bytes), NUMBER(INBOX_SLOTS),
#endif
};
