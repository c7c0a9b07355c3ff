// The geometry of a convolution. Section 2 of the contract (docs/contract.md) orders its weights (kh, kw, channel), the
// channel fastest.
#pragma once

#include "contract/source.h"

namespace slt {

// The nine integers of Python's `Window`, in its order.
struct Window {
    int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups;
};

// Where a tap reads, in pixels from tap 0.
struct TapOffset {
    int64_t down, right;
};

SLT_HOST_DEVICE int64_t taps_of(const Window &w) { return w.kernel_h * w.kernel_w; }

SLT_HOST_DEVICE TapOffset tap_offset(const Window &w, int64_t tap) {
    return {tap / w.kernel_w * w.dilation_h, tap % w.kernel_w * w.dilation_w};
}

}  // namespace slt
