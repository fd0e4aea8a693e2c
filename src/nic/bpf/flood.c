// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Sends packets of many flows from an interface, for `tidegate pktgen --engine xdp`: UDP, or one and
// the same TCP segment of each flow. It is never attached: the kernel runs it over frames of its own (BPF_PROG_RUN with live frames, Linux
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
#define UDP_SUM 6
#define TCP_SUM 16
#define WORDS 18

// Set by src/nic/flood.rs before loading. The headers are those of the first flow.
const volatile __u32 header[WORDS];
const volatile __u32 egress;
const volatile __u32 flows;
const volatile __u32 is_v6;
const volatile __u32 is_tcp;
const volatile __u32 port_first;
// The last 16 bits of the source address.
const volatile __u32 host_first;
// Sums (RFC 1071) of what is the same in all flows.
const volatile __u32 ip_sum;
const volatile __u32 l4_sum;

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

static __always_inline int write(void *data, void *end, int host_at, int port_at, int sum_at)
{
	__u32 n = port_first + state.next;
	__u32 port = n & 0xffff;
	__u32 host = host_first + (n >> 16);
	__u16 sum;

	if (data + sum_at + 2 > end)
		return 0;
	for (int i = 0; i < sum_at / 4; i++)
		((__u32 *)data)[i] = header[i];
	*(__be16 *)(data + host_at) = bpf_htons(host);
	*(__be16 *)(data + port_at) = bpf_htons(port);
	if (port_at == ETH + IP4)
		*(__be16 *)(data + ETH + 10) = bpf_htons(checksum(ip_sum + host));
	sum = checksum(l4_sum + host + port);
	*(__be16 *)(data + sum_at) = sum || sum_at == port_at + TCP_SUM ? bpf_htons(sum) : 0xffff;
	return 1;
}

static __always_inline int write4(void *data, void *end, int sum)
{
	return write(data, end, ETH + 14, ETH + IP4, ETH + IP4 + sum);
}

static __always_inline int write6(void *data, void *end, int sum)
{
	return write(data, end, ETH + 22, ETH + IP6, ETH + IP6 + sum);
}

SEC("xdp")
int tidegate_flood(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	int whole;

	// Up to the checksum, which is computed; what lies behind it stays as it is.
	if (is_tcp)
		whole = is_v6 ? write6(data, end, TCP_SUM) : write4(data, end, TCP_SUM);
	else
		whole = is_v6 ? write6(data, end, UDP_SUM) : write4(data, end, UDP_SUM);
	if (!whole)
		return XDP_ABORTED;
	state.frames++;
	state.next = state.next + 1 < flows ? state.next + 1 : 0;
	return bpf_redirect(egress, 0);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
