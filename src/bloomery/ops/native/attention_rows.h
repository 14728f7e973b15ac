/* Keys and values read from their blocks, for attention. Included by level.inc.h once for each dtype of the blocks, with
   ATTEND, ATTEND_SO, TURN and UNPACK as names; KEPT, the dtype, and Number, its type; LOAD_ONE(p), and
   NUMBERS_OF(word), the numbers that words of 32 bits hold, without their scales. */

/* keys (BLOCK, size) -> turned (size, BLOCK): the first `count`, and copies of the last up to the next sixteen. With
   `pairs` words of two numbers as they are, (size / 2, BLOCK). What is next is fetched bit by bit: all at once, it would
   be waited for. */
INLINE void TURN(const Number *keys, const float *scales, long size, long count, const int pairs, float *turned,
                 Next next)
{
    const long each = 4 / sizeof(Number), step = 4 * each; /* numbers of a word, and of four */
    const long wide = 4 * SQUARES;                         /* keys at once */
    for (long key = 0; key < (count + 15) / 16 * 16; key += wide) {
        const void *row[4 * SQUARES];
        UNROLL for (int i = 0; i < wide; i++)
            row[i] = keys + least(key + i, count - 1) * size;
        fetch(next, key * size * sizeof(Number), wide * size * sizeof(Number));
        FloatSquares scale;
        if (KEPT == INT8)
            memcpy(&scale, scales + key, sizeof scale);
        long d = 0;
        for (; d + step <= size; d += step) {
            Squares words[4];
            UNROLL for (int i = 0; i < 4; i++)
                words[i] = load_rows(row + i, d * sizeof(Number));
            turn_squares(words);
            UNROLL for (int i = 0; i < 4; i++) {
                if (pairs) {
                    memcpy(turned + (d / 2 + i) * BLOCK + key, &words[i], sizeof words[i]);
                    continue;
                }
                FloatSquares x[] = NUMBERS_OF(words[i]);
                UNROLL for (int j = 0; j < each; j++) {
                    if (KEPT == INT8)
                        x[j] *= scale;
                    memcpy(turned + (d + each * i + j) * BLOCK + key, &x[j], sizeof x[j]);
                }
            }
        }
        for (; d < size; d += pairs ? 2 : 1)
            for (int i = 0; i < wide; i++) {
                const Number *numbers = (const Number *)row[i] + d;
                const Number pair[2] = {numbers[0], pairs && d + 1 < size ? numbers[1] : 0};
                if (pairs)
                    memcpy(turned + d / 2 * BLOCK + key + i, pair, sizeof *turned);
                else
                    turned[d * BLOCK + key + i] = LOAD_ONE(numbers) * (KEPT == INT8 ? scales[key + i] : 1);
            }
    }
}

/* values (BLOCK, size) -> (BLOCK, padded), zeros behind each. */
INLINE void UNPACK(Values values, long size, long count, long padded, float *out)
{
    for (long key = 0; key < count; key++, out += padded) {
        const Number *row = (const Number *)values.first + key * values.stride;
        const float scale = KEPT == INT8 ? values.scales[key] : 1;
        long d = 0;
        for (; d + 16 <= size; d += 16)
            store_fp32(out + d, load_kept(row, d, KEPT, scale));
        for (; d < padded; d++)
            out[d] = d < size ? LOAD_ONE(row + d) * scale : 0;
    }
}

/* pairs: queries and keys are multiplied as bf16, two dimensions at a time. */
INLINE void ATTEND_SO(const Attention *a, const Tile *t, long head, const int pairs)
{
    const long size = a->size, padded = (size + 15) / 16 * 16, count = t->last - t->first;
    const long shared = a->heads / a->kv_heads, end = t->start + (t->last - 1) / shared + 1;
    const long begin = a->window ? t->start + t->first / shared - a->window + 1 : 0;
    const int few = count <= COLUMNS && size == padded; /* values are read once, and need not lie ready */
    float keys[size * BLOCK] __attribute__((aligned(64))), values[few ? 1 : BLOCK * padded] __attribute__((aligned(64)));
    float sums[count * padded] __attribute__((aligned(64))), queries[count * (size + 1)];
    float key_scales[KEPT == INT8 ? BLOCK : 1], value_scales[KEPT == INT8 ? BLOCK : 1];
    Softmax softmax[count];
    begin_tile(a, t, head, pairs, queries, sums, softmax);
    const long seen = begin > 0 ? begin / BLOCK : 0; /* the first block of which something is seen */
    const int64_t *begun = a->table + t->blocks + seen, *block = begun;
    for (long first = seen * BLOCK; first < end; first += BLOCK, block++) {
        const long read = least(BLOCK, end - first), vector = (*block * a->kv_heads + head) * BLOCK;
        const Number *key = (const Number *)a->keys + vector * size;
        const Values kept = {(const Number *)a->values + vector * size, size, value_scales};
        /* Behind the last block of this head comes the first of the next one. */
        const long next_vector = first + BLOCK < end ? (block[1] * a->kv_heads + head) * BLOCK
                                                     : (*begun * a->kv_heads + head + 1) * BLOCK;
        const long next = (next_vector - vector) * size * (long)sizeof(Number);
        if (KEPT == INT8) {
            read_scales(a->key_scales + vector, read, key_scales);
            read_scales(a->value_scales + vector, read, value_scales);
        }
        TURN(key, key_scales, size, read, pairs, keys, (Next){(uintptr_t)key + next, (uintptr_t)kept.first + next});
        if (few)
            attend_block(a, t, head, first, keys, pairs, kept, KEPT, queries, sums, softmax);
        else {
            const Values ready = {values, padded, NULL};
            UNPACK(kept, size, read, padded, values);
            attend_block(a, t, head, first, keys, pairs, ready, FP32, queries, sums, softmax);
        }
    }
    end_tile(a, t, head, sums, softmax);
}

/* A tile's queries, for one head of keys and values. */
static void ATTEND(const Attention *a, const Tile *t, long head)
{
#ifdef __AVX512BF16__
    if (KEPT == BF16 && a->dtype == BF16) {
        ATTEND_SO(a, t, head, 1);
        return;
    }
#endif
    ATTEND_SO(a, t, head, 0);
}

#undef ATTEND
#undef ATTEND_SO
#undef TURN
#undef UNPACK
#undef KEPT
#undef Number
#undef NUMBERS_OF
#undef LOAD_ONE
