/* A plugin for QEMU's user mode (TCG plugin API, version 1): counts the instructions that are executed between two
 * addresses, exactly, and writes the number to a file at the end. Debian ships no header for this API, so what is used
 * of it is declared here.
 *
 *     qemu-aarch64 -plugin ./count.so,low=ADDRESS,high=ADDRESS,out=FILE program .. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*tb_trans_cb)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*udata_cb)(qemu_plugin_id_t, void *);
enum { INLINE_ADD_U64 = 0 };

#define PUBLIC __attribute__((visibility("default")))

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, tb_trans_cb);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, udata_cb, void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);

PUBLIC int qemu_plugin_version = 1;

static uint64_t counted, low, high;
static const char *out = "";

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    uint64_t inside = 0;
    (void)id;
    for (size_t i = 0, count = qemu_plugin_tb_n_insns(tb); i < count; i++) {
        const uint64_t at = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(tb, i));
        inside += at >= low && at < high;
    }
    if (inside)
        qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD_U64, &counted, inside);
}

static void ended(qemu_plugin_id_t id, void *context) {
    (void)id, (void)context;
    FILE *file = fopen(out, "w");
    if (!file)
        return;
    fprintf(file, "%llu\n", (unsigned long long)counted);
    fclose(file);
}

PUBLIC int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv);
PUBLIC int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "low=", 4))
            low = strtoull(argv[i] + 4, NULL, 0);
        else if (!strncmp(argv[i], "high=", 5))
            high = strtoull(argv[i] + 5, NULL, 0);
        else if (!strncmp(argv[i], "out=", 4))
            out = strdup(argv[i] + 4);
        else
            return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
