// A plugin of qemu's user emulation: prints the number of instructions that a program has executed, to stderr. The
// functions are those of version 1 of qemu's plugin interface, which Debian's package has no header for.
#include <cstddef>
#include <cstdint>
#include <cstdio>

extern "C" {

struct qemu_plugin_tb;  // a run of instructions that is translated at once
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };

void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*)(uint64_t id, qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(qemu_plugin_tb *, qemu_plugin_op, void *counter, uint64_t add);
void qemu_plugin_register_atexit_cb(uint64_t id, void (*)(uint64_t id, void *), void *);
size_t qemu_plugin_tb_n_insns(const qemu_plugin_tb *);

__attribute__((visibility("default"))) extern int qemu_plugin_version;
int qemu_plugin_version = 1;

static uint64_t executed;

__attribute__((visibility("default"))) int qemu_plugin_install(uint64_t id, const void *, int, char **) {
    qemu_plugin_register_vcpu_tb_trans_cb(id, [](uint64_t, qemu_plugin_tb *tb) {
        const size_t count = qemu_plugin_tb_n_insns(tb);
        qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &executed, count);
    });
    qemu_plugin_register_atexit_cb(
        id, [](uint64_t, void *) { std::fprintf(stderr, "%llu\n", (unsigned long long)executed); }, nullptr);
    return 0;
}

}  // extern "C"
