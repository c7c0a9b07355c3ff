// Conv2d grad_input: a convolution (convolution.h) whose positions are the pixels of dx, and whose sum runs over output
// channels and taps.
//
// With strides, only some taps reach a pixel. Pixels of the same remainder (h + padding) mod stride share their taps,
// so each remainder is a convolution of dy with stride 1 and those taps. If the kernel is larger than dy, most taps of
// a pixel read beyond the edge of dy: a region of neighbouring pixels leaves out those that do so for all its pixels.
//
// dy becomes planes as x does in the forward product. Panels hold, tap by tap, the columns of the weight (transposed.h)
// of the channels.
#include "cpu/conv/convolution.h"
#include "cpu/conv/direct.h"
#include "cpu/conv/image_bf16.h"
#include "cpu/conv/image_int8.h"
#include "cpu/conv/winograd.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

constexpr int64_t TAP_ROWS = 4;  // a quad

struct Sizes {
    int64_t taps, channels, rows;  // of the kernel; of a group
    int64_t tap_length;            // rows of a group in whole quads
};

// Neighbouring pixels of one remainder, and the taps with which they read dy.
struct Region {
    Scratch<int64_t> tap, down, right;  // number of each tap; where it reads dy
    int64_t count = 0;
    const int64_t first_h, first_w;  // pixel of position (0, 0)
    Grid grid;

    // At most height x width pixels.
    Region(const Conv2dGradInput &a, int64_t first_h, int64_t first_w, int64_t height, int64_t width)
        : tap(taps_of(a.window)), down(taps_of(a.window)), right(taps_of(a.window)), first_h(first_h),
          first_w(first_w) {
        const Window &window = a.window;
        grid = {least(ceil_div(a.dx.height - first_h, window.stride_h), height),
                least(ceil_div(a.dx.width - first_w, window.stride_w), width), 1, 1};
        for (int64_t kh = 0; kh < window.kernel_h; ++kh) {
            const int64_t h = first_h + window.padding_h - kh * window.dilation_h;
            if (h % window.stride_h || !reaches(h / window.stride_h, grid.height, a.dy.height)) continue;
            for (int64_t kw = 0; kw < window.kernel_w; ++kw) {
                const int64_t w = first_w + window.padding_w - kw * window.dilation_w;
                if (w % window.stride_w || !reaches(w / window.stride_w, grid.width, a.dy.width)) continue;
                tap[count] = kh * window.kernel_w + kw;
                down[count] = h / window.stride_h;
                right[count++] = w / window.stride_w;
            }
        }
    }

    Taps taps(const Sizes &size) const { return {count, down, right, size.tap_length, 0, size.rows}; }

  private:
    // Whether a tap that reads `first` for the first of `positions` reads one of `size` pixels for any of them.
    static bool reaches(int64_t first, int64_t positions, int64_t size) {
        return first < size && first + positions > 0;
    }
};

// The height or width of the regions of images of `dx` pixels: all positions of a remainder, unless a quarter of the
// taps or more can be left out. Regions of 16 vectors or more take more time for their products than for their panels,
// and the panels of regions smaller than dy would have many taps in common.
int64_t region_edge(int64_t samples, int64_t dx, int64_t dy, int64_t kernel, int64_t dilation, int64_t stride) {
    const int64_t edge = greatest(dy, samples < 16 ? 4 : 1);
    const int64_t reach = (kernel - 1) * dilation / stride + 1;  // pixels of dy from the first tap to the last
    return 4 * (edge + dy - 1) <= 3 * reach ? edge : dx;
}

// Calls body(region) for all regions of dx.
template <class Body>
void for_regions(const Conv2dGradInput &a, const Body &body) {
    const Window &w = a.window;
    const Images &dy = a.dy;
    const int64_t height = region_edge(dy.samples, a.dx.height, dy.height, w.kernel_h, w.dilation_h, w.stride_h);
    const int64_t width = region_edge(dy.samples, a.dx.width, dy.width, w.kernel_w, w.dilation_w, w.stride_w);
    for (int64_t i = 0; i < least(w.stride_h, a.dx.height); ++i)
        for (int64_t j = 0; j < least(w.stride_w, a.dx.width); ++j)
            for (int64_t first_h = i; first_h < a.dx.height; first_h += height * w.stride_h)
                for (int64_t first_w = j; first_w < a.dx.width; first_w += width * w.stride_w)
                    body(Region(a, first_h, first_w, height, width));
}

