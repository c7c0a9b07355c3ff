// Linear forward: y = x W^T.
//
// x becomes fixed point once, some rows of the batch at a time. A piece of work is some blocks of rows of the weight
// (`WorkSplit`): it makes their panel for as many k as fit (all, up to 8192), and multiplies every row of x by it. A
// small batch uses the weights as they are made if there is a dot product of bytes in 512 bits (small_batch.h).
// Otherwise its panel has 256 k at a time and stays in L1, because making the weights takes most of the time.
#include "cpu/gemm/quantize.h"
#include "cpu/gemm/small_batch.h"
#include "cpu/gemm/stored_signs.h"
#include "cpu/gemm/work_split.h"
#include "cpu/machine/parallel.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

constexpr int64_t FEW_CALLS = 2, MOST_CALLS = 64;

template <class Form>
void forward_some(const LinearForward &a, int threads, Quantized<Form> &x) {
    const Source &s = a.source;
    const Frame frame = frame_of(s);
    const int64_t pitch = x.pitch;
    x.write(a.x, a.batch, s.fan, frame.skipped * WORD, frame.k, layout_of(s.weight), a.digits, zero_of(s.weight),
            threads);
    const Output all = {.y = a.y,
                        .vector_stride = s.rows,
                        .lanes = int(s.rows),
                        .powers = x.powers,
                        .corrections = x.corrections,
                        .scale = a.scale,
                        .bias = a.bias,
                        .small = small_sums(s.fan, s.weight, a.digits)};

#if defined(__AVX512VNNI__)
    if constexpr (!Form::TABLES) {
#if !defined(SLT_AMX)
        if (const int64_t digits = a.batch * Form::PLANES; a.signs && digits <= STORED_DIGITS) {
            const Strips strips(x.row(0) + frame.skipped * WORD, pitch, digits, words_of(s));
            return parallel_for(threads, ceil_div(s.rows, BLOCK), [&](int64_t piece) {
                multiply_stored<Form::PLANES>(s, a.mask, a.signs, piece * BLOCK, strips, a.batch,
                                              all.part(0, piece * BLOCK, BLOCK));
            });
        }
#endif
        if (a.batch * Form::PLANES <= FEW_DIGITS) {
            return parallel_for(threads, ceil_div(s.rows, BLOCK), [&](int64_t piece) {
                const Weights weights(s, a.mask, a.signs);
                Workspace workspace;
                multiply_few<Form::PLANES>(workspace, weights, piece * BLOCK, x.row(0), pitch, a.batch,
                                           all.part(0, piece * BLOCK, BLOCK));
            });
        }
    }
#endif

    constexpr bool tables = Form::TABLES;
    const bool few = !tables && a.batch <= FEW_VECTORS;
    const int64_t calls = least(frame.calls, few ? FEW_CALLS : MOST_CALLS);
    const bool parts = calls < frame.calls;
    const int64_t k = (frame.skipped + words_of(s)) * WORD;
    const int64_t group_words = panel_words<Form>(calls * QUADS);
    int64_t bytes = group_words / LANES * int64_t(sizeof(uint32_t));  // per output
    int64_t panel_bytes = few ? BLOCK * bytes : PANEL_BYTES;
    if constexpr (tables) {
        // The more outputs share a table, the better: they have all the scratch except the quads of one group.
        bytes += SUM_BYTES + (parts ? MOST_SUMMED * int64_t(sizeof(int64_t)) : 0);
        panel_bytes = SCRATCH_BYTES - LANES * calls * CALL;
    }
    const WorkSplit split(s.rows, panel_bytes, bytes, a.batch, threads, tables ? TABLE_OUTPUTS : BLOCK, MOST_VECTORS,
                          parts ? MOST_SUMMED : a.batch);
    parallel_for(threads, split.pieces, [&](int64_t piece) {
        const int64_t row = split.lane(piece), rows = split.lanes(piece);
        const int64_t b = split.vector(piece), batch = split.vectors(piece);
        const Weights weights(s, a.mask, a.signs);
        Scratch<uint32_t> panel(split.most_lanes / LANES * group_words + QUADS * LANES);
        Scratch<uint32_t> quads(tables ? LANES * QUADS * calls : 0);
        Scratch<int64_t> sums(parts ? split.most_lanes * batch : 0);
        Workspace workspace;
        Output out = all.part(b, row, rows);
        if (parts) out.sums = sums;
        for (int64_t first = 0; first < frame.calls; first += calls) {
            const int64_t here = least(frame.calls - first, calls);
            const int64_t count = whole_steps<Form::DEPTH_STEP>(least(here * CALL, k - first * CALL)) / 4;  // quads
            for (int64_t lane = 0; lane < rows; lane += LANES) {
                uint32_t *group = panel + lane / LANES * panel_words<Form>(count);
                // A call that passes the last quad is overwritten by the next group, or passes the panel.
                weights.write(row + lane, first, here, tables ? quads : group);
                prepare_group<Form>(quads, count, group);
            }
            out.first = first == 0;
            out.last = first + here == frame.calls;
            multiply_blocks<Form>(workspace, {x.row(b) + first * CALL, Form::PLANES * pitch, pitch},
                                  batch, panel, count, out);
        }
    });
}

template <class Form>
void forward(const LinearForward &a, int threads) {
    const int64_t padded = frame_of(a.source).k, step = Quantized<Form>::rows_at_once(a.batch, padded);
    int64_t unused = 0;  // vectors after the last that may be read
#if defined(__AVX512VNNI__)
    if (const int64_t digits = a.batch * Form::PLANES; digits <= FEW_DIGITS)
        unused = ceil_div(digits_read(int(digits)) - digits, Form::PLANES);
#endif
    Quantized<Form> x(step + unused, padded);
    for (int64_t first = 0; first < a.batch; first += step) {
        LinearForward some = a;
        some.x = a.x + first * a.source.fan;
        some.y = a.y + first * a.source.rows;
        some.batch = least(a.batch - first, step);
        forward_some<Form>(some, threads, x);
    }
}

}  // namespace

void linear_forward(const LinearForward &a, int threads) {
#if SLT_TABLES && SLT_BYTE_DIGITS
    // Tables take sixteen vectors in the time of one: a few beyond the sixteens are faster by dot products.
    const int64_t rest = a.batch % MOST_VECTORS, whole = a.batch - rest;
    if (whole > 0 && rest > 0 && rest <= FEW_VECTORS && tables_pay(a.source.weight, a.source.rows, whole, a.digits)) {
        LinearForward some = a;
        some.batch = whole;
        linear_forward(some, threads);
        some.batch = rest;
        some.x = a.x + whole * a.source.fan;
        some.y = a.y + whole * a.source.rows;
        return linear_forward(some, threads);
    }
#endif
    advise_huge_pages(a.y.data, a.batch * a.source.rows * a.y.size());
    const auto run = [&](auto form) { forward<decltype(form)>(a, threads); };
    if (a.digits == 1) return run(InDigits<1>());
    with_form(a.source.weight, a.source.rows, a.batch, a.digits, run);
}

}  // namespace slt::SLT_ISA
