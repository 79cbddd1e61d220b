/* What a bench program finds out about the machine below it, and how it holds on to cores. Linux. */
#ifndef EDGESPARSE_MACHINE_H
#define EDGESPARSE_MACHINE_H

#include <stdint.h>

/* Stay on the named cores: "all", "big", "little", or a hexadecimal mask. 0, or -1 where that is not possible. */
int es_pin(const char *cores);

/* How often the system has taken the core away from this thread, and for how long it has had one, in nanoseconds. */
int64_t es_preemptions(void);
uint64_t es_own_ns(void);

/* Bytes of this process that are in memory now. */
int64_t es_resident(void);

/* Bytes of memory that are available; -1 where the system does not tell. */
int64_t es_available(void);

/* Write a JSON object: cores in use, and per core the governor, frequencies in kHz, temperatures in degrees, load. */
void es_tell_machine(const char *name);

#endif
