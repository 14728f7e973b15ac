/* What there is at each level, and what it is called with. Who shares the work among threads is in calls.c. */

#ifndef BLOOMERY_KERNELS_H
#define BLOOMERY_KERNELS_H

#include "level.h"

#include <stdint.h>

/* What numbers are kept in. */
enum { FP32, BF16, DTYPES };

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
    void *keys, *values;       /* (blocks, BLOCK, kv_heads, size) */
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

/* One level's kernels. Each computes a part: weights of outputs n0 … n1 for tokens m0 … m1. */
typedef struct {
    void (*linear[DTYPES])(const Linear *l, long n0, long n1, long m0, long m1);
    void (*keep[DTYPES])(const Attention *a, long n0, long n1);
    void (*attend[DTYPES])(const Attention *a, const Tile *t, long head);
} Kernels;

extern const Kernels bloomery_portable, bloomery_avx2, bloomery_avx512, bloomery_avx512_bf16;

#endif
