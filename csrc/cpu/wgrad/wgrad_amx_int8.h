// Balanced base-256 digits for the weight gradient on tiles: float32 accuracy at four times the rate of float32 units.
//
// A factor that is constant along the contraction can be taken out of the sum. So each channel of x and each row of dy
// becomes fixed point over all samples and pixels (`FixedPoint`), three digits for "highest". Digit i of one operand
// and digit j of the other are multiplied as bytes with exact int32 sums; products of the same order i + j share a sum.
// With three digits, order 0 is 2^-32 of the whole and left out, which leaves eight products. With two digits it would
// be 2^-16, so all four products are computed.
//
// A dword is a digit of four samples. Each 16 x 16 tile of sums stays in registers for a block of steps: per step 6
// tile loads (48 cycles) and 8 products (128 cycles). Combining the four orders in float32 costs 12 instructions per 16
// sums and block; sums of 512 elements are small enough that the conversion is exact, or nearly.
//
// Tile registers: 0 to 3 are the sums of orders 4 to 1 (2 to 0 with two digits), 4 to 6 digits of dy, 7 a digit of x.
#pragma once

#include "cpu/gemm/fixed_point.h"
#include "cpu/wgrad/wgrad_amx.h"

namespace slt::SLT_ISA {
namespace {

// The fixed point of each channel over all samples and pixels.
class Scales {
  public:
    Scratch<float> up, up_again;  // factors of an element
    Scratch<float> half;          // half the power of two above the channel's largest element: the unit of the digits
    bool finite = true;

    Scales(const Images &x, int digits, int threads) : up(padded(x)), up_again(padded(x)), half(padded(x)) {
        const int64_t pieces = x.channels_last ? x.samples * x.height : x.samples;
        Scratch<int32_t> largest(pieces * x.channels);
        parallel_for(threads, pieces, [&](int64_t piece) {
            int32_t *most = largest + piece * x.channels;
            if (!x.channels_last) {
                for (int64_t c = 0; c < x.channels; ++c)
                    most[c] = largest_bits(x.data + (piece * x.channels + c) * x.pixels(), x.pixels());
                return;
            }
            memset(most, 0, x.channels * sizeof *most);
            Scratch<float> buffer(x.channels);
            for (int64_t w = 0; w < x.width; ++w) {
                const Input pixel = x.data + (piece * x.width + w) * x.channels;
                if (x.data.type == Type::FLOAT32) {
                    keep_larger(reinterpret_cast<const float *>(pixel.data), x.channels, most);
                } else {
                    read_floats(pixel, x.channels, buffer);
                    keep_larger(buffer, x.channels, most);
                }
            }
        });
        for (int64_t piece = 1; piece < pieces; ++piece)
            keep_larger((const float *)(largest + piece * x.channels), x.channels, largest);
        for (int64_t c = 0; c < padded(x); ++c) {
            const uint32_t most = c < x.channels ? uint32_t(largest[c]) : 0;
            const FixedPoint fixed = fixed_point(most, digits);
            finite = finite && most < INFINITE;
            up[c] = fixed.up;
            up_again[c] = fixed.up_again;
            half[c] = float(fixed.power * power_of_two(8 * digits - 2));
        }
    }

  private:
    static int64_t padded(const Images &x) { return x.channels + 16; }  // a read of 16 may start at any channel

    // By bits: NaN and infinity are the largest.
    static void keep_larger(const float *x, int64_t count, int32_t *most) {
        for (int64_t c = 0; c < count; ++c) {
            int32_t bits;
            memcpy(&bits, x + c, 4);
            bits &= MAGNITUDE;
            most[c] = bits > most[c] ? bits : most[c];
        }
    }
};

template <int DIGITS>
class Digits {
  public:
    static constexpr int64_t SAMPLES = 4, PLANES = DIGITS, DEPTH = 8;

    // With fewer samples most of a dword is empty.
    static bool suits(const GradScores &a) { return a.dy.samples >= 3; }

    Digits(const GradScores &a, int threads) : x(a.x, DIGITS, threads), dy(a.dy, DIGITS, threads) {}

    // NaN and infinity have no digits.
    bool exist() const { return x.finite && dy.finite; }

