/* Sixteen numbers at a time, in the compiler's own vectors: one source for every width of register. For a file that is
   compiled for one level. */

#include <stdint.h>
#include <string.h>

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

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
