/* A small pool of threads that run one piece of work together, stage by stage. */
#ifndef EDGESPARSE_POOL_H
#define EDGESPARSE_POOL_H

#pragma GCC visibility push(hidden)

typedef struct es_pool es_pool;

/* What every thread of the pool runs; `thread` counts from 0, which is the caller's own. */
typedef void (*es_work)(void *context, es_pool *pool, int thread, int threads);

/* A pool of `threads` threads, the caller among them; null where they cannot be had. */
es_pool *es_pool_create(int threads);
/* Join the threads and free the pool; null is allowed. */
void es_pool_destroy(es_pool *pool);
/* Whether the pool's threads exist in this process: after a fork they do not. */
int es_pool_usable(const es_pool *pool);
/* Run the work on all threads; returns when all are done. */
void es_pool_run(es_pool *pool, es_work work, void *context);
/* Inside of work: wait until all threads are here. */
void es_pool_barrier(es_pool *pool);

#pragma GCC visibility pop

#endif
