/* The bench program: one executable with a model's kernels, sparse and dense, that runs on the device by itself.
 *
 *     bench run   --input FILE --output FILE          one run; raw bytes of all inputs or outputs, in order
 *     bench bench [--input FILE --expect FILE] ..     both forms in alternation; JSON on stdout
 *     bench count --runs N                            N runs and nothing else, for counting instructions
 *     bench info                                      the machine, and where the kernels lie
 *
 * Options: --weights FILE, --dense FILE, --form sparse|dense, --seconds S, --runs N, --warm-up S, --profile N,
 * --cores all|big|little|MASK, --timeout S. Exit codes: 0 done, 2 usage, 3 files or memory. */
#define _GNU_SOURCE

#include "machine.h"
#include "platform.h"
#include "variant.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_BLOCKS 20000
#define MAX_TURN 1000
#define TURN_NS 50e6
#define MIN_TURN 3
#define SETTLED 10 /* runs in each of the two windows whose medians are compared */

void es_kernels_begin(void);
void es_kernels_end(void);

typedef struct form {
    const es_variant *code;
    es_model *model;
    uint64_t load_ns, first_ns;
    int warm_up_runs, settled, turn;
    uint64_t *times; /* 2 * turn for each block */
    double spent;
} form;

static struct {
    const char *mode, *weights, *dense, *form, *input, *output, *expect, *cores;
    double seconds, warm_up;
    long runs, profile, timeout;
} want = {"", "weights.bin", NULL, NULL, NULL, NULL, NULL, "all", 10.0, 5.0, 100, 20, 0};

static void fail(int code, const char *what, const char *why) {
    fprintf(stderr, "bench: %s: %s\n", what, why);
    exit(code);
}

static void options(int count, char **given) {
    if (count < 2)
        fail(2, "usage", "bench run|bench|count|info [options]");
    want.mode = given[1];
    for (int i = 2; i < count; i += 2) {
        const char *key = given[i], *value = i + 1 < count ? given[i + 1] : NULL;
        if (!value)
            fail(2, key, "has no value");
        if (!strcmp(key, "--weights")) want.weights = value;
        else if (!strcmp(key, "--dense")) want.dense = value;
        else if (!strcmp(key, "--form")) want.form = value;
        else if (!strcmp(key, "--input")) want.input = value;
        else if (!strcmp(key, "--output")) want.output = value;
        else if (!strcmp(key, "--expect")) want.expect = value;
        else if (!strcmp(key, "--cores")) want.cores = value;
        else if (!strcmp(key, "--seconds")) want.seconds = atof(value);
        else if (!strcmp(key, "--warm-up")) want.warm_up = atof(value);
        else if (!strcmp(key, "--runs")) want.runs = atol(value);
        else if (!strcmp(key, "--profile")) want.profile = atol(value);
        else if (!strcmp(key, "--timeout")) want.timeout = atol(value);
        else fail(2, key, "unknown option");
    }
}

static void load(form *f, const es_variant *code, const char *weights) {
    const uint64_t before = es_clock_ns();
    const int status = code->create(weights, &f->model);
    f->load_ns = es_clock_ns() - before;
    f->code = code;
    if (status)
        fail(3, weights, es_error(status));
}

/* Read or write all inputs or outputs of a model, one after the other, as raw bytes. */
static void feed(form *f, const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file)
        fail(3, path, "cannot be opened");
    for (int32_t i = 0; i < f->code->input_count(f->model); i++) {
        const size_t size = (size_t)f->code->input_info(f->model, i)->nbytes;
        if (fread(f->code->input(f->model, i), 1, size, file) != size)
            fail(3, path, "is too short");
    }
    fclose(file);
}

static void save(form *f, const char *path) {
    FILE *file = fopen(path, "wb");
    int bad = !file;
    for (int32_t i = 0; !bad && i < f->code->output_count(f->model); i++) {
        const size_t size = (size_t)f->code->output_info(f->model, i)->nbytes;
        bad = fwrite(f->code->output(f->model, i), 1, size, file) != size;
    }
    if (bad || fclose(file))
        fail(3, path, "cannot be written (is the disk full?)");
}

/* Largest error of the float32 outputs, relative to the largest expected magnitude; infinite for NaN. Other types must be
 * equal. */
