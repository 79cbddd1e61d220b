/* edgesparse: run one compiled model.
 *
 *     es_model *model;
 *     int status = es_create("weights.bin", &model);
 *     if (status != ES_OK) { puts(es_error(status)); return 1; }
 *     memcpy(es_input(model, 0), pixels, es_input_info(model, 0)->nbytes);
 *     es_run(model);
 *     const float *scores = es_output(model, 0);
 *     es_destroy(model);
 *
 * Inputs and outputs lie in the model's own memory; their pointers stay the same until es_destroy. Nothing is allocated
 * after es_create. Several models may run at once in several threads; one model is run by one thread at a time.
 */
#ifndef EDGESPARSE_H
#define EDGESPARSE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Rises whenever a function, struct or table below changes its meaning. */
#define ES_ABI 2

#if defined(__wasm__)
#define ES_API
#else
#define ES_API __attribute__((visibility("default")))
#endif

typedef struct es_model es_model;

enum {
    ES_OK = 0,
    ES_CANNOT_OPEN = 1,   /* the weights file is missing or cannot be read or mapped */
    ES_WRONG_SIZE = 2,    /* the weights file is shorter or longer than this model's */
    ES_NOT_WEIGHTS = 3,   /* the file does not begin as a weights file of this version does */
    ES_OTHER_MODEL = 4,   /* a weights file, but of another model */
    ES_NO_MEMORY = 5,     /* the arena cannot be had */
    ES_BAD_ARGUMENT = 6,  /* a null pointer, or a number out of range */
    ES_NO_THREADS = 7     /* threads cannot be started */
};

/* One input or output: ONNX name (UTF-8), numpy's name of the dtype, shape, size in bytes. */
typedef struct es_port {
    const char *name;
    const char *dtype;
    const int64_t *shape;
    int32_t rank;
    uint64_t nbytes;
} es_port;

/* The ABI number the library was built with; compare with ES_ABI. */
ES_API int32_t es_abi(void);
/* The library's version, as text. */
ES_API const char *es_version(void);
/* What a status says, as an English sentence. Never null. */
ES_API const char *es_error(int status);

/* Map the weights file and allocate the arena, zeroed. On failure *out is null and the status tells why. */
ES_API int es_create(const char *weights_path, es_model **out);
/* The same with the file's bytes already in memory: 64-byte aligned, and kept there by the caller until es_destroy. */
ES_API int es_create_from_memory(const void *weights, uint64_t bytes, es_model **out);
/* Free everything; null is allowed. */
ES_API void es_destroy(es_model *model);

ES_API int32_t es_input_count(const es_model *model);
ES_API int32_t es_output_count(const es_model *model);
/* The description of an input or output; null where the index is out of range. */
ES_API const es_port *es_input_info(const es_model *model, int32_t index);
ES_API const es_port *es_output_info(const es_model *model, int32_t index);
/* Where an input is to be written or an output to be read, 64-byte aligned; null where the index is out of range. */
ES_API void *es_input(es_model *model, int32_t index);
ES_API void *es_output(es_model *model, int32_t index);

/* How many threads the compiled model can use, and how many es_run shall use, the caller's among them: 1 at first. The
 * results are the same for any number. The threads sleep between runs, inherit the caller's affinity, and after a fork the
 * child runs on one thread. */
ES_API int32_t es_most_threads(const es_model *model);
ES_API int es_set_threads(es_model *model, int32_t threads);

/* Compute the outputs from the inputs. Inputs may be overwritten by nothing but the caller. */
ES_API int es_run(es_model *model);
/* One run of its own, with the nanoseconds spent in each layer: ns holds es_layer_count numbers. */
ES_API int es_profile(es_model *model, uint64_t *ns);
ES_API int32_t es_layer_count(const es_model *model);
ES_API const char *es_layer_name(const es_model *model, int32_t index);

/* Bytes of the working memory, and of the mapped weights. */
ES_API uint64_t es_arena_bytes(const es_model *model);
ES_API uint64_t es_weights_bytes(const es_model *model);

#ifdef __cplusplus
}
#endif
#endif
