#include "cuda/layouts.h"

#include <utility>

#include "cuda/arguments.h"
#include "python_arguments.h"

namespace slt {

// (seed, layer, stream)
template <>
struct From<Calls> {
    static Calls python(PyObject *v) {
        return calls_of(item<int64_t>(v, 0), item<int64_t>(v, 1), Stream(item<int>(v, 2)));
    }
};

}  // namespace slt

namespace slt::cuda {

namespace {

template <class Arguments, auto member>
Field field(const char *name) {
    static const Arguments arguments{};
    const auto *at = reinterpret_cast<const char *>(&(arguments.*member));
    return {name, size_t(at - reinterpret_cast<const char *>(&arguments)), sizeof(arguments.*member),
            [](char *to, PyObject *value) { set<Arguments, member>(*reinterpret_cast<Arguments *>(to), value); }};
}

#define SLT_FIELD(member) field<A, &A::member>(#member)

template <class A>
Layout layout(const char *name, std::vector<Field> fields) {
    return {name, sizeof(A), std::move(fields)};
}

}  // namespace

const std::vector<Layout> &layouts() {
    static const std::vector<Layout> all = [] {
        std::vector<Layout> all;
        {
            typedef Materialize A;
            all.push_back(layout<A>("Materialize", {SLT_FIELD(source), SLT_FIELD(calls), SLT_FIELD(mask),
                SLT_FIELD(out)}));
        }
        {
            typedef ForwardSmall A;
            all.push_back(layout<A>("ForwardSmall", {SLT_FIELD(source), SLT_FIELD(calls), SLT_FIELD(freeze),
                SLT_FIELD(mask), SLT_FIELD(row_starts), SLT_FIELD(call_starts), SLT_FIELD(x), SLT_FIELD(scale),
                SLT_FIELD(bias), SLT_FIELD(y), SLT_FIELD(batch), SLT_FIELD(element), SLT_FIELD(digits),
                SLT_FIELD(tiles), SLT_FIELD(cluster), SLT_FIELD(block_steps), SLT_FIELD(chunk_steps)}));
        }
        return all;
    }();
    return all;
}

}  // namespace slt::cuda
