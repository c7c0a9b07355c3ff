// Planes of fixed point, each sample with its own power of two. Pixels are padded to whole words, except when PACKED.
#pragma once

#include "cpu/conv/geometry.h"
#include "cpu/conv/sample_fixed_point.h"
#include "cpu/gemm/gemm.h"
#include "cpu/weights/transposed.h"

namespace slt::SLT_ISA {
namespace {

// The product of a convolution in fixed point; panels as in gemm.h.
template <class Form>
struct DigitProduct {
    typedef float Number;  // type of results, not yet rounded
    static constexpr bool FIXED_POINT = true;
    static constexpr int64_t OUTPUTS = Form::TABLES ? TABLE_OUTPUTS : BLOCK;  // fewest for a panel
    static constexpr int64_t BYTES = 1;    // per weight
    static constexpr int64_t DEPTH_STEP = Form::DEPTH_STEP;  // depths are multiples of it
    static constexpr int64_t PART_STEP = CALL;               // parts of one, except the last, are multiples of this
    static constexpr int64_t SUMS = Form::TABLES ? SUM_BYTES : 0;  // bytes of sums per output, beside the panel

    static float scale_of(const Weights &, float scale) { return scale; }

    // The weights of LANES rows, from k on. The last call may end after the depth.
    static void make_rows(const Weights &weights, int64_t row, int64_t k, int64_t depth, uint32_t *panel) {
        weights.write(row, k / CALL, ceil_div(depth, CALL), panel);
    }

    // One call of COLUMN_ROWS rows, one lane per k.
    static void make_columns(const Weights &weights, int64_t row, int64_t call, uint32_t *out) {
        slt::SLT_ISA::make_columns(weights, row, call, out);
    }

    static void multiply(Workspace &workspace, const VectorsOf<typename Form::Element> &x, int64_t vectors,
                         const uint32_t *panel, int64_t depth, const Output &out) {
        multiply_blocks<Form>(workspace, x, vectors, panel, depth / 4, out);
    }
};

template <class Form>
class DigitPlanes : public PlanesOf<typename Form::Element> {
    typedef PlanesOf<typename Form::Element> Base;
    using Base::before, Base::clear_border, Base::first, Base::parts_of_sample;

  public:
    using Base::pixel, Base::plane, Base::reading, Base::row, Base::sample, Base::x;
    typedef typename Form::Element Element;
    typedef DigitProduct<Form> Product;
    static constexpr int PLANES = Form::PLANES, VECTORS = MOST_VECTORS;
    static constexpr int64_t TILE = 64;  // elements in a row of a tile

    Scratch<double> powers;  // of each sample

    // Elements of a pixel.
    static int64_t pixel_of(const Images &x, Reading reading) {
        return reading == Reading::PACKED ? x.channels : ceil_div(x.channels, WORD) * WORD;
    }

    // `layout`: of the words of panels. `whole`: pixels are whole words, so the words of planes can have it too.
    DigitPlanes(const Images &x, const Border &around, Reading reading, Layout layout, bool whole, int digits,
                int threads)
        : Base(x, around, reading, pixel_of(x, reading),
                 MOST_VECTORS * ceil_div(x.channels, WORD) * WORD + int64_t(sizeof(U32) / sizeof(Element))),
          powers(x.samples),
          order(order_of<Form>(whole ? layout : Layout::PLAIN)),
          layout(layout),
          whole(whole),
          memory(PLANES * plane) {
        for (int d = 0; d < PLANES; ++d) memset(memory + d * plane, 0, size_t(before()) * sizeof(Element));
        first = memory + before();
        // A sample's largest element is needed before its first digit. One thread finds both if there are many samples.
        const int64_t parts = parts_of_sample(threads);
        Scratch<uint32_t> largest(x.samples * parts);
        const auto write = [&](int64_t piece) {
            const int64_t sample = piece / parts, part = piece % parts;
            uint32_t most = 0;
            for (int64_t p = 0; p < parts; ++p) {
                const uint32_t found = largest[sample * parts + p];
                most = found > most ? found : most;
            }
            const FixedPoint fixed = point_of(most, digits);
            powers[sample] = fixed.power;
            write_rows(sample, x.height * part / parts, x.height * (part + 1) / parts, fixed);
        };
        parallel_for(threads, x.samples * parts, [&](int64_t piece) {
            const int64_t part = piece % parts;
            largest[piece] = largest_of_rows(x, piece / parts, x.height * part / parts, x.height * (part + 1) / parts);
            if (parts == 1) write(piece);
        });
        if (parts > 1) parallel_for(threads, x.samples * parts, write);
    }

