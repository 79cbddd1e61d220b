/* A loader that knows no other library, to try a library that needs none: maps it, relocates it, runs its model once.
 *
 *     loader LIBRARY WEIGHTS INPUT > OUTPUT
 *
 * Whatever the library wants from outside is an error that names it. */
#include <edgesparse.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static uint8_t *base;
static const ElfW(Sym) *symbols;
static const char *strings;
static uint32_t symbol_count;

static void fail(const char *what, const char *name) {
    fprintf(stderr, "loader: %s %s\n", what, name);
    exit(1);
}

static void *read_all(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END))
        fail("cannot open", path);
    *size = (size_t)ftell(file);
    rewind(file);
    void *content = aligned_alloc(64, (*size + 63) / 64 * 64);
    if (!content || fread(content, 1, *size, file) != *size)
        fail("cannot read", path);
    fclose(file);
    return content;
}

static void *symbol(const char *name) {
    for (uint32_t i = 1; i < symbol_count; i++)
        if (symbols[i].st_shndx && !strcmp(strings + symbols[i].st_name, name))
            return base + symbols[i].st_value;
    fail("the library does not export", name);
    return NULL;
}

static void load(const char *path) {
    size_t size, end = 0;
    const uint8_t *file = read_all(path, &size);
    const ElfW(Ehdr) *head = (const void *)file;
    const ElfW(Phdr) *parts = (const void *)(file + head->e_phoff);
    const ElfW(Dyn) *dynamic = NULL;
    for (int i = 0; i < head->e_phnum; i++)
        if (parts[i].p_type == PT_LOAD)
            end = parts[i].p_vaddr + parts[i].p_memsz;
    base = mmap(NULL, end, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        fail("no memory for", path);
    for (int i = 0; i < head->e_phnum; i++)
        if (parts[i].p_type == PT_LOAD) {
            if (parts[i].p_align != 16384)
                fail("is not made for pages of 16 KiB:", path);
            memcpy(base + parts[i].p_vaddr, file + parts[i].p_offset, parts[i].p_filesz);
        } else if (parts[i].p_type == PT_DYNAMIC) {
            dynamic = (const void *)(base + parts[i].p_vaddr);
        }
    const uint8_t *relocations = NULL;
    size_t bytes = 0, each = 0, needed = 0, jumps = 0;
    for (; dynamic->d_tag != DT_NULL; dynamic++) {
        uint8_t *at = base + dynamic->d_un.d_ptr;
        switch (dynamic->d_tag) {
        case DT_NEEDED: needed = dynamic->d_un.d_val; break;
        case DT_SYMTAB: symbols = (const void *)at; break;
        case DT_STRTAB: strings = (const char *)at; break;
        case DT_HASH: symbol_count = ((const uint32_t *)(void *)at)[1]; break;
        case DT_REL: case DT_RELA: relocations = at; break;
        case DT_RELSZ: case DT_RELASZ: bytes = dynamic->d_un.d_val; break;
        case DT_RELENT: case DT_RELAENT: each = dynamic->d_un.d_val; break;
        case DT_PLTRELSZ: jumps = dynamic->d_un.d_val; break;
        }
    }
    if (needed)
        fail("the library needs", strings + needed);
    if (jumps)
        fail("the library calls", "through a table");
    for (uint32_t i = 1; i < symbol_count; i++)
        if (!symbols[i].st_shndx)
            fail("the library does not define", strings + symbols[i].st_name);
    for (size_t i = 0; i < bytes; i += each) {
        const ElfW(Rel) *item = (const void *)(relocations + i);
        uintptr_t *spot = (uintptr_t *)(void *)(base + item->r_offset);
#if defined(__aarch64__)
        if (ELF64_R_TYPE(item->r_info) != R_AARCH64_RELATIVE)
            fail("the library has a relocation", "that is not relative");
        *spot = (uintptr_t)base + (uintptr_t)((const ElfW(Rela) *)(const void *)item)->r_addend;
#else
        if (ELF32_R_TYPE(item->r_info) != R_ARM_RELATIVE)
            fail("the library has a relocation", "that is not relative");
        *spot += (uintptr_t)base;
#endif
    }
    __builtin___clear_cache((char *)base, (char *)base + end);
}

#define GET(name) __typeof__(&name) name##_ = (__typeof__(&name))symbol(#name)

int main(int count, char **given) {
    if (count != 4)
        fail("usage:", "loader LIBRARY WEIGHTS INPUT");
    load(given[1]);
    GET(es_create);
    GET(es_create_from_memory);
    GET(es_destroy);
    GET(es_error);
    GET(es_input);
    GET(es_output);
    GET(es_output_info);
    GET(es_profile);
    GET(es_run);
    GET(es_layer_count);
    es_model *model;
    if (es_create_("/nonexistent", &model) != ES_CANNOT_OPEN || es_create_("/", &model) != ES_CANNOT_OPEN)
        fail("a missing file is", "opened");
    size_t size;
    const void *weights = read_all(given[2], &size);
    if (es_create_from_memory_(weights, size, &model))
        fail("weights in memory:", "refused");
    es_destroy_(model);
    const int status = es_create_(given[2], &model);
    if (status)
        fail("weights:", es_error_(status));
    const void *input = read_all(given[3], &size);
    memcpy(es_input_(model, 0), input, size);
    uint64_t *ns = calloc((size_t)es_layer_count_(model), sizeof *ns), spent = 0;
    if (es_run_(model) || es_profile_(model, ns))
        fail("the run", "failed");
    for (int32_t i = 0; i < es_layer_count_(model); i++)
        spent += ns[i];
    if (spent == 0 || spent > 600000000000u)
        fail("the clock", "is wrong");
    fwrite(es_output_(model, 0), 1, (size_t)es_output_info_(model, 0)->nbytes, stdout);
    es_destroy_(model);
    return 0;
}
