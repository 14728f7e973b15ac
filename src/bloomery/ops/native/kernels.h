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

/* One level's kernels. Each computes a part: weights of outputs n0 … n1 for tokens m0 … m1. */
typedef struct {
    void (*linear[DTYPES])(const Linear *l, long n0, long n1, long m0, long m1);
} Kernels;

extern const Kernels bloomery_portable, bloomery_avx2, bloomery_avx512, bloomery_avx512_bf16;

#endif
