// Runs every operation on each instruction set that this processor has, against its plain form (plain.h). It needs no
// Python and no PyTorch, so that it runs where they do not: under an emulator of another processor.
//
//     operations_test             prints the number of checks per instruction set; fails if one does
//     operations_test best        the same of the best instruction set alone
//     operations_test NAME...     the same of the named instruction sets
//     operations_test answers     reads layers and products, and prints their weights and results as they were computed
#include "cpu/test/plain.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>

#include "contract/scores.h"
#include "cpu/dispatch.h"

namespace slt {
namespace {

using plain::Layer;
using plain::Shape;
using plain::Values;

constexpr Window ONE_PIXEL = {1, 1, 1, 1, 0, 0, 1, 1, 1};
constexpr uint32_t POISON = 0x7FC0DEAD;  // a NaN, before an operation writes its result

// Random numbers that depend on their order alone.
class Random {
  public:
    uint32_t word() {
        if (next % 4 == 0) call = philox_call(12345, 0, SCORE, next / 4);
        return call.word[next++ % 4];
    }
    bool bit() { return word() >> 31; }
    // About normal, in a few orders of magnitude.
    float number() {
        const double sum = double(word()) + word() + word() + word() - 2 * 0x1p32;
        return float(sum * 0x1p-31 * (word() % 8 ? 1 : 0.01));
    }

  private:
    uint64_t next = 0;
    Words4 call = {};
};

uint32_t bits_of(float v) { return __builtin_bit_cast(uint32_t, v); }

// The 16 bits of a number in a narrow type, to the nearest, ties to even.
uint16_t narrow(float v, Type type) {
    const uint32_t bits = bits_of(v);
    if (type == Type::BFLOAT16)
        return std::isnan(v) ? uint16_t(bits >> 16 | 0x40) : uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    const double size = std::fabs(double(v));
    if (std::isnan(v)) return uint16_t(sign | 0x7E00);
    if (size >= 65520) return uint16_t(sign | 0x7C00);
    const int exponent = size < 0x1p-14 ? -14 : std::ilogb(size);
    const int last_places = int(std::nearbyint(std::ldexp(size, 10 - exponent)));
    return uint16_t(sign | ((exponent + 14) * 1024 + last_places));  // a denormal has 0 to 1023, a normal 1024 more
}

float widened(uint16_t bits, Type type) {
    if (type == Type::BFLOAT16) return __builtin_bit_cast(float, uint32_t(bits) << 16);
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double size = std::ldexp(exponent ? 1024 + fraction : fraction, (exponent ? exponent : 1) - 25);
    if (exponent == 31) size = fraction ? NAN : INFINITY;
    return float(bits >> 15 ? -size : size);
}

// A tensor of a type, in memory of its exact size: an address sanitizer sees what is read or written past its end.
class Tensor {
  public:
    const Type type;
    const int64_t size;

    Tensor(Type type, int64_t size) : type(type), size(size), bytes(size * element()) {
        for (int64_t i = 0; i < size; ++i) set(i, __builtin_bit_cast(float, POISON));
    }
    Tensor(Type type, const Values &values) : Tensor(type, int64_t(values.size())) {
        for (int64_t i = 0; i < size; ++i) set(i, float(values[i]));
    }

    float operator[](int64_t i) const {
        if (type != Type::FLOAT32) return widened(at<uint16_t>(i), type);
        return at<float>(i);
    }
    Input input() const { return {bytes.data(), type}; }
    Result result() { return {bytes.data(), type}; }
    Values values() const {
        Values all(size);
        for (int64_t i = 0; i < size; ++i) all[i] = (*this)[i];
        return all;
    }

  private:
    std::vector<char> bytes;

