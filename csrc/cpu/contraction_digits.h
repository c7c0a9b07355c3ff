// The contraction in balanced base-256 digits, with AMX: float32 accuracy at four times the rate of float32 units.
//
// A scale that is constant along the contraction can be taken out of it, so each channel of x and each row of dy becomes
// fixed point over all images and pixels (`FixedPoint`), three bytes for "highest". Digits i and j of the two multiply
// as bytes with exact int32 sums, and products of one order i + j share them. Of three digits the order 0, 2^-32 of the
// whole, is left out: eight products; of two digits, where it would be 2^-16, it is not: four.
//
// A dword of an operand is four elements of the contraction. We take one pixel of four images, so that a tap of the
// kernel shifts whole dwords, whatever its stride and dilation. A step is 16 pixels of four images. Inputs are turned
// into digits once: x as [images / 4][height][width][digit][channel] with its zeros around it, dy as finished tiles of
// 16 rows x 16 pixels. A block of DEPTH steps then copies its panel of x (192 KB, in L2) with the columns in bit order,
// and each 16 x 16 tile of sums stays in registers for the block: per step 6 tile loads (48 cycles) and 8 products (128
// cycles). Combining the four orders in float32 costs 12 instructions for 16 sums a block; sums of 512 elements are so
// small that converting them is exact, or nearly.
//
// Tile registers: 0 to 3 are the sums of orders 4 to 1 (2 to 0 with two digits), 4 to 6 digits of dy, 7 one of x.
#pragma once

#include "contraction.h"
#include "tiles.h"

namespace slt::SLT_ISA {
namespace {

constexpr int64_t STEP = 16;               // pixels, of IMAGES images
constexpr int64_t IMAGES = 4;
constexpr int64_t TILE = 16 * STEP;        // dwords

// The fixed point of each channel over all images and pixels.
class Scales {
  public:
    Scratch<float> up, up_again;  // what an element is multiplied by
    Scratch<float> half;          // half the power of two above the channel's largest: what the digits are relative to
    bool finite = true;

    Scales(const Activations &x, int bytes, int threads)
        : up(padded(x)), up_again(padded(x)), half(padded(x)) {
        const int64_t pieces = x.planes() ? x.count : x.count * x.height;
        Scratch<int32_t> largest(pieces * x.channels);
        parallel_for(threads, pieces, [&](int64_t piece) {
            int32_t *most = largest + piece * x.channels;
            if (x.planes()) {
                for (int64_t c = 0; c < x.channels; ++c)
                    most[c] = largest_bits(x.data + (piece * x.image + c * x.channel), x.height * x.width);
                return;
            }
            memset(most, 0, x.channels * sizeof *most);
            Scratch<float> buffer(SEGMENT * x.channels);
            for (int64_t w = 0; w < x.width; w += SEGMENT) {
                const int64_t n = x.width - w < SEGMENT ? x.width - w : SEGMENT;
                const float *at = read_pixels(x, piece / x.height, piece % x.height, w, n, buffer);
                for (int64_t i = 0; i < n; ++i) keep_larger(at + i * x.channels, x.channels, most);
            }
        });
        for (int64_t piece = 1; piece < pieces; ++piece)
            keep_larger((const float *)(largest + piece * x.channels), x.channels, largest);
        for (int64_t c = 0; c < padded(x); ++c) {
            const uint32_t most = c < x.channels ? uint32_t(largest[c]) : 0;
            const FixedPoint fixed(most, bytes);
            finite = finite && most < 0x7F800000;
            up[c] = fixed.up;
            up_again[c] = fixed.up_again;
            half[c] = float(__builtin_ldexp(fixed.power, 8 * bytes - 2));
        }
    }

    static int64_t padded(const Activations &x) { return x.channels + 16; }  // a group may start anywhere

