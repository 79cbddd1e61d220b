/* The runtime on Linux's system calls alone, for ARM libraries without a libc: what Android apps load. Only calls that
 * the filter of Android's apps lets through. */
#include "platform.h"

#include <stddef.h>

#define AT_FDCWD (-100)
#define O_RDONLY_CLOEXEC 02000000
#define SEEK_END 2
#define PROT_READ 1
#define PROT_READ_WRITE 3
#define MAP_PRIVATE 2
#define MAP_PRIVATE_ANONYMOUS 0x22
#define CLOCK_MONOTONIC 1

/* Errors come back as the last page of numbers. */
#define FAILED(result) ((unsigned long)(result) > -4096ul)

#if defined(__aarch64__)
enum { OPENAT = 56, CLOSE = 57, LSEEK = 62, MUNMAP = 215, MMAP = 222, CLOCK_GETTIME = 113 };

static long call(long number, long a, long b, long c, long d, long e, long f) {
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory", "cc");
    return x0;
}
#elif defined(__arm__)
/* mmap2, whose offset counts pages: it is always 0 here. */
enum { OPENAT = 322, CLOSE = 6, LSEEK = 19, MUNMAP = 91, MMAP = 192, CLOCK_GETTIME = 263 };

static long call(long number, long a, long b, long c, long d, long e, long f) {
    register long r7 __asm__("r7") = number;
    register long r0 __asm__("r0") = a;
    register long r1 __asm__("r1") = b;
    register long r2 __asm__("r2") = c;
    register long r3 __asm__("r3") = d;
    register long r4 __asm__("r4") = e;
    register long r5 __asm__("r5") = f;
    __asm__ volatile("svc 0" : "+r"(r0) : "r"(r7), "r"(r1), "r"(r2), "r"(r3), "r"(r4), "r"(r5) : "memory", "cc");
    return r0;
}
#else
#error "there are system calls for ARM only"
#endif

const void *es_map_file(const char *path, uint64_t *bytes) {
    *bytes = 0;
    const long file = call(OPENAT, AT_FDCWD, (long)path, O_RDONLY_CLOEXEC, 0, 0, 0);
    if (FAILED(file))
        return NULL;
    const long end = call(LSEEK, file, 0, SEEK_END, 0, 0, 0);
    long address = -1;
    if (!FAILED(end) && end > 0)
        address = call(MMAP, 0, end, PROT_READ, MAP_PRIVATE, file, 0);
    call(CLOSE, file, 0, 0, 0, 0, 0);
    if (FAILED(address))
        return NULL;
    *bytes = (uint64_t)end;
    return (const void *)address;
}

void es_unmap_file(const void *address, uint64_t bytes) {
    call(MUNMAP, (long)address, (long)bytes, 0, 0, 0, 0);
}

void *es_allocate(uint64_t bytes) {
    if (bytes > SIZE_MAX)
        return NULL;
    const long address = call(MMAP, 0, (long)bytes, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0);
    return FAILED(address) ? NULL : (void *)address;
}

void es_release(void *address, uint64_t bytes) {
    call(MUNMAP, (long)address, (long)bytes, 0, 0, 0, 0);
}

uint64_t es_clock_ns(void) {
    long now[2] = {0, 0}; /* seconds, since the machine was started, and nanoseconds */
    call(CLOCK_GETTIME, CLOCK_MONOTONIC, (long)now, 0, 0, 0, 0);
    return (uint64_t)now[0] * 1000000000u + (uint64_t)now[1];
}