    int64_t element() const { return type == Type::FLOAT32 ? 4 : 2; }
    template <class T>
    T at(int64_t i) const {
        T v;
        memcpy(&v, bytes.data() + i * sizeof v, sizeof v);
        return v;
    }
    void set(int64_t i, float v) {
        const uint16_t half = narrow(v, type);
        type == Type::FLOAT32 ? memcpy(bytes.data() + i * 4, &v, 4) : memcpy(bytes.data() + i * 2, &half, 2);
    }
};

// NCHW elements in the order of channels-last images, or back.
Values reordered(const Values &from, int64_t samples, int64_t a, int64_t b) {
    Values to(from.size());
    for (int64_t n = 0; n < samples; ++n)
        for (int64_t i = 0; i < a; ++i)
            for (int64_t j = 0; j < b; ++j) to[(n * b + j) * a + i] = from[(n * a + i) * b + j];
    return to;
}

const char *name_of(Type type) {
    return type == Type::FLOAT32 ? "float32" : type == Type::BFLOAT16 ? "bfloat16" : "float16";
}

// Every check of some instruction sets. What is expected is computed once for all of them.
class Checks {
  public:
    struct Count {
        InstructionSet set;
        int64_t done = 0, failed = 0;
    };
    std::vector<Count> counts;

    explicit Checks(const std::vector<InstructionSet> &sets) {
        for (const InstructionSet &set : sets) counts.push_back({set});
    }

    void all() {
        const Source sources[] = {
            // rows, fan, seed, layer, weight, prune_below, lock_from, first_row, first_word, row_calls
            {1, 1, 3, 0, SIGNED_CONSTANT, 0, 256, 0, 0, 1},
            {5, 33, 42, 7, SIGNED_CONSTANT, 90, 166, 0, 0, 1},
            {33, 300, -1, 4294967295, SIGNED_CONSTANT, 0, 256, 0, 0, 3},
            {70, 129, 9, 1, SIGNED_CONSTANT, 64, 192, 0, 0, 2},
            {18, 160, 5, 2, UNIFORM, 90, 166, 0, 0, 2},
            {7, 97, 6, 3, NORMAL, 0, 128, 0, 0, 1},
            {40, 257, 8, 1, NORMAL, 0, 256, 0, 0, 3},
            {9, 70, 11, 2, SIGNED_CONSTANT, 80, 176, 3, 5, 6},  // a shard
            {3, 64, 12, 2, UNIFORM, 90, 256, 2, 3, 4},
            {4, 65, 12, 2, SIGNED_CONSTANT, 0, 0, 0, 0, 1},      // all locked
            {4, 65, 12, 2, SIGNED_CONSTANT, 256, 256, 0, 0, 1},  // all pruned
            {3, 8300, 13, 1, SIGNED_CONSTANT, 0, 256, 0, 0, 65},  // longer than a panel
            {2, 66000, 13, 1, NORMAL, 0, 256, 0, 0, 516},         // longer than a sum of int32
        };
        for (const Source &s : sources) {
            const Layer layer(s);
            masks(layer);
            if (s.fan < 1000) embedding(layer);
            for (const int64_t batch : {1, 2, 4, 5, 17}) {
                if (s.fan > 1000 && batch != 2) continue;
                linear(layer, batch, Type::FLOAT32, Type::FLOAT32, 3);
                if (batch != 5) linear(layer, batch, Type::FLOAT32, Type::FLOAT32, 2);
            }
            linear(layer, 3, Type::BFLOAT16, Type::BFLOAT16, 2);
            linear(layer, 10, Type::FLOAT16, Type::FLOAT32, 2);
        }
        select();
        rare_numbers();
        const struct {
            Shape shape;  // window {kernel, stride, padding, dilation, groups}, samples, channels, height, width
            int64_t rows;
        } convolutions[] = {
            {{{3, 3, 1, 1, 1, 1, 1, 1, 1}, 2, 32, 4, 6}, 20},
            {{{1, 1, 1, 1, 0, 0, 1, 1, 1}, 3, 40, 3, 5}, 33},
            {{{3, 2, 2, 1, 1, 0, 1, 2, 1}, 1, 5, 9, 8}, 6},    // few channels: direct
            {{{3, 3, 1, 1, 1, 1, 1, 1, 9}, 2, 9, 11, 10}, 9},  // depthwise
            {{{5, 3, 2, 2, 2, 1, 1, 1, 4}, 1, 8, 9, 12}, 12},
            {{{2, 3, 3, 2, 0, 2, 2, 1, 2}, 2, 66, 8, 7}, 10},
            {{{1, 3, 1, 1, 0, 4, 1, 1, 1}, 1, 300, 1, 9}, 20},
            {{{3, 2, 1, 2, 1, 0, 1, 1, 1}, 3, 9, 9, 11}, 37},  // direct; channels-last, with outputs as lanes
            // Too many weights for direct convolutions: in whole words, packed, and of images of few pixels.
            {{{3, 3, 1, 1, 1, 1, 1, 1, 1}, 1, 64, 3, 4}, 33},
            {{{7, 7, 2, 2, 3, 3, 1, 1, 1}, 1, 5, 7, 8}, 80},
            {{{1, 2, 1, 1, 0, 1, 1, 2, 1}, 2, 70, 1, 3}, 34},
            {{{3, 3, 1, 1, 1, 1, 1, 1, 1}, 1, 17, 17, 15}, 18},  // by Winograd's method, of signed constants
            {{{3, 3, 1, 1, 2, 0, 1, 1, 1}, 2, 16, 13, 11}, 9},   // gradients of scores by it, too
            // Kernels larger than dy: regions of one pixel, read in place; and of some.
            {{{6, 7, 1, 1, 0, 0, 1, 1, 1}, 16, 9, 6, 7}, 64},
            {{{9, 8, 2, 1, 1, 0, 1, 1, 1}, 1, 3, 9, 9}, 70},
        };
        for (const auto &c : convolutions)
            for (const int64_t weight : {SIGNED_CONSTANT, UNIFORM, NORMAL}) {
                const int64_t fan = taps_of(c.shape.window) * c.shape.channels / c.shape.window.groups;
                const Layer layer({c.rows, fan, 77, 4, weight, 64, weight == UNIFORM ? 250 : 192, 0, 0,
                                   ceil_div(fan, CALL)});
                for (const bool channels_last : {false, true}) {
                    for (const int digits : {3, 2}) convolution(layer, c.shape, Type::FLOAT32, digits, channels_last);
                    convolution(layer, c.shape, channels_last ? Type::BFLOAT16 : Type::FLOAT16, 2, channels_last);
                }
            }
    }

