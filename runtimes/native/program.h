/* The tables of a lowered model, as edgesparse/lowering/emit.py writes them and runtime.c walks them. Not for users. */
#ifndef EDGESPARSE_PROGRAM_H
#define EDGESPARSE_PROGRAM_H

#include "edgesparse.h"

typedef void (*es_function)(void);

typedef struct es_kernel {
    es_function function; /* void k(void *p0, .., const int32_t *args, int32_t begin, int32_t end) */
    int32_t arity;        /* pointers before args: 0 to 16 */
} es_kernel;

/* What the calls of one layer share; a network of hundreds of calls has a few dozen of these. */
typedef struct es_step {
    int32_t begin, end;
    uint16_t kernel, layer;
    uint32_t weights; /* where the constants of its calls end in the weights file */
} es_step;

typedef struct es_call {
    uint32_t refs; /* index of the first pointer in refs */
    uint32_t args; /* index of the first argument in args */
    uint32_t step;
} es_call;

/* The same where all three are small in all calls: half of the tables' size. */
typedef struct es_short_call {
    uint16_t refs, args, step;
} es_short_call;

/* A pointer argument: a byte offset, with the top bit set where it counts from the weights file and not from the arena. */
#define ES_IN_WEIGHTS 0x80000000u

#define ES_WEIGHTS_MAGIC "ESWEIGHT"
#define ES_WEIGHTS_VERSION 1
#define ES_HEADER_BYTES 64

/* The most strips of a program: `compile --threads` allows no more. */
#define ES_MOST_STRIPS 64

/* The start of a weights file; little-endian. The digest is that of the constants, so that a file of another model of
 * the same size is told. */
typedef struct es_weights_header {
    uint8_t magic[8];
    uint32_t version;
    uint32_t header_bytes;
    uint64_t file_bytes;
    uint8_t digest[32];
    uint8_t reserved[8];
} es_weights_header;

typedef struct es_program {
    const es_kernel *kernels;
    const es_step *steps;
    const es_call *calls; /* null where the calls are short ones */
    const es_short_call *short_calls;
    const uint32_t *refs;
    const int32_t *args;
    const es_port *inputs, *outputs;
    const uint64_t *input_offsets, *output_offsets; /* bytes from the start of the arena */
    const char *const *layers;
    const uint8_t *digest; /* of the weights, 32 bytes */
    uint64_t arena_bytes, weights_bytes;
    uint32_t call_count;
    /* For threads: stages of strip_count ranges of calls [first, last) each; none where strip_count is 1. */
    const uint32_t *stages;
    uint32_t stage_count;
    int32_t strip_count;
    int32_t input_count, output_count, layer_count;
} es_program;

/* Hidden, so that the tables are reached without a detour through the global offset table. */
extern const es_program es_main_program __attribute__((visibility("hidden")));

/* es_create for one of several programs in the same executable. */
__attribute__((visibility("hidden"))) int es_create_program(const es_program *program, const char *weights_path,
                                                            es_model **out);

/* Run one call of the table if its constants lie in the first bytes of the weights file that are there already: the index
 * of the next call, from the last one on to 0, or the same index again. A run later is as if there had been none of these. */
__attribute__((visibility("hidden"))) uint32_t es_run_early(const es_model *model, uint32_t index, uint64_t bytes);

#endif
