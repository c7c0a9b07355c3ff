// Every operation in its plain form, one weight at a time, over the functions of the contract: what the kernels are
// compared with. Inputs and results are double; `exact` results are those of section 7 of the contract.
#pragma once

#include <cmath>
#include <vector>

#include "contract/fixed_point.h"
#include "contract/weights.h"
#include "operations.h"

namespace slt::plain {

typedef std::vector<double> Values;

// The integers v of a source, [rows][fan], and the state of each weight: 0 free, 1 pruned, 2 locked.
struct Layer {
    Source source;
    std::vector<int> value, state;
    std::vector<uint32_t> signs;   // the SIGN words, [rows][words]
    std::vector<int64_t> offsets;  // of the free weights, as CountFrozen makes them
    int64_t locked = 0;

    explicit Layer(const Source &s) : source(s), value(s.rows * s.fan), state(s.rows * s.fan), offsets{0} {
        for (int64_t row = 0; row < s.rows; ++row) {
            int64_t free = 0;
            for (int64_t w = 0; w < words_of(s); ++w) {
                const uint32_t sign = sign_word(s, row, w);
                signs.push_back(sign);
                const Words8 bytes = eight_words(s, VALUE, row, w);
                const FrozenWord frozen = frozen_word(s, row, w);
                for (int k = 0; k < least(s.fan - w * WORD, WORD); ++k) {
                    const int64_t at = row * s.fan + w * WORD + k;
                    const bool is_free = frozen.free >> bit_of_k(k) & 1, is_locked = frozen.locked >> bit_of_k(k) & 1;
                    const int byte = bytes.word[k / 4] >> k % 4 * 8 & 0xFF;
                    value[at] = s.weight == SIGNED_CONSTANT ? 1 - 2 * int(sign >> bit_of_k(k) & 1)
                                                            : value_of_byte(s.weight, byte);
                    state[at] = is_free ? 0 : is_locked ? 2 : 1;
                    free += is_free;
                    locked += is_locked;
                }
            }
            offsets.push_back(offsets.back() + free);
        }
    }

    int64_t free() const { return offsets.back(); }

    // Calls body(number of the free weight, number of the weight) in the order of the enumeration: of bits.
    template <class Body>
    void each_free(const Body &body) const {
        int64_t next = 0;
        for (int64_t row = 0; row < source.rows; ++row)
            for (int64_t bit = 0; bit < words_of(source) * WORD; ++bit) {
                const int64_t k = bit / WORD * WORD + k_of_bit(bit % WORD);
                if (k < source.fan && state[row * source.fan + k] == 0) body(next++, row * source.fan + k);
            }
    }

    // The words of a mask of one bit per weight; padding is 0.
    std::vector<uint32_t> resolved(const std::vector<bool> &kept) const {
        const int64_t words = words_of(source);
        std::vector<uint32_t> mask(source.rows * words);
        for (int64_t row = 0; row < source.rows; ++row)
            for (int64_t k = 0; k < source.fan; ++k)
                mask[row * words + k / WORD] |= uint32_t(kept[row * source.fan + k]) << bit_of_k(k % WORD);
        return mask;
    }

    std::vector<uint32_t> compact(const std::vector<bool> &kept) const {
        std::vector<uint32_t> mask(ceil_div(free(), WORD));
        each_free([&](int64_t i, int64_t at) { mask[i / WORD] |= uint32_t(kept[at]) << i % WORD; });
        return mask;
    }
};

// Values that share a scale as the integers X of the contract, or of int8 activations (docs/kernels.md) for one digit.
struct Integers {
    std::vector<int64_t> x;
    double power;

    Integers(const double *values, int64_t count, int digits) : x(count) {
        uint32_t largest = 0;
        for (int64_t i = 0; i < count; ++i) {
            const uint32_t bits = __builtin_bit_cast(uint32_t, float(values[i])) & MAGNITUDE;
            largest = bits > largest ? bits : largest;
        }
        if (digits == 1) {
            to_int8(values, largest ? __builtin_bit_cast(float, largest) : 1);
            return;
        }
        const FixedPoint fixed = fixed_point(largest, digits);
        power = fixed.power;
        for (int64_t i = 0; i < count && largest < INFINITE; ++i) x[i] = fixed_integer(fixed, float(values[i]));
    }

    double result(int64_t sum, float scale, const float *bias) const {
        const float y = rounded_sum(sum, power, scale);
        return bias ? y + *bias : y;
    }

