/* The runtime: one model is a table of kernel calls over one arena and one mapped weights file.
 *
 * Freestanding C: what needs a system is in platform_*.c. */
#include "edgesparse.h"
#include "platform.h"
#include "program.h"
#ifdef ES_THREADS
#include "pool.h"
#endif

#include <stddef.h>

#ifndef ES_VERSION
#define ES_VERSION "unversioned" /* the builder gives the real one */
#endif

/* The model's own record lies in a page of its own before the arena, so that one allocation serves both. */
#define RECORD_BYTES 4096

struct es_model {
    const es_program *program;
    /* Indexed by the top bit of a reference: the arena, the weights. */
    uint8_t *bases[2];
    uint64_t mapped_bytes; /* 0 where the weights belong to the caller */
#ifdef ES_THREADS
    es_pool *pool; /* null while there is one thread */
    uint32_t done; /* atomic: strips ended since the pool was made */
    uint32_t begun[ES_MOST_STRIPS]; /* atomic: the last stage that was begun of each strip */
#endif
};

int32_t es_abi(void) {
    return ES_ABI;
}

const char *es_version(void) {
    return ES_VERSION;
}

const char *es_error(int status) {
    switch (status) {
    case ES_OK: return "no error";
    case ES_CANNOT_OPEN: return "the weights file is missing, empty or cannot be read";
    case ES_WRONG_SIZE: return "the weights file is truncated or has extra bytes";
    case ES_NOT_WEIGHTS: return "the file is not a weights file of this version";
    case ES_OTHER_MODEL: return "the weights file belongs to another model";
    case ES_NO_MEMORY: return "not enough memory for the arena";
    case ES_BAD_ARGUMENT: return "a null pointer, or a number that the model does not allow, was given";
    case ES_NO_THREADS: return "the threads cannot be started";
    default: return "unknown status";
    }
}

static int bytes_differ(const uint8_t *a, const uint8_t *b, int count) {
    int differ = 0;
    for (int i = 0; i < count; i++)
        differ |= a[i] ^ b[i];
    return differ;
}

static int check_weights(const es_program *program, const void *weights, uint64_t bytes) {
    const es_weights_header *header = weights;
    if (bytes < ES_HEADER_BYTES)
        return ES_WRONG_SIZE;
    if (bytes_differ(header->magic, (const uint8_t *)ES_WEIGHTS_MAGIC, 8) ||
        header->version != ES_WEIGHTS_VERSION || header->header_bytes != ES_HEADER_BYTES)
        return ES_NOT_WEIGHTS;
    if (header->file_bytes != bytes)
        return ES_WRONG_SIZE;
    if (bytes != program->weights_bytes || bytes_differ(header->digest, program->digest, 32))
        return ES_OTHER_MODEL;
    return ES_OK;
}

static int create(const es_program *program, const void *weights, uint64_t bytes, es_model **out) {
    if (!out)
        return ES_BAD_ARGUMENT;
    *out = NULL;
    if (!weights)
        return ES_BAD_ARGUMENT;
    int status = check_weights(program, weights, bytes);
    if (status != ES_OK)
        return status;
    uint8_t *memory = es_allocate(RECORD_BYTES + program->arena_bytes);
    if (!memory)
        return ES_NO_MEMORY;
    es_model *model = (es_model *)memory;
    model->program = program;
    model->bases[0] = memory + RECORD_BYTES;
    model->bases[1] = (uint8_t *)(uintptr_t)weights;
    model->mapped_bytes = 0;
    *out = model;
    return ES_OK;
}

int es_create_from_memory(const void *weights, uint64_t bytes, es_model **out) {
    return create(&es_main_program, weights, bytes, out);
}

int es_create_program(const es_program *program, const char *weights_path, es_model **out) {
    uint64_t bytes;
    if (!out)
        return ES_BAD_ARGUMENT;
    *out = NULL;
    if (!weights_path)
        return ES_BAD_ARGUMENT;
    const void *weights = es_map_file(weights_path, &bytes);
    if (!weights)
        return ES_CANNOT_OPEN;
    int status = create(program, weights, bytes, out);
    if (status == ES_OK)
        (*out)->mapped_bytes = bytes;
    else
        es_unmap_file(weights, bytes);
    return status;
}

