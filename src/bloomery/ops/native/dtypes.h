/* Numbers of a dtype that a call names: read as fp32, and written rounded. Included by level.inc.h, after lanes.h. */

INLINE const void *at(const void *p, long place, int64_t dtype)
{
    return (const char *)p + place * (dtype == FP32 ? 4 : 2);
}

INLINE float load_one(const void *p, long place, int64_t dtype)
{
    return dtype == FP32 ? ((const float *)p)[place] : one_bf16((const uint16_t *)p + place);
}

INLINE void store_one(void *p, long place, int64_t dtype, float x)
{
    if (dtype == FP32)
        ((float *)p)[place] = x;
    else
        put_bf16((uint16_t *)p + place, x);
}

INLINE Floats load_sixteen(const void *row, long i, int64_t dtype)
{
    return dtype == FP32 ? load_fp32((const float *)row + i) : load_bf16((const uint16_t *)row + i);
}

/* Sixteen numbers of a row, or what is left of them and zeros. */
INLINE Floats load_some(const void *row, long i, long left, int64_t dtype)
{
    if (left >= LANES)
        return load_sixteen(row, i, dtype);
    if (dtype == FP32) {
        float rest[LANES] = {0};
        memcpy(rest, (const float *)row + i, left * sizeof *rest);
        return load_fp32(rest);
    }
    uint16_t rest[LANES] = {0};
    memcpy(rest, (const uint16_t *)row + i, left * sizeof *rest);
    return load_bf16(rest);
}

INLINE void store_some(void *row, long i, long left, int64_t dtype, Floats x)
{
    const long here = least(left, LANES);
    if (dtype == FP32) {
        float rest[LANES];
        store_fp32(rest, x);
        memcpy((float *)row + i, rest, here * sizeof *rest);
    } else {
        uint16_t rest[LANES];
        store_bf16(rest, x);
        memcpy((uint16_t *)row + i, rest, here * sizeof *rest);
    }
}
