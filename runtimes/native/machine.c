/* Cores, governors, frequencies and temperatures, from /sys. What the system does not tell is left out. */
#define _GNU_SOURCE

#include "machine.h"

#include "platform.h"
#include "text.h"

#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define MAX_CORES 64
#define MAX_ZONES 64
#define CPU "/sys/devices/system/cpu/cpu"
#define ZONE "/sys/class/thermal/thermal_zone"

/* The first line of a file that the system has for each core or zone. */
static int numbered(const char *folder, int number, const char *name, char *text, int size) {
    char path[96];
    strcpy(path, folder);
    strcpy(es_append(path + strlen(path), number), name);
    return es_read_line(path, text, size);
}

static int64_t number_of(const char *text) {
    const char *end;
    return es_read_number(text, &end);
}

/* How strong a core is, in whatever measure the system has; -1 where it has none. */
static int64_t strength(int core) {
    char text[64];
    if (numbered(CPU, core, "/cpu_capacity", text, sizeof text) ||
        numbered(CPU, core, "/cpufreq/cpuinfo_max_freq", text, sizeof text))
        return number_of(text);
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
    const uint64_t mask = big || little ? 0 : es_read_mask(cores);
    int64_t best = -2;
    for (int core = 0; core < MAX_CORES; core++) {
        if (!CPU_ISSET(core, &allowed))
            continue;
        if (!big && !little) {
            if (mask >> core & 1)
                CPU_SET(core, &wanted);
            continue;
        }
        const int64_t here = strength(core);
        if (best == -2 || (big ? here > best : here < best)) {
            best = here;
            CPU_ZERO(&wanted);
        }
        if (here == best)
            CPU_SET(core, &wanted);
    }
    return CPU_COUNT(&wanted) ? sched_setaffinity(0, sizeof wanted, &wanted) : -1;
}

static void tell_number(int core, const char *file, const char *key) {
    char text[64];
    if (!numbered(CPU, core, file, text, sizeof text))
        return;
    es_say(key);
    es_say_number(number_of(text));
}

static void tell_core(int core) {
    char text[128];
    es_say("{\"core\":");
    es_say_number(core);
    if (numbered(CPU, core, "/cpufreq/scaling_governor", text, sizeof text)) {
        es_say(",\"governor\":");
        es_say_quoted(text);
    }
    tell_number(core, "/cpufreq/scaling_cur_freq", ",\"khz\":");
    tell_number(core, "/cpufreq/cpuinfo_max_freq", ",\"max_khz\":");
    tell_number(core, "/cpu_capacity", ",\"capacity\":");
    es_say("}");
}

/* A zone's name and its temperature: the system's thousandths of a degree, in tenths. */
static void tell_zone(int zone, const char *value, int first) {
    char name[96];
    char *kind = es_append(name, zone);
    *kind++ = ' ';
    if (!numbered(ZONE, zone, "/type", kind, 64))
        strcpy(kind, "zone");
    es_say(first ? "" : ",");
    es_say_quoted(name);
    const int64_t tenths = number_of(value) / 100;
    es_say(tenths < 0 ? ":-" : ":");
    es_say_number((tenths < 0 ? -tenths : tenths) / 10);
    es_say(".");
    es_say_number((tenths < 0 ? -tenths : tenths) % 10);
}

int64_t es_preemptions(void) {
    struct rusage spent;
    return getrusage(RUSAGE_THREAD, &spent) ? 0 : spent.ru_nivcsw;
}

uint64_t es_own_ns(void) {
    struct timespec now;
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now))
        return es_clock_ns();
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int64_t es_resident(void) {
    char text[128];
    const char *end;
    if (!es_read_line("/proc/self/statm", text, sizeof text))
        return 0;
    es_read_number(text, &end); /* the first number is the size of the address space */
    return es_read_number(*end ? end + 1 : end, &end) * sysconf(_SC_PAGESIZE);
}

int64_t es_available(void) {
    static const char key[] = "MemAvailable:";
    char text[512];
    const char *end;
    const int file = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
    const ssize_t got = file < 0 ? 0 : read(file, text, sizeof text - 1);
    if (file >= 0)
        close(file);
    text[got > 0 ? got : 0] = 0;
    const char *found = strstr(text, key);
    if (!found)
        return -1;
    found += sizeof key - 1;
    return es_read_number(found + strspn(found, " "), &end) * 1024;
}

void es_tell_machine(const char *name) {
    char value[64];
    cpu_set_t set;
    CPU_ZERO(&set);
    sched_getaffinity(0, sizeof set, &set);
    es_say_quoted(name);
    es_say(":{\"cores\":[");
    for (int core = 0, first = 1; core < MAX_CORES; core++)
        if (CPU_ISSET(core, &set)) {
            es_say(first ? "" : ",");
            tell_core(core);
            first = 0;
        }
    es_say("],\"temperatures\":{");
    for (int zone = 0, first = 1; zone < MAX_ZONES; zone++)
        if (numbered(ZONE, zone, "/temp", value, sizeof value)) {
            tell_zone(zone, value, first);
            first = 0;
        }
    es_say("}");
    if (es_read_line("/proc/loadavg", value, sizeof value)) {
        es_say(",\"load\":");
        es_say_quoted(value);
    }
    es_say("}");
}
