/* See timing.h. */
#include "timing.h"

#include "machine.h"
#include "platform.h"
#include "text.h"

#include <string.h>
#include <unistd.h>

#define MAX_BLOCKS 20000
#define MAX_TURN 1000
#define TURN_NS 50000000u
#define MIN_TURN 3
#define ENOUGH_RUNS 100000
#define SETTLED 10 /* runs in each of the two windows whose medians are compared */
#define MAX_PROFILES 200

/* One run: nanoseconds by the clock and of the processor, and how often the system took the core away. */
typedef struct run {
    uint64_t spent, used, preemptions;
} run;

/* Have the rival run once: the load as a byte to standard input, which is a socket, and the three numbers back. */
static run ask(int load) {
    run told;
    char *at = (char *)&told;
    const uint8_t wanted = (uint8_t)load;
    int bad = es_write_all(STDIN_FILENO, &wanted, 1);
    for (size_t left = sizeof told; left && !bad;) {
        const ssize_t got = read(STDIN_FILENO, at, left);
        bad = got <= 0;
        at += got;
        left -= (size_t)got;
    }
    if (bad)
        _exit(3); /* the rival has said why */
    return told;
}

static run once(const es_form *form) {
    if (!form->models[0])
        return ask(form->load);
    const int64_t preemptions = es_preemptions();
    const uint64_t own = es_own_ns(), before = es_clock_ns();
    es_run(form->models[form->load]);
    const uint64_t spent = es_clock_ns() - before;
    return (run){spent, es_own_ns() - own, (uint64_t)(es_preemptions() - preemptions)};
}

/* Heapsort. */
static void sort(uint64_t *items, uint64_t count) {
    for (uint64_t left = count / 2, end = count; end > 1;) {
        uint64_t at, item;
        if (left) {
            item = items[at = --left];
        } else {
            item = items[--end];
            items[end] = items[at = 0];
        }
        for (uint64_t child; (child = 2 * at + 1) < end; at = child) {
            child += child + 1 < end && items[child + 1] > items[child];
            if (items[child] <= item)
                break;
            items[at] = items[child];
        }
        items[at] = item;
    }
}

static uint64_t median(const uint64_t *times) {
    uint64_t sorted[SETTLED];
    memcpy(sorted, times, sizeof sorted);
    sort(sorted, SETTLED);
    return sorted[SETTLED / 2];
}

/* Run until times settle, or they come to `most_ns`: what a run takes then, `last` if none was made. */
static uint64_t settle(es_form *form, uint64_t most_ns, uint64_t last) {
    uint64_t window[2 * SETTLED] = {0}, spent = 0;
    form->settled = form->warm_up_runs = 0;
    while (spent < most_ns && !form->settled) {
        memmove(window, window + 1, sizeof window - sizeof *window);
        window[2 * SETTLED - 1] = last = once(form).spent;
        spent += last;
        if (++form->warm_up_runs >= 2 * SETTLED) {
            const uint64_t a = median(window), b = median(window + SETTLED);
            form->settled = 50 * (a > b ? a - b : b - a) <= a;
        }
    }
    return form->warm_up_runs >= SETTLED ? median(window + SETTLED) : last;
}

void es_warm_up(es_form *form, int loads, uint64_t most_ns) {
    const uint64_t first = form->first_ns = once(form).spent;
    const uint64_t last = settle(form, most_ns > first ? most_ns - first : 0, first);
    const int settled = form->settled, runs = form->warm_up_runs; /* what is told of the first load */
    for (form->load = 1; form->load < loads; form->load++) {
        once(form);
        settle(form, most_ns / (uint64_t)(loads - 1), 0);
    }
    form->load = 0;
    form->settled = settled;
    form->warm_up_runs = runs;
    const uint64_t turn = last ? (TURN_NS + last - 1) / last : MAX_TURN;
    form->turn = turn < MIN_TURN ? MIN_TURN : turn > MAX_TURN ? MAX_TURN : (int)turn;
}

/* Make room for so many times, twice as much as before at least. Not 0 where there is none. */
static int reserve(es_form *form, uint64_t count) {
    if (count <= form->capacity)
        return 0;
    const uint64_t capacity = count > 2 * form->capacity ? count : 2 * form->capacity;
    uint64_t *more = es_allocate(sizeof *more * capacity);
    if (!more)
        return -1;
    if (form->times) {
        memcpy(more, form->times, sizeof *more * (size_t)form->capacity);
        es_release(form->times, sizeof *more * form->capacity);
    }
    form->times = more;
    form->capacity = capacity;
    return 0;
}

/* Undisturbed runs from the front of `times`, disturbed ones from its end as long as there is room; what stays is moved
 * to the front, and the rest is 0. */
