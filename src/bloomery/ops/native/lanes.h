/* Sixteen numbers at a time, in the compiler's own vectors: one source for every width of register. For a file that is
   compiled for one level. */

#include <stdint.h>
#include <string.h>

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));

#define LANES 16
#define INLINE __attribute__((always_inline, unused)) static inline
#define UNROLL _Pragma("GCC unroll 16")
#define SHUFFLE __builtin_shufflevector

INLINE long least(long a, long b)
{
    return a < b ? a : b;
}

INLINE Floats all(float x)
{
    return (Floats){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}

INLINE Floats load_fp32(const float *p)
{
    Floats x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void store_fp32(float *p, Floats x)
{
    memcpy(p, &x, sizeof x);
}

/* bf16 is the upper half of fp32. */
INLINE Floats load_bf16(const uint16_t *p)
{
#ifdef __AVX512F__ /* GCC makes two halves of it and puts them together */
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16);
#endif
    Halves x;
    memcpy(&x, p, sizeof x);
    return (Floats)(__builtin_convertvector(x, Words) << 16);
}

INLINE float one_bf16(const uint16_t *p)
{
    const uint32_t bits = (uint32_t)*p << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* To the nearest, ties to even; NaN stays NaN. */
INLINE void store_bf16(uint16_t *p, Floats x)
{
    const Words bits = (Words)x, nan = (Words)(x != x);
    const Words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const Halves out = __builtin_convertvector((rounded & ~nan) | (0x7fc0 & nan), Halves);
    memcpy(p, &out, sizeof out);
}

INLINE void put_bf16(uint16_t *p, float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof x);
    *p = x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE Floats load_int8(const int8_t *p)
{
#ifdef __AVX512F__ /* GCC makes four parts of it */
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
#endif
    Bytes x;
    memcpy(&x, p, sizeof x);
    return __builtin_convertvector(__builtin_convertvector(x, Ints), Floats);
}

/* The first `count`, of at most 127: to the nearest, ties to even. Behind 1.5 * 2^23 a float has room for whole numbers
   alone, and its lowest bits are theirs. */
INLINE void store_int8(int8_t *p, long count, Floats x)
{
    const Bytes whole = __builtin_convertvector((Ints)(x + 12582912.0f), Bytes);
    memcpy(p, &whole, count);
}

/* The sums of four vectors. Each is added up in the same order: the halves, their halves, and so on. */
INLINE void sum_lanes(Floats a, Floats b, Floats c, Floats d, float sums[4])
{
    const Floats ab = SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                      SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    const Floats cd = SHUFFLE(c, d, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                      SHUFFLE(c, d, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    const Floats four = SHUFFLE(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                        SHUFFLE(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    const Floats two = four + SHUFFLE(four, four, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    const Floats one = two + SHUFFLE(two, two, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    sums[0] = one[0];
    sums[1] = one[4];
    sums[2] = one[8];
    sums[3] = one[12];
}

INLINE Floats choose(Ints mask, Floats yes, Floats no)
{
    return (Floats)(((Ints)yes & mask) | ((Ints)no & ~mask));
}

/* To the nearest bf16, ties to even, of finite numbers. */
INLINE Floats round_bf16(Floats x)
{
    const Words bits = (Words)x;
    return (Floats)((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000);
}

typedef float Fours __attribute__((vector_size(16)));
typedef union {
    Floats lanes;
    Fours fours[4];
} Parts;

/* In the order of sum_lanes. */
INLINE float lane_sum(Floats x)
{
    const Parts parts = {x};
    const Fours four = (parts.fours[0] + parts.fours[2]) + (parts.fours[1] + parts.fours[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

INLINE Fours larger_fours(Fours a, Fours b)
{
    typedef int32_t IntFours __attribute__((vector_size(16)));
    const IntFours mask = a > b;
    return (Fours)(((IntFours)a & mask) | ((IntFours)b & ~mask));
}

/* The largest; NaN may be passed over. */
INLINE float largest_lane(Floats x)
{
    const Parts parts = {x};
    const Fours four = larger_fours(larger_fours(parts.fours[0], parts.fours[1]),
                                    larger_fours(parts.fours[2], parts.fours[3]));
    const float a = four[0] > four[1] ? four[0] : four[1], b = four[2] > four[3] ? four[2] : four[3];
    return a > b ? a : b;
}

/* e^x for x <= 0, within 2 ulp; 0 below the logarithm of the smallest normal number; NaN stays NaN. As in Cephes: x = n
   ln 2 + r, and a polynomial for r in -0.35 … 0.35. */
INLINE Floats exp_fp32(Floats x)
{
    const Ints tiny = x < -87.3f;
    const Floats near = choose(tiny, all(-87.3f), x);
    const Floats shifted = near * 1.44269504f + 12582912.0f; /* n in its lowest bits */
    const Floats n = shifted - 12582912.0f;
    const Floats r = (near - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const Floats power = (Floats)(((Words)shifted << 23) + 0x3f800000);
    return (Floats)((Ints)(p * power) & ~tiny);
}

/* Squares of four by four words that are turned at once, and the vector that holds a row of each. */
#if defined(__AVX512F__)
#define SQUARES 4
#define SHUFFLE_SQUARES(a, b, i, j, k, l) \
    SHUFFLE(a, b, i, j, k, l, i + 4, j + 4, k + 4, l + 4, i + 8, j + 8, k + 8, l + 8, i + 12, j + 12, k + 12, l + 12)
#elif defined(__AVX2__)
#define SQUARES 2
#define SHUFFLE_SQUARES(a, b, i, j, k, l) SHUFFLE(a, b, i, j, k, l, i + 4, j + 4, k + 4, l + 4)
#else
#define SQUARES 1
#define SHUFFLE_SQUARES(a, b, i, j, k, l) SHUFFLE(a, b, i, j, k, l)
#endif
#define OTHER (4 * SQUARES) /* the second vector's first word */
typedef uint32_t Squares __attribute__((vector_size(16 * SQUARES)));
typedef int32_t IntSquares __attribute__((vector_size(16 * SQUARES)));
typedef float FloatSquares __attribute__((vector_size(16 * SQUARES)));

typedef uint32_t FourWords __attribute__((vector_size(16)));

INLINE FourWords load_words(const void *p)
{
    FourWords x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* Four words of a row, of the one four rows on, and so on. */
INLINE Squares load_rows(const void *const row[4 * SQUARES], long offset)
{
#define ROW(i) load_words((const char *)row[4 * (i)] + offset)
#define PAIR(i) SHUFFLE(ROW(i), ROW(i + 1), 0, 1, 2, 3, 4, 5, 6, 7)
#if SQUARES == 4
    return SHUFFLE(PAIR(0), PAIR(2), 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#elif SQUARES == 2
    return PAIR(0);
#else
    return ROW(0);
#endif
#undef ROW
#undef PAIR
}

/* In each square, rows become columns. */
INLINE void turn_squares(Squares x[4])
{
    const Squares a = SHUFFLE_SQUARES(x[0], x[1], 0, OTHER, 1, OTHER + 1);
    const Squares b = SHUFFLE_SQUARES(x[0], x[1], 2, OTHER + 2, 3, OTHER + 3);
    const Squares c = SHUFFLE_SQUARES(x[2], x[3], 0, OTHER, 1, OTHER + 1);
    const Squares d = SHUFFLE_SQUARES(x[2], x[3], 2, OTHER + 2, 3, OTHER + 3);
    x[0] = SHUFFLE_SQUARES(a, c, 0, 1, OTHER, OTHER + 1);
    x[1] = SHUFFLE_SQUARES(a, c, 2, 3, OTHER + 2, OTHER + 3);
    x[2] = SHUFFLE_SQUARES(b, d, 0, 1, OTHER, OTHER + 1);
    x[3] = SHUFFLE_SQUARES(b, d, 2, 3, OTHER + 2, OTHER + 3);
}

/* Byte i of each word, with its sign. */
INLINE FloatSquares byte_of(Squares words, const int i)
{
    return __builtin_convertvector((IntSquares)(words << (24 - 8 * i)) >> 24, FloatSquares);
}