  private:
    Count *current = nullptr;
    Random random;
    static constexpr int THREADS[] = {1, 3};
    int turn = 0;

    // Calls body(the operations of an instruction set, a number of threads) for each set.
    template <class Body>
    void each_set(const Body &body) {
        ++turn;
        for (Count &count : counts) {
            current = &count;
            body(*count.set.operations, THREADS[turn % 2]);
        }
    }

    void check(bool right, const char *what, const Layer &layer, const char *detail = "") {
        ++current->done;
        current->failed += !right;
        const Source &s = layer.source;
        if (!right)
            std::printf("%s: %s is wrong: %ld x %ld, weight %ld, frozen %ld %ld%s%s\n", current->set.name, what,
                        long(s.rows),
                        long(s.fan), long(s.weight), long(s.prune_below), long(s.lock_from), *detail ? ", " : "",
                        detail);
    }

    // Results that have the same bits on every machine.
    void check_bits(const Tensor &y, const Values &expected, const char *what, const Layer &layer) {
        const Tensor right(y.type, expected);
        bool same = true;
        for (int64_t i = 0; i < y.size; ++i)
            same &= bits_of(y[i]) == bits_of(right[i]) || (std::isnan(right[i]) && std::isnan(y[i]));
        check(same, what, layer, name_of(y.type));
    }

    // Results within `bound` in relative norm.
    void check_near(const Values &y, const Values &expected, double bound, const char *what, const Layer &layer,
                    const char *detail) {
        double error = 0, norm = 0;
        for (size_t i = 0; i < y.size(); ++i) {
            error += (y[i] - expected[i]) * (y[i] - expected[i]);
            norm += expected[i] * expected[i];
        }
        check(std::sqrt(error) <= bound * std::sqrt(norm), what, layer, detail);
    }

    Values numbers(int64_t count) {
        Values all(count);
        for (double &v : all) v = random.number();
        return all;
    }

    std::vector<float> floats(int64_t count) {
        std::vector<float> all(count);
        for (float &v : all) v = random.number();
        return all;
    }

    std::vector<bool> bits(int64_t count) {
        std::vector<bool> all(count);
        for (int64_t i = 0; i < count; ++i) all[i] = random.bit();
        return all;
    }

    // The words of a mask, with garbage in its padding.
    std::vector<uint32_t> mask_of(const Layer &layer, const std::vector<bool> &kept) {
        std::vector<uint32_t> mask = layer.resolved(kept);
        const int64_t words = words_of(layer.source);
        for (size_t i = 0; i < mask.size(); ++i) mask[i] |= random.word() & ~valid_bits(layer.source, i % words);
        return mask;
    }

