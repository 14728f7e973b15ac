/* What happens to each token, or to each number, on its own: norms, activations, sums. In fp32, rounded once at the end.
   Included by level.inc.h, after dtypes.h. */

INLINE void norm_row(const Norm *c, long m, int64_t dtype)
{
    const void *x = at(c->x, m * c->width, dtype);
    Floats sum = all(0), squares = all(0);
    float mean = 0;
    if (c->centred) {
        for (long i = 0; i < c->width; i += LANES)
            sum += load_some(x, i, c->width - i, dtype);
        mean = lane_sum(sum) / c->width;
    }
    for (long i = 0; i < c->width; i += LANES) {
        const Ints here = (Ints){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} < (int32_t)least(c->width - i, LANES);
        const Floats away = load_some(x, i, c->width - i, dtype) - mean;
        squares += choose(here, away * away, all(0));
    }
    const float variance = lane_sum(squares) / c->width;
    const float scale = 1 / __builtin_sqrtf(variance + (float)c->epsilon);
    for (long i = 0; i < c->width; i += LANES) {
        const long left = c->width - i;
        Floats y = (load_some(x, i, left, dtype) - mean) * scale;
        y *= load_some(c->weight, i, left, dtype);
        if (c->bias)
            y += load_some(c->bias, i, left, dtype);
        store_some((void *)at(c->y, m * c->width, dtype), i, left, dtype, y);
    }
}

static void norm(const Norm *c, long m0, long m1)
{
    if (c->dtype == FP32)
        for (long m = m0; m < m1; m++)
            norm_row(c, m, FP32);
    else
        for (long m = m0; m < m1; m++)
            norm_row(c, m, BF16);
}

/* 1 / (1 + e^-x), by e^-|x|, which cannot overflow. */
INLINE Floats sigmoid(Floats x)
{
    const Floats small = exp_fp32((Floats)((Words)x | 0x80000000));
    return choose(x < 0, small, all(1)) / (1 + small);
}

/* The error function, within 1e-7: a polynomial near zero, else 1 - e^-P(|x|). */
INLINE Floats erf_fp32(Floats x)
{
    const Floats size = (Floats)((Words)x & 0x7fffffff), square = x * x;
    const Floats far_size = choose(size > 4.0f, all(4), size); /* erf(4) is 1 in fp32 */
    Floats p = far_size * -1.72853470e-5f + 3.83197126e-4f;
    const Floats q = far_size * -3.88396438e-3f + 2.42546219e-2f;
    p = p * (far_size * far_size) + q;
    p = p * far_size - 1.06777877e-1f;
    p = p * far_size - 6.34846687e-1f;
    p = p * far_size - 1.28717512e-1f;
    p = p * far_size - far_size;
    const Floats beyond = (Floats)((Words)(1 - exp_fp32(p)) | ((Words)x & 0x80000000));
    Floats near = square * -5.96761703e-4f + 4.99119423e-3f;
    near = near * square - 2.67681349e-2f;
    near = near * square + 1.12819925e-1f;
    near = near * square - 3.76125336e-1f;
    near = near * square + 1.28379166e-1f;
    return choose(size > 0.927734375f, beyond, near * x + x);
}

INLINE Floats activated(Floats x, const int64_t activation)
{
    switch (activation) {
    case GELU: return 0.5f * x * (1 + erf_fp32(x * 0.70710678f));
    case GELU_TANH: return x * sigmoid(1.5957691f * (x + 0.044715f * x * x * x)); /* (1 + tanh(u)) / 2 = sigmoid(2 u) */
    case SILU: return x * sigmoid(x);
    case RELU: return choose(x < 0, all(0), x);
    default: return x;
    }
}

INLINE void each_some(const Each *c, long begin, long end, const int64_t activation, const int64_t dtype)
{
    for (long i = begin; i < end; i += LANES) {
        Floats y = activated(load_some(c->x, i, end - i, dtype), activation);
        if (c->times)
            y *= load_some(c->times, i, end - i, dtype);
        if (c->plus)
            y += load_some(c->plus, i, end - i, dtype);
        store_some(c->y, i, end - i, c->wide ? FP32 : dtype, y);
    }
}

/* Which number, and where first: each lane remembers the first place of its own largest. */
static void largest(const float *x, long begin, long end, float *value, int64_t *place)
{
    const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Floats most = all(-__builtin_inff());
    Ints places = lanes, nan = {};
    long i = begin;
    for (; i + LANES <= end; i += LANES) {
        const Floats here = load_fp32(x + i);
        const Ints more = here > most;
        most = choose(more, here, most);
        places = (more & (lanes + (int32_t)(i - begin))) | (~more & places);
        nan |= here != here;
    }
    *value = -__builtin_inff();
    *place = begin;
    int found = 0, missing = 0;
    for (int lane = 0; lane < LANES && i > begin; lane++) {
        const long at = begin + places[lane];
        missing |= nan[lane] != 0;
        if (!found || most[lane] > *value || (most[lane] == *value && at < *place)) {
            *value = most[lane];
            *place = at;
            found = 1;
        }
    }
    for (; i < end; i++) {
        missing |= x[i] != x[i];
        if (x[i] > *value) {
            *value = x[i];
            *place = i;
        }
    }
    if (missing)
        *value = __builtin_nanf("");
}

static void each(const Each *c, long begin, long end)
{
#define CASE(activation)                                                                                               \
    case activation:                                                                                                   \
        if (c->dtype == FP32)                                                                                          \
            each_some(c, begin, end, activation, FP32);                                                                \
        else                                                                                                           \
            each_some(c, begin, end, activation, BF16);                                                                \
        break;
    switch (c->activation) {
        CASE(NONE)
        CASE(GELU)
        CASE(GELU_TANH)
        CASE(SILU)
        CASE(RELU)
    }
#undef CASE
}

static void gather(const Gather *c, long m0, long m1)
{
    for (long m = m0; m < m1; m++)
        for (long i = 0; i < c->width; i += LANES) {
            const long left = c->width - i, place = c->places[m];
            Floats y = all(__builtin_nanf(""));
            if (place >= 0 && place < c->rows)
                y = load_some(at(c->table, place * c->width, c->dtype), i, left, c->dtype);
            if (c->plus)
                y += load_some(at(c->plus, m * c->width, c->dtype), i, left, c->dtype);
            store_some((void *)at(c->y, m * c->width, c->dtype), i, left, c->dtype, y);
        }
}

INLINE void rotate_token(const Rotate *c, long m, const int64_t dtype)
{
    const long half = c->half, size = c->size;
    const float *cosine = c->cosine + m * half, *sine = c->sine + m * half;
    for (long head = 0; head < c->heads; head++) {
        const long from = m * c->token_stride + head / c->shared * c->group_stride + head % c->shared * size;
        const long to = (m * c->heads + head) * size;
        for (long i = 0; i < half; i++) {
            const float a = load_one(c->x, from + i, dtype), b = load_one(c->x, from + half + i, dtype);
            store_one(c->y, to + i, dtype, a * cosine[i] - b * sine[i]);
            store_one(c->y, to + half + i, dtype, b * cosine[i] + a * sine[i]);
        }
        memcpy((void *)at(c->y, to + 2 * half, dtype), at(c->x, from + 2 * half, dtype),
               (size - 2 * half) * (dtype == FP32 ? 4 : 2));
    }
}

static void rotate(const Rotate *c, long m0, long m1)
{
    for (long m = m0; m < m1; m++)
        if (c->dtype == FP32)
            rotate_token(c, m, FP32);
        else
            rotate_token(c, m, BF16);
}