  private:
    // NaN and infinity, as integers, are the largest.
    static void keep_larger(const float *x, int64_t count, int32_t *most) {
        for (int64_t c = 0; c < count; ++c) {
            int32_t bits;
            memcpy(&bits, x + c, 4);
            bits &= 0x7FFFFFFF;
            most[c] = bits > most[c] ? bits : most[c];
        }
    }
};

// The digits of one pixel's channels [c, c + 16) of four images (null: no such image), a dword a channel.
template <int DIGITS>
SLT_INLINE void cut(const float *const pixel[IMAGES], int64_t c, int64_t channels, const Scales &scales,
                    __m512i out[DIGITS]) {
    const __mmask16 inside = channels - c >= 16 ? 0xFFFF : __mmask16((1u << (channels - c)) - 1);
    // Adding 128 to every digit makes them unsigned bytes, and inverting the top bit subtracts it again.
    const __m512i each = _mm512_set1_epi32(DIGITS == 3 ? 0x808080 : 0x8080);
    const __m512 up = _mm512_loadu_ps(scales.up + c), up_again = _mm512_loadu_ps(scales.up_again + c);
    SLT_UNROLL for (int i = 0; i < IMAGES; ++i) {
        __m512i v = _mm512_setzero_si512();
        if (pixel[i]) {
            const __m512 x = _mm512_mul_ps(_mm512_mul_ps(_mm512_maskz_loadu_ps(inside, pixel[i] + c), up), up_again);
            v = _mm512_xor_si512(_mm512_add_epi32(_mm512_cvtps_epi32(x), each), each);
        }
        SLT_UNROLL for (int d = 0; d < DIGITS; ++d) {
            const __m512i byte = _mm512_set4_epi32(0x0C0C0C0C + d * 0x01010101, 0x08080808 + d * 0x01010101,
                                                   0x04040404 + d * 0x01010101, d * 0x01010101);
            const __mmask64 place = 0x1111111111111111ull << i;
            out[d] = i == 0 ? _mm512_maskz_shuffle_epi8(place, v, byte) : _mm512_mask_shuffle_epi8(out[d], place, v, byte);
        }
    }
}

template <int DIGITS>
class DigitContraction {
  public:
    static constexpr int64_t ROWS = 128, DEPTH = 8;

    // Where it is the faster one: fewer images or rows leave most of a tile empty.
    static bool suits(const GradScores &a) {
        return a.dy.count >= 3 && a.dy.count * a.dy.height * a.dy.width >= 32 && a.source.rows / a.window.groups >= 8;
    }

    DigitContraction(const GradScores &a, const Scales &x_scales, const Scales &dy_scales)
        : a(a),
          x_scales(x_scales),
          dy_scales(dy_scales),
          quads(ceil_div(a.dy.count, IMAGES)),
          pixels(quads * a.dy.height * a.dy.width),
          steps(ceil_div(pixels, STEP)),
          group_rows(a.source.rows / a.window.groups),
          group_tiles(ceil_div(group_rows, 16)),
          pixel(DIGITS * a.x.channels),
          row(pixel * (a.x.width + 2 * a.window.padding_w)),
          image(row * (a.x.height + 2 * a.window.padding_h)),
          x(quads * image),
          dy(a.window.groups * group_tiles * steps * DIGITS * TILE) {
        cut_x();
        cut_dy();
    }

    struct Panels {
        Scratch<uint32_t> x;  // [half word][step][digit][16 pixels][16 columns]

        explicit Panels(int64_t) : x(CALL / 16 * DEPTH * DIGITS * TILE) {}
    };

    // sums [calls][rows][128] of the rows from `first_row` on. Tile products leave the memory alone: `between` runs
    // between them.
    template <class Between>
    void operator()(Panels &panels, int64_t first_row, int64_t rows, const Columns *columns, int calls, float *sums,
                    Between between) const {
        Tiles tiles;
        tiles.configure(16);
        alignas(64) int32_t orders[4][TILE];
        for (int64_t first = 0; first < steps; first += DEPTH) {
            const int64_t count = steps - first < DEPTH ? steps - first : DEPTH;
            for (int i = 0; i < calls; ++i) {
                pack(first * STEP, count * STEP, columns[i], panels.x);
                for (int64_t c = 0; c < CALL; c += 16) {
                    if (!columns[i].any(c, 16)) continue;
                    alignas(64) float half[16];  // of each column's channel
                    for (int j = 0; j < 16; ++j) half[j] = x_scales.half[columns[i].channel[c + j]];
                    const uint32_t *panel = panels.x + c / 16 * DEPTH * DIGITS * TILE;
                    float *to = sums + i * rows * CALL + c;
                    // A tile's sums are combined while the next one's are made.
                    multiply(tile_of(first_row) + first * DIGITS * TILE, panel, count);
                    for (int64_t r = 0; r < rows; r += 16) {
                        store_orders(orders);
                        if (r + 16 < rows) multiply(tile_of(first_row + r + 16) + first * DIGITS * TILE, panel, count);
                        combine(orders, dy_scales.half + first_row + r, half, rows - r < 16 ? rows - r : 16,
                                first > 0, to + r * CALL);
                        between();
                    }
                }
            }
        }
    }

  private:
    const GradScores &a;
    const Scales &x_scales, &dy_scales;
    const int64_t quads;        // of images
    const int64_t pixels, steps;
    const int64_t group_rows, group_tiles;
    const int64_t pixel, row, image;  // strides of x
    Scratch<uint32_t> x, dy;