    void masks(const Layer &layer) {
        const Source &s = layer.source;
        each_set([&](const Operations &run, int threads) {
            std::vector<int64_t> offsets(s.rows + 1, -1);
            int64_t locked = -1;
            run.count_frozen({s, offsets.data(), &locked}, threads);
            check(offsets == layer.offsets && locked == layer.locked, "count_frozen", layer);
        });

        // Locked weights are kept and pruned ones dropped; the scores choose among the others.
        const std::vector<float> scores = floats(layer.free());
        const float threshold = scores.empty() ? 1 : std::fabs(scores[scores.size() / 2]);
        std::vector<bool> kept(layer.value.size());
        int64_t expected = layer.locked;
        for (size_t i = 0; i < kept.size(); ++i) kept[i] = layer.state[i] == 2;
        layer.each_free([&](int64_t i, int64_t at) { expected += kept[at] = std::fabs(scores[i]) > threshold; });
        const std::vector<uint32_t> resolved = layer.resolved(kept), compact = layer.compact(kept);
        for (const bool is_compact : {false, true}) {
            const std::vector<uint32_t> &right = is_compact ? compact : resolved;
            each_set([&](const Operations &run, int threads) {
                std::vector<uint32_t> out(right.size(), POISON);
                int64_t kept_count = -1;
                run.pack({s, reinterpret_cast<const uint32_t *>(scores.data()), bits_of(threshold),
                          layer.offsets.data(), layer.locked, is_compact, out.data(), &kept_count},
                         threads);
                check(out == right && kept_count == expected, is_compact ? "pack, compact" : "pack", layer);
            });
        }
        each_set([&](const Operations &run, int threads) {
            std::vector<uint32_t> out(resolved.size(), POISON);
            run.expand({s, compact.data(), layer.offsets.data(), out.data()}, threads);
            check(out == resolved, "expand", layer);
        });

        const std::vector<bool> any = bits(int64_t(kept.size()));
        const std::vector<uint32_t> mask = mask_of(layer, any);
        each_set([&](const Operations &run, int threads) {
            std::vector<int8_t> weights(kept.size(), 99);
            run.materialize({s, mask.data(), weights.data()}, threads);
            bool same = true;
            for (size_t i = 0; i < kept.size(); ++i) same &= weights[i] == (any[i] ? layer.value[i] : 0);
            check(same, "materialize", layer);
        });
    }

    void embedding(const Layer &layer) {
        const Source &s = layer.source;
        std::vector<bool> kept = bits(int64_t(layer.value.size()));
        for (size_t i = 0; i < kept.size(); ++i) kept[i] = layer.state[i] == 2 || (layer.state[i] == 0 && kept[i]);
        const std::vector<uint32_t> resolved = mask_of(layer, kept), compact = layer.compact(kept);
        std::vector<int64_t> index;
        for (int64_t n = 0; n < 2 * s.rows + 1; ++n) index.push_back(int64_t(random.word()) % s.rows);
        const float scale = 0.3f;
        for (const Type type : {Type::FLOAT32, Type::BFLOAT16, Type::FLOAT16}) {
            Values right;
            for (const int64_t row : index)
                for (int64_t at = row * s.fan; at < (row + 1) * s.fan; ++at)
                    right.push_back(kept[at] ? float(layer.value[at]) * scale : 0);
            for (const bool is_compact : {false, true})
                each_set([&](const Operations &run, int threads) {
                    Tensor y(type, int64_t(right.size()));
                    run.embedding_forward({s, is_compact ? compact.data() : resolved.data(),
                                           is_compact ? layer.offsets.data() : nullptr, index.data(),
                                           int64_t(index.size()), scale, y.result()},
                                          threads);
                    check_bits(y, right, is_compact ? "embedding_forward, compact" : "embedding_forward", layer);
                });
        }

        // Row n of the gradients is for row n / 2 of the layer; the layer's last row has none.
        const int64_t count = greatest(s.rows - 1, 1);
        std::vector<int64_t> rows, starts = {0}, order;
        for (int64_t n = 0; n < count; ++n) {
            rows.push_back(count - 1 - n);
            for (int i = 0; i < 2; ++i) order.push_back(2 * rows.back() + i);
            starts.push_back(2 * (n + 1));
        }
        const Tensor dy(Type::FLOAT32, numbers(2 * count * s.fan));
        const std::vector<float> scores = floats(layer.free());
        Values right(layer.free(), 7);
        layer.each_free([&](int64_t i, int64_t at) {
            const int64_t row = at / s.fan, k = at % s.fan;
            if (row >= count) return;
            const double sum = double(dy[2 * row * s.fan + k]) + dy[(2 * row + 1) * s.fan + k];
            right[i] = sum * layer.value[at] * scale * (scores[i] < 0 ? -1 : 1);
        });
        each_set([&](const Operations &run, int threads) {
            std::vector<float> out(layer.free(), 7);
            run.embedding_grad_scores({s, rows.data(), count, starts.data(), order.data(), dy.input(), scores.data(),
                                       scale, layer.offsets.data(), out.data()},
                                      threads);
            check_near(Values(out.begin(), out.end()), right, 1e-6, "embedding_grad_scores", layer, "float32");
        });
    }

