/* Whole numbers of 8 bits: 16 outputs by four inputs in a register or two, and what their products add up to. Included
   by level.inc.h, after lanes.h. */

#define PANEL 16       /* outputs */
#define BLOCK_BYTES 64 /* of weights that are loaded at once */

#if defined(__AVX512VNNI__)
#define OFFSET 128 /* of weights of 8 bits: the instruction takes unsigned ones */
#define MOST 8     /* tokens at a time */
typedef __m512i Weights;
typedef __m512i Sums;

INLINE Weights load_weights(const uint8_t *p)
{
    return _mm512_loadu_si512(p);
}

INLINE Weights low_halves(Weights w)
{
    return _mm512_and_si512(w, _mm512_set1_epi8(15));
}

INLINE Weights high_halves(Weights w)
{
    return low_halves(_mm512_srli_epi16(w, 4));
}

INLINE Weights as_bytes(Weights w)
{
    return _mm512_xor_si512(w, _mm512_set1_epi8((char)OFFSET));
}

INLINE Sums sums_of(int32_t first)
{
    return _mm512_set1_epi32(first);
}

INLINE Sums add_halves(Sums sums, Weights w, const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm512_dpbusd_epi32(sums, w, _mm512_set1_epi32(four));
}

INLINE Sums add_bytes(Sums sums, Weights w, const int8_t *x)
{
    return add_halves(sums, w, x);
}

INLINE Floats as_floats(Sums sums)
{
    return (Floats)_mm512_cvtepi32_ps(sums);
}
#elif defined(__AVX2__)
#define OFFSET 0
#define MOST 2
typedef struct {
    __m256i first, second; /* eight outputs each */
} Weights;
typedef Weights Sums;

INLINE Weights load_weights(const uint8_t *p)
{
    return (Weights){_mm256_loadu_si256((const void *)p), _mm256_loadu_si256((const void *)(p + 32))};
}

INLINE Weights low_halves(Weights w)
{
    const __m256i mask = _mm256_set1_epi8(15);
    return (Weights){_mm256_and_si256(w.first, mask), _mm256_and_si256(w.second, mask)};
}

INLINE Weights high_halves(Weights w)
{
    return low_halves((Weights){_mm256_srli_epi16(w.first, 4), _mm256_srli_epi16(w.second, 4)});
}

INLINE Weights as_bytes(Weights w)
{
    return w;
}

INLINE Sums sums_of(int32_t first)
{
    return (Sums){_mm256_set1_epi32(first), _mm256_set1_epi32(first)};
}

/* Unsigned times signed. Pairs of products fit into 16 bits: at most 2 * 15 * 127, or 2 * 127 * 127. */
INLINE __m256i add_eight(__m256i sums, __m256i w, __m256i x)
{
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}

INLINE __m256i four_of(const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
}

INLINE Sums add_halves(Sums sums, Weights w, const int8_t *x)
{
    const __m256i four = four_of(x);
    return (Sums){add_eight(sums.first, w.first, four), add_eight(sums.second, w.second, four)};
}

INLINE Sums add_bytes(Sums sums, Weights w, const int8_t *x)
{
    const __m256i four = four_of(x), size = _mm256_abs_epi8(four);
    return (Sums){add_eight(sums.first, size, _mm256_sign_epi8(w.first, four)),
                  add_eight(sums.second, size, _mm256_sign_epi8(w.second, four))};
}

INLINE Floats as_floats(Sums sums)
{
    float x[PANEL];
    _mm256_storeu_ps(x, _mm256_cvtepi32_ps(sums.first));
    _mm256_storeu_ps(x + 8, _mm256_cvtepi32_ps(sums.second));
    return load_fp32(x);
}
#else
#define OFFSET 0
#define MOST 1
typedef Words Weights;
typedef Ints Sums;

INLINE Weights load_weights(const uint8_t *p)
{
    Weights w;
    memcpy(&w, p, sizeof w);
    return w;
}

INLINE Weights low_halves(Weights w)
{
    return w & 0x0f0f0f0f;
}

INLINE Weights high_halves(Weights w)
{
    return w >> 4 & 0x0f0f0f0f;
}

INLINE Weights as_bytes(Weights w)
{
    return w;
}

INLINE Sums sums_of(int32_t first)
{
    return (Ints){} + first;
}

INLINE Sums add_bytes(Sums sums, Weights w, const int8_t *x)
{
    for (int j = 0; j < 4; j++) /* byte j of each lane */
        sums += ((Ints)(w << (24 - 8 * j)) >> 24) * x[j];
    return sums;
}

INLINE Sums add_halves(Sums sums, Weights w, const int8_t *x)
{
    return add_bytes(sums, w, x);
}

INLINE Floats as_floats(Sums sums)
{
    return __builtin_convertvector(sums, Floats);
}
#endif
