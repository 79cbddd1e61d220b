/* What a bench program finds out about the machine below it, and how it holds on to cores. Linux. */
#ifndef EDGESPARSE_MACHINE_H
#define EDGESPARSE_MACHINE_H

/* Stay on the named cores: "all", "big", "little", or a hexadecimal mask. 0, or -1 where that is not possible. */
int es_pin(const char *cores);

/* Write a JSON object: cores in use, and per core the governor, frequencies in kHz, and temperatures in degrees. */
void es_tell_machine(const char *name);

#endif