static void take_turn(es_form *form, uint64_t *times, int keep_all) {
    int good = 0, bad = 0, kept = 0;
    once(form); /* the caches hold the other form's weights */
    while (good < form->turn && bad < 2 * form->turn) {
        const run each = once(form);
        if (keep_all || !each.preemptions) {
            times[good++] = each.spent;
            kept = kept > form->turn - good ? form->turn - good : kept;
        } else {
            bad++;
            if (good + kept < form->turn)
                times[form->turn - ++kept] = each.used < each.spent ? each.used : each.spent;
        }
    }
    if (good < MIN_TURN) {
        memmove(times + good, times + form->turn - kept, sizeof *times * (size_t)kept);
        form->interrupted += kept;
        good += kept;
    } else {
        form->disturbed += bad;
    }
    memset(times + good, 0, sizeof *times * (size_t)(form->turn - good));
    for (int i = 0; i < good; i++)
        form->spent_ns += times[i];
    form->runs += good;
}

int es_alternate(es_form *forms, int count, int loads, uint64_t least_ns, int64_t least_runs, uint64_t most_ns,
                 int keep_all) {
    for (int done = 0;; done++) {
        int enough = done > 0, plenty = done > 0, late = 0;
        for (int n = 0; n < count; n++) {
            enough &= forms[n].spent_ns >= least_ns && forms[n].runs >= least_runs;
            plenty &= forms[n].runs >= ENOUGH_RUNS;
            late |= forms[n].spent_ns >= most_ns && done > 0;
        }
        if (enough || plenty || late || done == MAX_BLOCKS)
            return done;
        for (int n = 0; n < count; n++)
            if (reserve(&forms[n], 2 * (uint64_t)forms[n].turn * (uint64_t)(done + 1)))
                return -1;
        const int turned = loads > 1 ? done % loads + done / loads : 0;
        for (int n = 0; n < 2 * count; n++) {
            es_form *form = &forms[((n < count ? n : 2 * count - 1 - n) + turned) % count];
            form->load = done % loads;
            take_turn(form, form->times + (2 * (size_t)done + (n >= count)) * (size_t)form->turn, keep_all);
        }
    }
}

static void say_ns(const char *key, uint64_t ns) {
    es_say(key);
    es_say_number((int64_t)ns);
}

int es_tell_times(const es_form *form, int blocks) {
    const uint64_t places = 2 * (uint64_t)blocks * (uint64_t)form->turn, bytes = sizeof(uint64_t) * places;
    uint64_t *sorted = es_allocate(bytes), sum = 0, all = 0;
    if (!sorted)
        return -1;
    for (uint64_t i = 0; i < places; i++)
        if (form->times[i])
            sorted[all++] = form->times[i];
    const uint64_t cut = all / 10;
    sort(sorted, all);
    for (uint64_t i = cut; i < all - cut; i++)
        sum += sorted[i];
    say_ns(",\"runs\":", all);
    say_ns(",\"disturbed\":", (uint64_t)form->disturbed);
    say_ns(",\"interrupted\":", (uint64_t)form->interrupted);
    say_ns(",\"min_ns\":", sorted[0]);
    say_ns(",\"p50_ns\":", sorted[all / 2]);
    say_ns(",\"p90_ns\":", sorted[all * 9 / 10]);
    say_ns(",\"p99_ns\":", sorted[all * 99 / 100]);
    say_ns(",\"trimmed_mean_ns\":", sum / (all - 2 * cut));
    es_release(sorted, bytes);
    es_say(",\"blocks\":[");
    for (uint64_t i = 0; i < places; i++) {
        const uint64_t at = i % (2 * (uint64_t)form->turn);
        if (form->times[i])
            say_ns(at == 0 ? (i ? "]],[[" : "[[") : at == (uint64_t)form->turn ? "],[" : ",", form->times[i]);
    }
    es_say("]]]");
    return 0;
}

int es_tell_layers(const es_form *form, int64_t runs) {
    runs = runs > MAX_PROFILES ? MAX_PROFILES : runs;
    const int32_t count = es_layer_count(form->models[0]);
    const uint64_t bytes = sizeof(uint64_t) * ((uint64_t)count * (uint64_t)(runs + 1) + 1);
    uint64_t *ns = es_allocate(bytes), *each = ns + count;
    if (!ns)
        return -1;
    for (int64_t run = 0; run < runs; run++) {
        es_profile(form->models[0], ns);
        for (int32_t layer = 0; layer < count; layer++)
            each[(size_t)layer * (size_t)runs + (size_t)run] = ns[layer];
    }
    es_say(",\"layers\":[");
    for (int32_t layer = 0; layer < count && runs; layer++) {
        uint64_t *own = each + (size_t)layer * (size_t)runs;
        sort(own, (uint64_t)runs);
        es_say(layer ? ",{\"name\":" : "{\"name\":");
        es_say_quoted(es_layer_name(form->models[0], layer));
        say_ns(",\"ns\":", own[runs / 2]);
        es_say("}");
    }
    es_say("]");
    es_release(ns, bytes);
    return 0;
}
