/* The pool on POSIX threads. After a run the workers look out for the next one for a moment and then sleep; within a run
 * they spin for each other, since stages follow each other within microseconds, and give the core away when that takes
 * long. */
#define _GNU_SOURCE

#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

/* Looks at a counter before a thread offers its core to others: some hundreds of microseconds. */
#define SPINS 20000
/* Looks that make a brief wait: a microsecond or two, longer than a thread that is awake needs to come. */
#define BRIEF 100
/* Looks at the count of runs before a worker sleeps: waking it would take as long. */
#define LINGERS 4000

typedef struct worker {
    es_pool *pool;
    pthread_t id;
    int index;
} worker;

struct es_pool {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    es_work work;
    void *context;
    uint32_t runs;     /* counts the runs that were started: written under the lock, read by workers that linger */
    int asleep;        /* under the lock: workers that must be woken */
    int quit;          /* under the lock */
    int threads;
    pid_t process;
    worker workers[];
};

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ __volatile__("yield");
#endif
}

int es_pool_wait(const uint32_t *counter, uint32_t value, int briefly) {
    for (int spins = 0; (int32_t)(__atomic_load_n(counter, __ATOMIC_ACQUIRE) - value) < 0; spins++) {
        if (briefly && spins == BRIEF)
            return 0;
        if (spins < SPINS)
            relax();
        else
            sched_yield();
    }
    return 1;
}

void es_pool_add(uint32_t *counter, uint32_t value) {
    (void)value; /* nobody sleeps within a run */
    __atomic_add_fetch(counter, 1, __ATOMIC_ACQ_REL);
}

static void *serve(void *argument) {
    worker *self = argument;
    es_pool *pool = self->pool;
    uint32_t seen = 0;
    for (;;) {
        for (int looks = 0; looks < LINGERS && __atomic_load_n(&pool->runs, __ATOMIC_RELAXED) == seen; looks++)
            relax();
        pthread_mutex_lock(&pool->lock);
        pool->asleep++;
        while (pool->runs == seen && !pool->quit)
            pthread_cond_wait(&pool->wake, &pool->lock);
        pool->asleep--;
        const int quit = pool->quit;
        const es_work work = pool->work;
        void *context = pool->context;
        seen = pool->runs;
        pthread_mutex_unlock(&pool->lock);
        if (quit)
            return NULL;
        work(context, pool, seen, self->index, pool->threads);
    }
}

es_pool *es_pool_create(int threads) {
    es_pool *pool = calloc(1, sizeof(es_pool) + (size_t)threads * sizeof(worker));
    if (!pool)
        return NULL;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->process = getpid();
    pool->threads = 1;
    for (int index = 1; index < threads; index++) {
        pool->workers[index].pool = pool;
        pool->workers[index].index = index;
        if (pthread_create(&pool->workers[index].id, NULL, serve, &pool->workers[index])) {
            es_pool_destroy(pool);
            return NULL;
        }
        pool->threads = index + 1;
    }
    return pool;
}

void es_pool_destroy(es_pool *pool) {
    if (!pool)
        return;
    if (es_pool_usable(pool)) {
        pthread_mutex_lock(&pool->lock);
        pool->quit = 1;
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
        for (int index = 1; index < pool->threads; index++)
            pthread_join(pool->workers[index].id, NULL);
        pthread_cond_destroy(&pool->wake);
        pthread_mutex_destroy(&pool->lock);
    }
    free(pool);
}

int es_pool_usable(const es_pool *pool) {
    return pool->process == getpid();
}

void es_pool_run(es_pool *pool, es_work work, void *context) {
    pthread_mutex_lock(&pool->lock);
    pool->work = work;
    pool->context = context;
    __atomic_store_n(&pool->runs, pool->runs + 1, __ATOMIC_RELAXED);
    if (pool->asleep)
        pthread_cond_broadcast(&pool->wake);
    const uint32_t run = pool->runs;
    pthread_mutex_unlock(&pool->lock);
    work(context, pool, run, 0, pool->threads);
}