int es_create(const char *weights_path, es_model **out) {
    return es_create_program(&es_main_program, weights_path, out);
}

void es_destroy(es_model *model) {
    if (!model)
        return;
#ifdef ES_THREADS
    es_pool_destroy(model->pool);
#endif
    if (model->mapped_bytes)
        es_unmap_file(model->bases[1], model->mapped_bytes);
    es_release(model, RECORD_BYTES + model->program->arena_bytes);
}

int32_t es_input_count(const es_model *model) {
    return model->program->input_count;
}

int32_t es_output_count(const es_model *model) {
    return model->program->output_count;
}

const es_port *es_input_info(const es_model *model, int32_t index) {
    return index < 0 || index >= model->program->input_count ? NULL : &model->program->inputs[index];
}

const es_port *es_output_info(const es_model *model, int32_t index) {
    return index < 0 || index >= model->program->output_count ? NULL : &model->program->outputs[index];
}

void *es_input(es_model *model, int32_t index) {
    if (index < 0 || index >= model->program->input_count)
        return NULL;
    return model->bases[0] + model->program->input_offsets[index];
}

void *es_output(es_model *model, int32_t index) {
    if (index < 0 || index >= model->program->output_count)
        return NULL;
    return model->bases[0] + model->program->output_offsets[index];
}

int32_t es_layer_count(const es_model *model) {
    return model->program->layer_count;
}

const char *es_layer_name(const es_model *model, int32_t index) {
    return index < 0 || index >= model->program->layer_count ? NULL : model->program->layers[index];
}

uint64_t es_arena_bytes(const es_model *model) {
    return model->program->arena_bytes;
}

uint64_t es_weights_bytes(const es_model *model) {
    return model->program->weights_bytes;
}

/* One call form for each number of pointers: WebAssembly traps when a function is called through another type. */
#define MAX_POINTERS 16
#define T0
#define T1 T0 void *,
#define T2 T1 void *,
#define T3 T2 void *,
#define T4 T3 void *,
#define T5 T4 void *,
#define T6 T5 void *,
#define T7 T6 void *,
#define T8 T7 void *,
#define T9 T8 void *,
#define T10 T9 void *,
#define T11 T10 void *,
#define T12 T11 void *,
#define T13 T12 void *,
#define T14 T13 void *,
#define T15 T14 void *,
#define T16 T15 void *,

#define P(i) pointers[i]
#define P0
#define P1 P0 P(0),
#define P2 P1 P(1),
#define P3 P2 P(2),
#define P4 P3 P(3),
#define P5 P4 P(4),
#define P6 P5 P(5),
#define P7 P6 P(6),
#define P8 P7 P(7),
#define P9 P8 P(8),
#define P10 P9 P(9),
#define P11 P10 P(10),
#define P12 P11 P(11),
#define P13 P12 P(12),
#define P14 P13 P(13),
#define P15 P14 P(14),
#define P16 P15 P(15),

