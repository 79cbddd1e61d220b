/* A small pool of threads that run one piece of work together, stage by stage. */
#ifndef EDGESPARSE_POOL_H
#define EDGESPARSE_POOL_H

#include <stdint.h>

#pragma GCC visibility push(hidden)

typedef struct es_pool es_pool;

/* What every thread of the pool runs. `run` counts the runs of the pool from 1, `thread` counts from 0, which is the
 * caller's own. A thread may come late: after a run that the others have ended without it, or into the next one. */
typedef void (*es_work)(void *context, es_pool *pool, uint32_t run, int thread, int threads);

/* A pool of `threads` threads, the caller among them; null where they cannot be had. */
es_pool *es_pool_create(int threads);
/* Join the threads and free the pool; null is allowed. */
void es_pool_destroy(es_pool *pool);
/* Whether the pool's threads exist in this process: after a fork they do not. */
int es_pool_usable(const es_pool *pool);
/* Run the work on all threads; returns when the caller's own part does. */
void es_pool_run(es_pool *pool, es_work work, void *context);
/* Inside of work: wait until a counter has reached a value, or only `briefly`; whether it has. */
int es_pool_wait(const uint32_t *counter, uint32_t value, int briefly);
/* Inside of work: add one to a counter; threads that wait for it to reach `value` are woken when it does. */
void es_pool_add(uint32_t *counter, uint32_t value);

#pragma GCC visibility pop

#endif
