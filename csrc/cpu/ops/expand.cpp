// Expand: a compact mask to a resolved one. A piece of work is some rows, LANES at a time, word by word. A row's
// deposit (two loads of 8 bytes, a shift, a pdep) and the frozen pattern of the next word use different execution
// units. The deposits are placed between the rounds of the pattern's generator, so that both run at once: a word's
// pattern is longer than the processor's window of instructions. Where one call of the generator decides a word, two
// groups of LANES rows run side by side, because a call waits for its own rounds.
#include "cpu/machine/parallel.h"
#include "cpu/weights/frozen.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

// One word of ROWS rows: its pattern, and where the bits of its free weights begin.
template <int ROWS>
struct Places {
    alignas(64) uint32_t free[ROWS], locked[ROWS], byte[ROWS], bit[ROWS];
#if !defined(__BMI2__)
    alignas(64) uint32_t bits[ROWS] = {};
#endif
};

// Writes the words of `given` rows from `row` on. INSIDE: reads of 8 bytes stay inside the mask, and there are GROUPS *
// LANES rows.
template <bool INSIDE, int GROUPS>
void expand_rows(const Expand &a, const Pattern &pattern, int64_t row, int given) {
    constexpr int ROWS = GROUPS * LANES;
    const int rows = INSIDE ? ROWS : given;
    const int64_t words = words_of(a.source), free_weights = a.offsets[a.source.rows];
    const int64_t first = a.offsets[row] / 8 * 8;  // places are relative to it
    const char *bytes = reinterpret_cast<const char *>(a.compact) + first / 8;
    uint32_t *out = a.out + row * words;
    Places<ROWS> places;
    for (int r = 0; r < ROWS; ++r) places.byte[r] = r < rows ? uint32_t(a.offsets[row + r] - first) : 0;
    U32 next[GROUPS];  // next free weight of each row
    SLT_UNROLL for (int g = 0; g < GROUPS; ++g) next[g] = load<U32>(places.byte + g * LANES);
    const auto write = [&](int r) {
        if (r >= rows) return;
        uint32_t bits;
        if (INSIDE) {
            uint64_t eight;
            memcpy(&eight, bytes + places.byte[r], sizeof eight);
            bits = uint32_t(eight >> places.bit[r]);
        } else {
            bits = compact_bits(a.compact, free_weights, first + 8 * int64_t(places.byte[r]) + places.bit[r]);
        }
#if defined(__BMI2__)
        out[r * words] = deposit(bits, places.free[r]) | places.locked[r];
#else
        places.bits[r] = bits;
#endif
    };
    const auto write_together = [&] {  // what `write` has left
#if !defined(__BMI2__)
        for (int g = 0; g < ROWS; g += LANES) {
            const U32 bits = load<U32>(places.bits + g), free = load<U32>(places.free + g);
            const U32 word = deposit(bits, free) | load<U32>(places.locked + g);
            for (int l = 0; l < LANES && g + l < rows; ++l) out[(g + l) * words] = word[l];
        }
#endif
    };
    const auto keep = [&](int group, U32 free, U32 locked) {
        store(places.free + group * LANES, free);
        store(places.locked + group * LANES, locked);
        store(places.byte + group * LANES, next[group] >> 3);
        store(places.bit + group * LANES, next[group] & 7);
        next[group] += count_bits(free);
    };
    U32 free[GROUPS], locked[GROUPS];
    const auto generate = [&](int64_t w, const auto &between) {
        if constexpr (GROUPS == 2)
            pattern.two(row, w, free, locked, between);
        else
            pattern(row, w, free[0], locked[0], between);
    };
    const auto keep_all = [&] {
        SLT_UNROLL for (int g = 0; g < GROUPS; ++g) keep(g, free[g], locked[g]);
    };
    generate(0, Nothing());
    keep_all();
    for (int64_t w = 1; w < words; ++w, ++out) {
        asm volatile("" ::: "memory");  // reads the generator's keys again: no registers are left to keep them
        generate(w, [&](int i) {
            constexpr int parts = Generator::BETWEEN;
            for (int r = i * ROWS / parts; r < (i + 1) * ROWS / parts; ++r) write(r);
        });
        write_together();
        keep_all();
    }
    for (int r = 0; r < ROWS; ++r) write(r);
    write_together();
}

template <int GROUPS>
void expand_rows(const Expand &a, const Pattern &pattern, int64_t row, int64_t end) {
    constexpr int ROWS = GROUPS * LANES;
    const int64_t inside = a.offsets[a.source.rows] - 64;  // a read that begins at or before it stays inside
    for (; row < end; row += ROWS) {
        const int rows = int(least(end - row, ROWS));
        if (a.offsets[row + rows] <= inside && rows == ROWS)
            expand_rows<true, GROUPS>(a, pattern, row, ROWS);
        else
            expand_rows<false, GROUPS>(a, pattern, row, rows);
    }
}

}  // namespace

void expand(const Expand &a, int threads) {
    const int64_t rows = rows_per_piece(a.source), all = a.source.rows;
    parallel_for(threads, ceil_div(all, rows), [&](int64_t piece) {
        const Pattern pattern(a.source);
        const int64_t row = piece * rows, end = least(row + rows, all);
        const bool two = pattern.one_call() && end - row > LANES;
        two ? expand_rows<2>(a, pattern, row, end) : expand_rows<1>(a, pattern, row, end);
    });
}

}  // namespace slt::SLT_ISA
