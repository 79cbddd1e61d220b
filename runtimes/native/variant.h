/* One compiled form of the model inside a bench program: the runtime is in it once for each, under other names. */
#ifndef EDGESPARSE_VARIANT_H
#define EDGESPARSE_VARIANT_H

#include "edgesparse.h"

typedef struct es_variant {
    const char *name;
    int (*create)(const char *, es_model **);
    void (*destroy)(es_model *);
    int (*run)(es_model *);
    int (*profile)(es_model *, uint64_t *);
    int32_t (*input_count)(const es_model *);
    int32_t (*output_count)(const es_model *);
    const es_port *(*input_info)(const es_model *, int32_t);
    const es_port *(*output_info)(const es_model *, int32_t);
    void *(*input)(es_model *, int32_t);
    void *(*output)(es_model *, int32_t);
    int32_t (*layer_count)(const es_model *);
    const char *(*layer_name)(const es_model *, int32_t);
    uint64_t (*arena_bytes)(const es_model *);
} es_variant;

extern const es_variant es_sparse_variant, es_dense_variant;

#endif
