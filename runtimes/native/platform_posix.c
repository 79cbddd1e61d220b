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

void *es_allocate(uint64_t bytes) {
    if (bytes > SIZE_MAX)
        return NULL;
    void *address = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return address == MAP_FAILED ? NULL : address;
}

void es_release(void *address, uint64_t bytes) {
    munmap(address, (size_t)bytes);
}

uint64_t es_clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
