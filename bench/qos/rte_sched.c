/* What DPDK's hierarchical scheduler (librte_sched) spends on one packet: its enqueue and its
 * dequeue together, on memory. The bench beside it compiles and runs it, and prints its rows.
 *
 * A queue here stands for a class there: the four best-effort queues of each pipe, served by weight,
 * below the pipe's and the subport's token buckets. Backlog and bursts are as in the bench. The
 * library reads the time stamp counter itself, so nothing is virtual: all rates are set beyond what
 * is reached, and are kept without being felt. It has no queues by flow; CoDel is not one of its
 * ways to manage queues (RED and PIE, both off here).
 *
 * Usage: rte_sched PIPES QUEUES BACKLOG EAL-OPTIONS. Prints nanoseconds a packet.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_mbuf.h>
#include <rte_sched.h>

#define BURST 32
#define ROUNDS 9
#define PACKETS_A_ROUND 500000
#define LEN 1514

static uint64_t cpu_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
}

static uint32_t state = 1;

static uint32_t draw(uint32_t below)
{
	state ^= state << 13;
	state ^= state >> 17;
	state ^= state << 5;
	return (uint64_t)state * below >> 32;
}

/* One subport of `pipes` pipes, all alike; its rates are the port's. */
static struct rte_sched_port *port(uint32_t pipes, uint16_t queue_size)
{
	const uint64_t rate = 12500000000u;
	struct rte_sched_pipe_params pipe = {
		.tb_rate = rate, .tb_size = 1000000, .tc_period = 10, .tc_ov_weight = 1,
	};
	struct rte_sched_subport_params subport = {
		.n_pipes_per_subport_enabled = pipes, .pipe_profiles = &pipe,
		.n_pipe_profiles = 1, .n_max_pipe_profiles = 1,
	};
	struct rte_sched_subport_profile_params profile = {
		.tb_rate = rate, .tb_size = 1000000, .tc_period = 10,
	};
	struct rte_sched_port_params params = {
		.name = "bench", .socket = 0, .rate = rate, .mtu = 1518, .frame_overhead = 24,
		.n_subports_per_port = 1, .subport_profiles = &profile,
		.n_subport_profiles = 1, .n_max_subport_profiles = 1, .n_pipes_per_subport = pipes,
	};
	struct rte_sched_port *p;
	int i;

	for (i = 0; i < RTE_SCHED_TRAFFIC_CLASSES_PER_PIPE; i++) {
		pipe.tc_rate[i] = rate;
		profile.tc_rate[i] = rate;
		subport.qsize[i] = queue_size;
	}
	for (i = 0; i < RTE_SCHED_BE_QUEUES_PER_PIPE; i++)
		pipe.wrr_weights[i] = 1;
	p = rte_sched_port_config(&params);
	if (p == NULL || rte_sched_subport_config(p, 0, &subport, 0) != 0)
		return NULL;
	for (i = 0; i < (int)pipes; i++)
		if (rte_sched_pipe_config(p, 0, i, 0) != 0)
			return NULL;
	return p;
}

/* Takes packets from `pool` until `n` were accepted, to queues drawn at random. */
static int offer(struct rte_sched_port *p, struct rte_mempool *pool, uint32_t pipes, uint32_t queues,
	uint32_t n)
{
	struct rte_mbuf *burst[BURST];
	uint32_t i;

	for (i = 0; i < n; i++) {
		uint32_t queue = draw(pipes * queues);
		struct rte_mbuf *m = rte_pktmbuf_alloc(pool);
		if (m == NULL)
			return -1;
		m->pkt_len = LEN;
		m->data_len = 64;
		/* The last classes of a pipe: best effort, which has four queues. */
		rte_sched_port_pkt_write(p, m, 0, queue / queues,
			RTE_SCHED_TRAFFIC_CLASS_BE, queue % queues, RTE_COLOR_GREEN);
		burst[i] = m;
	}
	return rte_sched_port_enqueue(p, burst, n);
}

int main(int argc, char **argv)
{
	struct rte_mbuf *out[BURST];
	struct rte_mempool *pool;
	struct rte_sched_port *p;
	uint32_t pipes, queues, backlog, held;
	double best = 1e9;
	int round;

	if (argc < 4)
		return 2;
	pipes = atoi(argv[1]);
	queues = atoi(argv[2]);
	backlog = atoi(argv[3]);
	argv[3] = argv[0];
	if (rte_eal_init(argc - 3, argv + 3) < 0)
		return 1;
	pool = rte_pktmbuf_pool_create("bench", backlog + 1024, 0, 0, 256, 0);
	p = port(pipes, 64);
	if (pool == NULL || p == NULL) {
		fprintf(stderr, "no memory for %u packets\n", backlog);
		return 1;
	}
	for (held = 0; held < backlog;) {
		int n = offer(p, pool, pipes, queues, BURST);
		if (n < 0)
			return 1;
		held += BURST;
	}
	for (round = 0; round < ROUNDS; round++) {
		uint32_t moved = 0, i;
		uint64_t begin = cpu_ns();
		while (moved < PACKETS_A_ROUND) {
			int n = rte_sched_port_dequeue(p, out, BURST);
			for (i = 0; i < (uint32_t)n; i++)
				rte_pktmbuf_free(out[i]);
			if (n > 0 && offer(p, pool, pipes, queues, n) < 0)
				return 1;
			moved += n;
		}
		double ns = (double)(cpu_ns() - begin) / moved;
		best = ns < best ? ns : best;
	}
	printf("%.1f\n", best);
	return 0;
}
