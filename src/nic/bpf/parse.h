// SPDX-License-Identifier: MIT OR Apache-2.0
//
// What a packet's headers say, as far as it must be known whether the packet is ours.

#define MAX_EXTENSION_HEADERS 6

// Both families in 16 bytes, IPv4 as ::ffff:a.b.c.d; the big-endian halves as native integers.
struct tg_addr {
	__u64 hi;
	__u64 lo;
};

struct packet {
	struct tg_addr src;
	struct tg_addr dst;
	__u16 sport;
	__u16 dport;
	__u8 proto;
	__u8 pad[3];
	// A part of another packet; a later one has no transport header.
	__u8 fragment;
	__u8 later_fragment;
	// Neighbour or router discovery, which is always the kernel's.
	__u8 discovery;
	// The same in all fragments of a packet.
	__u32 identification;
	// Of an ICMP error: where in the frame the packet begins that it quotes; else 0.
	__u32 quoted;
};

static __always_inline __u64 mix(__u64 h)
{
	h ^= h >> 33;
	h *= 0xff51afd7ed558ccdULL;
	h ^= h >> 33;
	h *= 0xc4ceb9fe1a85ec53ULL;
	return h ^ (h >> 33);
}

static __always_inline __u64 hash_endpoint(const struct tg_addr *addr, __u16 port)
{
	return mix(mix(mix(addr->hi ^ 0x9e3779b97f4a7c15ULL) ^ addr->lo) ^ port);
}

static __always_inline struct tg_addr mapped(__be32 addr)
{
	struct tg_addr a = { 0, 0xffff00000000ULL | bpf_ntohl(addr) };

	return a;
}

static __always_inline struct tg_addr from_in6(const struct in6_addr *in6)
{
	const __be32 *w = in6->in6_u.u6_addr32;
	struct tg_addr a = {
		(__u64)bpf_ntohl(w[0]) << 32 | bpf_ntohl(w[1]),
		(__u64)bpf_ntohl(w[2]) << 32 | bpf_ntohl(w[3]),
	};

	return a;
}

// Multicast, the limited broadcast, and link-local: never routed, always the kernel's.
static __always_inline int is_link_scope(const struct tg_addr *a)
{
	if (a->hi == 0 && a->lo >> 32 == 0xffff) {
		__u32 v4 = (__u32)a->lo;

		return v4 >> 28 == 0xe || v4 == 0xffffffff || v4 >> 16 == 0xa9fe;
	}
	return a->hi >> 56 == 0xff || a->hi >> 54 == 0xfe80 >> 6;
}

// Unreachable (too big among them), time exceeded, parameter problem.
static __always_inline int is_error(__u8 proto, __u8 type)
{
	if (proto == IPPROTO_ICMP)
		return type == 3 || type == 11 || type == 12;
	return type >= 1 && type <= 4;
}

// Ports of TCP and UDP; the identifier of an ICMP echo in both. Returns 0 where the packet is too
// short.
static __always_inline int parse_transport(struct packet *p, void *data, void *l4, void *end)
{
	if (p->later_fragment)
		return 1;
	if (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP) {
		__be16 *ports = l4;

		if ((void *)(ports + 2) > end)
			return 0;
		p->sport = bpf_ntohs(ports[0]);
		p->dport = bpf_ntohs(ports[1]);
	} else if (p->proto == IPPROTO_ICMP || p->proto == IPPROTO_ICMPV6) {
		__u8 *icmp = l4;

		if (icmp + 8 > (__u8 *)end)
			return 0;
		if (p->proto == IPPROTO_ICMPV6 && icmp[0] >= 133 && icmp[0] <= 137)
			p->discovery = 1;
		if (is_error(p->proto, icmp[0]))
			p->quoted = (void *)(icmp + 8) - data;
		if ((p->proto == IPPROTO_ICMP && (icmp[0] == 0 || icmp[0] == 8)) ||
		    (p->proto == IPPROTO_ICMPV6 && (icmp[0] == 128 || icmp[0] == 129))) {
			p->sport = (__u16)icmp[4] << 8 | icmp[5];
			p->dport = p->sport;
		}
	}
	return 1;
}

static __always_inline int parse_ipv4(struct packet *p, void *data, void *l3, void *end)
{
	struct iphdr *ip = l3;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
		return 0;
	p->src = mapped(ip->saddr);
	p->dst = mapped(ip->daddr);
	p->proto = ip->protocol;
	p->fragment = (ip->frag_off & bpf_htons(0x3fff)) != 0;
	p->later_fragment = (ip->frag_off & bpf_htons(0x1fff)) != 0;
	p->identification = ip->id;
	return parse_transport(p, data, l3 + ip->ihl * 4, end);
}

static __always_inline int parse_ipv6(struct packet *p, void *data, void *l3, void *end)
{
	struct ipv6hdr *ip = l3;
	__u8 *next = l3 + sizeof(*ip);
	__u8 kind;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return 0;
	p->src = from_in6(&ip->saddr);
	p->dst = from_in6(&ip->daddr);
	kind = ip->nexthdr;
	for (int i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		__u32 len;

		if (kind != IPPROTO_HOPOPTS && kind != IPPROTO_ROUTING &&
		    kind != IPPROTO_DSTOPTS && kind != IPPROTO_FRAGMENT)
			break;
		if (next + 8 > (__u8 *)end)
			return 0;
		len = kind == IPPROTO_FRAGMENT ? 8 : (next[1] + 1) * 8;
		if (kind == IPPROTO_FRAGMENT) {
			p->fragment = next[2] || next[3] & 0xf9;
			p->later_fragment = next[2] || next[3] & 0xf8;
			p->identification = *(__u32 *)(next + 4);
		}
		kind = next[0];
		if (p->later_fragment)
			break;
		next += len;
	}
	p->proto = kind;
	return parse_transport(p, data, next, end);
}
