/* What Python calls: each takes the address of its fields, and shares the work among threads. */

#include "kernels.h"
#include "pool.h"

#include <math.h>
#include <string.h>

#define PART_BYTES 65536 /* of weights: what a thread takes at a time */
#define PART_TOKENS 128
#define PART_NUMBERS 16384 /* of what each number is on its own */
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

static void gather_part(const void *job, long part)
{
    const Grid *grid = job;
    const Gather *c = grid->call;
    grid->kernels->gather(c, part * grid->wide, least(part * grid->wide + grid->wide, c->m));
}

void bloomery_gather(const Gather *c)
{
    const Grid grid = grid_of(c, c->level, PART_NUMBERS / (c->width + 1) + 1, 0);
    bloomery_share(gather_part, &grid, count(c->m, grid.wide), c->threads);
}

static void rotate_part(const void *job, long part)
{
    const Grid *grid = job;
    const Rotate *c = grid->call;
    grid->kernels->rotate(c, part * grid->wide, least(part * grid->wide + grid->wide, c->m));
}

void bloomery_rotate(const Rotate *c)
{
    const Grid grid = grid_of(c, c->level, PART_NUMBERS / (c->heads * c->size + 1) + 1, 0);
    bloomery_share(rotate_part, &grid, count(c->m, grid.wide), c->threads);
}

static float to_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Few enough for one thread. The angle is rounded to fp32, as everyone has it; then nothing is until the end. */
void bloomery_angles(const Angles *c)
{
    for (long m = 0; m < c->m; m++)
        for (long i = 0; i < c->half; i++) {
            const float angle = (float)c->places[m] * c->frequencies[i];
            const float cosine = (float)cos(angle), sine = (float)sin(angle);
            c->cosine[m * c->half + i] = c->rounded ? to_bf16(cosine) : cosine;
            c->sine[m * c->half + i] = c->rounded ? to_bf16(sine) : sine;
        }
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

static void largest_part(const void *job, long part)
{
    const Grid *grid = job;
    const Largest *c = grid->call;
    const long begin = part * LARGEST_PART;
    grid->kernels->largest(c->x, begin, least(begin + LARGEST_PART, c->count), c->largest + part, c->places + part);
}

void bloomery_largest(const Largest *c)
{
    const Grid grid = grid_of(c, c->level, LARGEST_PART, 0);
    const long parts = count(c->count, LARGEST_PART);
    bloomery_share(largest_part, &grid, parts, c->threads);
    long best = 0;
    for (long i = 1; i < parts; i++) /* NaN is not less than anything, and nothing is more than it */
        if (c->largest[best] < c->largest[i] || c->largest[i] != c->largest[i])
            best = i;
    c->largest[parts] = c->largest[best];
    c->places[parts] = c->places[best];
}

/* Calls that have been written down: each kernel, and the address of its fields. */
void bloomery_replay(void (*const *kernels)(const void *), const void *const *fields, long calls)
{
    for (long i = 0; i < calls; i++)
        kernels[i](fields[i]);
}
