/* The sum of bytes: what a streaming read does with what it reads. Included by level.inc.h.

   One pass that loads each byte once, in registers of the level's own width; what does not fill one is added up in
   words. */

/* In words of eight bytes, of any alignment. */
static uint64_t sum_words(const uint8_t *p, size_t n)
{
    const uint64_t even = 0x00ff00ff00ff00ff;
    uint64_t sum = 0;
    while (n >= 8) {
        /* Four 16-bit lanes: each takes two bytes a word, and 128 * 2 * 255 still fits. Compilers vectorize this. */
        const size_t words = n / 8 < 128 ? n / 8 : 128;
        uint64_t lanes = 0;
        for (size_t i = 0; i < words; i++) {
            uint64_t word;
            memcpy(&word, p + 8 * i, 8);
            lanes += (word & even) + (word >> 8 & even);
        }
        sum += (lanes & 0xffff) + (lanes >> 16 & 0xffff) + (lanes >> 32 & 0xffff) + (lanes >> 48);
        p += 8 * words;
        n -= 8 * words;
    }
    while (n--)
        sum += *p++;
    return sum;
}

/* Whole lines of 64 bytes from an address that is a multiple of 64: how many of n bytes that are, and their sum. */
#if defined(__AVX512BW__)
INLINE size_t sum_lines(const uint8_t *p, size_t n, uint64_t *sum)
{
    const __m512i zero = _mm512_setzero_si512();
    const size_t size = n / 128 * 128;
    __m512i a = zero, b = zero;
    for (const uint8_t *end = p + size; p < end; p += 128) {
        __builtin_prefetch(p + AHEAD);
        __builtin_prefetch(p + AHEAD + 64);
        a = _mm512_add_epi64(a, _mm512_sad_epu8(_mm512_load_si512(p), zero));
        b = _mm512_add_epi64(b, _mm512_sad_epu8(_mm512_load_si512(p + 64), zero));
    }
    *sum += (uint64_t)_mm512_reduce_add_epi64(_mm512_add_epi64(a, b));
    return size;
}
#elif defined(__AVX2__)
INLINE size_t sum_lines(const uint8_t *p, size_t n, uint64_t *sum)
{
    const __m256i zero = _mm256_setzero_si256();
    const size_t size = n / 64 * 64;
    __m256i a = zero, b = zero;
    uint64_t parts[4];
    for (const uint8_t *end = p + size; p < end; p += 64) {
        __builtin_prefetch(p + AHEAD);
        a = _mm256_add_epi64(a, _mm256_sad_epu8(_mm256_load_si256((const __m256i *)p), zero));
        b = _mm256_add_epi64(b, _mm256_sad_epu8(_mm256_load_si256((const __m256i *)(p + 32)), zero));
    }
    _mm256_storeu_si256((__m256i *)parts, _mm256_add_epi64(a, b));
    *sum += parts[0] + parts[1] + parts[2] + parts[3];
    return size;
}
#else
INLINE size_t sum_lines(const uint8_t *p, size_t n, uint64_t *sum)
{
    *sum += sum_words(p, n);
    return n;
}
#endif

static uint64_t sum_bytes(const uint8_t *p, size_t n)
{
    const size_t to_line = -(uintptr_t)p & 63, head = to_line < n ? to_line : n;
    uint64_t sum = sum_words(p, head);
    const size_t lines = sum_lines(p + head, n - head, &sum);
    return sum + sum_words(p + head + lines, n - head - lines);
}