// The weights of [from, from + depth) of a region's sums, for channels [channel, channel + lanes) of a group. A sum
// runs over taps, and over rows within a tap.
template <class Product>
void make_panel(const Weights &weights, const Region &c, const Sizes &size, int64_t group, int64_t channel,
                int64_t lanes, int64_t from, int64_t depth, uint32_t *panel) {
    constexpr int64_t rows_per_lane = 4 / Product::BYTES;
    const int64_t pitch = depth / rows_per_lane * LANES;  // between groups of lanes
    const int64_t past = c.count * size.tap_length - from;
    if (past < depth)  // multiplied by zeros of the vectors: must not be NaN
        for (int64_t g = 0; g < ceil_div(lanes, LANES); ++g)
            for (int64_t i = greatest(past, 0); i < depth; i += rows_per_lane)
                store(panel + g * pitch + i / rows_per_lane * LANES, U32{});
    for (int64_t row = 0; row < size.rows; row += COLUMN_ROWS) {
        const int64_t rows = least(size.tap_length - row, COLUMN_ROWS);
        alignas(64) uint32_t columns[COLUMN_ROWS / rows_per_lane * CALL];
        int64_t made = -1;  // the call in `columns`: taps of few channels share one
        for (int64_t t = 0; t < c.count; ++t) {
            const int64_t depth_at = t * size.tap_length + row - from;
            if (depth_at + rows <= 0 || depth_at >= depth) continue;
            const int64_t k = weights.frame.skipped * WORD + c.tap[t] * size.channels + channel;
            for (int64_t call = k / CALL; call * CALL < k + lanes; ++call) {
                if (call != made) Product::make_columns(weights, group * size.rows + row, call, columns);
                made = call;
                const int64_t first = greatest(call * CALL, k);
                const int64_t end = least((call + 1) * CALL, k + lanes);
                for (int64_t i = 0; i < rows; i += rows_per_lane) {
                    if (depth_at + i < 0 || depth_at + i >= depth) continue;
                    const uint32_t *column = columns + i / rows_per_lane * CALL - call * CALL;
                    uint32_t *out = panel + (depth_at + i) / rows_per_lane * LANES;
                    for (int64_t at = first, n; at < end; at += n) {  // up to the end of a group
                        const int64_t lane = at - k, room = LANES - lane % LANES;
                        n = least(end - at, room);
                        uint32_t *to = out + lane / LANES * pitch + lane % LANES;
                        n == LANES ? memcpy(to, column + at, sizeof(U32)) : memcpy(to, column + at, size_t(n) * 4);
                    }
                }
            }
        }
    }
}

template <class Planes>
void grad_input(const Conv2dGradInput &a, int threads) {
    typedef typename Planes::Product Product;
    const Source &s = a.source;
    const Window &w = a.window;
    const Weights weights(s, a.mask);
    const int64_t taps = taps_of(w), channels = s.fan / taps, rows = s.rows / w.groups;
    const Sizes size = {taps, channels, rows, ceil_div(rows, TAP_ROWS) * TAP_ROWS};
    Border border;
    bool in_place = true;
    for_regions(a, [&](const Region &c) {
        border.include(a.dy, c.taps(size), c.grid);
        in_place = in_place && border.pays_in_place(a.dy, c.taps(size), c.grid, 0, Planes::TILE);
    });
    const Reading reading = in_place ? Reading::IN_PLACE : Reading::COPIED;
    const bool whole = rows % WORD == 0;  // pixels are whole words, ordered once, in the planes
    const int64_t step = samples_at_once<Planes>(a.dy, border, reading, threads);
    for (int64_t first = 0; first < a.dy.samples; first += step) {
        const Planes planes(a.dy.part(first, step), border, reading, Layout::BYTE_QUADS, whole, a.digits, threads);
        for_regions(a, [&](const Region &c) {
            const Convolution convolution = {
                .grid = c.grid,
                .taps = c.taps(size),
                .groups = w.groups,
                .lanes = channels,
                .depth = ceil_div(c.count * size.tap_length, Planes::TILE) * Planes::TILE,
                .y = a.dx.part(first, step),
                .first = c.first_h * a.dx.width + c.first_w,
                .step_down = w.stride_h,
                .step_right = w.stride_w,
                .scale = Product::scale_of(weights, a.scale),
                .zero = zero_of(s.weight),
                .small = small_sums(c.count * rows, s.weight, a.digits),
                .threads = threads};
            convolve(planes, convolution, [&](int64_t group, int64_t lane, int64_t lanes, int64_t from, int64_t depth,
                                              uint32_t *panel) {
                make_panel<Product>(weights, c, size, group, lane, lanes, from, depth, panel);
            });
        });
    }
}

