/* DPDK's rte_hash as a shared library for `bench tables`: the same loops over it as over our index, so that both are measured
 * by turns in one process. Keys are 16 bytes (two words, one array); data is a number. Functions return a count or -rte_errno.
 *
 * Specified: https://doc.dpdk.org/guides/prog_guide/hash_lib.html. Defaults are kept where they are the fast ones: CRC32 as the
 * hash, one writer, no locks, no lock-free readers, no extendable buckets.
 */

#include <stdint.h>

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_hash.h>
#include <rte_hash_crc.h>
#include <rte_malloc.h>

#define HEAP "bench"
#define KEY_WORDS 2
#define HUGE_BYTES (2UL << 20)

/* Start DPDK without pages of its own, and give it `bytes` of ours: tables come to stand on the pages that our index has. */
int bench_start(int argc, char **argv, void *memory, size_t bytes)
{
	if (rte_eal_init(argc, argv) < 0 || rte_malloc_heap_create(HEAP) < 0)
		return -rte_errno;
	return rte_malloc_heap_memory_add(HEAP, memory, bytes, NULL, bytes / HUGE_BYTES, HUGE_BYTES) < 0 ? -rte_errno : 0;
}

/* An empty table of `entries` slots; NULL where there is no memory. */
struct rte_hash *bench_create(uint32_t entries)
{
	struct rte_hash_parameters wanted = {
		.name = "bench",
		.entries = entries,
		.key_len = KEY_WORDS * sizeof(uint64_t),
		.hash_func = rte_hash_crc,
		.socket_id = rte_malloc_heap_get_socket(HEAP),
	};
	return rte_hash_create(&wanted);
}

void bench_free(struct rte_hash *table)
{
	rte_hash_free(table);
}

void bench_clear(struct rte_hash *table)
{
	rte_hash_reset(table);
}

/* Insert key i with data i + 1; how many went in. */
int64_t bench_insert(const struct rte_hash *table, const uint64_t *keys, int64_t count)
{
	int64_t done = 0;

	for (int64_t i = 0; i < count; i++)
		done += rte_hash_add_key_data(table, keys + KEY_WORDS * i, (void *)(uintptr_t)(i + 1)) == 0;
	return done;
}

/* Look all keys up, `batch` (at most 64) at a time: data found, 0 for a miss. The library hashes. */
void bench_lookup(const struct rte_hash *table, const uint64_t *keys, uint64_t *found, int64_t count, int64_t batch)
{
	const void *asked[RTE_HASH_LOOKUP_BULK_MAX];

	for (int64_t at = 0; at < count; at += batch) {
		int64_t here = RTE_MIN(batch, count - at);
		uint64_t hits = 0;
		void **data = (void **)(found + at);

		for (int64_t i = 0; i < here; i++) {
			asked[i] = keys + KEY_WORDS * (at + i);
			data[i] = NULL;
		}
		rte_hash_lookup_bulk_data(table, asked, here, &hits, data);
	}
}

/* The same with hashes made here, where the compiler may inline them. */
void bench_lookup_hashed(const struct rte_hash *table, const uint64_t *keys, uint64_t *found, int64_t count, int64_t batch)
{
	const void *asked[RTE_HASH_LOOKUP_BULK_MAX];
	hash_sig_t hashes[RTE_HASH_LOOKUP_BULK_MAX];

	for (int64_t at = 0; at < count; at += batch) {
		int64_t here = RTE_MIN(batch, count - at);
		uint64_t hits = 0;
		void **data = (void **)(found + at);

		for (int64_t i = 0; i < here; i++) {
			asked[i] = keys + KEY_WORDS * (at + i);
			hashes[i] = rte_hash_crc(asked[i], KEY_WORDS * sizeof(uint64_t), 0);
			data[i] = NULL;
		}
		rte_hash_lookup_with_hash_bulk_data(table, asked, hashes, here, &hits, data);
	}
}
