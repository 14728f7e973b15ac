/* y = x w^T + bias, with weights as they lie in a file, row by row. Included by level.inc.h once for each dtype, with
   KERNEL, TILE, TILES and REST as names; Number, and STEP of them at a time as a Vector; LOAD(p), DOT(sum, w, x) and
   LOAD_ONE(p), STORE_ONE(p, x).

   A tile is OUTPUTS by TOKENS at most, whose sums stay in registers while all of k goes by. Each sum has
   its own lanes, which are added up in the end in one order: an output's bits depend on its weights and its token
   alone. */

INLINE Vector REST(const Number *p, long left)
{
    Number padded[STEP] = {0};
    memcpy(padded, p, left * sizeof *p);
    return LOAD(padded);
}

INLINE void TILE(const Linear *l, long n, long m, const int rows, const int columns, const int order)
{
    const long k = l->k;
    const int in_turn = order == IN_TURN;
    const Number *w = (const Number *)l->weight + n * k, *x = (const Number *)l->x + m * k, *bias = l->bias;
    Number *y = (Number *)l->y + m * l->n + n;
    Sum sums[TOKENS][4];
    UNROLL for (int c = 0; c < columns; c++)
        UNROLL for (int r = 0; r < 4; r++)
            sums[c][r] = (Sum){0};
    UNROLL for (int first = 0; first < rows; first += in_turn ? 1 : rows) {
        const int last = in_turn ? first + 1 : rows;
        Vector a[OUTPUTS];
        long i = 0;
        for (; i + STEP <= k; i += STEP) {
            UNROLL for (int r = first; r < last; r++) {
                a[r] = LOAD(w + r * k + i);
                const long next = order == NEXT_IN_TURN ? rows * (k + i) + r * STEP : (rows + r) * k + i;
                if (order == NEXT_IN_TURN || order == NEXT) /* beyond the end does no harm */
                    __builtin_prefetch((const void *)((uintptr_t)w + next * sizeof(Number)));
            }
            UNROLL for (int c = 0; c < columns; c++) {
                const Vector b = LOAD(x + c * k + i);
                UNROLL for (int r = first; r < last; r++)
                    sums[c][r] = DOT(sums[c][r], a[r], b);
            }
        }
        if (i < k) {
            UNROLL for (int r = first; r < last; r++)
                a[r] = REST(w + r * k + i, k - i);
            UNROLL for (int c = 0; c < columns; c++) {
                const Vector b = REST(x + c * k + i, k - i);
                UNROLL for (int r = first; r < last; r++)
                    sums[c][r] = DOT(sums[c][r], a[r], b);
            }
        }
    }
    UNROLL for (int c = 0; c < columns; c++) {
        float out[4];
        add_up(sums[c][0], sums[c][1], sums[c][2], sums[c][3], out);
        UNROLL for (int r = 0; r < rows; r++)
            STORE_ONE(y + c * l->n + r, bias ? out[r] + LOAD_ONE(bias + n + r) : out[r]);
    }
}

INLINE void TILES(const Linear *l, long n, long m, long rows, long columns, const int few)
{
    const long bytes = l->k * sizeof(Number);
    if (rows < OUTPUTS) { /* the last outputs of all */
        for (long c = 0; c < columns; c++)
            for (long r = 0; r < rows; r++)
                TILE(l, n + r, m + c, 1, 1, PLAIN);
        return;
    }
    switch (columns) {
    case 1: TILE(l, n, m, OUTPUTS, 1, few ? IN_TURN : PLAIN); break;
#if TOKENS >= 2
    case 2:
        if (few && bytes <= PAGE)
            TILE(l, n, m, OUTPUTS, 2, IN_TURN);
        else
            TILE(l, n, m, OUTPUTS, 2, few ? NEXT : PLAIN);
        break;
#endif
#if TOKENS >= 4
    case 3: TILE(l, n, m, OUTPUTS, 3, few ? NEXT : PLAIN); break;
    case 4:
        if (few && bytes < PAGE)
            TILE(l, n, m, OUTPUTS, 4, NEXT_IN_TURN);
        else
            TILE(l, n, m, OUTPUTS, 4, few ? NEXT : PLAIN);
        break;
#endif
    }
}

static void KERNEL(const Linear *l, long n0, long n1, long m0, long m1)
{
    if (m1 - m0 <= FEW) /* weights come from memory once, and wait in the first cache for the next tokens */
        for (long n = n0; n < n1; n += OUTPUTS)
            for (long m = m0; m < m1; m += TOKENS)
                TILES(l, n, m, least(n1 - n, OUTPUTS), least(m1 - m, TOKENS), 1);
    else
        for (long m = m0; m < m1; m += TOKENS)
            for (long n = n0; n < n1; n += OUTPUTS)
                TILES(l, n, m, least(n1 - n, OUTPUTS), least(m1 - m, TOKENS), 0);
}

#undef KERNEL
#undef TILE
#undef TILES
#undef REST
#undef Number
#undef STEP
#undef Vector
#undef LOAD
#undef DOT
#undef LOAD_ONE
#undef STORE_ONE