    // Dwords of sixteen channels of one pixel.
    SLT_INLINE void x_dwords(const F32 elements[SAMPLES], int64_t channel, __m512i out[DIGITS]) const {
        to_digits(elements, x, channel, out);
    }
    SLT_INLINE void dy_dwords(const F32 elements[SAMPLES], int64_t row, __m512i out[DIGITS]) const {
        to_digits(elements, dy, row, out);
    }

    // Stores or adds the sums of `rows` rows by a word of columns. Tiles of dy are `dy_pitch` apart.
    template <class Between>
    void multiply(const uint32_t *dy_tiles, int64_t dy_pitch, XTiles x_tiles, int64_t steps, int64_t first_row,
                  int64_t rows, const int64_t *channels, bool add, float *sums, Between &between) const {
        alignas(64) int32_t orders[4][TILE];
        for (int64_t c = 0; c < WORD; c += 16, x_tiles.at += x_tiles.half) {
            alignas(64) float half[16];  // of each column's channel
            for (int j = 0; j < 16; ++j) half[j] = x.half[channels[c + j]];
            // A tile's sums are combined while the next tile's are computed.
            multiply_tile(dy_tiles, x_tiles, steps);
            for (int64_t r = 0; r < rows; r += 16) {
                store_orders(orders);
                if (r + 16 < rows) multiply_tile(dy_tiles + (r / 16 + 1) * dy_pitch, x_tiles, steps);
                combine(orders, dy.half + first_row + r, half, least(rows - r, 16), add, sums + r * CALL + c);
                between();
            }
        }
    }

  private:
    const Scales x, dy;

    static SLT_INLINE void to_digits(const F32 elements[SAMPLES], const Scales &scales, int64_t channel,
                                     __m512i out[DIGITS]) {
        const __m512 up = _mm512_loadu_ps(scales.up + channel), up_again = _mm512_loadu_ps(scales.up_again + channel);
        SLT_UNROLL for (int s = 0; s < SAMPLES; ++s) {
            const __m512 scaled = _mm512_mul_ps(_mm512_mul_ps((__m512)elements[s], up), up_again);
            const __m512i v = (__m512i)balanced_digits<DIGITS>((U32)_mm512_cvtps_epi32(scaled));
            SLT_UNROLL for (int d = 0; d < DIGITS; ++d) {
                const __m512i byte = _mm512_set4_epi32(0x0C0C0C0C + d * 0x01010101, 0x08080808 + d * 0x01010101,
                                                       0x04040404 + d * 0x01010101, d * 0x01010101);
                const __mmask64 place = 0x1111111111111111ull << s;
                out[d] = s == 0 ? _mm512_maskz_shuffle_epi8(place, v, byte)
                                : _mm512_mask_shuffle_epi8(out[d], place, v, byte);
            }
        }
    }

    // The exact sums of `count` steps, one register per order, the highest first.
    static void multiply_tile(const uint32_t *dy, const XTiles &tiles, int64_t count) {
        tile_memory();
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        const uint32_t *x = tiles.at;
        for (int64_t s = 0; s < count; ++s, dy += DIGITS * TILE, x += TILE) {
            if (DIGITS == 3) {
                _tile_loadd(7, x + 2 * tiles.plane, 64);
                _tile_loadd(4, dy + 2 * TILE, 64);
                _tile_dpbssd(0, 4, 7);
                _tile_loadd(5, dy + TILE, 64);
                _tile_dpbssd(1, 5, 7);
                _tile_loadd(6, dy, 64);
                _tile_dpbssd(2, 6, 7);
                _tile_loadd(7, x + tiles.plane, 64);
                _tile_dpbssd(1, 4, 7);
                _tile_dpbssd(2, 5, 7);
                _tile_dpbssd(3, 6, 7);
                _tile_loadd(7, x, 64);
                _tile_dpbssd(2, 4, 7);
                _tile_dpbssd(3, 5, 7);
            } else {
                _tile_loadd(4, dy + TILE, 64);
                _tile_loadd(5, dy, 64);
                _tile_loadd(7, x + tiles.plane, 64);
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

    // Stores or adds the sums of `n` rows as float32. Intermediate values are in units of the halves: they overflow or
    // vanish only if the result does.
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