    uint32_t *tile_of(int64_t r) const {
        return dy + (r / group_rows * group_tiles + r % group_rows / 16) * steps * DIGITS * TILE;
    }

    void cut_x() {
        const int64_t padding_h = a.window.padding_h, padding_w = a.window.padding_w, width = a.x.width;
        parallel_for(a.threads, quads * a.x.height, [&](int64_t piece) {
            const int64_t quad = piece / a.x.height, h = piece % a.x.height;
            uint32_t *out = x + quad * image + (h + padding_h) * row;
            if (h == 0) memset(x + quad * image, 0, padding_h * row * 4);
            if (h == a.x.height - 1) memset(out + row, 0, padding_h * row * 4);
            memset(out, 0, padding_w * pixel * 4);
            memset(out + (padding_w + width) * pixel, 0, padding_w * pixel * 4);
            Scratch<float> buffer(IMAGES * SEGMENT * a.x.channels);
            for (int64_t w = 0; w < width; w += SEGMENT) {
                const int64_t n = width - w < SEGMENT ? width - w : SEGMENT;
                const float *from[IMAGES];
                for (int64_t i = 0; i < IMAGES; ++i)
                    from[i] = quad * IMAGES + i < a.x.count
                                  ? read_pixels(a.x, quad * IMAGES + i, h, w, n, buffer + i * SEGMENT * a.x.channels)
                                  : nullptr;
                for (int64_t p = 0; p < n; ++p) {
                    uint32_t *to = out + (padding_w + w + p) * pixel;
                    for (int64_t c = 0; c < a.x.channels; c += 16) {
                        __m512i digits[DIGITS];
                        cut<DIGITS>(from, c, a.x.channels, x_scales, digits);
                        const __mmask16 inside =
                            a.x.channels - c >= 16 ? 0xFFFF : __mmask16((1u << (a.x.channels - c)) - 1);
                        for (int d = 0; d < DIGITS; ++d)
                            _mm512_mask_storeu_epi32(to + d * a.x.channels + c, inside, digits[d]);
                    }
                    for (auto &f : from)
                        if (f) f += a.x.channels;
                }
            }
        });
    }

    // Tiles of 16 rows x 16 pixels: [tile of rows][step][digit][row][pixel], zeros where there is no row or pixel.
    void cut_dy() {
        parallel_for(a.threads, steps, [&](int64_t step) {
            Scratch<float> buffer(STEP * IMAGES * a.dy.channels);
            const float *from[STEP][IMAGES] = {};
            Position p(step * STEP, a.dy.height, a.dy.width);
            // Together where they follow each other in memory: a row may end among them, an image may not.
            const bool run = a.dy.row == a.dy.width * a.dy.pixel &&
                             p.h * a.dy.width + p.w + STEP <= a.dy.height * a.dy.width;
            const int64_t n = run ? STEP : 1;
            for (int64_t j = 0; j < STEP && step * STEP + j < pixels; j += n, p.next())
                for (int64_t i = 0; i < IMAGES && p.image * IMAGES + i < a.dy.count; ++i) {
                    float *copy = buffer + (i * STEP + j) * a.dy.channels;
                    from[j][i] = read_pixels(a.dy, p.image * IMAGES + i, p.h, p.w, n, copy);
                    for (int64_t k = 1; k < n; ++k) from[j + k][i] = from[j][i] + k * a.dy.channels;
                }
            for (int64_t group = 0; group < a.window.groups; ++group)
                for (int64_t r = 0; r < group_rows; r += 16) {
                    const int64_t c = group * group_rows + r;
                    S32 digits[DIGITS][STEP];
                    for (int64_t j = 0; j < STEP; ++j) {
                        __m512i cuts[DIGITS];
                        cut<DIGITS>(from[j], c, (group + 1) * group_rows, dy_scales, cuts);
                        for (int d = 0; d < DIGITS; ++d) digits[d][j] = (S32)cuts[d];
                    }
                    uint32_t *out = tile_of(c) + step * DIGITS * TILE;
                    for (int d = 0; d < DIGITS; ++d) {
                        transpose(digits[d]);
                        for (int64_t j = 0; j < 16; ++j) store(out + d * TILE + j * 16, digits[d][j]);
                    }
                }
        });
    }

