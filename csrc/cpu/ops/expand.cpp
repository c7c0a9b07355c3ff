// Expand: a compact mask to a resolved one. A piece of work is some rows, LANES at a time, word by word. A row's
// deposit (two loads of 8 bytes, a shift, a pdep) and the frozen pattern of the next word use different execution
// units. The deposits are placed between the rounds of the pattern's generator, so that both run at once: a word's
// pattern is longer than the processor's window of instructions.
#include "cpu/machine/parallel.h"
#include "cpu/weights/frozen.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

// One word of LANES rows: its pattern, and where the bits of its free weights begin.
struct Places {
    alignas(64) uint32_t free[LANES], locked[LANES], byte[LANES], bit[LANES];
#if !defined(__BMI2__)
    alignas(64) uint32_t bits[LANES] = {};
#endif
};

// Writes the words of rows [row, row + lanes). INSIDE: reads of 8 bytes stay inside the mask.
template <bool INSIDE>
void expand_rows(const Expand &a, const Pattern &pattern, int64_t row, int lanes) {
    const int64_t words = words_of(a.source), free_weights = a.offsets[a.source.rows];
    const int64_t first = a.offsets[row] / 8 * 8;  // places are relative to it
    const char *bytes = reinterpret_cast<const char *>(a.compact) + first / 8;
    uint32_t *out = a.out + row * words;
    Places places;
    U32 next = {};  // next free weight of each row
    for (int l = 0; l < lanes; ++l) next[l] = uint32_t(a.offsets[row + l] - first);
    const auto write = [&](int l) {
        if (l >= lanes) return;
        uint32_t bits;
        if (INSIDE) {
            uint64_t eight;
            memcpy(&eight, bytes + places.byte[l], sizeof eight);
            bits = uint32_t(eight >> places.bit[l]);
        } else {
            bits = compact_bits(a.compact, free_weights, first + 8 * int64_t(places.byte[l]) + places.bit[l]);
        }
#if defined(__BMI2__)
        out[l * words] = deposit(bits, places.free[l]) | places.locked[l];
#else
        places.bits[l] = bits;
#endif
    };
    const auto write_together = [&] {  // what `write` has left
#if !defined(__BMI2__)
        const U32 word = deposit(load<U32>(places.bits), load<U32>(places.free)) | load<U32>(places.locked);
        for (int l = 0; l < lanes; ++l) out[l * words] = word[l];
#endif
    };
    const auto keep = [&](U32 free, U32 locked) {
        store(places.free, free);
        store(places.locked, locked);
        store(places.byte, next >> 3);
        store(places.bit, next & 7);
        next += count_bits(free);
    };
    U32 free, locked;
    pattern(row, 0, free, locked);
    keep(free, locked);
    for (int64_t w = 1; w < words; ++w, ++out) {
        pattern(row, w, free, locked, [&](int i) {
            constexpr int parts = Generator::BETWEEN;
            for (int l = i * LANES / parts; l < (i + 1) * LANES / parts; ++l) write(l);
        });
        write_together();
        keep(free, locked);
    }
    for (int l = 0; l < LANES; ++l) write(l);
    write_together();
}

}  // namespace

void expand(const Expand &a, int threads) {
    const int64_t rows = rows_per_piece(a.source), all = a.source.rows;
    const int64_t inside = a.offsets[all] - 64;  // a read that begins at or before it stays inside
    parallel_for(threads, ceil_div(all, rows), [&](int64_t piece) {
        const Pattern pattern(a.source);
        for (int64_t row = piece * rows; row < (piece + 1) * rows && row < all; row += LANES) {
            const int lanes = int(least(all - row, LANES));
            if (a.offsets[row + lanes] <= inside && lanes == LANES)
                expand_rows<true>(a, pattern, row, LANES);
            else
                expand_rows<false>(a, pattern, row, lanes);
        }
    });
}

}  // namespace slt::SLT_ISA
