/* New keys and values of a step, kept in their blocks: as numbers of a dtype, or in 8 bits with a scale for each vector.
   Knows no query. Included by level.inc.h once.

   Rounded are bits that ops/kept.py has too: scale = largest magnitude / 127, number = x / scale to the nearest, ties to
   even. Zeros with the scale 0 where that is no normal number, and with the scale NaN where one of them is not finite. */

#include <float.h>

INLINE float round_vector(const void *x, int64_t dtype, long size, int8_t *kept)
{
    Words largest = {};
    uint32_t bits = 0;
    float scale;
    for (long d = 0; d < size; d += LANES) { /* magnitudes are in order as bits, inf and NaN above all */
        const Words here = (Words)load_some(x, d, size - d, dtype) & 0x7fffffff, larger = (Words)(here > largest);
        largest = (here & larger) | (largest & ~larger);
    }
    for (int i = 0; i < LANES; i++)
        bits = largest[i] > bits ? largest[i] : bits;
    memcpy(&scale, &bits, sizeof scale);
    scale /= 127;
    if (bits >= 0x7f800000 || scale < FLT_MIN) {
        memset(kept, 0, size);
        return bits >= 0x7f800000 ? __builtin_nanf("") : 0;
    }
    for (long d = 0; d < size; d += LANES)
        store_int8(kept + d, least(size - d, LANES), load_some(x, d, size - d, dtype) / scale);
    return scale;
}

/* Keys and values of tokens n0 … n1. */
INLINE void keep(const Attention *a, long n0, long n1, const int64_t kept_dtype)
{
    const long size = a->size, heads = a->kv_heads;
    for (long n = n0; n < n1; n++)
        for (int which = 0; which < 2; which++) {
            const long token = which ? a->value_token : a->key_token, head = which ? a->value_head : a->key_head;
            void *kept = which ? a->values : a->keys;
            for (long k = 0; k < heads; k++) {
                const void *x = at(which ? a->value : a->key, n * token + k * head, a->dtype);
                const long vector = (a->places[n] / BLOCK * heads + k) * BLOCK + a->places[n] % BLOCK;
                if (kept_dtype == INT8)
                    (which ? a->value_scales : a->key_scales)[vector] =
                        round_vector(x, a->dtype, size, (int8_t *)kept + vector * size);
                else
                    for (long d = 0; d < size; d += LANES)
                        store_some(kept, vector * size + d, size - d, kept_dtype, load_some(x, d, size - d, a->dtype));
            }
        }
}

static void keep_fp32(const Attention *a, long n0, long n1)
{
    keep(a, n0, n1, FP32);
}

static void keep_bf16(const Attention *a, long n0, long n1)
{
    keep(a, n0, n1, BF16);
}

static void keep_int8(const Attention *a, long n0, long n1)
{
    keep(a, n0, n1, INT8);
}
