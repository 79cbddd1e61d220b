/* What the runtime needs of the machine below it; one file per kind of machine implements it. */
#ifndef EDGESPARSE_PLATFORM_H
#define EDGESPARSE_PLATFORM_H

#include <stdint.h>

#pragma GCC visibility push(hidden)

/* Map a file read-only, without copying it: its address, or null, and its size. A file of no bytes gives null. */
const void *es_map_file(const char *path, uint64_t *bytes);
void es_unmap_file(const void *address, uint64_t bytes);

/* Zeroed memory, page aligned where there are pages, else 64-byte aligned; null where there is not enough. */
void *es_allocate(uint64_t bytes);
void es_release(void *address, uint64_t bytes);

/* A monotonic clock in nanoseconds. */
uint64_t es_clock_ns(void);

#pragma GCC visibility pop

#endif
