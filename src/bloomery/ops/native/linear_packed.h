/* y = x w^T + bias, with weights packed into panels of 16 outputs (quant/scheme.py has the format). Included by
   level.inc.h, after bytes.h.

   Tokens are rounded to 8 bits, group by group, each group with its own scale, so that products are added up as whole
   numbers, in lanes of an output each: exactly, in whatever order. What is left of rounding happens once a group, in
   the order of the groups: an output's bits depend on its weights and its token alone. */

typedef int8_t Signed __attribute__((vector_size(16)));

/* ---- tokens: rounded to 8 bits ---- */

/* Where the rounded tokens are, in `room`: 8-bit numbers, then a scale and a first sum of each group. */
INLINE int8_t *rounded(const Packed *p, long m)
{
    return (int8_t *)p->room + m * p->groups * p->group;
}

INLINE float *token_scales(const Packed *p, long m)
{
    return (float *)((int8_t *)p->room + p->m * p->groups * p->group) + m * p->groups;
}

/* What makes up for weights that are kept without a sign. */
INLINE int32_t *first_sums(const Packed *p, long m)
{
    return (int32_t *)token_scales(p, p->m) + m * p->groups;
}

/* Each number x of a group becomes round(x / scale), scale = its largest magnitude / 127. Where one is not finite the
   scale is NaN, and with it every output of the token. */
INLINE void round_group(const float *x, long group, int32_t offset, int8_t *q, float *scale, int32_t *first)
{
    const float magic = 12582912; /* 1.5 * 2^23: behind it a float has room for whole numbers alone, rounded to even */
    Words largest = {};
    Ints sums = {};
    uint32_t bits = 0;
    float most;
    int32_t sum = 0;
    for (long i = 0; i < group; i += LANES) { /* magnitudes are in order as bits, inf and NaN above all */
        const Words size = (Words)load_fp32(x + i) & 0x7fffffff, larger = (Words)(size > largest);
        largest = (size & larger) | (largest & ~larger);
    }
    for (int i = 0; i < LANES; i++)
        bits = largest[i] > bits ? largest[i] : bits;
    memcpy(&most, &bits, sizeof most);
    *scale = bits >= 0x7f800000 ? __builtin_nanf("") : most / 127;
    const Floats inverse = all(most > 1e-30f && bits < 0x7f800000 ? 127 / most : 0);
    for (long i = 0; i < group; i += LANES) {
        const Floats x_i = load_fp32(x + i), kept = bits < 0x7f800000 ? x_i : all(0);
        const Ints whole = (Ints)(kept * inverse + magic) - 0x4b400000;
        const Signed narrow = __builtin_convertvector(whole, Signed);
        memcpy(q + i, &narrow, sizeof narrow);
        sums += whole;
    }
    for (int i = 0; i < LANES; i++)
        sum += sums[i];
    *first = -offset * sum;
}

static void round_tokens(const Packed *p, long m0, long m1)
{
    const int32_t offset = p->bits == 8 ? OFFSET : 8;
    float x[MOST_GROUP];
    for (long m = m0; m < m1; m++)
        for (long g = 0; g < p->groups; g++) {
            const long begin = g * p->group, here = least(p->k - begin, p->group);
            for (long i = here; i < p->group; i++)
                x[i] = 0;
            if (p->dtype == BF16)
                for (long i = 0; i < here; i++)
                    x[i] = one_bf16((const uint16_t *)p->x + m * p->k + begin + i);
            else
                memcpy(x, (const float *)p->x + m * p->k + begin, here * sizeof *x);
            round_group(x, p->group, offset, rounded(p, m) + begin, token_scales(p, m) + g, first_sums(p, m) + g);
        }
}

/* ---- a panel and some tokens ---- */

INLINE void store_panel(const Packed *p, long n, long m, Floats y)
{
    const long here = least(p->n - n, PANEL);
    if (p->dtype == FP32) {
        float bias[PANEL] = {0}, out[PANEL];
        if (p->bias)
            memcpy(bias, (const float *)p->bias + n, here * sizeof *bias);
        store_fp32(out, y + load_fp32(bias));
        memcpy((float *)p->y + m * p->n + n, out, here * sizeof *out);
    } else {
        uint16_t bias[PANEL] = {0}, out[PANEL];
        if (p->bias)
            memcpy(bias, (const uint16_t *)p->bias + n, here * sizeof *bias);
        store_bf16(out, y + load_bf16(bias));
        memcpy((uint16_t *)p->y + m * p->n + n, out, here * sizeof *out);
    }
}

INLINE Sums add_block(Sums sums, Weights block, const int8_t *x, const int bits)
{
    if (bits == 8)
        return add_bytes(sums, as_bytes(block), x);
    return add_halves(add_halves(sums, low_halves(block), x), high_halves(block), x + 4);
}

/* Of 8 bits: 16 scales in fp32, then blocks of 16 outputs by 4 inputs. Of 4 bits: of each group 16 scales in bf16, then
   blocks of 16 outputs by 8 inputs, four in low halves of bytes and four in high. */
INLINE void one_panel(const Packed *p, const uint8_t *panel, long n, long m, const int bits, const int tokens)
{
    const uint8_t *w = bits == 8 ? panel + 4 * PANEL : panel;
    const long size = p->groups * p->group, inputs = bits == 8 ? 4 : 8;
    const int8_t *x = rounded(p, m);
    Floats y[MOST];
    UNROLL for (int c = 0; c < tokens; c++)
        y[c] = all(0);
    for (long g = 0; g < p->groups; g++) {
        const Floats scales = bits == 8 ? all(1) : load_bf16((const uint16_t *)w); /* times one changes nothing */
        Sums sums[MOST];
        UNROLL for (int c = 0; c < tokens; c++)
            sums[c] = sums_of(first_sums(p, m + c)[g]);
        w += bits == 8 ? 0 : 2 * PANEL;
        for (long i = 0; i < p->group; i += inputs, w += BLOCK_BYTES, x += inputs) {
            const Weights block = load_weights(w);
            __builtin_prefetch(w + AHEAD);
            UNROLL for (int c = 0; c < tokens; c++)
                sums[c] = add_block(sums[c], block, x + c * size, bits);
        }
        UNROLL for (int c = 0; c < tokens; c++)
            y[c] += as_floats(sums[c]) * (scales * token_scales(p, m + c)[g]);
    }
    UNROLL for (int c = 0; c < tokens; c++)
        store_panel(p, n, m + c, bits == 8 ? y[c] * load_fp32((const float *)panel) : y[c]);
}

INLINE void panels(const Packed *p, long n0, long n1, long m0, long m1, const int bits)
{
    for (long n = n0; n < n1; n += PANEL) {
        const uint8_t *w = (const uint8_t *)p->weight + n / PANEL * p->stride;
        long m = m0;
        for (; m + MOST <= m1; m += MOST)
            one_panel(p, w, n, m, bits, MOST);
        for (; MOST > 4 && m + 4 <= m1; m += 4)
            one_panel(p, w, n, m, bits, 4);
        for (; MOST > 2 && m + 2 <= m1; m += 2)
            one_panel(p, w, n, m, bits, 2);
        for (; m < m1; m++)
            one_panel(p, w, n, m, bits, 1);
    }
}

static void packed8(const Packed *p, long n0, long n1, long m0, long m1)
{
    panels(p, n0, n1, m0, m1, 8);
}

static void packed4(const Packed *p, long n0, long n1, long m0, long m1)
{
    panels(p, n0, n1, m0, m1, 4);
}
