/* The runtime on Linux and other POSIX systems. */
#define _GNU_SOURCE

#include "platform.h"

#include <fcntl.h>
#include <stddef.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

const void *es_map_file(const char *path, uint64_t *bytes) {
    void *address = NULL;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    *bytes = 0;
    if (file < 0)
        return NULL;
    /* lseek and not fstat: old glibc has no fstat symbol of its own. */
    off_t end = lseek(file, 0, SEEK_END);
    if (end > 0 && (uint64_t)end <= SIZE_MAX) {
        address = mmap(NULL, (size_t)end, PROT_READ, MAP_PRIVATE, file, 0);
        if (address == MAP_FAILED)
            address = NULL;
        else
            *bytes = (uint64_t)end;
    }
    close(file);
    return address;
}

void es_unmap_file(const void *address, uint64_t bytes) {
    munmap((void *)(uintptr_t)address, (size_t)bytes);
}

/* With small pages it is chance which sets of the caches an arena falls into, and every page is one more entry of the
 * TLB: a layer takes up to a third longer in one process than in the next. So large pages are asked for, but not where
 * more than half of one would be left over. */
#define LARGE ((size_t)2 << 20)

static size_t large_pages(size_t bytes) {
    return (bytes + LARGE / 2) / LARGE * LARGE;
}

void *es_allocate(uint64_t bytes) {
    if (bytes > SIZE_MAX - 2 * LARGE)
        return NULL;
    const size_t large = large_pages((size_t)bytes), room = large > bytes ? large : (size_t)bytes;
    const size_t spare = large ? LARGE : 0;
    uint8_t *address = mmap(NULL, room + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED)
        return NULL;
    if (large) {
        const size_t before = -(uintptr_t)address % LARGE, page = (size_t)sysconf(_SC_PAGESIZE);
        const size_t end = (room + page - 1) / page * page;
        if (before)
            munmap(address, before);
        address += before;
        if (spare - before)
            munmap(address + end, spare - before);
#ifdef MADV_HUGEPAGE
        madvise(address, large, MADV_HUGEPAGE); /* a wish: where it is not granted, nothing else changes */
#endif
    }
    return address;
}

void es_release(void *address, uint64_t bytes) {
    const size_t large = large_pages((size_t)bytes);
    munmap(address, large > bytes ? large : (size_t)bytes);
}

uint64_t es_clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
