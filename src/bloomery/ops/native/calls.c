/* What Python calls: each takes the address of its fields, and shares the work among threads. */

#include "kernels.h"
#include "pool.h"

#include <math.h>
#include <string.h>

#define PART_BYTES 65536 /* of weights: what a thread takes at a time */
#define PART_TOKENS 128
#define PART_NUMBERS 16384 /* of what each number is on its own */
#define KEPT_TOKENS 16 /* whose keys and values a thread keeps at a time */

static long least(long a, long b)
{
    return a < b ? a : b;
}

/* Parts of at most so many. */
static long count(long all, long each)
{
    return (all + each - 1) / each;
}

/* A job as a grid: in each part `wide` of n outputs, `deep` of m tokens. Parts with the same weights are neighbours. */
typedef struct {
    const void *call;
    const Kernels *kernels;
    long n, wide, m, deep;
} Grid;

typedef struct {
    long n0, n1, m0, m1;
} Place;

static Place place(const Grid *grid, long part)
{
    const long splits = count(grid->m, grid->deep), n = part / splits * grid->wide, m = part % splits * grid->deep;
    return (Place){n, least(n + grid->wide, grid->n), m, least(m + grid->deep, grid->m)};
}

static void share_grid(Part part, const Grid *grid, long threads)
{
    bloomery_share(part, grid, count(grid->n, grid->wide) * count(grid->m, grid->deep), threads);
}

/* What is done to each of m tokens, or numbers, on its own: `deep` of them in a part. */
static void share_each(Part part, const void *call, int64_t level, long m, long deep, long threads)
{
    share_grid(part, &(Grid){call, bloomery_kernels(level), 1, 1, m, deep}, threads);
}

/* So many tokens that a part has about `room` of what each has `width` of. */
static long as_many(long room, long width)
{
    return room / (width + 1) + 1;
}

static void linear_part(const void *job, long part)
{
    const Grid *grid = job;
    const Linear *l = grid->call;
    const Place at = place(grid, part);
    grid->kernels->linear[l->dtype](l, at.n0, at.n1, at.m0, at.m1);
}

void bloomery_linear(const Linear *l)
{
    const long bytes = l->k * (l->dtype == FP32 ? 4 : 2), wide = 4 * as_many(PART_BYTES / 4, bytes);
    share_grid(linear_part, &(Grid){l, bloomery_kernels(l->level), l->n, wide, l->m, PART_TOKENS}, l->threads);
}

static void round_part(const void *job, long part)
{
    const Grid *grid = job;
    const Place at = place(grid, part);
    grid->kernels->round_tokens(grid->call, at.m0, at.m1);
}

static void packed_part(const void *job, long part)
{
    const Grid *grid = job;
    const Packed *p = grid->call;
    const Place at = place(grid, part);
    (p->bits == 8 ? grid->kernels->packed8 : grid->kernels->packed4)(p, at.n0, at.n1, at.m0, at.m1);
}

void bloomery_packed(const Packed *p)
{
    const long wide = 16 * as_many(PART_BYTES, p->stride);
    share_each(round_part, p, p->level, p->m, as_many(PART_BYTES, 4 * p->k), p->threads);
    share_grid(packed_part, &(Grid){p, bloomery_kernels(p->level), p->n, wide, p->m, PART_TOKENS}, p->threads);
}

static void norm_part(const void *job, long part)
{
    const Grid *grid = job;
    const Place at = place(grid, part);
    grid->kernels->norm(grid->call, at.m0, at.m1);
}

void bloomery_norm(const Norm *c)
{
    share_each(norm_part, c, c->level, c->m, as_many(PART_NUMBERS, c->width), c->threads);
}

static void each_part(const void *job, long part)
{
    const Grid *grid = job;
    const Place at = place(grid, part);
    grid->kernels->each(grid->call, at.m0, at.m1);
}

void bloomery_each(const Each *c)
{
    share_each(each_part, c, c->level, c->count, PART_NUMBERS, c->threads);
}

static void gather_part(const void *job, long part)
{
    const Grid *grid = job;
    const Place at = place(grid, part);
    grid->kernels->gather(grid->call, at.m0, at.m1);
}

void bloomery_gather(const Gather *c)
{
    share_each(gather_part, c, c->level, c->m, as_many(PART_NUMBERS, c->width), c->threads);
}

static void rotate_part(const void *job, long part)
{
    const Grid *grid = job;
    const Place at = place(grid, part);
    grid->kernels->rotate(grid->call, at.m0, at.m1);
}

void bloomery_rotate(const Rotate *c)
{
    share_each(rotate_part, c, c->level, c->m, as_many(PART_NUMBERS, c->heads * c->size), c->threads);
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
    bloomery_kernels(a->level)->keep[a->kept_dtype](a, n, least(n + KEPT_TOKENS, a->tokens));
}

/* A tile and a head of keys. Neighbours read the same blocks. */
static void attend_part(const void *job, long part)
{
    const Attention *a = job;
    bloomery_kernels(a->level)->attend[a->kept_dtype](a, a->tile + part / a->kv_heads, part % a->kv_heads);
}

void bloomery_attention(const Attention *a)
{
    bloomery_share(keep_part, a, count(a->tokens, KEPT_TOKENS), a->threads);
    bloomery_share(attend_part, a, a->tiles * a->kv_heads, a->threads);
}

static void largest_part(const void *job, long part)
{
    const Grid *grid = job;
    const Largest *c = grid->call;
    const Place at = place(grid, part);
    grid->kernels->largest(c->x, at.m0, at.m1, c->largest + part, c->places + part);
}

void bloomery_largest(const Largest *c)
{
    const long parts = count(c->count, LARGEST_PART);
    long best = 0;
    share_each(largest_part, c, c->level, c->count, LARGEST_PART, c->threads);
    for (long i = 1; i < parts; i++) /* NaN is not less than anything, and nothing is more than it */
        if (c->largest[best] < c->largest[i] || c->largest[i] != c->largest[i])
            best = i;
    c->largest[parts] = c->largest[best];
    c->places[parts] = c->places[best];
}

static void weigh_part(const void *job, long part)
{
    const Grid *grid = job;
    const Draw *c = grid->call;
    const Place at = place(grid, part);
    c->sums[part] = grid->kernels->weigh_all(c->x, at.m0, at.m1, (float)c->largest);
}

/* The part is found by the sums of parts, and the number by going through the part. */
void bloomery_draw(const Draw *c)
{
    const long parts = count(c->count, DRAW_PART);
    double before = 0, all = 0;
    long part = 0;
    share_each(weigh_part, c, c->level, c->count, DRAW_PART, c->threads);
    for (long i = 0; i < parts; i++)
        all += c->sums[i];
    const double target = c->u * all;
    while (part + 1 < parts && before + c->sums[part] <= target)
        before += c->sums[part++];
    while (part > 0 && !(c->sums[part] > 0)) /* rounding alone leads behind the last that has a weight */
        before -= c->sums[--part];
    const long begin = part * DRAW_PART;
    *c->drawn = bloomery_kernels(c->level)
                    ->pass(c->x, begin, least(begin + DRAW_PART, c->count), (float)c->largest, target - before);
}

/* Calls that have been written down: each kernel, and the address of its fields. */
void bloomery_replay(void (*const *kernels)(const void *), const void *const *fields, long calls)
{
    for (long i = 0; i < calls; i++)
        kernels[i](fields[i]);
}
