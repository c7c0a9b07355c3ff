// The geometry of a convolution.
#pragma once

#include <cstdint>

namespace slt {

// The nine integers of Python's `Window`, in its order.
struct Window {
    int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups;
};

}  // namespace slt
