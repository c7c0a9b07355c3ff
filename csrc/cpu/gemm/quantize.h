// A matrix as fixed point, each row with its own power of two; some rows at a time, so that memory does not grow with
// the batch.
#pragma once

#include "cpu/gemm/fixed_point.h"
#include "cpu/machine/parallel.h"
#include "cpu/machine/scratch.h"

namespace slt::SLT_ISA {
namespace {

template <class Form>
class Quantized {
  public:
    typedef typename Form::Element Element;

    const int64_t pitch;  // not a power of two: rows must not share cache sets

    // Room for `batch` rows of `padded` numbers.
    Quantized(int64_t batch, int64_t padded)
        : pitch(pitch_of(padded)),
          memory(batch * (Form::PLANES * pitch * int64_t(sizeof(Element)) + 16)),
          powers(reinterpret_cast<double *>(memory + batch * Form::PLANES * pitch * int64_t(sizeof(Element)))),
          corrections(reinterpret_cast<int64_t *>(powers + batch)) {}

    // Each row of `count` starts at `skipped`, with zeros around it up to `padded`; see `Layout`.
    void write(const Input x, int64_t batch, int64_t count, int64_t skipped, int64_t padded, Layout layout, int digits,
               int zero, int threads) {
        const Order &order = order_of<Form>(layout);
        const int64_t rows = ceil_div(16384, padded);  // per piece of work
        parallel_for(threads, ceil_div(batch, rows), [&](int64_t piece) {
            for (int64_t b = piece * rows; b < batch && b < (piece + 1) * rows; ++b) {
                const FixedPoint fixed = point_of(largest_bits(x + b * count, count), digits);
                powers[b] = fixed.power;
                corrections[b] = zero * write_vector<Form>(x + b * count, count, skipped, padded, fixed, order,
                                                           row(b), pitch);
            }
        });
    }

    // The planes of row b.
    Element *row(int64_t b) const { return reinterpret_cast<Element *>(memory.data) + b * Form::PLANES * pitch; }

    // Rows of a batch to make at a time, in nearly equal parts: 24 MB, a block that the allocator keeps, and at least
    // 256 rows, which are worth making the weights for.
    static int64_t rows_at_once(int64_t batch, int64_t padded) {
        const int64_t bytes = Form::PLANES * pitch_of(padded) * int64_t(sizeof(Element));
        return ceil_div(batch, greatest(ceil_div(batch, greatest((24 << 20) / bytes, 256)), 1));
    }

  private:
    static int64_t pitch_of(int64_t padded) { return padded + 64 / int64_t(sizeof(Element)); }

    const Scratch<char, 1024> memory;  // planes, then powers and corrections

  public:
    double *const powers;
    int64_t *const corrections;  // zero * the sum of a row's integers
};

}  // namespace
}  // namespace slt::SLT_ISA
