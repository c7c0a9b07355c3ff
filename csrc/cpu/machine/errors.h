// Exceptions of kernels: std::bad_alloc is the only one, and memory allocated before it is freed. Compiled for the
// baseline (cpu/dispatch.cpp), because code of the standard library that the linker shares must not use the
// instructions of a higher set.
#pragma once

#include <cstdint>

namespace slt {

// Throws std::bad_alloc.
[[noreturn]] void out_of_memory();

// Calls work(context, i) under the default floating-point control; false if memory ran out. (An exception must not
// leave one thread's part of a parallel loop.)
bool run_piece(void (*work)(const void *context, int64_t i), const void *context, int64_t i);

}  // namespace slt
