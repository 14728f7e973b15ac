/* Attention of a few queries to one block of keys and values. Keys have been turned, so that sixteen of them are the
   lanes of a vector, and are in fp32, or in bf16 by pairs of dimensions. Knows no table of blocks. Included by
   level.inc.h once.

   Every query goes through blocks of the same positions in order, and within them through dimensions, then through
   keys, one after the other: an output's bits depend on its query and its sequence alone. What a query does not see
   weighs nothing and is not added, whatever is there. */

#include <math.h>

typedef struct {
    float largest, total; /* score so far, and sum of the weights relative to it */
} Softmax;

/* (BLOCK, size), each so many numbers behind the one before; of a size that is no multiple of 16, zeros behind it. */
typedef struct {
    const void *first;
    long stride;
    const float *scales; /* (BLOCK), of INT8 */
} Values;

/* Sixteen numbers of a block's vector; those of INT8 with its scale, products that are rounded. */
INLINE Floats load_kept(const void *row, long i, const int64_t dtype, float scale)
{
    return dtype == INT8 ? load_int8((const int8_t *)row + i) * scale : load_sixteen(row, i, dtype);
}

/* What is the same for all queries of a head. */
typedef struct {
    float scale, slope, coarse_scale;
    int sloped, coarse;
} Bias;

/* One query in one block: it sees positions from … to of it, and its scores become weights. */
typedef struct {
    const float *query;
    float *sums; /* (padded) */
    Softmax *softmax;
    long place; /* relative to the block's first position */
    long from, to;
    Bias bias;
} Seen;

/* sum + q x of a dimension; with `pairs` of two of them, in bf16, whose products are exact in fp32. */
INLINE Floats add_product(Floats sum, Floats q, Floats x, const int pairs)
{
#ifdef __AVX512BF16__
    if (pairs)
        return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)q, (__m512bh)x);
#endif
    (void)pairs;
    return sum + q * x;
}

/* scores[c][key] = query c · key, for keys of so many vectors. */
INLINE void score_tile(const Seen *seen, const float *keys, float (*scores)[BLOCK], long size, const int pairs,
                       const int queries, const int vectors)
{
    Floats sums[COLUMNS][ROWS];
    UNROLL for (int c = 0; c < queries; c++)
        UNROLL for (int v = 0; v < vectors; v++)
            sums[c][v] = all(0);
    for (long d = 0; d < (pairs ? (size + 1) / 2 : size); d++) {
        Floats x[ROWS];
        UNROLL for (int v = 0; v < vectors; v++)
            x[v] = load_fp32(keys + d * BLOCK + 16 * v);
        UNROLL for (int c = 0; c < queries; c++) {
            const Floats q = all(seen[c].query[d]);
            UNROLL for (int v = 0; v < vectors; v++)
                sums[c][v] = add_product(sums[c][v], q, x[v], pairs);
        }
    }
    UNROLL for (int c = 0; c < queries; c++)
        UNROLL for (int v = 0; v < vectors; v++)
            store_fp32(scores[c] + 16 * v, sums[c][v]);
}

INLINE void score(const Seen *seen, const float *keys, float (*scores)[BLOCK], long size, const int pairs,
                  const int queries, long to)
{
    long v = 0;
    const long vectors = (to + 15) / 16;
    for (; v + ROWS <= vectors; v += ROWS)
        score_tile(seen, keys + 16 * v, (float (*)[BLOCK])(scores[0] + 16 * v), size, pairs, queries, ROWS);
    for (; v < vectors; v++)
        score_tile(seen, keys + 16 * v, (float (*)[BLOCK])(scores[0] + 16 * v), size, pairs, queries, 1);
}

INLINE Floats biased(Floats score, Ints place, const Seen *seen, long first)
{
    const Bias *bias = &seen->bias;
    if (!bias->sloped)
        return score * bias->scale;
    if (!bias->coarse)
        return score * bias->scale + __builtin_convertvector(place - (int32_t)seen->place, Floats) * bias->slope;
    const Floats key = round_bf16(__builtin_convertvector(place + (int32_t)first, Floats));
    return score * bias->scale + round_bf16(key * bias->slope) * bias->coarse_scale;
}

/* Scores become weights, and what was summed before is made relative to them. Not inline: its code is one for every
   number of queries, and so are its roundings. first: the block's first position. */
