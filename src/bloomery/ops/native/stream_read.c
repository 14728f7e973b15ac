/* The ruler: reads memory as fast as this processor can. Knows nothing of tensors, Python and torch.

   The result of reading is the sum of all bytes. It depends on every byte, so no load can be left out, and neither on
   alignment nor on who reads which part, so it can be checked against any other way to add. */

#define _POSIX_C_SOURCE 200809L
#include "kernels.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

/* A team of threads, each with one contiguous panel of all that is read. */

typedef struct {
    const uint8_t *const *addresses;
    const size_t *sizes;
    size_t regions, total;
    const Kernels *kernels;
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
            sum += team->kernels->sum_bytes(team->addresses[i] + (left - first), right - left);
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

   level: of instructions, at most bloomery_highest_level().
   seconds: of the fastest pass. checksum: the sum of all bytes, modulo 2^64.
   Returns 0, or an errno when the threads could not be started. */
int bloomery_stream_read(const uint8_t *const *addresses, const size_t *sizes, size_t regions, int threads,
                         int passes, int level, double *seconds, uint64_t *checksum)
{
    Team team = {.addresses = addresses, .sizes = sizes, .regions = regions, .kernels = bloomery_kernels(level),
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
