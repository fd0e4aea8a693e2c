// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The sink of `--sink xdp`: drops what comes, as early as can be.

#include <linux/bpf.h>

__attribute__((section("xdp"), used)) int sink(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_DROP;
}
