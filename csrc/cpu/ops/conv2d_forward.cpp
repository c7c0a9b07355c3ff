// Conv2d forward: a convolution whose positions are those of the output.
//
// Images become planes once, channels-last, some samples at a time: bfloat16 images as they are if there is a matrix
// unit for bfloat16, others as fixed point. Panels hold rows of the weight.
#include "cpu/conv/convolution.h"
#include "cpu/conv/direct.h"
#include "cpu/conv/image_bf16.h"
#include "cpu/conv/image_int8.h"
#include "cpu/conv/winograd.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

template <class Planes>
void forward(const Conv2dForward &a, int threads) {
    typedef typename Planes::Product Product;
    const Source &s = a.source;
    const Window &w = a.window;
    const Frame frame = frame_of(s);
    const Images &x = a.x;
    const Grid grid = {a.y.height, a.y.width, w.stride_h, w.stride_w};
    const int64_t taps_count = taps_of(w), channels = s.fan / taps_count, rows = s.rows / w.groups;

    Scratch<int64_t> down(taps_count), right(taps_count);
    for (int64_t t = 0; t < taps_count; ++t) {
        const TapOffset offset = tap_offset(w, t);
        down[t] = offset.down - w.padding_h;
        right[t] = offset.right - w.padding_w;
    }
    Taps taps = {taps_count, down, right, channels, 0, channels};
    Border border;
    border.include(x, taps, grid);
    const bool whole = channels % WORD == 0;  // pixels are whole words, ordered once, in the planes
    Reading reading = Reading::COPIED;
    if (border.pays_in_place(x, taps, grid, frame.skipped, Planes::TILE)) {
        reading = Reading::IN_PLACE;
    } else if (!whole && w.groups == 1 && w.dilation_w == 1 && border.pays(x)) {
        reading = Reading::PACKED;
        taps = {w.kernel_h, down, right, w.kernel_w * channels, 0, w.kernel_w * channels};
        for (int64_t t = 0; t < w.kernel_h; ++t) {
            down[t] = down[t * w.kernel_w];
            right[t] = right[t * w.kernel_w];
        }
    }
    const Weights weights(s, a.mask);
    const int64_t words = frame.skipped + words_of(s), depth = whole_steps<Product::DEPTH_STEP>(words * WORD);
    Convolution convolution = {.grid = grid,
                               .taps = taps,
                               .groups = w.groups,
                               .lanes = rows,
                               .skipped = frame.skipped * WORD,
                               .depth = depth,
                               .y = a.y,
                               .scale = Product::scale_of(weights, a.scale),
                               .bias = a.bias,
                               .zero = zero_of(s.weight),
                               .small = small_sums(s.fan, s.weight, a.digits),
                               .threads = threads};
    const int64_t step = samples_at_once<Planes>(x, border, reading, threads);
    for (int64_t first = 0; first < x.samples; first += step) {
        const Planes planes(x.part(first, step), border, reading, layout_of(s.weight), whole, a.digits, threads);
        convolution.y = a.y.part(first, step);
        convolve(planes, convolution, [&](int64_t group, int64_t lane, int64_t lanes, int64_t from, int64_t depth,
                                          uint32_t *panel) {
            for (int64_t l = 0; l < lanes; l += LANES, panel += depth * Product::BYTES / 4 * LANES)
                Product::make_rows(weights, group * rows + lane + l, from, depth, panel);
        });
    }
}

// Computes it as a direct convolution if that is faster; returns whether it did.
bool direct(const Conv2dForward &a, int threads) {
    const Window &w = a.window;
    const int64_t taps_count = taps_of(w), channels = a.source.fan / taps_count, rows = a.source.rows / w.groups;
    Scratch<DirectTap> taps(taps_count);
    for (int64_t t = 0; t < taps_count; ++t) {
        const TapOffset offset = tap_offset(w, t);
        taps[t] = {t, offset.down - w.padding_h, offset.right - w.padding_w};
    }
    const DirectGrid grid = {a.y.height, a.y.width, 0, 0, 0, taps_count};
    const Direct d = {.x = a.x,
                      .y = a.y,
                      .groups = w.groups,
                      .inputs = channels,
                      .outputs = rows,
                      .group_step = rows * a.source.fan,
                      .output_step = a.source.fan,
                      .input_step = 1,
                      .tap_step = channels,
                      .stride_h = w.stride_h,
                      .stride_w = w.stride_w,
                      .step_h = 1,
                      .step_w = 1,
                      .grids = 1,
                      .grid = &grid,
                      .tap = taps,
                      .scale = a.scale,
                      .bias = a.bias,
                      .digits = a.digits,
                      .threads = threads};
    if (!direct_pays(d, a.source.weight)) return false;
    direct_convolution(d, a.source, a.mask);
    return true;
}

// Computes it by Winograd's method if that is faster; returns whether it did.
bool winograd([[maybe_unused]] const Conv2dForward &a, [[maybe_unused]] int threads) {
#if SLT_WINOGRAD
    const Window &w = a.window;
    const Winograd convolution = {.x = a.x,
                                  .y = a.y,
                                  .groups = w.groups,
                                  .inputs = a.source.fan / taps_of(w),
                                  .outputs = a.source.rows / w.groups,
                                  .padding_h = w.padding_h,
                                  .padding_w = w.padding_w,
                                  .turned = false,
                                  .scale = a.scale,
                                  .bias = a.bias,
                                  .digits = a.digits,
                                  .threads = threads};
    // Int8 activations have another fixed point.
    if (a.digits != 1 && is_plain_3x3(w) && a.source.weight == SIGNED_CONSTANT && winograd_pays(convolution)) {
        winograd_convolution(convolution, a.source, a.mask);
        return true;
    }
#endif
    return false;
}

}  // namespace

void conv2d_forward(const Conv2dForward &a, int threads) {
    if (a.y.bytes() == 0) return;
    advise_huge_pages(a.y.data.data, a.y.bytes());
    if (winograd(a, threads) || direct(a, threads)) return;
#if defined(SLT_AMX)
    const Frame frame = frame_of(a.source);
    if (a.digits != 1 && a.x.data.type == Type::BFLOAT16 && a.y.data.type == a.x.data.type &&
        (frame.skipped + words_of(a.source)) * WORD <= Bfloat16Product::LONGEST_DEPTH)
        return forward<Bfloat16Planes>(a, threads);
#endif
    const auto run = [&](auto form) { forward<DigitPlanes<decltype(form)>>(a, threads); };
    if (a.digits == 1) return run(InDigits<1>());
    with_form(a.source.weight, a.source.rows / a.window.groups, a.y.samples * a.y.pixels(), a.digits, run);
}

}  // namespace slt::SLT_ISA
