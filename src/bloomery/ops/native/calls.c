/* What Python calls: each takes the address of its fields, and shares the work among threads. */

#include "kernels.h"
#include "pool.h"

#define PART_BYTES 65536 /* of weights: what a thread takes at a time */
#define PART_TOKENS 128

static const Kernels *kernels(int64_t level)
{
#ifdef HAS_X86
    static const Kernels *const levels[LEVELS] = {&bloomery_portable, &bloomery_avx2, &bloomery_avx512,
                                                  &bloomery_avx512_bf16};
    return levels[level];
#else
    (void)level;
    return &bloomery_portable;
#endif
}

/* A job as a grid: `wide` outputs by PART_TOKENS tokens. Parts with the same weights are neighbours. */
typedef struct {
    const Linear *linear;
    long wide, splits;
} Grid;

static long least(long a, long b)
{
    return a < b ? a : b;
}

static void linear_part(const void *job, long part)
{
    const Grid *grid = job;
    const Linear *l = grid->linear;
    const long n = part / grid->splits * grid->wide, m = part % grid->splits * PART_TOKENS;
    kernels(l->level)->linear[l->dtype](l, n, least(n + grid->wide, l->n), m, least(m + PART_TOKENS, l->m));
}

void bloomery_linear(const Linear *l)
{
    const long bytes = l->k * (l->dtype == FP32 ? 4 : 2);
    const long wide = 4 * (PART_BYTES / (4 * (bytes ? bytes : 1)) + 1);
    const Grid grid = {l, wide, (l->m + PART_TOKENS - 1) / PART_TOKENS};
    bloomery_share(linear_part, &grid, (l->n + wide - 1) / wide * grid.splits, l->threads);
}
