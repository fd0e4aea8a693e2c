// SPDX-License-Identifier: MIT OR Apache-2.0
//
// What offload.h does in the driver: a packet is a frame, with its checksums.

// Interfaces of the ports that take frames from other devices.
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, MAX_PORTS);
	__type(key, __u32);
	__type(value, __u32);
} offload_ports SEC(".maps");

static __always_inline int offload_redirects(__u32 port)
{
	return bpf_redirect_map(&offload_ports, port, XDP_ABORTED) == XDP_REDIRECT;
}

// A sum that covers the pseudo-header only is a local sender's, which the worker completes.
static __always_inline int offload_sum_is_known(__u16 check, __u64 pseudo)
{
	return check != fold(pseudo);
}

// The largest IP packet that it leaves as.
static __always_inline __u32 offload_largest(HOOK *ctx, __u32 ip_len, __u32 headers, __u8 proto)
{
	(void)ctx, (void)headers, (void)proto;
	return ip_len;
}

static __always_inline __u32 packets_of(HOOK *ctx, __u32 headers)
{
	(void)ctx, (void)headers;
	return 1;
}

// Writes ports and checksum; `edited` is what was changed behind them.
static __always_inline void offload_sums(HOOK *ctx, void *l4, __u16 *check, __u8 proto,
					 const struct tg_offload *o, __u64 moved, __u64 edited)
{
	__be16 *ports = l4;
	__u16 old, new;

	(void)ctx, (void)moved;
	old = proto == IPPROTO_TCP && o->splice ? changed(*check, fold(edited)) : *check;
	new = changed(old, o->transport_change);
	ports[0] = o->sport;
	ports[1] = o->dport;
	if (proto == IPPROTO_TCP)
		*check = new == 0xffff ? 0 : new;
	else if (old) // none stays none
		*check = new ? new : 0xffff;
}

static __always_inline void offload_whole_v6(HOOK *ctx, __u64 moved)
{
	(void)ctx, (void)moved;
}
