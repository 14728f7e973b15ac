/* See pool.h. Threads are started when first asked for; between jobs they spin for a moment, then sleep. */

#define _POSIX_C_SOURCE 200809L
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

#define MOST 256 /* threads */

/* How long a thread without work stays awake: a step's calls follow each other within some 50 µs, and waking up costs
   as much. Longer would take the core from whoever else has work. */
#define AWAKE_NS 100000

/* Of `state`: which job it is, whether parts of it may still be taken, how many helpers are inside. */
#define JOB ((uint64_t)1 << 32)
#define OPEN ((uint64_t)1 << 31)
#define INSIDE (OPEN - 1)

typedef struct {
    _Alignas(64) atomic_long next;
    long end;
} Portion;

static struct {
    _Alignas(64) atomic_uint_fast64_t state;
    _Alignas(64) atomic_int asleep;
    atomic_flag taken; /* by the caller whose job it is */
    int helpers;       /* threads there are beside the caller */
    long members;      /* that the job is shared among; the caller is number 0 */
    Part part;
    const void *job;
    Portion portions[MOST];
    pthread_mutex_t bed;
    pthread_cond_t wake;
} pool = {.taken = ATOMIC_FLAG_INIT, .bed = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static void pause_a_moment(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Own portion first, then what is left of the others'. */
static void work(long member)
{
    for (long i = 0; i < pool.members; i++) {
        Portion *portion = &pool.portions[(member + i) % pool.members];
        long part;
        while ((part = atomic_fetch_add_explicit(&portion->next, 1, memory_order_relaxed)) < portion->end)
            pool.part(pool.job, part);
    }
}

/* The state as soon as it is another job's than `seen`. */
static uint64_t await_job(uint64_t seen)
{
    uint64_t state;
    const int64_t until = now_ns() + AWAKE_NS;
    do
        for (int i = 0; i < 64; i++) {
            state = atomic_load(&pool.state);
            if (state / JOB != seen)
                return state;
            pause_a_moment();
        }
    while (now_ns() < until);
    pthread_mutex_lock(&pool.bed);
    atomic_fetch_add(&pool.asleep, 1); /* before the last look: who has put a job there then sees a sleeper */
    while ((state = atomic_load(&pool.state)) / JOB == seen)
        pthread_cond_wait(&pool.wake, &pool.bed);
    atomic_fetch_sub(&pool.asleep, 1);
    pthread_mutex_unlock(&pool.bed);
    return state;
}

static void *help(void *number)
{
    const long member = (long)(intptr_t)number;
    uint64_t seen = 0;
    for (;;) {
        uint64_t state = await_job(seen);
        seen = state / JOB;
        while (state / JOB == seen && state & OPEN) /* late for this one otherwise */
            if (atomic_compare_exchange_weak(&pool.state, &state, state + 1)) {
                if (member < pool.members)
                    work(member);
                atomic_fetch_sub(&pool.state, 1);
                break;
            }
    }
    return NULL;
}

/* A child of fork() has the memory, but none of the threads. */
static void forget_helpers(void)
{
    pool.helpers = 0;
    atomic_store(&pool.state, 0);
    atomic_store(&pool.asleep, 0);
    atomic_flag_clear(&pool.taken);
    pthread_mutex_init(&pool.bed, NULL);
    pthread_cond_init(&pool.wake, NULL);
}

/* As many helpers as asked for, or as many as there can be. Signals are for the threads that were there before. */
static void start_helpers(long wanted)
{
    static atomic_flag registered = ATOMIC_FLAG_INIT;
    sigset_t all, before;
    if (!atomic_flag_test_and_set(&registered))
        pthread_atfork(NULL, NULL, forget_helpers);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (pthread_t thread; pool.helpers < wanted; pool.helpers++) {
        if (pthread_create(&thread, NULL, help, (void *)(intptr_t)(pool.helpers + 1)))
            break;
        pthread_detach(thread);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void bloomery_share(Part part, const void *job, long parts, long threads)
{
    if (threads > MOST)
        threads = MOST;
    if (threads > parts)
        threads = parts;
    if (threads <= 1 || atomic_flag_test_and_set(&pool.taken)) {
        for (long i = 0; i < parts; i++)
            part(job, i);
        return;
    }
    if (pool.helpers < threads - 1)
        start_helpers(threads - 1);
    pool.part = part;
    pool.job = job;
    pool.members = pool.helpers + 1 < threads ? pool.helpers + 1 : threads;
    for (long i = 0; i < pool.members; i++) {
        atomic_store_explicit(&pool.portions[i].next, parts * i / pool.members, memory_order_relaxed);
        pool.portions[i].end = parts * (i + 1) / pool.members;
    }
    atomic_store(&pool.state, (atomic_load(&pool.state) / JOB + 1) * JOB + OPEN);
    if (atomic_load(&pool.asleep)) {
        pthread_mutex_lock(&pool.bed);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.bed);
    }
    work(0);
    atomic_fetch_and(&pool.state, ~OPEN);
    for (int spins = 0; atomic_load(&pool.state) & INSIDE; spins++) {
        pause_a_moment();
        if (spins > 1000) /* a helper has been interrupted within a part: perhaps it waits for this core */
            sched_yield();
    }
    atomic_flag_clear(&pool.taken);
}
