/* The bench program: one executable with a model's kernels, sparse and dense, that runs on the device by itself.
 *
 *     bench run   --input FILE --output FILE          one run; raw bytes of all inputs or outputs, in order
 *     bench bench [--input FILE --expect FILE] ..     both forms in alternation; JSON on stdout
 *     bench count --runs N                            N runs and nothing else, for counting instructions
 *     bench memory                                    what is resident before, and after three runs
 *     bench info                                      the machine, and where the kernels lie
 *
 * Options: --weights FILE, --dense FILE, --form sparse|dense, --seconds S, --runs N, --warm-up S, --profile N,
 * --cores all|big|little|MASK, --most S, --keep-all 0|1, --loads N, --rival NAME, --timeout S. Exit codes: 0 done,
 * 2 usage, 3 files or memory. */
#define _GNU_SOURCE

#include "machine.h"
#include "platform.h"
#include "program.h"
#include "text.h"
#include "timing.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define MOST_TIMEOUT 1000000000000 /* 30 years, as good as none */

void es_kernels_begin(void);
void es_kernels_end(void);

/* The dense form's tables: see edgesparse/building/executable.py. */
extern const es_program es_dense_program __attribute__((visibility("hidden")));

static struct {
    const char *mode, *weights, *dense, *form, *input, *output, *expect, *cores, *rival;
    int64_t seconds, warm_up, runs, profile, timeout, most, keep_all, loads; /* in thousandths */
} want = {"", "weights.bin", NULL, NULL, NULL, NULL, NULL, "all", NULL, 10000, 5000, 100000, 20000, 0, 120000, 0, 1000};

static const struct {
    const char *name;
    const char **text;
    int64_t *number;
} KNOWN[] = {
    {"--weights", &want.weights, NULL}, {"--dense", &want.dense, NULL},     {"--form", &want.form, NULL},
    {"--input", &want.input, NULL},     {"--output", &want.output, NULL},   {"--expect", &want.expect, NULL},
    {"--cores", &want.cores, NULL},     {"--seconds", NULL, &want.seconds}, {"--warm-up", NULL, &want.warm_up},
    {"--runs", NULL, &want.runs},       {"--profile", NULL, &want.profile}, {"--timeout", NULL, &want.timeout},
    {"--rival", &want.rival, NULL},     {"--most", NULL, &want.most},       {"--keep-all", NULL, &want.keep_all},
    {"--loads", NULL, &want.loads},
};

__attribute__((noreturn)) static void fail(int code, const char *what, const char *why) {
    const char *parts[] = {"bench: ", what, ": ", why, "\n"};
    for (int i = 0; i < 5; i++)
        es_write_all(STDERR_FILENO, parts[i], strlen(parts[i]));
    _exit(code);
}

static void options(int count, char **given) {
    if (count < 2)
        fail(2, "usage", "bench run|bench|count|memory|info [options]");
    want.mode = given[1];
    for (int i = 2; i < count; i += 2) {
        const char *key = given[i], *value = i + 1 < count ? given[i + 1] : NULL;
        size_t at = 0;
        while (at < sizeof KNOWN / sizeof *KNOWN && strcmp(key, KNOWN[at].name))
            at++;
        if (at == sizeof KNOWN / sizeof *KNOWN)
            fail(2, key, "unknown option");
        if (!value)
            fail(2, key, "has no value");
        if (KNOWN[at].text)
            *KNOWN[at].text = value;
        else if ((*KNOWN[at].number = es_read_thousandths(value)) < 0)
            fail(2, key, "is not a number");
    }
}

static void load(es_form *form, int at, int dense) {
    const char *weights = dense ? want.dense : want.weights;
    const uint64_t before = es_clock_ns();
    const int status = es_create_program(dense ? &es_dense_program : &es_main_program, weights, &form->models[at]);
    if (at == 0)
        form->load_ns = es_clock_ns() - before;
    form->name = dense ? "dense" : "sparse";
    if (status)
        fail(3, weights, es_error(status));
}

