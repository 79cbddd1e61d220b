/* Compiled once as it is and once with every es_ name of edgesparse.h renamed: see edgesparse/executable.py. */
#include "variant.h"

#ifndef ES_VARIANT
#define ES_VARIANT es_sparse_variant
#define ES_VARIANT_NAME "sparse"
#endif

const es_variant ES_VARIANT = {
    ES_VARIANT_NAME, es_create,      es_destroy,     es_run,         es_profile,    es_input_count,
    es_output_count, es_input_info,  es_output_info, es_input,       es_output,     es_layer_count,
    es_layer_name,   es_arena_bytes,
};
