/* Cores, governors, frequencies and temperatures, from /sys. What the system does not tell is left out. */
#define _GNU_SOURCE

#include "machine.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CORES 64
#define CPU "/sys/devices/system/cpu/cpu%d/%s"

/* The first line of a file without its end; 0 where there is none. Quotes and the like become blanks. */
static int read_line(const char *path, char *text, int size) {
    FILE *file = fopen(path, "r");
    if (!file)
        return 0;
    char *got = fgets(text, size, file);
    fclose(file);
    if (!got)
        return 0;
    text[strcspn(text, "\r\n")] = 0;
    for (char *c = text; *c; c++)
        if (*c < ' ' || *c == '"' || *c == '\\')
            *c = ' ';
    return text[0] != 0;
}

static int core_file(int core, const char *name, char *text, int size) {
    char path[128];
    snprintf(path, sizeof path, CPU, core, name);
    return read_line(path, text, size);
}

/* How strong a core is, in whatever measure the system has; -1 where it has none. */
static long strength(int core) {
    char text[64];
    if (core_file(core, "cpu_capacity", text, sizeof text) ||
        core_file(core, "cpufreq/cpuinfo_max_freq", text, sizeof text))
        return strtol(text, NULL, 10);
    return -1;
}

int es_pin(const char *cores) {
    cpu_set_t allowed, wanted;
    CPU_ZERO(&wanted);
    if (sched_getaffinity(0, sizeof allowed, &allowed))
        return -1;
    if (!strcmp(cores, "all"))
        return 0;
    const int big = !strcmp(cores, "big"), little = !strcmp(cores, "little");
    char *end = NULL;
    const unsigned long long mask = big || little ? 0 : strtoull(cores, &end, 16);
    if (end && (*end || end == cores || !mask))
        return -1;
    long best = -2;
    for (int core = 0; core < MAX_CORES; core++) {
        if (!CPU_ISSET(core, &allowed))
            continue;
        if (!big && !little) {
            if (mask >> core & 1)
                CPU_SET(core, &wanted);
            continue;
        }
        const long here = strength(core);
        if (best == -2 || (big ? here > best : here < best)) {
            best = here;
            CPU_ZERO(&wanted);
        }
        if (here == best)
            CPU_SET(core, &wanted);
    }
    return CPU_COUNT(&wanted) ? sched_setaffinity(0, sizeof wanted, &wanted) : -1;
}

static void tell_core(int core) {
    char text[128];
    printf("{\"core\":%d", core);
    if (core_file(core, "cpufreq/scaling_governor", text, sizeof text))
        printf(",\"governor\":\"%s\"", text);
    if (core_file(core, "cpufreq/scaling_cur_freq", text, sizeof text))
        printf(",\"khz\":%ld", strtol(text, NULL, 10));
    if (core_file(core, "cpufreq/cpuinfo_max_freq", text, sizeof text))
        printf(",\"max_khz\":%ld", strtol(text, NULL, 10));
    if (core_file(core, "cpu_capacity", text, sizeof text))
        printf(",\"capacity\":%ld", strtol(text, NULL, 10));
    printf("}");
}

void es_tell_machine(const char *name) {
    cpu_set_t set;
    CPU_ZERO(&set);
    sched_getaffinity(0, sizeof set, &set);
    printf("\"%s\":{\"cores\":[", name);
    for (int core = 0, first = 1; core < MAX_CORES; core++)
        if (CPU_ISSET(core, &set)) {
            printf("%s", first ? "" : ",");
            tell_core(core);
            first = 0;
        }
    printf("],\"temperatures\":{");
    for (int zone = 0, first = 1; zone < 64; zone++) {
        char path[96], kind[64], value[64];
        snprintf(path, sizeof path, "/sys/class/thermal/thermal_zone%d/temp", zone);
        if (!read_line(path, value, sizeof value))
            continue;
        snprintf(path, sizeof path, "/sys/class/thermal/thermal_zone%d/type", zone);
        if (!read_line(path, kind, sizeof kind))
            snprintf(kind, sizeof kind, "zone");
        printf("%s\"%d %s\":%.1f", first ? "" : ",", zone, kind, strtol(value, NULL, 10) / 1000.0);
        first = 0;
    }
    printf("}}");
}