    void linear(const Layer &layer, int64_t batch, Type in, Type out, int digits) {
        const Source &s = layer.source;
        const std::vector<bool> kept = bits(int64_t(layer.value.size()));
        const std::vector<uint32_t> mask = mask_of(layer, kept);
        const std::vector<float> bias = floats(s.rows);
        const Tensor x(in, numbers(batch * s.fan)), dy(in, numbers(batch * s.rows));
        const float scale = 0.7f;
        const Shape shape = {ONE_PIXEL, batch, s.fan, 1, 1};
        const float *added = batch % 2 ? bias.data() : nullptr;

        for (const int of : {digits, 1}) {
            const Values right = plain::convolution(layer, kept, shape, x.values(), false, of, scale, added);
            for (const bool stored : {false, true}) {
                if (stored && s.weight != SIGNED_CONSTANT) continue;
                const uint32_t *signs = stored ? layer.signs.data() : nullptr;
                each_set([&](const Operations &run, int threads) {
                    Tensor y(out, batch * s.rows);
                    run.linear_forward({s, mask.data(), signs, x.input(), batch, scale, added, y.result(), of},
                                       threads);
                    check_bits(y, right, stored ? "linear_forward of stored signs" : "linear_forward", layer);
                });
            }
        }

        const Values right = plain::convolution(layer, kept, shape, dy.values(), true, digits, scale, nullptr);
        each_set([&](const Operations &run, int threads) {
            Tensor dx(out, batch * s.fan);
            run.linear_grad_input({s, mask.data(), dy.input(), batch, scale, dx.result(), digits}, threads);
            check_bits(dx, right, "linear_grad_input", layer);
        });
        grad_scores(layer, shape, x, dy, digits, true, "grad_scores of Linear");
    }

    // x and dy: NCHW, or channels-last.
    void grad_scores(const Layer &layer, const Shape &shape, const Tensor &x, const Tensor &dy, int digits,
                     bool channels_last, const char *what) {
        const Source &s = layer.source;
        const int64_t pixels = shape.height * shape.width, y_height = shape.y_height(), y_width = shape.y_width();
        const auto nchw = [&](const Tensor &t, int64_t channels, int64_t of) {
            return channels_last ? reordered(t.values(), shape.samples, of, channels) : t.values();
        };
        const std::vector<float> scores = floats(layer.free());
        const Values right = plain::grad_scores(layer, shape, nchw(dy, s.rows, y_height * y_width),
                                                nchw(x, shape.channels, pixels), scores, 0.7f);
        each_set([&](const Operations &run, int threads) {
            std::vector<float> out(layer.free(), NAN);
            run.grad_scores({s, shape.window, {dy.input(), shape.samples, s.rows, y_height, y_width, channels_last},
                             {x.input(), shape.samples, shape.channels, shape.height, shape.width, channels_last},
                             scores.data(), 0.7f, layer.offsets.data(), out.data(), digits},
                            threads);
            // The matrix unit alone takes float32 in two digits where two are asked for.
            const double bound = digits == 2 && std::string(current->set.name) == "amx" ? 1e-4 : 1e-5;
            check_near(Values(out.begin(), out.end()), right, bound, what, layer, name_of(x.type));
        });
    }

