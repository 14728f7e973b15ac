/* Weights e^(x - largest) of numbers, in double precision, and where their sum passes a number. Included by level.inc.h,
   after lanes.h. */

#define DOUBLES 8

typedef double Doubles __attribute__((vector_size(64)));
typedef int64_t Longs __attribute__((vector_size(64)));
typedef float Eight __attribute__((vector_size(32)));

INLINE Doubles same(double x)
{
    return (Doubles){x, x, x, x, x, x, x, x};
}

/* e^x for x <= 0, within a few ulp; 0 below -700. x = n ln 2 + r, and the power series of r in -0.35 … 0.35, of which
   13 terms leave 2e-16. */
INLINE Doubles exp_fp64(Doubles x)
{
    static const double factors[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                                     1.0 / 5040,      1.0 / 720,      1.0 / 120,     1.0 / 24,     1.0 / 6,
                                     0.5,             1,              1};
    const Longs tiny = x < -700.0;
    const Doubles near = (Doubles)(((Longs)same(-700) & tiny) | ((Longs)x & ~tiny));
    const Doubles shifted = near * 1.4426950408889634 + 6755399441055744.0; /* n in its lowest bits */
    const Doubles n = shifted - 6755399441055744.0;
    const Doubles r = (near - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    Doubles p = same(factors[0]);
    UNROLL for (unsigned i = 1; i < sizeof factors / sizeof *factors; i++)
        p = p * r + factors[i];
    const Doubles power = (Doubles)(((Longs)shifted << 52) + 0x3ff0000000000000);
    return (Doubles)((Longs)(p * power) & ~tiny);
}

/* Of eight numbers; 0 of those behind the last. */
INLINE Doubles weights(const float *x, long left, float largest)
{
    Eight numbers;
    if (left < DOUBLES) {
        numbers = (Eight){} - __builtin_inff();
        memcpy(&numbers, x, left * sizeof *x);
    } else
        memcpy(&numbers, x, sizeof numbers);
    return exp_fp64(__builtin_convertvector(numbers, Doubles) - (double)largest);
}

static double weigh_all(const float *x, long begin, long end, float largest)
{
    Doubles sums[2] = {};
    for (long i = begin; i < end; i += 2 * DOUBLES) {
        sums[0] += weights(x + i, end - i, largest);
        if (i + DOUBLES < end)
            sums[1] += weights(x + i + DOUBLES, end - i - DOUBLES, largest);
    }
    const Doubles sum = sums[0] + sums[1];
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

/* The first whose weight makes the sum of all up to it more than `target`; where rounding has none do so, the last with
   a weight; -1 where none has one. */
static int64_t pass(const float *x, long begin, long end, float largest, double target)
{
    double sum = 0;
    int64_t last = -1;
    for (long i = begin; i < end; i += DOUBLES) {
        const Doubles here = weights(x + i, end - i, largest);
        for (long lane = 0; lane < least(DOUBLES, end - i); lane++) {
            sum += here[lane];
            if (sum > target)
                return i + lane;
            if (here[lane] > 0)
                last = i + lane;
        }
    }
    return last;
}
