// Finds the compiled instruction sets that this processor and operating system run. Compiled for the baseline.
#include "cpu/dispatch.h"
#include "cpu/machine/errors.h"
#include "cpu/machine/float_control.h"

#include <new>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace slt {

// setup.py defines SLT_HAVE(X) as X(name) for each instruction set of the compiler, the best last.
#define SLT_DECLARE(name)            \
    namespace name {                 \
    extern const Operations operations; \
    }
SLT_HAVE(SLT_DECLARE)

namespace {

struct Features {
    bool scalar = true, neon = true;  // every processor has those of its architecture
    bool neondot = false, neoni8mm = false;
    bool avx2 = false, avx2vnni = false, avx512 = false, avx512vnni = false, avx512bf16 = false,
         amx = false;
};

#if defined(__x86_64__)
uint64_t enabled_state() {  // XCR0: the register files that the operating system saves
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t(high) << 32 | low;
}

// Tile registers are off until a process requests them (Linux 5.16 and later).
bool tiles_permitted() {
#if defined(__linux__)
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}

Features detect() {
    Features f;
    uint32_t a, b, c, d, a1, b1, c1, d1, ecx;
    if (!__get_cpuid(1, &a, &b, &ecx, &d) || !(ecx >> 27 & 1)) return f;  // OSXSAVE
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
    if (!__get_cpuid_count(7, 1, &a1, &b1, &c1, &d1)) a1 = 0;
    const uint64_t state = enabled_state();
    const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xE6) == 0xE6, tiles = (state & 0x60000) == 0x60000;
    const bool fma = ecx >> 12 & 1, f16c = ecx >> 29 & 1, popcnt = ecx >> 23 & 1, bmi = (b >> 3 & 1) && (b >> 8 & 1);
    f.avx2 = ymm && fma && f16c && popcnt && bmi && (b >> 5 & 1);
    f.avx2vnni = f.avx2 && (a1 >> 4 & 1);
    const bool foundation = (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1);  // F, DQ, BW, VL
    f.avx512 = f.avx2 && zmm && foundation;
    const bool bytes = (c >> 11 & 1) && (c >> 1 & 1) && (c >> 14 & 1) && (c >> 8 & 1);  // VNNI, VBMI, VPOPCNTDQ, GFNI
    f.avx512vnni = f.avx512 && bytes;
    f.avx512bf16 = f.avx512vnni && (a1 >> 5 & 1);
    const bool units = (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1);  // BF16, TILE, INT8
    f.amx = f.avx512bf16 && tiles && units && tiles_permitted();
#if defined(SLT_EMULATE)
    f.avx2vnni = f.avx512vnni;
    f.amx = f.avx512bf16;
#endif
    return f;
}
#elif defined(__aarch64__) && defined(__linux__)
Features detect() {
    constexpr unsigned long DOTPROD = 1 << 20, I8MM = 1 << 13;  // of the kernel's HWCAP and HWCAP2
    Features f;
    f.neondot = getauxval(AT_HWCAP) & DOTPROD;
    f.neoni8mm = f.neondot && (getauxval(AT_HWCAP2) & I8MM);
    return f;
}
#elif defined(__aarch64__) && defined(__APPLE__)
bool has(const char *feature) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value;
}

Features detect() {
    Features f;
    f.neondot = has("hw.optional.arm.FEAT_DotProd");
    f.neoni8mm = f.neondot && has("hw.optional.arm.FEAT_I8MM");
    return f;
}
#else
Features detect() { return {}; }
#endif

}  // namespace

void out_of_memory() { throw std::bad_alloc(); }

bool run_piece(void (*work)(const void *, int64_t), const void *context, int64_t i) {
    const DefaultFloatControl control;
    try {
        work(context, i);
        return true;
    } catch (const std::bad_alloc &) {
        return false;
    }
}

std::vector<InstructionSet> instruction_sets() {
    static const Features features = detect();
    std::vector<InstructionSet> sets;
#define SLT_ADD(name) \
    if (features.name) sets.push_back({#name, &name::operations});
    SLT_HAVE(SLT_ADD)
    return sets;
}

}  // namespace slt
