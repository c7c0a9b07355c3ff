// The instruction sets of the CPU backend: each compiles every operation into functions of its own.
#pragma once

#include <vector>

#include "operations.h"

namespace slt {

// The functions of one instruction set.
struct Operations {
#define SLT_MEMBER(name, Arguments) void (*name)(const Arguments &, int threads);
    SLT_OPERATIONS(SLT_MEMBER)
#undef SLT_MEMBER
};

struct InstructionSet {
    const char *name;
    const Operations *operations;
};

// Those compiled in that run here, the best last.
std::vector<InstructionSet> instruction_sets();

}  // namespace slt