static double error_of(form *f, const char *path) {
    FILE *file = fopen(path, "rb");
    double worst = 0;
    if (!file)
        fail(3, path, "cannot be opened");
    for (int32_t i = 0; i < f->code->output_count(f->model); i++) {
        const es_port *port = f->code->output_info(f->model, i);
        const size_t size = (size_t)port->nbytes;
        uint8_t *expected = malloc(size ? size : 1);
        if (!expected || fread(expected, 1, size, file) != size)
            fail(3, path, "is too short");
        const void *found = f->code->output(f->model, i);
        if (strcmp(port->dtype, "float32")) {
            if (memcmp(expected, found, size))
                worst = INFINITY;
        } else {
            const float *a = found, *b = (const float *)(void *)expected;
            double most = 0, scale = 0;
            for (size_t n = 0; n < size / 4; n++) {
                const double off = fabs((double)a[n] - b[n]);
                most = off <= most ? most : isnan(off) ? INFINITY : off;
                scale = fabs(b[n]) > scale ? fabs(b[n]) : scale;
            }
            most = scale > 0 ? most / scale : most;
            worst = most > worst ? most : worst;
        }
        free(expected);
    }
    fclose(file);
    return worst;
}

static uint64_t once(form *f) {
    const uint64_t before = es_clock_ns();
    f->code->run(f->model);
    return es_clock_ns() - before;
}

