// The table of one instruction set's functions.
#include "cpu/dispatch.h"

namespace slt::SLT_ISA {

#define SLT_DECLARE(name, Arguments) void name(const Arguments &, int threads);
SLT_OPERATIONS(SLT_DECLARE)

extern const Operations operations;
#define SLT_ENTRY(name, Arguments) name,
const Operations operations = {SLT_OPERATIONS(SLT_ENTRY)};

}  // namespace slt::SLT_ISA
