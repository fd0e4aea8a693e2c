/* The peer of bench/ndpi: nDPI over the packets that it is given.
 *
 * peer FILE: cases of the file are run as standard input asks for them. All numbers are native.
 * FILE: number of cases, then of each: number of packets, then of each: bytes, and the IP packet.
 * A line "flow CASE COUNT": so many flows of all packets of the case each. "again CASE COUNT": the
 * case's last packet so many times, in a flow that saw all of them. The answer is a line:
 * nanoseconds in all, whether the protocol was found, the most memory of a flow in bytes, the name.
 */
#include <ndpi/ndpi_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct packet {
    uint32_t len;
    unsigned char *bytes;
};

struct the_case {
    uint32_t count;
    struct packet *packets;
};

static struct ndpi_detection_module_struct *module;
static int64_t held, held_most;

/* Counts what a flow holds: each block remembers its size. */
static void *counted(size_t size) {
    uint64_t *block = malloc(size + 16);
    if (!block) exit(1);
    *block = size;
    held += (int64_t)size;
    if (held > held_most) held_most = held;
    return block + 2;
}

static void uncounted(void *at) {
    if (!at) return;
    uint64_t *block = (uint64_t *)at - 2;
    held -= (int64_t)*block;
    free(block);
}

static uint32_t number(FILE *file) {
    uint32_t n;
    if (fread(&n, sizeof n, 1, file) != 1) exit(2);
    return n;
}

static struct the_case *load(const char *path, uint32_t *count) {
    FILE *file = fopen(path, "rb");
    if (!file) exit(2);
    *count = number(file);
    struct the_case *cases = calloc(*count, sizeof *cases);
    for (uint32_t i = 0; i < *count; i++) {
        cases[i].count = number(file);
        cases[i].packets = calloc(cases[i].count, sizeof(struct packet));
        for (uint32_t j = 0; j < cases[i].count; j++) {
            struct packet *p = &cases[i].packets[j];
            p->len = number(file);
            p->bytes = malloc(p->len);
            if (fread(p->bytes, 1, p->len, file) != p->len) exit(2);
        }
    }
    fclose(file);
    return cases;
}

static ndpi_protocol feed(struct ndpi_flow_struct *flow, const struct the_case *c) {
    ndpi_protocol found = {0};
    for (uint32_t i = 0; i < c->count; i++) {
        const struct packet *p = &c->packets[i];
        found = ndpi_detection_process_packet(module, flow, p->bytes, (unsigned short)p->len, i);
    }
    return found;
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    uint32_t count;
    struct the_case *cases = load(argv[1], &count);
    set_ndpi_malloc(counted);
    set_ndpi_free(uncounted);
    set_ndpi_flow_malloc(counted);
    set_ndpi_flow_free(uncounted);
    module = ndpi_init_detection_module(ndpi_no_prefs);
    if (!module) return 1;
    NDPI_PROTOCOL_BITMASK all;
    NDPI_BITMASK_SET_ALL(all);
    ndpi_set_protocol_detection_bitmask2(module, &all);
    ndpi_finalize_initialization(module);

    /* A flow's own memory is reused, as an application with a pool would. */
    size_t size = ndpi_detection_get_sizeof_ndpi_flow_struct();
    struct ndpi_flow_struct *flow = calloc(1, size);
    char what[8];
    unsigned which, runs;
    while (scanf("%7s %u %u", what, &which, &runs) == 3 && which < count) {
        const struct the_case *c = &cases[which];
        ndpi_protocol found = {0};
        char name[256] = "";
        uint64_t start, ns;
        int64_t before = held;
        held_most = held;
        if (what[0] == 'f') {
            start = now();
            for (unsigned i = 0; i < runs; i++) {
                memset(flow, 0, size);
                found = feed(flow, c);
                if (i + 1 == runs) snprintf(name, sizeof name, "%s", flow->host_server_name);
                ndpi_free_flow_data(flow);
            }
            ns = now() - start;
        } else {
            const struct packet *p = &c->packets[c->count - 1];
            memset(flow, 0, size);
            feed(flow, c);
            start = now();
            for (unsigned i = 0; i < runs; i++)
                found = ndpi_detection_process_packet(module, flow, p->bytes, (unsigned short)p->len,
                                                      1000);
            ns = now() - start;
            ndpi_free_flow_data(flow);
        }
        int known = found.app_protocol != 0 || found.master_protocol != 0;
        printf("%llu %d %lld %s\n", (unsigned long long)ns, known,
               (long long)size + held_most - before, name[0] ? name : "-");
        fflush(stdout);
    }
    return 0;
}