static int by_size(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static uint64_t median(const uint64_t *times, int count) {
    uint64_t sorted[SETTLED];
    memcpy(sorted, times, sizeof *times * (size_t)count);
    qsort(sorted, (size_t)count, sizeof *sorted, by_size);
    return sorted[count / 2];
}

/* Run until two neighbouring windows have medians within 2 %, or the time is over. */
static void warm_up(form *f) {
    uint64_t window[2 * SETTLED] = {0}, last = f->first_ns = once(f);
    double spent = (double)last;
    while (spent < want.warm_up * 1e9 && !f->settled) {
        memmove(window, window + 1, sizeof window - sizeof *window);
        window[2 * SETTLED - 1] = last = once(f);
        spent += (double)last;
        if (++f->warm_up_runs >= 2 * SETTLED) {
            const double a = (double)median(window, SETTLED), b = (double)median(window + SETTLED, SETTLED);
            f->settled = fabs(a - b) <= 0.02 * a;
        }
    }
    const double turn = ceil(TURN_NS / (last ? (double)last : 1.0));
    f->turn = turn < MIN_TURN ? MIN_TURN : turn > MAX_TURN ? MAX_TURN : (int)turn;
}

static void turn(form *f, uint64_t *times) {
    once(f); /* the caches hold the other form's weights */
    for (int i = 0; i < f->turn; i++) {
        times[i] = once(f);
        f->spent += (double)times[i];
    }
}

/* Blocks of turns forth and back, until each form has its seconds and runs. Returns how many. */
static int blocks(form *forms, int count) {
    for (int done = 0;; done++) {
        int enough = done > 0;
        for (int n = 0; n < count; n++)
            enough &= forms[n].spent >= want.seconds * 1e9 && 2L * done * forms[n].turn >= want.runs;
        if (enough || done == MAX_BLOCKS)
            return done;
        for (int n = 0; n < 2 * count; n++) {
            form *f = &forms[n < count ? n : 2 * count - 1 - n];
            const size_t size = 2 * (size_t)f->turn;
            if (n < count) {
                uint64_t *more = realloc(f->times, sizeof *more * size * (size_t)(done + 1));
                if (!more)
                    fail(3, "times", "not enough memory");
                f->times = more;
            }
            turn(f, f->times + (size_t)done * size + (n < count ? 0 : f->turn));
        }
    }
}

static void tell_times(const form *f, int done) {
    const int all = 2 * done * f->turn;
    uint64_t *sorted = malloc(sizeof *sorted * (size_t)all);
    double sum = 0;
    if (!sorted)
        fail(3, "times", "not enough memory");
    memcpy(sorted, f->times, sizeof *sorted * (size_t)all);
    qsort(sorted, (size_t)all, sizeof *sorted, by_size);
    const int cut = all / 10;
    for (int i = cut; i < all - cut; i++)
        sum += (double)sorted[i];
    printf(",\"runs\":%d,\"min_ns\":%llu,\"p50_ns\":%llu,\"p90_ns\":%llu,\"p99_ns\":%llu,\"trimmed_mean_ns\":%.0f", all,
           (unsigned long long)sorted[0], (unsigned long long)sorted[all / 2],
           (unsigned long long)sorted[(int)(all * 0.9)], (unsigned long long)sorted[(int)(all * 0.99)],
           sum / (all - 2 * cut));
    free(sorted);
    printf(",\"blocks\":[");
    for (int i = 0; i < all; i++) {
        const int at = i % (2 * f->turn);
        printf("%s%llu", at == 0 ? (i ? "]],[[" : "[[") : at == f->turn ? "],[" : ",", (unsigned long long)f->times[i]);
    }
    printf("]]]");
}

static void tell_text(const char *text) {
    putchar('"');
    for (; *text; text++)
        if (*text == '"' || *text == '\\')
            printf("\\%c", *text);
        else if ((unsigned char)*text < ' ')
            printf("\\u%04x", *text);
        else
            putchar(*text);
    putchar('"');
}

static void tell_layers(form *f) {
    const int32_t count = f->code->layer_count(f->model);
    const int32_t runs = want.profile > 200 ? 200 : (int32_t)want.profile;
    uint64_t *ns = calloc((size_t)count * (size_t)(runs + 1) + 1, sizeof *ns);
    if (!ns)
        fail(3, "profile", "not enough memory");
    for (int32_t run = 0; run < runs; run++) {
        f->code->profile(f->model, ns);
        for (int32_t layer = 0; layer < count; layer++)
            ns[(size_t)count + (size_t)layer * (size_t)runs + (size_t)run] = ns[layer];
    }
    printf(",\"layers\":[");
    for (int32_t layer = 0; layer < count && runs; layer++) {
        uint64_t *own = ns + (size_t)count + (size_t)layer * (size_t)runs;
        qsort(own, (size_t)runs, sizeof *own, by_size);
        printf("%s{\"name\":", layer ? "," : "");
        tell_text(f->code->layer_name(f->model, layer));
        printf(",\"ns\":%llu}", (unsigned long long)own[runs / 2]);
    }
    printf("]");
    free(ns);
}

static void bench(form *forms, int count) {
    printf("{\"schema\":\"edgesparse.device/1\",\"version\":");
    tell_text(es_version());
    printf(",");
    es_tell_machine("before");
    for (int n = 0; n < count; n++)
        warm_up(&forms[n]);
    const int done = blocks(forms, count);
    printf(",\"forms\":{");
    for (int n = 0; n < count; n++) {
        form *f = &forms[n];
        const double error = want.expect ? error_of(f, want.expect) : -1;
        printf("%s\"%s\":{\"load_ns\":%llu,\"first_ns\":%llu,\"warm_up_runs\":%d,\"settled\":%s,\"arena_bytes\":%llu",
               n ? "," : "", f->code->name, (unsigned long long)f->load_ns, (unsigned long long)f->first_ns,
               f->warm_up_runs, f->settled ? "true" : "false", (unsigned long long)f->code->arena_bytes(f->model));
        if (error >= 0 && !isinf(error))
            printf(",\"error\":%.3g", error);
        else
            printf(",\"error\":%s", want.expect ? "1e999" : "null");
        tell_times(f, done);
        tell_layers(f);
        printf("}");
    }
    printf("},");
    es_tell_machine("after");
    printf("}\n");
}

int main(int count, char **given) {
    options(count, given);
    if (want.timeout > 0)
        alarm((unsigned)want.timeout); /* nothing of us stays when the connection is gone */
    if (es_pin(want.cores))
        fail(2, "--cores", want.cores);
    if (!strcmp(want.mode, "info")) {
        printf("{\"kernels\":[%llu,%llu],", (unsigned long long)(uintptr_t)es_kernels_begin,
               (unsigned long long)(uintptr_t)es_kernels_end);
        es_tell_machine("machine");
        printf("}\n");
        return 0;
    }
    const int both = !strcmp(want.mode, "bench") && want.dense && !want.form;
    const int dense = want.form && !strcmp(want.form, "dense");
    form forms[2] = {{0}, {0}};
    if (dense && !want.dense)
        fail(2, "--form dense", "needs --dense FILE");
    load(&forms[0], dense ? &es_dense_variant : &es_sparse_variant, dense ? want.dense : want.weights);
    if (both)
        load(&forms[1], &es_dense_variant, want.dense);
    for (int n = 0; want.input && n <= both; n++)
        feed(&forms[n], want.input);
    if (!strcmp(want.mode, "bench")) {
        bench(forms, 1 + both);
    } else if (!strcmp(want.mode, "run") || !strcmp(want.mode, "count")) {
        for (long run = 0; run < (want.mode[0] == 'r' ? 1 : want.runs); run++)
            forms[0].code->run(forms[0].model);
        if (want.output)
            save(&forms[0], want.output);
    } else {
        fail(2, want.mode, "unknown mode");
    }
    return fflush(stdout) || ferror(stdout) ? 3 : 0;
}
