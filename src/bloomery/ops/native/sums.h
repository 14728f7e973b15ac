/* One register of sums, as wide as the level has them: for products of rows, whose tiles fill all registers. Included
   by level.inc.h, after lanes.h. */

#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX2__)
#define WIDTH 32
#else
#define WIDTH 16
#endif

typedef float Sum __attribute__((vector_size(WIDTH)));
typedef uint32_t SumWords __attribute__((vector_size(WIDTH)));
typedef uint16_t SumHalves __attribute__((vector_size(WIDTH / 2)));

INLINE Sum sum_fp32(const float *p)
{
    Sum x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE Sum sum_bf16(const uint16_t *p)
{
    SumHalves x;
    memcpy(&x, p, sizeof x);
    return (Sum)(__builtin_convertvector(x, SumWords) << 16);
}

/* What the lanes of each of four registers add up to, in one order. */
INLINE void add_up(Sum a, Sum b, Sum c, Sum d, float sums[4])
{
#if defined(__AVX512F__)
    sum_lanes(a, b, c, d, sums);
#elif defined(__AVX2__)
    const __m256 ab = _mm256_hadd_ps((__m256)a, (__m256)b), cd = _mm256_hadd_ps((__m256)c, (__m256)d);
    const __m256 four = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1)));
#else
    const Sum ab = SHUFFLE(a, b, 0, 4, 1, 5) + SHUFFLE(a, b, 2, 6, 3, 7);
    const Sum cd = SHUFFLE(c, d, 0, 4, 1, 5) + SHUFFLE(c, d, 2, 6, 3, 7);
    const Sum all = SHUFFLE(ab, cd, 0, 1, 4, 5) + SHUFFLE(ab, cd, 2, 3, 6, 7);
    memcpy(sums, &all, sizeof all);
#endif
}
