// The argument of each kernel: one struct, which host and device share. Pointers are to memory of the device, unless
// said otherwise; masks are resolved words [rows, words].
#pragma once

#include "contract/source.h"
#include "cuda/calls.h"

namespace slt::cuda {

// int8 [rows, fan]: the masked integer weight.
struct Materialize {
    Source source;
    Calls calls;  // of SIGN, or of VALUE where weights are bytes
    const uint32_t *mask;
    int8_t *out;
};

}  // namespace slt::cuda
