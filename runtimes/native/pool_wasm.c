/* The pool on web workers. JavaScript starts them; each has an instance of the module on the same memory, with a stack of its
 * own, and stays in `serve` until the pool ends. One pool for the one model of an instance.
 *
 * Threads spin for each other a while and then sleep, all but the first one in a page: the page's own thread must not sleep,
 * and goes on spinning. */
#include "pool.h"

#include <stddef.h>
#include <stdint.h>

/* Looks at a word before a thread goes to sleep: about as long as waking it would take. */
#define SPINS 50000
/* Looks that make a brief wait: longer than a thread that is awake needs to come. */
#define BRIEF 1000

struct es_pool {
    es_work work;
    void *context;
    uint32_t runs; /* atomic: the runs that were started */
    int threads;
};

static es_pool pool;

/* Sleep while the word holds the value, or return at once where sleeping is not allowed. */
__attribute__((import_module("es"), import_name("sleep"))) void es_web_sleep(const uint32_t *word, uint32_t value);

static void wait_while(const uint32_t *word, uint32_t value) {
    for (int spins = 0; __atomic_load_n(word, __ATOMIC_ACQUIRE) == value; spins++)
        if (spins >= SPINS)
            es_web_sleep(word, value);
}

static void advance(uint32_t *word) {
    __atomic_add_fetch(word, 1, __ATOMIC_RELEASE);
    __builtin_wasm_memory_atomic_notify((int *)word, 0xffffffffu);
}

int es_pool_wait(const uint32_t *counter, uint32_t value, int briefly) {
    for (int spins = 0;; spins++) {
        const uint32_t now = __atomic_load_n(counter, __ATOMIC_ACQUIRE);
        if ((int32_t)(now - value) >= 0)
            return 1;
        if (briefly && spins == BRIEF)
            return 0;
        if (spins >= SPINS)
            es_web_sleep(counter, now);
    }
}

void es_pool_add(uint32_t *counter, uint32_t value) {
    if (__atomic_add_fetch(counter, 1, __ATOMIC_ACQ_REL) == value)
        __builtin_wasm_memory_atomic_notify((int *)counter, 0xffffffffu);
}

/* What a worker does until the pool ends. */
__attribute__((export_name("serve"))) void es_web_serve(int index) {
    for (uint32_t seen = 0;; seen++) {
        wait_while(&pool.runs, seen);
        const es_work work = __atomic_load_n(&pool.work, __ATOMIC_ACQUIRE);
        if (!work)
            return;
        work(pool.context, &pool, seen + 1, index, pool.threads);
    }
}

es_pool *es_pool_create(int threads) {
    pool.threads = threads;
    return &pool;
}

/* The workers return; a pool is not made twice. */
void es_pool_destroy(es_pool *it) {
    if (!it)
        return;
    __atomic_store_n(&it->work, NULL, __ATOMIC_RELEASE);
    advance(&it->runs);
}

int es_pool_usable(const es_pool *it) {
    return it->threads > 1;
}

void es_pool_run(es_pool *it, es_work work, void *context) {
    it->work = work;
    it->context = context;
    advance(&it->runs);
    work(context, it, it->runs, 0, it->threads);
}