// Computes it as a direct convolution if that is faster; returns whether it did.
bool direct(const Conv2dGradInput &a, int threads) {
    const Window &w = a.window;
    const int64_t taps_count = taps_of(w), channels = a.source.fan / taps_count, rows = a.source.rows / w.groups;
    if (greatest(w.stride_h, w.stride_w) > ChannelPlanes::MOST_STRIDE) return false;
    DirectGrid grids[ChannelPlanes::MOST_STRIDE * ChannelPlanes::MOST_STRIDE];
    Scratch<DirectTap> taps(taps_count);
    int64_t count = 0, first_tap = 0;
    for (int64_t h = 0; h < least(w.stride_h, a.dx.height); ++h)
        for (int64_t right = 0; right < least(w.stride_w, a.dx.width); ++right) {
            const Region c(a, h, right, a.dx.height, a.dx.width);
            for (int64_t t = 0; t < c.count; ++t) taps[first_tap + t] = {c.tap[t], c.down[t], c.right[t]};
            grids[count++] = {c.grid.height, c.grid.width, h, right, first_tap, c.count};
            first_tap += c.count;
        }
    const Direct d = {.x = a.dy,
                      .y = a.dx,
                      .groups = w.groups,
                      .inputs = rows,
                      .outputs = channels,
                      .group_step = rows * a.source.fan,
                      .output_step = 1,
                      .input_step = a.source.fan,
                      .tap_step = channels,
                      .stride_h = 1,
                      .stride_w = 1,
                      .step_h = w.stride_h,
                      .step_w = w.stride_w,
                      .grids = count,
                      .grid = grids,
                      .tap = taps,
                      .scale = a.scale,
                      .bias = nullptr,
                      .digits = a.digits,
                      .threads = threads};
    if (!direct_pays(d, a.source.weight)) return false;
    direct_convolution(d, a.source, a.mask);
    return true;
}

// Computes it by Winograd's method if that is faster; returns whether it did.
bool winograd([[maybe_unused]] const Conv2dGradInput &a, [[maybe_unused]] int threads) {
#if SLT_WINOGRAD
    const Window &w = a.window;
    const Winograd convolution = {.x = a.dy,
                                  .y = a.dx,
                                  .groups = w.groups,
                                  .inputs = a.source.rows / w.groups,
                                  .outputs = a.source.fan / taps_of(w),
                                  .padding_h = w.kernel_h - 1 - w.padding_h,
                                  .padding_w = w.kernel_w - 1 - w.padding_w,
                                  .turned = true,
                                  .scale = a.scale,
                                  .bias = nullptr,
                                  .digits = a.digits,
                                  .threads = threads};
    if (is_plain_3x3(w) && a.source.weight == SIGNED_CONSTANT && winograd_pays(convolution)) {
        winograd_convolution(convolution, a.source, a.mask);
        return true;
    }
#endif
    return false;
}

}  // namespace

void conv2d_grad_input(const Conv2dGradInput &a, int threads) {
    const int64_t taps = taps_of(a.window);
    if (a.dx.bytes() == 0) return;
    advise_huge_pages(a.dx.data.data, a.dx.bytes());
    if (winograd(a, threads) || direct(a, threads)) return;
#if defined(SLT_AMX)
    const int64_t most_depth = taps * (a.source.rows / a.window.groups + TAP_ROWS);
    if (a.dy.data.type == Type::BFLOAT16 && a.dx.data.type == a.dy.data.type &&
        most_depth <= Bfloat16Product::LONGEST_DEPTH)
        return grad_input<Bfloat16Planes>(a, threads);
#endif
    with_form(a.source.weight, a.source.fan / taps, a.dx.samples * a.dx.pixels(), a.digits,
                [&](auto form) { grad_input<DigitPlanes<decltype(form)>>(a, threads); });
}

}  // namespace slt::SLT_ISA
