// The gradient of the scores: dL/dW * v * scale * sign(score) at every free weight, where dL/dW = dy^T x.
//
// dL/dW is never stored. A piece of work is a block of rows (or a part of their columns if there are few blocks), and
// goes over CALLS calls of 128 columns at a time. The contraction (wgrad.h) computes the sums of rows x 512 in L2 (256
// KB). The frozen pattern and the weights of those columns are generated with one row per lane. Each word is then
// finished row by row: 32 sums times the weights and the scale; the free ones are compressed, get the signs of their
// scores, and are written after the row's earlier free weights.
//
// Cost per weight beside the product, with AVX-512: 0.6 instructions for the pattern, 0.07 for a sign (0.8 for a byte
// weight), 1 to finish. With several calls at a time, an operand in L2 serves all of them, and the runs of scores and
// gradients are long enough to prefetch. Calls without a free weight cost only their pattern.
#include "cpu/gemm/fixed_point.h"
#include "cpu/machine/huge_pages.h"
#include "cpu/wgrad/wgrad_direct.h"
#include "cpu/wgrad/wgrad_fma.h"
#include "cpu/wgrad/wgrad_winograd.h"

#if defined(SLT_AMX)
#include "cpu/wgrad/wgrad_amx_bf16.h"
#include "cpu/wgrad/wgrad_amx_int8.h"
#endif

namespace slt::SLT_ISA {
namespace {

constexpr int CALLS = 4;

// The free weights and the values of one call of some rows, to be read row by row.
template <int64_t ROWS>
struct alignas(64) CallTile {
    uint32_t free[ROWS / LANES][WORDS_PER_CALL][LANES];
    uint32_t weights[ROWS / LANES][WORDS_PER_CALL][8][LANES];  // the sign word, or 32 bytes v + 128 in the order of k

    uint32_t free_word(int64_t r, int i) const { return free[r / LANES][i][r % LANES]; }
    uint32_t sign_word(int64_t r, int i) const { return weights[r / LANES][i][0][r % LANES]; }

    // v of one word, in bit order.
    SLT_INLINE void values(int64_t r, int i, float out[WORD]) const {
        uint8_t bytes[WORD];
        for (int j = 0; j < 8; ++j) memcpy(bytes + 4 * j, &weights[r / LANES][i][j][r % LANES], 4);
        for (int j = 0; j < WORD / 2; ++j) {
            out[j] = float(bytes[2 * j] - 128);
            out[WORD / 2 + j] = float(bytes[2 * j + 1] - 128);
        }
    }
};

// Makes the CallTile of a call.
class CallTiles {
  public:
    explicit CallTiles(const Source &s)
        : s(s), frame(frame_of(s)), pattern(s), generator(s, s.weight == SIGNED_CONSTANT ? SIGN : VALUE) {}

    // Writes the free weights of a call; returns whether there is one.
    template <int64_t ROWS>
    bool free(int64_t row, int64_t rows, int64_t call, CallTile<ROWS> &tile) const {
        U32 any = {};
        for (int64_t r = 0; r < rows; r += LANES)
            for (int i = 0; i < WORDS_PER_CALL; ++i) {
                const int64_t word = call * WORDS_PER_CALL + i - frame.skipped;
                U32 f = {}, locked;
                if (word >= 0 && word < words_of(s)) pattern(row + r, word, f, locked);
                store(tile.free[r / LANES][i], f);
                any |= f;
            }
        for (int l = 0; l < LANES; ++l)
            if (any[l]) return true;
        return false;
    }

    template <int64_t ROWS>
    void weights(int64_t row, int64_t rows, int64_t call, CallTile<ROWS> &tile) const {
        for (int64_t r = 0; r < rows; r += LANES)
            call_words(s.weight, generator, sign_index(s, row + r, call),
                       word_index(s, row + r, frame, call * WORDS_PER_CALL), tile.weights[r / LANES]);
    }

