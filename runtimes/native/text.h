/* Text in and out for the bench program, without stdio: its formatting of numbers alone would weigh more than the rest. */
#ifndef EDGESPARSE_TEXT_H
#define EDGESPARSE_TEXT_H

#include <stdint.h>

/* Append to what goes to stdout: text as it is, text as a JSON string, a whole number, three digits and an exponent. */
void es_say(const char *text);
void es_say_quoted(const char *text);
void es_say_number(int64_t number);
void es_say_float(double number); /* finite and not negative */
/* Write out what is still held back. Not 0 where something of all that was said could not be written. */
int es_say_end(void);

/* The number at the start of a text, with its end in *end; no digits give 0 and *end == text. */
int64_t es_read_number(const char *text, const char **end);
/* "12" or "12.5" in thousandths, hex digits as a mask; -1, and 0, where the text is something else or too large. */
int64_t es_read_thousandths(const char *text);
uint64_t es_read_mask(const char *text);
/* Append a number to a text. */
char *es_append(char *at, int64_t number);

/* The first line of a file without its end, as JSON takes it; 0 where there is none. */
int es_read_line(const char *path, char *text, int size);
/* All of it to a file descriptor; not 0 where that fails. */
int es_write_all(int file, const void *bytes, uint64_t count);

#endif