static __attribute__((noinline)) void weigh(float *scores, const Seen *seen, long first, long padded)
{
    const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Softmax *softmax = seen->softmax;
    Floats x[BLOCK / 16], most = all(-INFINITY);
    UNROLL for (int v = 0; v < BLOCK / 16; v++) {
        const Ints place = lanes + 16 * v, visible = (place >= (int32_t)seen->from) & (place < (int32_t)seen->to);
        x[v] = choose(visible, biased(load_fp32(scores + 16 * v), place, seen, first), all(-INFINITY));
        most = choose(most > x[v], most, x[v]);
    }
    const float here = largest_lane(most), largest = softmax->largest > here ? softmax->largest : here;
    const float base = largest == -INFINITY ? 0 : largest; /* -inf - -inf would be NaN before there is a reason */
    UNROLL for (int v = 0; v < BLOCK / 16; v++) {
        x[v] = exp_fp32(x[v] - base);
        store_fp32(scores + 16 * v, x[v]);
    }
    const Floats factor = exp_fp32(all(softmax->largest - base));
    softmax->total = softmax->total * factor[0] + lane_sum((x[0] + x[1]) + (x[2] + x[3]));
    softmax->largest = largest;
    for (long d = 0; d < padded; d += 16)
        store_fp32(seen->sums + d, load_fp32(seen->sums + d) * factor);
}

/* sums[c] += weights[c][key] * values[key], key by key. */
INLINE void add_tile(const Seen *seen, Values values, const int64_t dtype, float (*weights)[BLOCK], long d, long from,
                     long to, const int queries, const int vectors)
{
    Floats sums[COLUMNS][ROWS];
    UNROLL for (int c = 0; c < queries; c++)
        UNROLL for (int v = 0; v < vectors; v++)
            sums[c][v] = load_fp32(seen[c].sums + d + 16 * v);
    for (long key = from; key < to; key++) {
        const float scale = dtype == INT8 ? values.scales[key] : 1;
        Floats x[ROWS];
        UNROLL for (int v = 0; v < vectors; v++)
            x[v] = load_kept(values.first, key * values.stride + d + 16 * v, dtype, scale);
        UNROLL for (int c = 0; c < queries; c++) {
            const Floats w = all(weights[c][key]);
            UNROLL for (int v = 0; v < vectors; v++)
                sums[c][v] = sums[c][v] + w * x[v];
        }
    }
    UNROLL for (int c = 0; c < queries; c++)
        UNROLL for (int v = 0; v < vectors; v++)
            store_fp32(seen[c].sums + d + 16 * v, sums[c][v]);
}

INLINE void add(const Seen *seen, Values values, const int64_t dtype, float (*weights)[BLOCK], long padded, long from,
                long to, const int queries)
{
    long d = 0;
    if (from >= to)
        return;
    for (; d + 16 * ROWS <= padded; d += 16 * ROWS)
        add_tile(seen, values, dtype, weights, d, from, to, queries, ROWS);
    for (; d < padded; d += 16)
        add_tile(seen, values, dtype, weights, d, from, to, queries, 1);
}

/* Neighbours share what they load: keys that all of them see. */
INLINE void attend_together(const Seen *seen, const float *keys, const int pairs, Values values, const int64_t dtype,
                            long first, long size, long padded, const int queries)
{
    float scores[COLUMNS][BLOCK] __attribute__((aligned(64)));
    long from = 0, to = BLOCK, end = 0;
    for (int c = 0; c < queries; c++) {
        from = seen[c].from > from ? seen[c].from : from;
        to = least(seen[c].to, to);
        end = seen[c].to > end ? seen[c].to : end;
    }
    score(seen, keys, scores, size, pairs, queries, end);
    for (int c = 0; c < queries; c++)
        if (seen[c].from < seen[c].to)
            weigh(scores[c], &seen[c], first, padded);
    if (from >= to) /* nothing that all of them see */
        from = to = BLOCK;
    for (int c = 0; c < queries; c++)
        add(&seen[c], values, dtype, &scores[c], padded, seen[c].from, least(from, seen[c].to), 1);
    add(seen, values, dtype, scores, padded, from, to, queries);
    for (int c = 0; c < queries; c++)
        add(&seen[c], values, dtype, &scores[c], padded, to, seen[c].to, 1);
}
