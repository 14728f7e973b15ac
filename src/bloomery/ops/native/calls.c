/* What Python calls: each takes the address of its fields, and shares the work among threads. */

#include "kernels.h"
#include "pool.h"

#define PART_BYTES 65536 /* of weights: what a thread takes at a time */
#define PART_TOKENS 128
#define PART_NUMBERS 16384 /* of what each number is on its own */

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

static long least(long a, long b)
{
    return a < b ? a : b;
}

/* Parts of at most so many. */
static long count(long all, long each)
{
    return (all + each - 1) / each;
}

/* A job as a grid: `wide` outputs by PART_TOKENS tokens. Parts with the same weights are neighbours. */
typedef struct {
    const void *call;
    const Kernels *kernels;
    long wide, splits;
} Grid;

static Grid grid_of(const void *call, int64_t level, long wide, long tokens)
{
    return (Grid){call, kernels(level), wide, count(tokens, PART_TOKENS)};
}

static void linear_part(const void *job, long part)
{
    const Grid *grid = job;
    const Linear *l = grid->call;
    const long n = part / grid->splits * grid->wide, m = part % grid->splits * PART_TOKENS;
    grid->kernels->linear[l->dtype](l, n, least(n + grid->wide, l->n), m, least(m + PART_TOKENS, l->m));
}

void bloomery_linear(const Linear *l)
{
    const long bytes = l->k * (l->dtype == FP32 ? 4 : 2);
    const Grid grid = grid_of(l, l->level, 4 * (PART_BYTES / (4 * (bytes + 1)) + 1), l->m);
    bloomery_share(linear_part, &grid, count(l->n, grid.wide) * grid.splits, l->threads);
}

static void round_part(const void *job, long part)
{
    const Grid *grid = job;
    const Packed *p = grid->call;
    grid->kernels->round_tokens(p, part * grid->wide, least(part * grid->wide + grid->wide, p->m));
}

static void packed_part(const void *job, long part)
{
    const Grid *grid = job;
    const Packed *p = grid->call;
    const long n = part / grid->splits * grid->wide, m = part % grid->splits * PART_TOKENS;
    (p->bits == 8 ? grid->kernels->packed8 : grid->kernels->packed4)(p, n, least(n + grid->wide, p->n), m,
                                                                     least(m + PART_TOKENS, p->m));
}

void bloomery_packed(const Packed *p)
{
    const Grid tokens = grid_of(p, p->level, PART_BYTES / (4 * p->k + 1) + 1, 0);
    const Grid grid = grid_of(p, p->level, 16 * (PART_BYTES / (p->stride + 1) + 1), p->m);
    bloomery_share(round_part, &tokens, count(p->m, tokens.wide), p->threads);
    bloomery_share(packed_part, &grid, count(p->n, grid.wide) * grid.splits, p->threads);
}

static void norm_part(const void *job, long part)
{
    const Grid *grid = job;
    const Norm *c = grid->call;
    grid->kernels->norm(c, part * grid->wide, least(part * grid->wide + grid->wide, c->m));
}

void bloomery_norm(const Norm *c)
{
    const Grid grid = grid_of(c, c->level, PART_NUMBERS / (c->width + 1) + 1, 0);
    bloomery_share(norm_part, &grid, count(c->m, grid.wide), c->threads);
}

static void each_part(const void *job, long part)
{
    const Grid *grid = job;
    const Each *c = grid->call;
    grid->kernels->each(c, part * PART_NUMBERS, least((part + 1) * PART_NUMBERS, c->count));
}

void bloomery_each(const Each *c)
{
    const Grid grid = grid_of(c, c->level, PART_NUMBERS, 0);
    bloomery_share(each_part, &grid, count(c->count, PART_NUMBERS), c->threads);
}
