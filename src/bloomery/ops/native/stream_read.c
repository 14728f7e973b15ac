/* The ruler: reads memory as fast as this processor can. Knows nothing of tensors, Python and torch.

   The result of reading is the sum of all bytes. It depends on every byte, so no load can be left out, and neither on
   alignment nor on who reads which part, so it can be checked against any other way to add. */

#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef uint64_t (*SumBytes)(const uint8_t *p, size_t n);

/* ---- one thread: the sum of n bytes, in three widths ---- */

static uint64_t sum_portable(const uint8_t *p, size_t n)
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

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_X86 1
#include <immintrin.h>

/* How far ahead of the loads. Prefetching never faults, so running past the end does no harm. */
#define AHEAD(p, offset) _mm_prefetch((const char *)((uintptr_t)(p) + 2048 + (offset)), _MM_HINT_T0)

static size_t to_boundary(const uint8_t *p, size_t n)
{
    const size_t head = -(uintptr_t)p & 63;
    return head < n ? head : n;
}

__attribute__((target("avx2"))) static uint64_t sum_avx2(const uint8_t *p, size_t n)
{
    const size_t head = to_boundary(p, n);
    const __m256i zero = _mm256_setzero_si256();
    __m256i a = zero, b = zero;
    uint64_t parts[4], sum = sum_portable(p, head);
    for (p += head, n -= head; n >= 64; p += 64, n -= 64) {
        AHEAD(p, 0);
        a = _mm256_add_epi64(a, _mm256_sad_epu8(_mm256_load_si256((const __m256i *)p), zero));
        b = _mm256_add_epi64(b, _mm256_sad_epu8(_mm256_load_si256((const __m256i *)(p + 32)), zero));
    }
    _mm256_storeu_si256((__m256i *)parts, _mm256_add_epi64(a, b));
    sum += parts[0] + parts[1] + parts[2] + parts[3];
    return sum + sum_portable(p, n);
}

__attribute__((target("avx512f,avx512bw"))) static uint64_t sum_avx512(const uint8_t *p, size_t n)
{
    const size_t head = to_boundary(p, n);
    const __m512i zero = _mm512_setzero_si512();
    __m512i a = zero, b = zero;
    uint64_t sum = sum_portable(p, head);
    for (p += head, n -= head; n >= 128; p += 128, n -= 128) {
        AHEAD(p, 0);
        AHEAD(p, 64);
        a = _mm512_add_epi64(a, _mm512_sad_epu8(_mm512_load_si512(p), zero));
        b = _mm512_add_epi64(b, _mm512_sad_epu8(_mm512_load_si512(p + 64), zero));
    }
    sum += (uint64_t)_mm512_reduce_add_epi64(_mm512_add_epi64(a, b));
    return sum + sum_portable(p, n);
}
#endif

/* The widest of `ways` (see choose) that this processor and its operating system have. */
int bloomery_stream_widest(void)
{
#ifdef HAS_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
        return 2;
    if (__builtin_cpu_supports("avx2"))
        return 1;
#endif
    return 0;
}

static SumBytes choose(int way)
{
#ifdef HAS_X86
    static const SumBytes ways[] = {sum_portable, sum_avx2, sum_avx512};
#else
    static const SumBytes ways[] = {sum_portable};
#endif
    return ways[way];
}

/* ---- a team of threads, each with one contiguous panel of all that is read ---- */

typedef struct {
    const uint8_t *const *addresses;
    const size_t *sizes;
    size_t regions, total;
    SumBytes sum_bytes;
    int threads, passes;
    double best;               /* seconds, written by member 0 alone */
    atomic_int go;             /* 0 wait, 1 read, -1 give up: not all threads could be started */
    atomic_int arrived, round; /* of the barrier */
} Team;

typedef struct {
    Team *team;
    int rank;
    uint64_t sum;
    pthread_t thread;
} Member;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* A short spin keeps waking up out of the measurement; then the core is left to whoever has work. */
static void await_change(atomic_int *value, int from)
{
    for (int spins = 0; atomic_load(value) == from; spins++)
        if (spins >= 2000) {
            sched_yield();
            spins = 0;
        }
}

static void meet(Team *team)
{
    const int round = atomic_load(&team->round);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == team->threads) {
        atomic_store(&team->arrived, 0);
        atomic_fetch_add(&team->round, 1);
    } else {
        await_change(&team->round, round);
    }
}

/* Bytes from … to of the regions laid end to end. */
static uint64_t read_panel(const Team *team, size_t from, size_t to)
{
    uint64_t sum = 0;
    size_t first = 0;
    for (size_t i = 0; i < team->regions && first < to; first += team->sizes[i++]) {
        const size_t end = first + team->sizes[i];
        const size_t left = from > first ? from : first, right = to < end ? to : end;
        if (left < right)
            sum += team->sum_bytes(team->addresses[i] + (left - first), right - left);
    }
    return sum;
}

static void *work(void *argument)
{
    Member *me = argument;
    Team *team = me->team;
    const size_t share = team->total / team->threads;
    const size_t from = share * me->rank;
    const size_t to = me->rank + 1 == team->threads ? team->total : from + share;
    await_change(&team->go, 0);
    if (atomic_load(&team->go) < 0)
        return NULL;
    meet(team);
    for (int pass = 0; pass < team->passes; pass++) {
        const double start = now(); /* before the barrier: a late wake-up must not make the machine look faster */
        meet(team);
        me->sum = read_panel(team, from, to);
        meet(team);
        const double seconds = now() - start;
        if (me->rank == 0 && (pass == 0 || seconds < team->best))
            team->best = seconds;
    }
    return NULL;
}

/* Read `regions` of memory `passes` times with `threads` threads, this one among them.

   way: 0 portable, 1 AVX2, 2 AVX-512, at most bloomery_stream_widest().
   seconds: of the fastest pass. checksum: the sum of all bytes, modulo 2^64.
   Returns 0, or an errno when the threads could not be started. */
int bloomery_stream_read(const uint8_t *const *addresses, const size_t *sizes, size_t regions, int threads,
                         int passes, int way, double *seconds, uint64_t *checksum)
{
    Team team = {.addresses = addresses, .sizes = sizes, .regions = regions, .sum_bytes = choose(way),
                 .threads = threads, .passes = passes};
    Member *members = calloc(threads, sizeof *members);
    int started = 1, failed = 0;
    if (!members)
        return ENOMEM;
    for (size_t i = 0; i < regions; i++)
        team.total += sizes[i];
    for (int rank = 0; rank < threads; rank++)
        members[rank] = (Member){.team = &team, .rank = rank};
    while (started < threads && !failed) {
        failed = pthread_create(&members[started].thread, NULL, work, &members[started]);
        started += !failed;
    }
    atomic_store(&team.go, failed ? -1 : 1);
    work(&members[0]);
    *seconds = team.best;
    *checksum = members[0].sum;
    for (int rank = 1; rank < started; rank++) {
        pthread_join(members[rank].thread, NULL);
        *checksum += members[rank].sum;
    }
    free(members);
    return failed;
}