    // The panel of `count` pixels from `first` on. Past the last pixel it holds anything: dy has zeros there.
    void pack(int64_t first, int64_t count, const Columns &columns, uint32_t *panel) const {
        alignas(64) int32_t offset[CALL];
        __mmask16 valid[CALL / 16] = {};
        for (int c = 0; c < CALL; ++c) {
            offset[c] = int32_t(columns.h[c] * row + columns.w[c] * pixel + columns.channel[c]);
            valid[c / 16] |= __mmask16(columns.valid[c] << c % 16);
        }
        const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
        const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        constexpr int64_t half_word = DEPTH * DIGITS * TILE;
        Position p(first, a.dy.height, a.dy.width);
        for (int64_t i = 0; i < count && first + i < pixels; ++i, p.next()) {
            const uint32_t *at = x + p.image * image + p.h * a.window.stride_h * row + p.w * a.window.stride_w * pixel;
            uint32_t *out = panel + i / STEP * DIGITS * TILE + i % STEP * 16;
            for (int w = 0; w < WORDS_A_CALL; ++w, out += 2 * half_word) {
                for (int d = 0; d < DIGITS; ++d) {
                    const uint32_t *from = at + d * a.x.channels;
                    __m512i low, high;
                    if (columns.together[w]) {
                        const __m512i u = _mm512_loadu_si512(from + offset[w * WORD]);
                        const __m512i v = _mm512_loadu_si512(from + offset[w * WORD] + 16);
                        low = _mm512_permutex2var_epi32(u, even, v);
                        high = _mm512_permutex2var_epi32(u, odd, v);
                    } else {
                        const __m512i none = _mm512_setzero_si512();
                        low = _mm512_mask_i32gather_epi32(none, valid[2 * w], load<__m512i>(offset + w * WORD), from, 4);
                        high = _mm512_mask_i32gather_epi32(none, valid[2 * w + 1],
                                                           load<__m512i>(offset + w * WORD + 16), from, 4);
                    }
                    _mm512_storeu_si512(out + d * TILE, low);
                    _mm512_storeu_si512(out + half_word + d * TILE, high);
                }
            }
        }
    }

    // The exact sums of `count` steps in registers, an order each, the highest first.
    static void multiply(const uint32_t *dy, const uint32_t *x, int64_t count) {
        tile_memory();
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t s = 0; s < count; ++s, dy += DIGITS * TILE, x += DIGITS * TILE) {
            if (DIGITS == 3) {
                _tile_loadd(4, dy + 2 * TILE, 64);
                _tile_loadd(5, dy + TILE, 64);
                _tile_loadd(6, dy, 64);
                _tile_loadd(7, x + 2 * TILE, 64);
                _tile_dpbssd(0, 4, 7);
                _tile_dpbssd(1, 5, 7);
                _tile_dpbssd(2, 6, 7);
                _tile_loadd(7, x + TILE, 64);
                _tile_dpbssd(1, 4, 7);
                _tile_dpbssd(2, 5, 7);
                _tile_dpbssd(3, 6, 7);
                _tile_loadd(7, x, 64);
                _tile_dpbssd(2, 4, 7);
                _tile_dpbssd(3, 5, 7);
            } else {
                _tile_loadd(4, dy + TILE, 64);
                _tile_loadd(5, dy, 64);
                _tile_loadd(7, x + TILE, 64);
                _tile_dpbssd(0, 4, 7);
                _tile_dpbssd(1, 5, 7);
                _tile_loadd(7, x, 64);
                _tile_dpbssd(1, 4, 7);
                _tile_dpbssd(2, 5, 7);
            }
        }
    }

    static void store_orders(int32_t orders[4][TILE]) {
        _tile_stored(0, orders[0], 64);
        _tile_stored(1, orders[1], 64);
        _tile_stored(2, orders[2], 64);
        if (DIGITS == 3) _tile_stored(3, orders[3], 64);
    }

    // Stores or adds the sums of `n` rows, as the numbers that they are. In units of the halves, so that nothing on the
    // way overflows or vanishes that the result does not.
    static void combine(const int32_t orders[4][TILE], const float *dy_half, const float *x_half, int64_t n, bool add,
                        float *sums) {
        const __m512 base = _mm512_set1_ps(256), unit = _mm512_set1_ps(DIGITS == 3 ? 0x1p-36f : 0x1p-28f);
        const __m512 columns = _mm512_load_ps(x_half);
        for (int64_t r = 0; r < n; ++r) {
            __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(orders[0] + r * 16));
            SLT_UNROLL for (int o = 1; o < DIGITS + 1; ++o)
                sum = _mm512_fmadd_ps(sum, base, _mm512_cvtepi32_ps(_mm512_load_si512(orders[o] + r * 16)));
            const __m512 scale = _mm512_mul_ps(columns, _mm512_set1_ps(dy_half[r]));
            float *to = sums + r * CALL;
            const __m512 before = add ? _mm512_loadu_ps(to) : _mm512_setzero_ps();
            _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_mul_ps(sum, unit), scale, before));
        }
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
