/* The runtime in WebAssembly: memory that only grows, a clock from JavaScript, and the functions that JavaScript calls.
 *
 * An instance holds one model. Its memory goes with the instance, so nothing is ever released. */
#include "edgesparse.h"
#include "platform.h"
#include "program.h"

#include <stddef.h>

#define PAGE 65536u
#define LINE 64u

extern uint8_t __heap_base;

__attribute__((import_module("es"), import_name("now"))) double es_web_now(void);

const void *es_map_file(const char *path, uint64_t *bytes) {
    (void)path;
    *bytes = 0;
    return NULL;
}

void es_unmap_file(const void *address, uint64_t bytes) {
    (void)address;
    (void)bytes;
}

/* Linear memory is zero where it was never written, and nothing is written before it is given out. */
void *es_allocate(uint64_t bytes) {
    static uint64_t next;
    if (!next)
        next = (uint64_t)(uintptr_t)&__heap_base;
    const uint64_t start = (next + LINE - 1) / LINE * LINE;
    const uint64_t end = start + bytes;
    const uint64_t have = (uint64_t)__builtin_wasm_memory_size(0) * PAGE;
    if (bytes > 0xfff00000u || end > 0xfff00000u)
        return NULL;
    if (end > have && __builtin_wasm_memory_grow(0, (size_t)((end - have + PAGE - 1) / PAGE)) == (size_t)-1)
        return NULL;
    next = end;
    return (void *)(uintptr_t)start;
}

void es_release(void *address, uint64_t bytes) {
    (void)address;
    (void)bytes;
}

uint64_t es_clock_ns(void) {
    return (uint64_t)es_web_now();
}

/* What JavaScript calls. Sizes are 32 bits: a 64-bit number would be a BigInt there. */
#define EXPORT(name) __attribute__((export_name(name)))

static es_model *model;
static uint64_t *spent;

EXPORT("allocate") void *es_web_allocate(uint32_t bytes) {
    return es_allocate(bytes);
}

/* Make the model from its weights file in memory that `allocate` gave: a status. Memory does not grow after this. */
EXPORT("create") int32_t es_web_create(const void *weights, uint32_t bytes) {
    const int status = es_create_from_memory(weights, bytes, &model);
    if (status != ES_OK)
        return status;
    spent = es_allocate(sizeof(uint64_t) * (uint64_t)es_layer_count(model));
    return spent ? ES_OK : ES_NO_MEMORY;
}

EXPORT("input") void *es_web_input(int32_t index) {
    return es_input(model, index);
}

EXPORT("output") void *es_web_output(int32_t index) {
    return es_output(model, index);
}

#ifdef ES_THREADS
/* How many threads run the model from now on; all but the first are in `serve` by the time of the next run. */
EXPORT("threads") int32_t es_web_threads(int32_t threads) {
    return es_set_threads(model, threads);
}
#endif

/* Have the engine optimise what it can while the weights are on their way: see es_run_early. Without inputs, for nothing
 * but the time that it takes. */
EXPORT("warm") uint32_t es_web_warm(uint32_t index, uint32_t bytes) {
    return es_run_early(model, index, bytes);
}

EXPORT("run") int32_t es_web_run(void) {
    return es_run(model);
}

/* One run of its own: the address of the nanoseconds spent in each layer, 64 bits each. */
EXPORT("profile") void *es_web_profile(void) {
    es_profile(model, spent);
    return spent;
}
