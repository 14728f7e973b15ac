/* What there is at each level, and what it is called with. Who shares the work among threads is in calls.c. */

#ifndef BLOOMERY_KERNELS_H
#define BLOOMERY_KERNELS_H

#include "level.h"

#include <stddef.h>
#include <stdint.h>

/* What numbers are kept in; keys and values in 8 bits as well, each vector with a scale of its own. */
enum { FP32, BF16, DTYPES, INT8 = DTYPES, KEPT_DTYPES };

/* A call's fields have eight bytes each, so that it can be written down as numbers. m tokens, n outputs, k inputs. */
typedef struct {
    const void *x;      /* (m, k) */
    const void *weight; /* (n, k) */
    const void *bias;   /* (n), or NULL */
    void *y;            /* (m, n) */
    int64_t m, n, k;
    int64_t dtype; /* of all of them */
    int64_t level, threads;
} Linear;

#define MOST_GROUP 128

/* Weights of `bits` (8 or 4) in panels of 16 outputs, `stride` bytes each; k inputs in `groups` groups of `group`. */
typedef struct {
    const void *x;      /* (m, k) */
    const void *weight; /* panels */
    const void *bias;   /* (n), or NULL */
    void *y;            /* (m, n) */
    void *room;         /* m * groups * (group + 8) bytes, for rounded tokens */
    int64_t m, n, k;
    int64_t bits, groups, group, stride;
    int64_t dtype; /* of x, bias and y */
    int64_t level, threads;
} Packed;

/* x, less its mean where it is `centred`, over its root mean square; times weight, plus bias. */
typedef struct {
    const void *x;      /* (m, width) */
    const void *weight; /* (width) */
    const void *bias;   /* (width), or NULL */
    void *y;            /* (m, width) */
    int64_t m, width, centred;
    double epsilon;
    int64_t dtype; /* of all of them */
    int64_t level, threads;
} Norm;

/* In the order of `ACTIVATIONS` in ops/activation.py. */
enum { NONE, GELU, GELU_TANH, SILU, RELU };

/* activation(x) * times + plus, number by number. */
typedef struct {
    const void *x, *times, *plus; /* (count); the last two may be NULL */
    void *y;                      /* (count) */
    int64_t count, activation;
    int64_t wide;  /* y is fp32 */
    int64_t dtype; /* of the others */
    int64_t level, threads;
} Each;

#define LARGEST_PART 16384 /* numbers */

/* The largest of some numbers, and the first place where it is; NaN where one of them is. */
typedef struct {
    const float *x;  /* (count), at least one */
    float *largest;  /* of each part of LARGEST_PART numbers, then of all: one more */
    int64_t *places; /* as many */
    int64_t count;
    int64_t level, threads;
} Largest;

#define DRAW_PART 16384 /* numbers */

/* The first number, in their order, up to which the sum of all e^x is more than u of the whole. */
typedef struct {
    const float *x;  /* (count), at least one, none more than `largest`, which is finite and one of them */
    double *sums;    /* of each part of DRAW_PART numbers */
    int64_t *drawn;  /* (1) */
    int64_t count;
    double largest, u; /* u in [0, 1) */
    int64_t level, threads;
} Draw;

/* Rows places[m] of a table, plus row m of another; NaN where the table has no such row. */
typedef struct {
    const void *table;     /* (rows, width) */
    const int64_t *places; /* (m) */
    const void *plus;      /* (m, width), or NULL */
    void *y;               /* (m, width) */
    int64_t m, width, rows;
    int64_t dtype; /* of tables and rows */
    int64_t level, threads;
} Gather;

/* The first 2 * half numbers of each head, turned by its token's angles; number i pairs with i + half. Head h of token
   m begins at m * token_stride + h / shared * group_stride + h % shared * size. */
typedef struct {
    const void *x;
    const float *cosine, *sine; /* (m, half) */
    void *y;                    /* (m, heads, size) */
    int64_t m, heads, shared, size, half, token_stride, group_stride;
    int64_t dtype; /* of x and y */
    int64_t level, threads;
} Rotate;

/* Cosine and sine of place times frequency. */
typedef struct {
    const int64_t *places;    /* (m) */
    const float *frequencies; /* (half) radians a place */
    float *cosine, *sine;     /* (m, half) */
    int64_t m, half;
    int64_t rounded; /* to bf16 */
    int64_t level, threads;
} Angles;

#define BLOCK 64 /* positions of a block of keys and values */

/* Some queries of one row: first … last of those that share one head of keys, token by token. */
typedef struct {
    int64_t token; /* the row's first */
    int64_t start; /* its position */
    int64_t first, last;
    int64_t blocks; /* where in the table the row's blocks begin */
} Tile;

/* Attention of a step. Of its new keys and values each has a place in the blocks; strides are in numbers. */
typedef struct {
    const void *query;         /* (tokens, heads, size) */
    const void *key, *value;   /* (tokens, kv_heads, size) */
    void *out;                 /* (tokens, heads, size) */
    void *keys, *values;       /* (blocks, kv_heads, BLOCK, size) */
    float *key_scales;         /* (blocks, kv_heads, BLOCK) of INT8: what a number of the vector counts for; else NULL */
    float *value_scales;
    const int64_t *places;     /* (tokens) */
    const Tile *tile;          /* (tiles) */
    const int64_t *table;      /* blocks of all rows */
    const float *slopes;       /* (heads), or NULL: nothing is added to scores */
    const float *coarse_scale; /* NULL: slope x distance; else slope x position, rounded to bf16, times this */
    int64_t query_token, query_head, key_token, key_head, value_token, value_head;
    int64_t tokens, tiles, heads, kv_heads, size;
    int64_t window;            /* positions that a query sees, its own among them; 0: all */
    int64_t dtype, kept_dtype; /* of a step's, and of the blocks' */
    int64_t level, threads;
} Attention;

/* One level's kernels. Each computes a part: outputs n0 … n1 of tokens m0 … m1. */
typedef struct {
    void (*linear[DTYPES])(const Linear *l, long n0, long n1, long m0, long m1);
    void (*round_tokens)(const Packed *p, long m0, long m1);
    void (*packed8)(const Packed *p, long n0, long n1, long m0, long m1); /* whole panels */
    void (*packed4)(const Packed *p, long n0, long n1, long m0, long m1);
    void (*norm)(const Norm *c, long m0, long m1);
    void (*each)(const Each *c, long begin, long end);
    void (*largest)(const float *x, long begin, long end, float *value, int64_t *place);
    double (*weigh_all)(const float *x, long begin, long end, float largest);
    int64_t (*pass)(const float *x, long begin, long end, float largest, double target);
    void (*gather)(const Gather *c, long m0, long m1);
    void (*rotate)(const Rotate *c, long m0, long m1);
    void (*keep[KEPT_DTYPES])(const Attention *a, long n0, long n1);
    void (*attend[KEPT_DTYPES])(const Attention *a, const Tile *t, long head);
    uint64_t (*sum_bytes)(const uint8_t *p, size_t n); /* of n bytes, modulo 2^64 */
} Kernels;

extern const Kernels bloomery_portable, bloomery_avx2, bloomery_avx512, bloomery_avx512_bf16;

/* Those of a level that this processor has. */
const Kernels *bloomery_kernels(int64_t level);

#endif