    void convolution(const Layer &layer, const Shape &shape, Type type, int digits, bool channels_last) {
        const Source &s = layer.source;
        const std::vector<bool> kept = bits(int64_t(layer.value.size()));
        const std::vector<uint32_t> mask = mask_of(layer, kept);
        const std::vector<float> bias = floats(s.rows);
        const int64_t pixels = shape.height * shape.width, y_height = shape.y_height(), y_width = shape.y_width();
        const int64_t y_pixels = y_height * y_width;
        const float scale = 0.7f;
        // As the narrow type has them.
        const Values x = Tensor(type, numbers(shape.samples * shape.channels * pixels)).values();
        const Values dy = Tensor(type, numbers(shape.samples * s.rows * y_pixels)).values();
        const auto tensor = [&](const Values &v, int64_t channels, int64_t of) {
            return Tensor(type, channels_last ? reordered(v, shape.samples, channels, of) : v);
        };
        const auto values = [&](const Tensor &t, int64_t channels, int64_t of) {
            return channels_last ? reordered(t.values(), shape.samples, of, channels) : t.values();
        };
        const Tensor x_in = tensor(x, shape.channels, pixels), dy_in = tensor(dy, s.rows, y_pixels);
        const bool exact = type == Type::FLOAT32;  // 16-bit inputs may be added in float
        const auto compare = [&](const Tensor &got, int64_t channels, int64_t of, const Values &right,
                                 const char *what) {
            const Values all = values(got, channels, of);
            if (exact)
                check_bits(Tensor(type, all), right, what, layer);
            else
                check_near(all, right, type == Type::BFLOAT16 ? 4e-3 : 5e-4, what, layer, name_of(type));
        };

        for (const int of : {digits, 1}) {
            if (of == 1 && digits == 2) continue;
            const Values right = plain::convolution(layer, kept, shape, x, false, exact ? of : 0, scale, bias.data());
            each_set([&](const Operations &run, int threads) {
                Tensor y(type, shape.samples * s.rows * y_pixels);
                run.conv2d_forward(
                    {s, shape.window, mask.data(),
                     {x_in.input(), shape.samples, shape.channels, shape.height, shape.width, channels_last}, scale,
                     bias.data(), {y.result(), shape.samples, s.rows, y_height, y_width, channels_last}, of},
                    threads);
                compare(y, s.rows, y_pixels, right, "conv2d_forward");
            });
        }

        const Values right = plain::convolution(layer, kept, shape, dy, true, exact ? digits : 0, scale, nullptr);
        each_set([&](const Operations &run, int threads) {
            Tensor dx(type, shape.samples * shape.channels * pixels);
            run.conv2d_grad_input(
                {s, shape.window, mask.data(),
                 {dy_in.input(), shape.samples, s.rows, y_height, y_width, channels_last}, scale,
                 {dx.result(), shape.samples, shape.channels, shape.height, shape.width, channels_last}, digits},
                threads);
            compare(dx, shape.channels, pixels, right, "conv2d_grad_input");
        });
        grad_scores(layer, shape, x_in, dy_in, digits, channels_last, "grad_scores of Conv2d");
    }

    void select() {
        const Layer none({1, 1, 0, 0, SIGNED_CONSTANT, 0, 256, 0, 0, 1});
        std::vector<std::vector<uint32_t>> tensors;
        for (const int64_t count : {1, 5, 1000, 5003}) {
            tensors.emplace_back();
            for (int64_t i = 0; i < count; ++i) tensors.back().push_back(bits_of(random.number()));
        }
        tensors[2][3] = 0x80000000;   // -0
        tensors[2][4] = 0x7F800000;   // infinity
        tensors[3][7] = 0x00000001;   // a denormal
        std::vector<const uint32_t *> scores;
        std::vector<int64_t> sizes;
        std::vector<uint32_t> sorted;
        for (const auto &t : tensors) {
            scores.push_back(t.data());
            sizes.push_back(int64_t(t.size()));
            for (const uint32_t bits : t) sorted.push_back(bits & MAGNITUDE);
        }
        std::sort(sorted.begin(), sorted.end());
        const int64_t all = int64_t(sorted.size());
        for (const int64_t rank : {int64_t(1), int64_t(2), all / 3, all / 2, all - 1, all}) {
            each_set([&](const Operations &run, int threads) {
                uint32_t out = POISON;
                run.select({scores.data(), sizes.data(), int64_t(sizes.size()), rank, &out}, threads);
                check(out == sorted[rank - 1], "select", none);
            });
        }
    }

