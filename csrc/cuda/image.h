// The images of a convolution: where the taps of an output pixel read. Images are channels-last.
#pragma once

#include "contract/window.h"
#include "cuda/generator.h"

namespace slt::cuda {

// Counts of pixels, of all images, are below 2^31.
struct Image {
    int32_t height, width;
    Divisor by_out_width, by_out_pixels;  // an image's
    int32_t kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
};

SLT_HOST_DEVICE Image image_of(int32_t height, int32_t width, int32_t out_height, int32_t out_width, const Window &w) {
    return {
        .height = height,
        .width = width,
        .by_out_width = divisor(uint32_t(out_width)),
        .by_out_pixels = divisor(uint32_t(out_height) * uint32_t(out_width)),
        .kernel_w = int32_t(w.kernel_w),
        .stride_h = int32_t(w.stride_h),
        .stride_w = int32_t(w.stride_w),
        .padding_h = int32_t(w.padding_h),
        .padding_w = int32_t(w.padding_w),
        .dilation_h = int32_t(w.dilation_h),
        .dilation_w = int32_t(w.dilation_w),
    };
}

// Where tap 0 of an output pixel reads, perhaps outside the image: row and column of its image, and the number among
// the pixels of all images.
struct Origin {
    int32_t y, x, number;
};

SLT_HOST_DEVICE Origin origin_of(const Image &image, uint32_t out_pixel) {
    const uint32_t b = out_pixel / image.by_out_pixels, in_image = out_pixel - b * image.by_out_pixels.number;
    const uint32_t row = in_image / image.by_out_width, column = in_image - row * image.by_out_width.number;
    const int32_t y = int32_t(row) * image.stride_h - image.padding_h;
    const int32_t x = int32_t(column) * image.stride_w - image.padding_w;
    return {y, x, (int32_t(b) * image.height + y) * image.width + x};
}

// A tap, in pixels from tap 0.
struct Tap {
    int32_t down, right, number;
};

SLT_HOST_DEVICE Tap tap_of(const Image &image, int32_t tap) {
    const int32_t down = tap / image.kernel_w * image.dilation_h, right = tap % image.kernel_w * image.dilation_w;
    return {down, right, down * image.width + right};
}

SLT_HOST_DEVICE bool inside(const Image &image, const Origin &origin, const Tap &tap) {
    return uint32_t(origin.y + tap.down) < uint32_t(image.height) &&
           uint32_t(origin.x + tap.right) < uint32_t(image.width);
}

}  // namespace slt::cuda