#define FORM(n)                                                                                                        \
    case n:                                                                                                            \
        ((void (*)(T##n const int32_t *, int32_t, int32_t))function)(P##n args, begin, end);                           \
        return;

static es_call call_at(const es_program *program, uint32_t index) {
    if (program->calls)
        return program->calls[index];
    const es_short_call *call = &program->short_calls[index];
    return (es_call){call->refs, call->args, call->step};
}

static void run_call(const es_model *model, uint32_t index) {
    const es_program *program = model->program;
    const es_call call = call_at(program, index);
    const es_step *step = &program->steps[call.step];
    const es_kernel *kernel = &program->kernels[step->kernel];
    const int32_t begin = step->begin, end = step->end;
    const es_function function = kernel->function;
    const uint32_t *refs = program->refs + call.refs;
    const int32_t *args = program->args + call.args;
    void *pointers[MAX_POINTERS];
    for (int32_t i = 0; i < kernel->arity; i++)
        pointers[i] = model->bases[refs[i] >> 31] + (refs[i] & ~ES_IN_WEIGHTS);
    switch (kernel->arity) {
        FORM(0) FORM(1) FORM(2) FORM(3) FORM(4) FORM(5) FORM(6) FORM(7) FORM(8)
        FORM(9) FORM(10) FORM(11) FORM(12) FORM(13) FORM(14) FORM(15) FORM(16)
    }
}

/* Run the calls [first, last) in their order. */
static void run_calls(const es_model *model, uint32_t first, uint32_t last) {
    for (uint32_t index = first; index < last; index++)
        run_call(model, index);
}

#ifdef __wasm__
uint32_t es_run_early(const es_model *model, uint32_t index, uint64_t bytes) {
    const es_program *program = model->program;
    if (index >= program->call_count || program->steps[call_at(program, index).step].weights > bytes)
        return index;
    run_call(model, index);
    return index + 1 < program->call_count ? index + 1 : 0;
}
#endif

int32_t es_most_threads(const es_model *model) {
#ifdef ES_THREADS
    return model->program->strip_count;
#else
    (void)model;
    return 1;
#endif
}

int es_set_threads(es_model *model, int32_t threads) {
    if (!model || threads < 1 || threads > es_most_threads(model))
        return ES_BAD_ARGUMENT;
#ifdef ES_THREADS
    es_pool_destroy(model->pool);
    model->pool = NULL;
    if (threads > 1) {
        /* Not when a pool ends: web workers are not joined, and one may still come late to the last run. */
        __atomic_store_n(&model->done, 0, __ATOMIC_RELAXED);
        for (int strip = 0; strip < model->program->strip_count; strip++)
            __atomic_store_n(&model->begun[strip], 0, __ATOMIC_RELAXED);
        model->pool = es_pool_create(threads);
        if (!model->pool)
            return ES_NO_THREADS;
    }
#endif
    return ES_OK;
}

#ifdef ES_THREADS
/* Run a strip of a stage unless another thread has begun it. Stages are numbered through all runs of a pool. */
static void take(es_model *model, const uint32_t *range, int strip, uint32_t stage) {
    uint32_t before = stage - 1;
    if (!__atomic_compare_exchange_n(&model->begun[strip], &before, stage, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
        return;
    run_calls(model, range[2 * strip], range[2 * strip + 1]);
    es_pool_add(&model->done, stage * (uint32_t)model->program->strip_count);
}

/* One thread's part of a run: of each stage its own strips, then a wait for the others. A thread whose core was taken away
 * does not hold up the rest: strips that it has not begun after a moment are run by who is there. Which thread runs a strip
 * changes no result. */
static void run_strips(void *context, es_pool *pool, uint32_t run, int thread, int threads) {
    es_model *model = context;
    const es_program *program = model->program;
    const uint32_t *range = program->stages;
    const int strips = program->strip_count;
    uint32_t stage = (run - 1) * program->stage_count;
    (void)pool;
    for (uint32_t index = 0; index < program->stage_count; index++, range += 2 * strips) {
        stage++;
        for (int strip = thread; strip < strips; strip += threads)
            take(model, range, strip, stage);
        if (es_pool_wait(&model->done, stage * (uint32_t)strips, 1))
            continue;
        for (int strip = 0; strip < strips; strip++)
            take(model, range, strip, stage);
        es_pool_wait(&model->done, stage * (uint32_t)strips, 0);
    }
}
#endif

int es_run(es_model *model) {
    if (!model)
        return ES_BAD_ARGUMENT;
#ifdef ES_THREADS
    if (model->pool && es_pool_usable(model->pool)) {
        es_pool_run(model->pool, run_strips, model);
        return ES_OK;
    }
#endif
    /* The strips of a stage lie behind each other, and the stages too: the table's order is a valid one. */
    run_calls(model, 0, model->program->call_count);
    return ES_OK;
}

static uint16_t layer_at(const es_program *program, uint32_t index) {
    return program->steps[call_at(program, index).step].layer;
}

int es_profile(es_model *model, uint64_t *ns) {
    if (!model || !ns)
        return ES_BAD_ARGUMENT;
    const es_program *program = model->program;
    for (int32_t i = 0; i < program->layer_count; i++)
        ns[i] = 0;
    uint64_t before = es_clock_ns();
    for (uint32_t first = 0, last; first < program->call_count; first = last) {
        const uint16_t layer = layer_at(program, first);
        /* The clock is read where the layer changes, not at each call: short calls would drown in it. */
        for (last = first + 1; last < program->call_count && layer_at(program, last) == layer; last++)
            ;
        run_calls(model, first, last);
        const uint64_t after = es_clock_ns();
        ns[layer] += after - before;
        before = after;
    }
    return ES_OK;
}