    // Rows that are 0, tiny, huge, or not finite.
    void rare_numbers() {
        const Layer layer({20, 40, 5, 1, SIGNED_CONSTANT, 0, 256, 0, 0, 1});
        const std::vector<bool> kept(layer.value.size(), true);
        const std::vector<uint32_t> mask = layer.resolved(kept);
        const double special[] = {0, 1e-42, 1e38, INFINITY, NAN, 0x1p-126, -0.0, 1};
        for (const Type type : {Type::FLOAT32, Type::BFLOAT16, Type::FLOAT16}) {
            Values v = numbers(8 * 40);
            for (int64_t i = 0; i < 8 * 40; ++i)
                v[i] = special[i / 40] * (i % 40 == 11 || i % 3 == 0 ? 1 : v[i]);
            const Tensor x(type, v);
            const Shape shape = {ONE_PIXEL, 8, 40, 1, 1};
            for (const int digits : {type == Type::FLOAT32 ? 3 : 2, 1}) {
                const Values right = plain::convolution(layer, kept, shape, x.values(), false, digits, 1, nullptr);
                each_set([&](const Operations &run, int threads) {
                    Tensor y(type, 8 * 20);
                    run.linear_forward(
                        {layer.source, mask.data(), nullptr, x.input(), 8, 1, nullptr, y.result(), digits}, threads);
                    check_bits(y, right, "linear_forward of rare numbers", layer);
                });
            }
        }
    }
};

// Reads "rows fan seed layer weight prune_below lock_from batch scale x..." (scale and x as the bits of a float32).
// Prints per instruction set its name, all weights as bytes, then y for three digits and for two of the mask that drops
// pruned weights.
void answers() {
    Source s = {};
    uint64_t seed;
    int64_t batch;
    while (std::cin >> s.rows >> s.fan >> seed >> s.layer >> s.weight >> s.prune_below >> s.lock_from >> batch) {
        s.seed = int64_t(seed);
        s.row_calls = ceil_div(s.fan, CALL);
        const auto number = [] {
            uint32_t bits;
            std::cin >> std::hex >> bits >> std::dec;
            return __builtin_bit_cast(float, bits);
        };
        const float scale = number();
        std::vector<float> x(batch * s.fan), y(batch * s.rows);
        for (float &v : x) v = number();
        const Layer layer(s);
        const std::vector<uint32_t> ones(s.rows * words_of(s), ~0u);
        std::vector<bool> kept(layer.state.size());
        for (size_t i = 0; i < kept.size(); ++i) kept[i] = layer.state[i] != 1;
        const std::vector<uint32_t> mask = layer.resolved(kept);
        for (const InstructionSet &set : instruction_sets()) {
            std::printf("%s ", set.name);
            std::vector<int8_t> weights(s.rows * s.fan);
            set.operations->materialize({s, ones.data(), weights.data()}, 1);
            for (const int8_t v : weights) std::printf("%02x", uint8_t(v));
            for (const int digits : {3, 2}) {
                set.operations->linear_forward({s, mask.data(), nullptr,
                                                {reinterpret_cast<char *>(x.data()), Type::FLOAT32}, batch, scale,
                                                nullptr,
                                                {reinterpret_cast<char *>(y.data()), Type::FLOAT32}, digits},
                                               1);
                for (const float v : y) std::printf(" %08x", bits_of(v));
            }
            std::printf("\n");
        }
    }
}

}  // namespace
}  // namespace slt

int main(int count, char **arguments) {
    const std::string what = count > 1 ? arguments[1] : "";
    if (what == "answers") {
        slt::answers();
        return 0;
    }
    std::vector<slt::InstructionSet> sets = slt::instruction_sets();
    if (what == "best")
        sets.erase(sets.begin(), sets.end() - 1);
    else if (count > 1)
        std::erase_if(sets, [&](const slt::InstructionSet &set) {
            return std::find(arguments + 1, arguments + count, std::string(set.name)) == arguments + count;
        });
    slt::Checks checks(sets);
    checks.all();
    bool failed = false;
    for (const slt::Checks::Count &of : checks.counts) {
        std::printf("%s: %ld checks, %ld failed\n", of.set.name, long(of.done), long(of.failed));
        failed |= of.failed > 0;
    }
    return failed;
}
