/* What Python calls: each takes the address of its fields, and shares the work among threads. */

#include "kernels.h"
#include "pool.h"

#define PART_BYTES 65536 /* of weights: what a thread takes at a time */
#define PART_TOKENS 128
#define KEPT_TOKENS 16 /* whose keys and values a thread keeps at a time */

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

static void keep_part(const void *job, long part)
{
    const Attention *a = job;
    const long n = part * KEPT_TOKENS;
    kernels(a->level)->keep[a->kept_dtype](a, n, least(n + KEPT_TOKENS, a->tokens));
}

/* A tile and a head of keys. Neighbours read the same blocks. */
static void attend_part(const void *job, long part)
{
    const Attention *a = job;
    kernels(a->level)->attend[a->kept_dtype](a, a->tile + part / a->kv_heads, part % a->kv_heads);
}

void bloomery_attention(const Attention *a)
{
    bloomery_share(keep_part, a, (a->tokens + KEPT_TOKENS - 1) / KEPT_TOKENS, a->threads);
    bloomery_share(attend_part, a, a->tiles * a->kv_heads, a->threads);
}
