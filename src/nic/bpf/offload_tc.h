// SPDX-License-Identifier: MIT OR Apache-2.0
//
// What offload.h does behind the driver: a packet may stand for many (GRO, GSO), and of its
// transport checksum only the pseudo-header's part may be there (CHECKSUM_PARTIAL). The kernel's
// helpers know which; they move the packet, so they come last.

// Interfaces of the ports; 0: none.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_PORTS);
	__type(key, __u32);
	__type(value, __u32);
} offload_ports SEC(".maps");

static __always_inline int offload_redirects(__u32 port)
{
	__u32 *to = bpf_map_lookup_elem(&offload_ports, &port);

	return to && *to && bpf_redirect(*to, 0) == TC_ACT_REDIRECT;
}

static __always_inline int offload_sum_is_known(__u16 check, __u64 pseudo)
{
	(void)check, (void)pseudo;
	return 1;
}

// The largest IP packet that it leaves as. Merged UDP may be a tunnel's, of whose segments nothing
// is known here: never small enough.
static __always_inline __u32 offload_largest(HOOK *ctx, __u32 ip_len, __u32 headers, __u8 proto)
{
	if (!ctx->gso_size)
		return ip_len;
	return proto == IPPROTO_TCP ? ctx->gso_size + headers : ~0u;
}

// Those that it stands for.
static __always_inline __u32 packets_of(HOOK *ctx, __u32 headers)
{
	__u32 each = ctx->gso_size, len = ctx->len;

	return each && len > headers ? (len - headers + each - 1) / each : 1;
}

// Writes ports and checksum; `moved` is what other addresses change, `edited` what was changed
// behind the ports.
static __always_inline void offload_sums(HOOK *ctx, void *l4, __u16 *check, __u8 proto,
					 const struct tg_offload *o, __u64 moved, __u64 edited)
{
	__u32 at = (void *)check - (void *)(long)ctx->data;
	__be16 *ports = l4;
	__u64 none_stays_none = proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;

	edited += (__u64)(__u16)~ports[0] + o->sport + (__u16)~ports[1] + o->dport;
	ports[0] = o->sport;
	ports[1] = o->dport;
	bpf_l4_csum_replace(ctx, at, 0, fold(moved), BPF_F_PSEUDO_HDR | none_stays_none);
	bpf_l4_csum_replace(ctx, at, 0, fold(edited), none_stays_none);
}

// A device's sum of the whole packet (CHECKSUM_COMPLETE), which the helper corrects as if addresses
// had a header checksum to level them: in IPv6 they don't. The hop limit is one less, too.
static __always_inline void offload_whole_v6(HOOK *ctx, __u64 moved)
{
	bpf_csum_update(ctx, fold(moved + bpf_htons(0xfffe)));
}