/* Whether one more load would take too much of what memory is left: arenas, as weights are mapped once for all. */
static int scarce(const es_form *forms, int count) {
    const int64_t left = es_available();
    int64_t arenas = 0;
    for (int n = 0; n < count; n++)
        arenas += (int64_t)es_arena_bytes(forms[n].models[0]);
    return left >= 0 && left / 4 < arenas;
}

static const uint8_t *mapped(const char *path, uint64_t *bytes) {
    const uint8_t *content = es_map_file(path, bytes);
    if (!content)
        fail(3, path, "is empty or cannot be opened");
    return content;
}

/* Read or write all inputs or outputs of a model, one after the other, as raw bytes. */
static void feed(const es_form *form, int load, const char *path) {
    uint64_t bytes, at = 0;
    const uint8_t *content = mapped(path, &bytes);
    for (int32_t i = 0; i < es_input_count(form->models[load]); i++) {
        const uint64_t size = es_input_info(form->models[load], i)->nbytes;
        if (bytes - at < size)
            fail(3, path, "is too short");
        memcpy(es_input(form->models[load], i), content + at, (size_t)size);
        at += size;
    }
    es_unmap_file(content, bytes);
}

static void save(const es_form *form, const char *path) {
    const int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    int bad = file < 0;
    for (int32_t i = 0; !bad && i < es_output_count(form->models[0]); i++)
        bad = es_write_all(file, es_output(form->models[0], i), es_output_info(form->models[0], i)->nbytes);
    if (bad || close(file))
        fail(3, path, "cannot be written (is the disk full?)");
}

/* Largest error of one float32 output, relative to the largest expected magnitude; infinite for NaN. */
static double float_error(const float *found, const uint8_t *expected, uint64_t count) {
    double most = 0, scale = 0;
    for (uint64_t n = 0; n < count; n++) {
        float right; /* behind an output of another type it may lie anywhere */
        memcpy(&right, expected + 4 * n, sizeof right);
        const double off = __builtin_fabs((double)found[n] - right), size = __builtin_fabs((double)right);
        most = off <= most ? most : off > most ? off : __builtin_inf();
        scale = size > scale ? size : scale;
    }
    return scale > 0 ? most / scale : most;
}

/* Largest error of all outputs; those of other types must be equal, or it is infinite. */
static double error_of(const es_form *form, const char *path) {
    uint64_t bytes, at = 0;
    const uint8_t *content = mapped(path, &bytes);
    double worst = 0;
    for (int32_t i = 0; i < es_output_count(form->models[0]); i++) {
        const es_port *port = es_output_info(form->models[0], i);
        const void *found = es_output(form->models[0], i);
        double error = 0;
        if (bytes - at < port->nbytes)
            fail(3, path, "is too short");
        if (!strcmp(port->dtype, "float32"))
            error = float_error(found, content + at, port->nbytes / 4);
        else if (memcmp(content + at, found, (size_t)port->nbytes))
            error = __builtin_inf();
        worst = error > worst ? error : worst;
        at += port->nbytes;
    }
    es_unmap_file(content, bytes);
    return worst;
}

static void say_pair(const char *key, int64_t number) {
    es_say(key);
    es_say_number(number);
}

static void tell_form(const es_form *form, int blocks) {
    const char *expect = form->models[0] ? want.expect : NULL; /* the rival judges its outputs itself */
    const double error = expect ? error_of(form, expect) : 0;
    es_say_quoted(form->name);
    say_pair(":{\"load_ns\":", (int64_t)form->load_ns);
    say_pair(",\"first_ns\":", (int64_t)form->first_ns);
    say_pair(",\"warm_up_runs\":", form->warm_up_runs);
    es_say(form->settled ? ",\"settled\":true" : ",\"settled\":false");
    say_pair(",\"arena_bytes\":", form->models[0] ? (int64_t)es_arena_bytes(form->models[0]) : 0);
    es_say(",\"error\":");
    if (!expect)
        es_say("null");
    else if (error > 1e300)
        es_say("1e999");
    else
        es_say_float(error);
    if (es_tell_times(form, blocks) || (form->models[0] && es_tell_layers(form, want.profile / 1000)))
        fail(3, "times", "not enough memory");
    es_say("}");
}

