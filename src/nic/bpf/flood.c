// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Sends UDP packets of many flows from an interface, for `tidegate pktgen --engine xdp`. It is
// never attached: the kernel runs it over frames of its own (BPF_PROG_RUN with live frames, Linux
// 5.18), and each leaves as an XDP frame, for which no socket buffer is made.
//
// Frames come back with whatever a forwarder has written into them: all headers are written anew.

#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define ETH 14
#define IP4 20
#define IP6 40
#define WORDS 16

// Set by src/nic/flood.rs before loading. The headers are those of the first flow.
const volatile __u32 header[WORDS];
const volatile __u32 egress;
const volatile __u32 flows;
const volatile __u32 is_v6;
const volatile __u32 port_first;
// The last 16 bits of the source address.
const volatile __u32 host_first;
// Sums (RFC 1071) of what is the same in all flows.
const volatile __u32 ip_sum;
const volatile __u32 udp_sum;

struct tg_flood {
	__u64 frames;
	__u64 next;
};
struct tg_flood state;

static __always_inline __u16 checksum(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline int write(void *data, void *end, int words, int host_at, int port_at)
{
	__u32 n = port_first + state.next;
	__u32 port = n & 0xffff;
	__u32 host = host_first + (n >> 16);
	__u16 sum;

	if (data + port_at + 8 > end)
		return 0;
	for (int i = 0; i < words; i++)
		((__u32 *)data)[i] = header[i];
	*(__be16 *)(data + host_at) = bpf_htons(host);
	*(__be16 *)(data + port_at) = bpf_htons(port);
	if (port_at == ETH + IP4)
		*(__be16 *)(data + ETH + 10) = bpf_htons(checksum(ip_sum + host));
	sum = checksum(udp_sum + host + port);
	*(__be16 *)(data + port_at + 6) = sum ? bpf_htons(sum) : 0xffff;
	return 1;
}

SEC("xdp")
int tidegate_flood(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	// Up to the UDP checksum, which is computed.
	int whole = is_v6 ? write(data, end, (ETH + IP6 + 6) / 4, ETH + 22, ETH + IP6) :
			    write(data, end, (ETH + IP4 + 6) / 4, ETH + 14, ETH + IP4);

	if (!whole)
		return XDP_ABORTED;
	state.frames++;
	state.next = state.next + 1 < flows ? state.next + 1 : 0;
	return bpf_redirect(egress, 0);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
