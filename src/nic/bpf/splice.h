// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Segments of two TCP connections that were made one: what src/forward/splice/translate.rs changes
// in each, for those whose options lie as nearly all do. The others are the worker's.

// Bits of tg_offload.splice.
#define TG_SPLICED 1
#define TG_EARLY 2

// What a segment has beside its header.
#define HAS_STAMPS 1
#define HAS_SACK 2
#define NO_LAYOUT -1

#define SACK_WORDS_MAX 8
#define STAMPS_WORDS 3

// Without anything behind: `words` are left, the first of them this one (RFC 2018, section 3).
static __always_inline int is_sack(__be32 first, __u32 words)
{
	return words >= 3 && words % 2 && first == bpf_htonl(0x01010502 + (words - 1) * 4);
}

// What there is to be changed, or NO_LAYOUT. The header was checked.
static __always_inline int splice_layout(void *l4, void *end, const struct tg_offload *o)
{
	const struct tcphdr *tcp = l4;
	const __be32 *options = l4 + sizeof(*tcp);
	__u32 words;

	if ((void *)(tcp + 1) > end)
		return NO_LAYOUT;
	words = tcp->doff - sizeof(*tcp) / 4;
	if (!words)
		return 0;
	if ((void *)(options + 1) > end)
		return NO_LAYOUT;
	if (options[0] != bpf_htonl(0x0101080a)) // RFC 7323, appendix A
		return is_sack(options[0], words) ? HAS_SACK : NO_LAYOUT;
	if (words < STAMPS_WORDS || (void *)(options + STAMPS_WORDS) > end)
		return NO_LAYOUT;
	if (o->splice & TG_EARLY && (__s32)(bpf_ntohl(options[2]) - o->first_echo) < 0)
		return NO_LAYOUT;
	if (words == STAMPS_WORDS)
		return HAS_STAMPS;
	if ((void *)(options + STAMPS_WORDS + 1) > end)
		return NO_LAYOUT;
	words -= STAMPS_WORDS;
	return is_sack(options[STAMPS_WORDS], words) ? HAS_STAMPS | HAS_SACK : NO_LAYOUT;
}

// Returns what that changes in the checksum.
static __always_inline __u64 splice_word(__be32 *at, __u32 more)
{
	__be32 old = *at, new = bpf_htonl(bpf_ntohl(old) + more);

	*at = new;
	return (__u64)(__u32)~old + new;
}

static __always_inline __u64 splice_sack(__be32 *first, void *end, __u32 words, __u32 more)
{
	__u64 sum = 0;

	for (__u32 i = 0; i < SACK_WORDS_MAX; i++) {
		if (i >= words || (void *)(first + i + 1) > end)
			break;
		sum += splice_word(first + i, more);
	}
	return sum;
}

static __always_inline __u64 splice_window(struct tcphdr *tcp, __s32 shift)
{
	__u16 old = tcp->window;
	__u32 window = bpf_ntohs(old);

	if (!shift)
		return 0;
	window = shift > 0 ? window << (shift & 15) : window >> (-shift & 31);
	tcp->window = bpf_htons(window > 0xffff ? 0xffff : window);
	return (__u64)(__u16)~old + tcp->window;
}

// Returns what that changes in the checksum.
static __always_inline __u64 splice_edit(void *l4, void *end, const struct tg_offload *o,
					 int layout)
{
	struct tcphdr *tcp = l4;
	__be32 *options = l4 + sizeof(*tcp);
	__u32 words;
	__u64 sum;

	// As was seen before; the verifier wants it again.
	if ((void *)(tcp + 1) > end)
		return 0;
	words = tcp->doff - sizeof(*tcp) / 4 - 1;
	sum = splice_word(&tcp->seq, o->sequence);
	sum += splice_word(&tcp->ack_seq, o->acknowledgment);
	sum += splice_window(tcp, o->window);
	if (layout & HAS_STAMPS && (void *)(options + STAMPS_WORDS) <= end) {
		sum += splice_word(options + 1, o->clock);
		sum += splice_word(options + 2, o->echo);
	}
	if (layout == (HAS_STAMPS | HAS_SACK))
		sum += splice_sack(options + STAMPS_WORDS + 1, end, words - STAMPS_WORDS,
				   o->acknowledgment);
	else if (layout == HAS_SACK)
		sum += splice_sack(options + 1, end, words, o->acknowledgment);
	return sum;
}
