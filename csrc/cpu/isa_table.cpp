// The table of one instruction set's functions. A set that differs from another, SLT_BASE, in some operations alone has
// those of its own, which SLT_OWN(X) lists as X(operation), and all others of that one.
#include "cpu/dispatch.h"

#define SLT_DECLARE(name, Arguments) void name(const Arguments &, int threads);

#if defined(SLT_BASE)
namespace slt::SLT_BASE {
SLT_OPERATIONS(SLT_DECLARE)
}  // namespace slt::SLT_BASE
#endif

namespace slt::SLT_ISA {

SLT_OPERATIONS(SLT_DECLARE)

extern const Operations operations;
#if defined(SLT_BASE)
#define SLT_ENTRY(name, Arguments) SLT_BASE::name,
constinit const Operations operations = [] {
    Operations all = {SLT_OPERATIONS(SLT_ENTRY)};
#define SLT_USE(name) all.name = name;
    SLT_OWN(SLT_USE)
    return all;
}();
#else
#define SLT_ENTRY(name, Arguments) name,
constinit const Operations operations = {SLT_OPERATIONS(SLT_ENTRY)};
#endif

}  // namespace slt::SLT_ISA