static void bench(es_form *forms, int count, int loads) {
    es_say("{\"schema\":\"edgesparse.device/1\",\"version\":");
    es_say_quoted(es_version());
    say_pair(",\"loads\":", loads);
    es_say(",");
    es_tell_machine("before");
    for (int n = 0; n < count; n++)
        es_warm_up(&forms[n], loads, (uint64_t)want.warm_up * 1000000u);
    const int blocks = es_alternate(forms, count, loads, (uint64_t)want.seconds * 1000000u, want.runs / 1000,
                                    (uint64_t)want.most * 1000000u, want.keep_all != 0);
    if (blocks < 0)
        fail(3, "times", "not enough memory");
    es_say(",\"forms\":{");
    for (int n = 0; n < count; n++) {
        es_say(n ? "," : "");
        tell_form(&forms[n], blocks);
    }
    es_say("},");
    es_tell_machine("after");
    es_say("}\n");
}

/* Nothing is given back in between, so what is resident at the end is the peak. */
static void memory(int dense) {
    es_form form = {0};
    const int64_t before = es_resident();
    load(&form, 0, dense);
    if (want.input)
        feed(&form, 0, want.input);
    for (int run = 0; run < 3; run++)
        es_run(form.models[0]);
    const int64_t after = es_resident();
    say_pair("{\"baseline_bytes\":", before);
    say_pair(",\"peak_bytes\":", after > before ? after - before : 0);
    say_pair(",\"arena_bytes\":", (int64_t)es_arena_bytes(form.models[0]));
    say_pair(",\"weights_bytes\":", (int64_t)es_weights_bytes(form.models[0]));
    es_say("}\n");
}

static void info(void) {
    say_pair("{\"kernels\":[", (int64_t)(uintptr_t)es_kernels_begin);
    say_pair(",", (int64_t)(uintptr_t)es_kernels_end);
    es_say("],");
    es_tell_machine("machine");
    es_say("}\n");
}

int main(int count, char **given) {
    options(count, given);
    if (want.timeout > 0)
        alarm(want.timeout < MOST_TIMEOUT ? (unsigned)(want.timeout / 1000) : 0); /* nothing of us stays when the connection is gone */
    if (es_pin(want.cores))
        fail(2, "--cores", want.cores);
    if (!strcmp(want.mode, "info")) {
        info();
        return es_say_end() ? 3 : 0;
    }
    const int dense = want.form && !strcmp(want.form, "dense"), timed = !strcmp(want.mode, "bench");
    const int both = timed && want.dense && !want.form;
    const int contenders = 1 + both + (timed && want.rival);
    es_form forms[3] = {{0}, {0}, {0}};
    if (want.form && !dense && strcmp(want.form, "sparse"))
        fail(2, "--form", "is neither sparse nor dense");
    if (dense && !want.dense)
        fail(2, "--form dense", "needs --dense FILE");
    if (!strcmp(want.mode, "memory")) {
        memory(dense);
        return es_say_end() ? 3 : 0;
    }
    if (!timed && strcmp(want.mode, "run") && strcmp(want.mode, "count"))
        fail(2, want.mode, "unknown mode");
    int loads = timed ? (int)(want.loads / 1000) : 1;
    if (loads < 1 || loads > MOST_LOADS)
        fail(2, "--loads", "must be 1 to 64");
    for (int at = 0; at < loads; at++) {
        if (at && scarce(forms, 1 + both)) {
            loads = at;
            break;
        }
        for (int n = 0; n <= both; n++) {
            load(&forms[n], at, dense || n);
            if (want.input)
                feed(&forms[n], at, want.input);
        }
    }
    if (timed) {
        forms[1 + both].name = want.rival;
        bench(forms, contenders, loads);
    } else {
        for (int64_t run = 0; run < (want.mode[0] == 'r' ? 1 : want.runs / 1000); run++)
            es_run(forms[0].models[0]);
        if (want.output)
            save(&forms[0], want.output);
    }
    return es_say_end() ? 3 : 0;
}