  private:
    const Source &s;
    const Frame frame;
    const Pattern pattern;
    const Generator generator;
};

// The lowest LANES bits as the sign bits of the lanes.
SLT_INLINE U32 sign_bits(uint32_t bits) {
    U32 lane;
    for (int i = 0; i < LANES; ++i) lane[i] = 1u << i;
    return (U32)((splat(bits) & lane) != 0) & 0x80000000;
}

// Writes or adds the gradients of the free weights of a word, with the signs of their scores; returns their number.
SLT_INLINE int64_t write_free(const F32 grads[WORD / LANES], uint32_t free, const float *scores, bool add, float *out) {
#if defined(__AVX512F__)
    const __m512i sign = _mm512_set1_epi32(0x80000000);
    int64_t written = 0;
    SLT_UNROLL for (int i = 0; i < 2; ++i) {
        const __mmask16 mask = __mmask16(free >> 16 * i);
        const int count = __builtin_popcount(mask);
        const __mmask16 first = __mmask16((1u << count) - 1);
        const __m512i g = _mm512_maskz_compress_epi32(mask, (__m512i)grads[i]);
        const __m512 score = _mm512_maskz_loadu_ps(first, scores + written);
        const __mmask16 negative = _mm512_cmp_ps_mask(score, _mm512_setzero_ps(), _CMP_LT_OQ);
        __m512 result = _mm512_castsi512_ps(_mm512_mask_xor_epi32(g, negative, g, sign));
        if (add) result = _mm512_add_ps(result, _mm512_maskz_loadu_ps(first, out + written));
        _mm512_mask_storeu_ps(out + written, first, result);
        written += count;
    }
    return written;
#else
    alignas(64) float all[WORD], some[WORD + 1];
    memcpy(all, grads, sizeof all);
    const float *chosen = all;
    int64_t count = WORD;
    if (free != ~0u) {
        chosen = some;
        count = 0;
        for (int b = 0; b < WORD; ++b) {
            some[count] = all[b];
            count += free >> b & 1;
        }
    }
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const U32 negative = (U32)(load<F32>(scores + i) < 0) & 0x80000000;
        const F32 grad = (F32)(load<U32>(chosen + i) ^ negative);
        store(out + i, add ? load<F32>(out + i) + grad : grad);
    }
    for (; i < count; ++i) {
        const float grad = scores[i] < 0 ? -chosen[i] : chosen[i];
        out[i] = add ? out[i] + grad : grad;
    }
    return count;
#endif
}

// Finishes one word of a row: writes the gradients of its free weights, the first of which is number `next`.
template <int64_t ROWS>
SLT_INLINE int64_t finish(const GradScores &a, const CallTile<ROWS> &tile, int64_t r, int i, const float *sums,
                          bool add, int64_t next) {
    const uint32_t free = tile.free_word(r, i);
    if (!free) return 0;
    F32 grads[WORD / LANES];
    memcpy(grads, sums, sizeof grads);
    if (a.source.weight == SIGNED_CONSTANT) {
        const uint32_t sign = tile.sign_word(r, i);
        SLT_UNROLL for (int j = 0; j < WORD / LANES; ++j)
            grads[j] = (F32)((U32)(grads[j] * a.scale) ^ sign_bits(sign >> j * LANES));
    } else {
        F32 v[WORD / LANES];
        tile.values(r, i, (float *)v);
        SLT_UNROLL for (int j = 0; j < WORD / LANES; ++j) grads[j] = grads[j] * v[j] * a.scale;
    }
    return write_free(grads, free, a.scores + next, add, a.out + next);
}

// Prefetches the scores and the gradients of rows, a few lines per call. It is called during the product, which leaves
// the memory idle.
template <int64_t ROWS>
class Prefetch {
  public:
    Prefetch(const GradScores &a, const CallTile<ROWS> *tiles, int calls, int64_t rows, const int64_t *next)
        : a(a), next(next), rows(rows) {
        for (int64_t r = 0; r < rows; ++r) {
            count[r] = 0;
            for (int c = 0; c < calls; ++c)
                for (int i = 0; i < WORDS_PER_CALL; ++i) count[r] += __builtin_popcount(tiles[c].free_word(r, i));
        }
    }

    void operator()() {
        for (int line = 0; line < 16; ++line, at += LINE) {
            while (row < rows && at >= count[row]) {
                at = 0;
                ++row;
            }
            if (row >= rows) return;
            __builtin_prefetch(a.scores + next[row] + at, 0, 2);
            __builtin_prefetch(a.out + next[row] + at, 1, 2);
        }
    }

