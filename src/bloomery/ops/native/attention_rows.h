/* Keys and values of a step: kept in their blocks, and read from them for attention. Included by level.inc.h once for
   each dtype of the blocks, with KEEP, ATTEND, ATTEND_SO, TURN, UNPACK and FETCH as names; KEPT, the dtype, and Number,
   its type; LOAD_ONE(p) and LOAD(p), PUT(p, x) and STORE(p, x); SPLIT where a word of 32 bits holds two of them. */

/* New keys and values of tokens n0 … n1 into their places. */
static void KEEP(const Attention *a, long n0, long n1)
{
    const long size = a->size;
    for (long n = n0; n < n1; n++)
        for (int which = 0; which < 2; which++) {
            const long token = which ? a->value_token : a->key_token, head = which ? a->value_head : a->key_head;
            Number *kept = (Number *)(which ? a->values : a->keys) + a->places[n] * a->kv_heads * size;
            for (long k = 0; k < a->kv_heads; k++, kept += size) {
                const void *x = numbers(which ? a->value : a->key, a->dtype, n * token + k * head);
                long d = 0;
                for (; d + 16 <= size; d += 16)
                    STORE(kept + d, sixteen(x, a->dtype, d));
                for (; d < size; d++)
                    PUT(kept + d, one(x, a->dtype, d));
            }
        }
}

/* keys (BLOCK, stride) -> turned (size, BLOCK): the first `count`, and copies of the last up to the next sixteen. With
   `pairs` words of two numbers as they are, (size / 2, BLOCK). */
INLINE void TURN(const Number *keys, long stride, long size, long count, const int pairs, float *turned)
{
    const long step = 16 / sizeof(Number), wide = 4 * SQUARES; /* numbers of four words, and keys at once */
    for (long key = 0; key < (count + 15) / 16 * 16; key += wide) {
        const void *row[4 * SQUARES];
        UNROLL for (int i = 0; i < wide; i++)
            row[i] = keys + least(key + i, count - 1) * stride;
        long d = 0;
        for (; d + step <= size; d += step) {
            Squares words[4];
            UNROLL for (int i = 0; i < 4; i++)
                words[i] = load_rows(row + i, d * sizeof(Number));
            turn_squares(words);
            UNROLL for (int i = 0; i < 4; i++) {
#ifdef SPLIT
                const Squares low = words[i] << 16, high = words[i] & 0xffff0000;
                if (!pairs) {
                    memcpy(turned + (d + 2 * i) * BLOCK + key, &low, sizeof low);
                    memcpy(turned + (d + 2 * i + 1) * BLOCK + key, &high, sizeof high);
                    continue;
                }
#endif
                memcpy(turned + (pairs ? d / 2 + i : d + i) * BLOCK + key, &words[i], sizeof words[i]);
            }
        }
        for (; d < size; d += pairs ? 2 : 1)
            for (int i = 0; i < wide; i++) {
                const Number *numbers = (const Number *)row[i] + d;
                const Number pair[2] = {numbers[0], pairs && d + 1 < size ? numbers[1] : 0};
                if (pairs)
                    memcpy(turned + d / 2 * BLOCK + key + i, pair, sizeof *turned);
                else
                    turned[d * BLOCK + key + i] = LOAD_ONE(numbers);
            }
    }
}

/* values (BLOCK, stride) -> (BLOCK, padded), zeros behind each. */
INLINE void UNPACK(const Number *values, long stride, long size, long count, long padded, float *out)
{
    for (long key = 0; key < count; key++, values += stride, out += padded) {
        long d = 0;
        for (; d + 16 <= size; d += 16)
            store_fp32(out + d, LOAD(values + d));
        for (; d < padded; d++)
            out[d] = d < size ? LOAD_ONE(values + d) : 0;
    }
}

/* Have keys or values of a block fetched meanwhile: neighbours are a row of all heads apart, and nobody foresees that. */
INLINE void FETCH(const Number *rows, long stride, long size, long count)
{
    for (long key = 0; key < count; key++)
        for (long byte = 0; byte < size * (long)sizeof(Number); byte += 64)
            __builtin_prefetch((const char *)(rows + key * stride) + byte, 0, 2);
}

/* pairs: queries and keys are multiplied as bf16, two dimensions at a time. */
INLINE void ATTEND_SO(const Attention *a, const Tile *t, long head, const int pairs)
{
    const long size = a->size, padded = (size + 15) / 16 * 16, stride = a->kv_heads * size, count = t->last - t->first;
    const long shared = a->heads / a->kv_heads, end = t->start + (t->last - 1) / shared + 1;
    const long begin = a->window ? t->start + t->first / shared - a->window + 1 : 0;
    const int few = count <= COLUMNS && size == padded; /* values are read once, and need not lie ready */
    float keys[size * BLOCK] __attribute__((aligned(64))), values[few ? 1 : BLOCK * padded] __attribute__((aligned(64)));
    float sums[count * padded] __attribute__((aligned(64))), queries[count * (size + 1)];
    Softmax softmax[count];
    begin_tile(a, t, head, pairs, queries, sums, softmax);
    for (long first = begin > 0 ? begin / BLOCK * BLOCK : 0; first < end; first += BLOCK) {
        const int64_t *block = a->table + t->blocks + first / BLOCK;
        const long read = least(BLOCK, end - first), soon = least(BLOCK, end - first - BLOCK);
        const Number *key = (const Number *)a->keys + (*block * BLOCK * a->kv_heads + head) * size;
        const Number *value = (const Number *)a->values + (*block * BLOCK * a->kv_heads + head) * size;
        if (soon > 0) {
            const long next = (block[1] - block[0]) * BLOCK * stride;
            FETCH(key + next, stride, size, soon);
            FETCH(value + next, stride, size, soon);
        }
        TURN(key, stride, size, read, pairs, keys);
        if (few)
            attend_block(a, t, head, first, keys, pairs, (Values){value, stride}, KEPT, queries, sums, softmax);
        else {
            UNPACK(value, stride, size, read, padded, values);
            attend_block(a, t, head, first, keys, pairs, (Values){values, padded}, FP32, queries, sums, softmax);
        }
    }
    end_tile(a, t, head, sums, softmax);
}

/* A tile's queries, for one head of keys and values. */
static void ATTEND(const Attention *a, const Tile *t, long head)
{
#if defined(SPLIT) && defined(__AVX512BF16__)
    if (a->dtype == BF16) {
        ATTEND_SO(a, t, head, 1);
        return;
    }
#endif
    ATTEND_SO(a, t, head, 0);
}

#undef KEEP
#undef ATTEND
#undef ATTEND_SO
#undef TURN
#undef UNPACK
#undef KEPT
#undef FETCH
#undef Number
#undef LOAD
#undef LOAD_ONE
#undef STORE
#undef PUT
#undef SPLIT