    // Vectors to multiply at a time.
    int together(const Taps &) const { return VECTORS; }

    // The sum of the integers of a copied vector, in planes `pitch` apart, or 0 if it is unused.
    int64_t sum_of([[maybe_unused]] const Element *vector, [[maybe_unused]] int64_t pitch,
                   [[maybe_unused]] int64_t count) const {
        int64_t sum = 0;
        if constexpr (!SIGNED_BYTES && !Form::TABLES)
            for (int d = PLANES - 1; d >= 0; --d) sum = sum * (1 << DIGIT_BITS) + total(vector + d * pitch, count);
        return sum;
    }

    // Converts a panel's groups to what `multiply` reads, in place.
    void prepare(uint32_t *panel, int64_t groups, int64_t depth) const {
        if (!whole) order_quads<Form>(panel, groups * depth / WORD, layout);
        prepare_panel<Form>(panel, groups, depth / 4);
    }

  private:
    const Order &order;  // of words
    const Layout layout;
    const bool whole;
    const Scratch<Element> memory;

    // Writes rows [first, end) of a sample, with the zeros after them.
    void write_rows(int64_t sample_index, int64_t first, int64_t end, const FixedPoint &fixed) const {
        Element *out = memory + before() + sample_index * sample;
        const Input in = x.data + sample_index * x.channels * x.pixels();
        if (reading == Reading::PACKED) {
            pack_rows(in, first, end, fixed, out);
        } else if (x.channels_last) {
            for (int64_t h = first; h < end; ++h)
                for (int64_t w = 0; w < x.width; ++w)
                    write_vector<Form>(in + (h * x.width + w) * x.channels, x.channels, 0, pixel, fixed, order,
                                         out + h * row + w * pixel, plane);
        } else {
            transpose_rows(in, first, end, fixed, out);
        }
        for (int d = 0; d < PLANES; ++d) clear_border(out + d * plane, first, end);
    }

    // Writes rows without padding, through a buffer: digits are made by the word.
    void pack_rows(const Input in, int64_t first, int64_t end, const FixedPoint &fixed, Element *out) const {
        const int64_t count = x.width * x.channels, pitch = ceil_div(count, WORD) * WORD;
        Scratch<float> channel(x.width), together(count);
        Scratch<Element> digits(PLANES * pitch);
        for (int64_t h = first; h < end; ++h) {
            Input line = in + h * count;
            if (!x.channels_last) {
                for (int64_t c = 0; c < x.channels; ++c) {
                    read_floats(in + (c * x.pixels() + h * x.width), x.width, channel);
                    for (int64_t w = 0; w < x.width; ++w) together[w * x.channels + c] = channel[w];
                }
                line = {reinterpret_cast<const char *>(together.data), Type::FLOAT32};
            }
            write_vector<Form>(line, count, 0, pitch, fixed, order, digits, pitch);
            for (int d = 0; d < PLANES; ++d)
                memcpy(out + h * row + d * plane, digits + d * pitch, size_t(count) * sizeof(Element));
        }
    }

    // Writes rows of NCHW images: 32 channels by LANES pixels at a time, transposed.
    void transpose_rows(const Input in, int64_t first, int64_t end, const FixedPoint &fixed, Element *out) const {
        for (int64_t c = 0; c < x.channels; c += WORD) {
            const int channels = int(least(x.channels - c, WORD));
            Position p(first * x.width, x.height, x.width);
            for (int64_t i = first * x.width; i < end * x.width; i += LANES) {
                const int pixels = int(least(end * x.width - i, LANES));
                alignas(64) int32_t integers[LANES][WORD];
                for (int part = 0; part < WORD; part += LANES) {
                    S32 square[LANES];
                    for (int j = 0; j < LANES; ++j) {
                        const Input at = in + (c + part + j) * x.pixels() + i;
                        F32 elements = {};
                        if (part + j < channels) elements = pixels == LANES ? read_floats(at) : read_floats(at, pixels);
                        square[j] = fixed_integers(fixed, elements);
                    }
                    transpose(square);
                    for (int l = 0; l < LANES; ++l) store(integers[l] + part, square[l]);
                }
                for (int l = 0; l < pixels; ++l, p.next())
                    write_word<Form>(integers[l], order, out + p.h * row + p.w * pixel + c, plane);
            }
        }
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
