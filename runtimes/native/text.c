/* See text.h. */
#define _GNU_SOURCE

#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define MOST_DIGITS 14

static struct {
    char held[4096];
    uint64_t count;
    int failed;
} out;

int es_write_all(int file, const void *bytes, uint64_t count) {
    const char *at = bytes;
    while (count) {
        const ssize_t done = write(file, at, (size_t)count);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return -1;
        at += done;
        count -= (uint64_t)done;
    }
    return 0;
}

int es_say_end(void) {
    out.failed |= es_write_all(STDOUT_FILENO, out.held, out.count);
    out.count = 0;
    return out.failed;
}

static void say_char(char letter) {
    if (out.count == sizeof out.held)
        es_say_end();
    out.held[out.count++] = letter;
}

void es_say(const char *text) {
    while (*text)
        say_char(*text++);
}

void es_say_quoted(const char *text) {
    static const char hex[] = "0123456789abcdef";
    say_char('"');
    for (; *text; text++) {
        const unsigned char letter = (unsigned char)*text;
        if (letter < ' ') {
            es_say("\\u00");
            say_char(hex[letter >> 4]);
            say_char(hex[letter & 15]);
            continue;
        }
        if (letter == '"' || letter == '\\')
            say_char('\\');
        say_char(*text);
    }
    say_char('"');
}

char *es_append(char *at, int64_t number) {
    char digits[20];
    int count = 0;
    uint64_t rest = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    if (number < 0)
        *at++ = '-';
    do
        digits[count++] = (char)('0' + rest % 10);
    while (rest /= 10);
    while (count)
        *at++ = digits[--count];
    *at = 0;
    return at;
}

void es_say_number(int64_t number) {
    char text[24];
    es_append(text, number);
    es_say(text);
}

void es_say_float(double number) {
    int exponent = 0;
    if (number > 0) {
        for (; number < 99.95; exponent--)
            number *= 10;
        for (; number >= 999.5; exponent++)
            number /= 10;
    }
    es_say_number((int64_t)(number + 0.5));
    say_char('e');
    es_say_number(exponent);
}

int64_t es_read_number(const char *text, const char **end) {
    const int negative = *text == '-';
    const char *at = text + negative;
    int64_t number = 0;
    for (; *at >= '0' && *at <= '9' && at - text <= MOST_DIGITS; at++)
        number = 10 * number + (*at - '0');
    *end = at == text + negative ? text : at;
    return negative ? -number : number;
}

int64_t es_read_thousandths(const char *text) {
    const char *at;
    int64_t number = 1000 * es_read_number(text, &at);
    if (at == text || number < 0)
        return -1;
    if (*at == '.') {
        at++;
        for (int unit = 100; *at >= '0' && *at <= '9'; at++, unit /= 10)
            number += unit * (*at - '0');
    }
    return *at ? -1 : number;
}

uint64_t es_read_mask(const char *text) {
    uint64_t mask = 0;
    if (text[0] == '0' && (text[1] | 32) == 'x')
        text += 2;
    for (; *text; text++) {
        const int letter = *text | 32;
        const int digit = letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : *text - '0';
        if (digit < 0 || digit > 15 || mask >> 60 || (digit > 9 && letter < 'a'))
            return 0;
        mask = mask << 4 | (uint64_t)digit;
    }
    return mask;
}

int es_read_line(const char *path, char *text, int size) {
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    const ssize_t got = read(file, text, (size_t)size - 1);
    close(file);
    text[got > 0 ? got : 0] = 0;
    text[strcspn(text, "\r\n")] = 0;
    for (char *c = text; *c; c++)
        if (*c < ' ' || *c == '"' || *c == '\\')
            *c = ' ';
    return text[0] != 0;
}