  private:
    void to_int8(const double *values, float largest) {
        power = NAN;
        if (!std::isfinite(largest)) return;
        int e;
        const float m = std::frexp(largest, &e);
        power = std::ldexp(double(m / 127), e);
        for (size_t i = 0; i < x.size(); ++i)
            x[i] = int64_t(std::nearbyint(float(std::ldexp(values[i], -e) * double(127 / m))));
    }
};

// One tap of a convolution: pixel (h, w) of x, and whether it exists, for pixel (row, column) of y.
struct Reads {
    int64_t h, w;
    bool exists;

    Reads(const Window &window, int64_t height, int64_t width, int64_t row, int64_t column, int64_t tap) {
        const TapOffset offset = tap_offset(window, tap);
        h = row * window.stride_h - window.padding_h + offset.down;
        w = column * window.stride_w - window.padding_w + offset.right;
        exists = h >= 0 && h < height && w >= 0 && w < width;
    }
};

// The shape of a convolution of x [samples, channels, height, width]; y has the source's rows as channels.
struct Shape {
    Window window;
    int64_t samples, channels, height, width;

    int64_t y_height() const {
        return out(height, window.kernel_h, window.stride_h, window.padding_h, window.dilation_h);
    }
    int64_t y_width() const {
        return out(width, window.kernel_w, window.stride_w, window.padding_w, window.dilation_w);
    }

  private:
    static int64_t out(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
        return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
    }
};

// Calls body(sample, x, y, weight) for each product of a convolution: numbers of elements of NCHW images and weights.
template <class Body>
void each_product(const Source &s, const Shape &shape, const Body &body) {
    const int64_t outputs = s.rows / shape.window.groups, inputs = shape.channels / shape.window.groups;
    const int64_t height = shape.y_height(), width = shape.y_width();
    for (int64_t n = 0; n < shape.samples; ++n)
        for (int64_t row = 0; row < s.rows; ++row)
            for (int64_t i = 0; i < height * width; ++i)
                for (int64_t tap = 0; tap < taps_of(shape.window); ++tap) {
                    const Reads at(shape.window, shape.height, shape.width, i / width, i % width, tap);
                    for (int64_t c = 0; at.exists && c < inputs; ++c) {
                        const int64_t channel = n * shape.channels + row / outputs * inputs + c;
                        body(n, (channel * shape.height + at.h) * shape.width + at.w,
                             (n * s.rows + row) * height * width + i, row * s.fan + tap * inputs + c);
                    }
                }
}

// `from` to `to` of a convolution, or of its transposed, both NCHW; each sample shares a scale. Without `digits`, the
// products are those of double.
inline Values convolution(const Layer &layer, const std::vector<bool> &kept, const Shape &shape, const Values &from,
                          bool transposed, int digits, float scale, const float *bias) {
    const Source &s = layer.source;
    const int64_t in = shape.channels * shape.height * shape.width, out = s.rows * shape.y_height() * shape.y_width();
    const int64_t read = transposed ? out : in, written = transposed ? in : out;
    std::vector<Integers> integers;
    for (int64_t n = 0; n < shape.samples; ++n)
        integers.emplace_back(from.data() + n * read, read, digits ? digits : 3);
    std::vector<int64_t> sums(shape.samples * written);
    Values result(shape.samples * written);
    each_product(s, shape, [&](int64_t n, int64_t x, int64_t y, int64_t weight) {
        if (!kept[weight]) return;
        const int64_t a = transposed ? y : x, b = transposed ? x : y;
        if (digits)
            sums[b] += integers[n].x[a - n * read] * layer.value[weight];
        else
            result[b] += from[a] * layer.value[weight];
    });
    for (int64_t i = 0; i < shape.samples * written; ++i) {
        const float *of_channel = bias ? bias + i % written / (written / s.rows) : nullptr;
        result[i] = digits ? integers[i / written].result(sums[i], scale, of_channel)
                           : result[i] * scale + (bias ? *of_channel : 0);
    }
    return result;
}

// The gradients of the scores of a convolution.
inline Values grad_scores(const Layer &layer, const Shape &shape, const Values &dy, const Values &x,
                          const std::vector<float> &scores, float scale) {
    Values sums(layer.value.size()), result(layer.free());
    each_product(layer.source, shape,
                 [&](int64_t, int64_t x_at, int64_t y_at, int64_t weight) { sums[weight] += x[x_at] * dy[y_at]; });
    layer.each_free([&](int64_t i, int64_t at) {
        result[i] = sums[at] * layer.value[at] * scale * (scores[i] < 0 ? -1 : 1);
    });
    return result;
}

}  // namespace slt::plain