  private:
    static constexpr int64_t LINE = 64 / sizeof(float);
    const GradScores &a;
    const int64_t *next, rows;
    int64_t row = 0, at = 0;
    int count[ROWS];  // free weights
};

template <class Contraction>
void run(const GradScores &a, int threads, const Contraction &contraction, bool add) {
    const Source &s = a.source;
    const Frame frame = frame_of(s);
    const CallTiles call_tiles(s);
    const int64_t group_rows = s.rows / a.window.groups, blocks = ceil_div(group_rows, Contraction::ROWS);
    const int64_t block = ceil_div(ceil_div(group_rows, blocks), Contraction::ROW_STEP) * Contraction::ROW_STEP;
    const int64_t row_blocks = blocks * a.window.groups;
    const int64_t wanted = threads == 1 ? 1 : ceil_div(4 * threads, row_blocks);
    const int64_t calls = ceil_div(frame.calls, wanted), parts = ceil_div(frame.calls, calls);  // calls of a part

    parallel_for(threads, row_blocks * parts, [&](int64_t piece) {
        const int64_t group = piece / parts / blocks, in_group = piece / parts % blocks * block;
        const int64_t row = group * group_rows + in_group;
        const int64_t rows = least(group_rows - in_group, block);
        const int64_t first = piece % parts * calls, end = least(first + calls, frame.calls);

        int64_t next[Contraction::ROWS];  // next free weight of each row
        for (int64_t r = 0; r < rows; ++r) next[r] = a.offsets[row + r];
        CallTile<Contraction::ROWS> tiles[CALLS];
        for (int64_t call = 0; call < first; ++call) {
            if (!call_tiles.free(row, rows, call, tiles[0])) continue;
            for (int64_t r = 0; r < rows; ++r)
                for (int i = 0; i < WORDS_PER_CALL; ++i) next[r] += __builtin_popcount(tiles[0].free_word(r, i));
        }

        typename Contraction::Panels panels(rows);
        Scratch<float> sums(CALLS * Contraction::ROWS * CALL);
        Columns columns[CALLS];
        for (int64_t call = first; call < end;) {
            int count = 0;
            for (; count < CALLS && call < end; ++call)
                if (call_tiles.free(row, rows, call, tiles[count])) {
                    call_tiles.weights(row, rows, call, tiles[count]);
                    columns[count++] = Columns(a, call, group);
                }
            contraction(panels, row, rows, columns, count, sums,
                        Prefetch<Contraction::ROWS>(a, tiles, count, rows, next));
            for (int64_t r = 0; r < rows; ++r)
                for (int c = 0; c < count; ++c)
                    for (int i = 0; i < WORDS_PER_CALL; ++i)
                        next[r] += finish(a, tiles[c], r, i, sums + (c * Contraction::ROWS + r) * CALL + i * WORD, add,
                                          next[r]);
        }
    });
}

#if defined(SLT_AMX)
// Runs in fixed point if it suits the arguments; returns whether it did.
template <int DIGITS>
bool run_digits(const GradScores &a, int threads, bool add) {
    if (!TileContraction<Digits<DIGITS>>::suits(a)) return false;
    const Digits<DIGITS> digits(a, threads);
    if (!digits.exist()) return false;
    run(a, threads, TileContraction<Digits<DIGITS>>(a, threads, digits), add);
    return true;
}
#endif

// The number of samples whose gradients are computed at a time. Their copies should stay in a cache, and in memory that
// the process already has; a pass over the scores and their gradients should be cheap beside the product. A multiple of
// four that does not depend on the number of threads, because sums must not.
int64_t samples_at_once(const GradScores &a) {
    const Window &w = a.window;
    const auto whole = [](int64_t count, int64_t of) { return ceil_div(count, of) * of; };
    // The sizes of the copies: zeros around images, channels in words if one tap reads them, rows in tiles of at most
    // 16.
    const int64_t channels = taps_of(w) * w.groups == 1 ? whole(a.x.channels, WORD) : a.x.channels;
    const int64_t rows = w.groups * whole(a.dy.channels / w.groups, 16);
    const int64_t pixels = (a.x.height + 2 * w.padding_h) * (a.x.width + 2 * w.padding_w);
    const int64_t elements = channels * pixels + rows * a.dy.pixels();
    const int64_t most = greatest(8 * a.offsets[a.source.rows], 4 << 20);
    return ceil_div(most, 4 * elements + 1) * 4;
}

// Returns whether NaN or infinity of x may have reached taps of its channel that do not read it. This happens only if x
// is read in place.
bool run_some(const GradScores &a, int threads, bool add, [[maybe_unused]] bool may_read_in_place) {
#if defined(SLT_AMX)
    if (TileContraction<Bfloat16>::suits(a)) {
        const Bfloat16 number;
        const TileContraction<Bfloat16> contraction(a, threads, number, may_read_in_place);
        run(a, threads, contraction, add);
        return contraction.adds_zeros();
    }
    if (a.digits == 3 ? run_digits<3>(a, threads, add) : run_digits<2>(a, threads, add)) return false;
#endif
#if defined(__AVX512BF16__)
    if (a.x.data.type == Type::BFLOAT16 && a.dy.data.type == Type::BFLOAT16) {
        run(a, threads, RegisterContraction<Bfloat16Pairs>(a, threads), add);
        return false;
    }
#endif
    run(a, threads, RegisterContraction<Floats>(a, threads), add);
    return false;
}

bool run_all(const GradScores &a, int threads, bool may_read_in_place) {
    bool too_far = false;
    for (int64_t first = 0, step = samples_at_once(a); first < a.x.samples; first += step) {
        GradScores some = a;
        some.x = a.x.part(first, step);
        some.dy = a.dy.part(first, step);
        too_far |= run_some(some, threads, first > 0, may_read_in_place);
    }
    return too_far;
}

}  // namespace

void grad_scores(const GradScores &a, int threads) {
    const int64_t count = a.offsets[a.source.rows];
    advise_huge_pages(a.out, count * int64_t(sizeof *a.out));
    // Whether NaN or infinity of x may have reached taps of its channel that do not read it.
    bool too_far = true;
    const DirectGradient direct(a, threads);
    if (WinogradContraction::suits(a))
        run(a, threads, WinogradContraction(a, threads), false);
    else if (direct.pays())
        direct.run();
    else
        too_far = run_all(a, threads, true);
    if (too_far && largest_bits({reinterpret_cast<const char *>(a.out), Type::FLOAT32}, count) >= INFINITE)
        run_all(a, threads, false);
}

}  // namespace slt::SLT_ISA
