/* A tile of queries: read, put through a block, and in the end divided by the sum of its weights. Knows no table of
   blocks. Included by level.inc.h once.

   Query i of a row and a head of keys: token i / shared, and the (i % shared)th of the heads that share these keys. */

static void begin_tile(const Attention *a, const Tile *t, long head, const int pairs, float *queries, float *sums,
                       Softmax *softmax)
{
    const long size = a->size, padded = (size + 15) / 16 * 16, shared = a->heads / a->kv_heads;
    for (long i = t->first; i < t->last; i++, queries += size, sums += padded) {
        const long at = (t->token + i / shared) * a->query_token + (head * shared + i % shared) * a->query_head;
        if (pairs) {
            queries[size / 2] = 0; /* behind the last of an odd number */
            memcpy(queries, (const uint16_t *)a->query + at, size * sizeof(uint16_t));
        } else
            for (long d = 0; d < size; d++)
                queries[d] = load_one(a->query, at + d, a->dtype);
        memset(sums, 0, padded * sizeof *sums);
        *softmax++ = (Softmax){-INFINITY, 0};
    }
}

static void end_tile(const Attention *a, const Tile *t, long head, const float *sums, const Softmax *softmax)
{
    const long size = a->size, padded = (size + 15) / 16 * 16, shared = a->heads / a->kv_heads;
    for (long i = t->first; i < t->last; i++, sums += padded, softmax++) {
        const long at = ((t->token + i / shared) * a->heads + head * shared + i % shared) * size;
        for (long d = 0; d < size; d++)
            store_one(a->out, at + d, a->dtype, sums[d] / softmax->total);
    }
}

/* Where the next keys and values are, to be fetched while others are computed with: nobody else foresees it. */
typedef struct {
    uintptr_t keys, values;
} Next;

/* So many bytes of both; behind the end of all it does no harm. */
INLINE void fetch(Next next, long begin, long bytes)
{
    for (long byte = begin; byte < begin + bytes; byte += 64) {
        __builtin_prefetch((const void *)(next.keys + byte), 0, 2);
        __builtin_prefetch((const void *)(next.values + byte), 0, 2);
    }
}

/* Scales of a block's vectors: of the first `count`, and copies of the last. */
INLINE void read_scales(const float *scales, long count, float *out)
{
    for (long key = 0; key < BLOCK; key++)
        out[key] = scales[least(key, count - 1)];
}

/* All queries of a tile and one head of keys, in the block whose first position is `first`. */
INLINE void attend_block(const Attention *a, const Tile *t, long head, long first, const float *keys, const int pairs,
                         Values values, const int64_t dtype, const float *queries, float *sums, Softmax *softmax)
{
    const long size = a->size, padded = (size + 15) / 16 * 16, shared = a->heads / a->kv_heads;
    const long count = t->last - t->first;
    const float scale = 1 / sqrtf((float)size);
    for (long i = 0; i < count; i += COLUMNS) {
        Seen seen[COLUMNS];
        const long queries_here = least(COLUMNS, count - i);
        for (long c = 0; c < queries_here; c++) {
            const long place = t->start + (t->first + i + c) / shared - first;
            const long from = a->window ? place - a->window + 1 : 0, h = head * shared + (t->first + i + c) % shared;
            seen[c] = (Seen){
                .query = queries + (i + c) * size,
                .sums = sums + (i + c) * padded,
                .softmax = softmax + i + c,
                .place = place,
                .from = from > 0 ? least(from, BLOCK) : 0,
                .to = place < 0 ? 0 : least(place + 1, BLOCK),
                .bias = {.scale = scale, .sloped = !!a->slopes, .coarse = !!a->coarse_scale},
            };
            if (a->slopes)
                seen[c].bias.slope = a->slopes[h];
            if (a->coarse_scale)
                seen[c].bias.coarse_scale = *a->coarse_scale;
        }
        if (queries_here == COLUMNS)
            attend_together(seen, keys, pairs, values, dtype, first, size, padded, COLUMNS);
        else
            for (long c = 0; c < queries_here; c++)
                attend_together(seen + c, keys, pairs, values, dtype, first, size, padded, 1);
    }
}
