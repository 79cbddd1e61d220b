/* Timing one or two forms of a model in alternation, and telling what was found. */
#ifndef EDGESPARSE_TIMING_H
#define EDGESPARSE_TIMING_H

#include "edgesparse.h"

#define MOST_LOADS 64

typedef struct es_form {
    const char *name;
    es_model *models[MOST_LOADS]; /* of each load; all null for the rival, which runs in another process: runtimes/rival.py */
    int load;                     /* the one that runs next */
    uint64_t load_ns, first_ns;
    int warm_up_runs, settled;
    int turn;        /* most runs in a row before the other form's turn */
    uint64_t *times; /* two turns for each block; 0 where a turn had fewer runs */
    uint64_t capacity, spent_ns;
    int64_t runs, disturbed, interrupted; /* counted; left out, and kept, although the system took the core away */
} es_form;

/* Run until two neighbouring windows have medians within 2 %, or the time is over; sets the length of a turn. Then the
 * other loads, for as long together at most. */
void es_warm_up(es_form *form, int loads, uint64_t most_ns);
/* Blocks of turns forth and back until each form has its time and runs: how many, or -1 for too little memory. Block i is
 * of load i modulo `loads`; with several, another form is the last of the order each time (see measuring/bench.py). Runs that
 * were interrupted are left out, or kept at their processor time where hardly one was not; or all count as they are. */
int es_alternate(es_form *forms, int count, int loads, uint64_t least_ns, int64_t least_runs, uint64_t most_ns,
                 int keep_all);
/* Continue a JSON object with a form's times of `blocks` blocks, and with its layers, medians of `runs` profiles. Not 0 for
 * too little memory. */
int es_tell_times(const es_form *form, int blocks);
int es_tell_layers(const es_form *form, int64_t runs);

#endif
