// Runs one operation a number of times, for bench/arm_instructions.py: <case> <instruction set> <times>. Without
// arguments it prints the cases: a name, and what its instructions are divided by. One thread; inputs are 0.5.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "contract/scores.h"
#include "cpu/dispatch.h"

namespace {

using namespace slt;

constexpr int64_t ROWS = 256, FAN = 1024, CHANNELS = 64, SIDE = 16, SAMPLES = 2;

struct Run {
    const Operations &operations;
    Source source;
    Window window = {1, 1, 1, 1, 0, 0, 1, 1, 1};
    int64_t batch;
    std::vector<uint32_t> mask = std::vector<uint32_t>(ROWS * FAN, 0x5A5A5A5A);
    std::vector<float> x = std::vector<float>(ROWS * FAN, 0.5f), y = x, scores = x;
    std::vector<int64_t> offsets = std::vector<int64_t>(ROWS + 1);

    Run(const Operations &operations, Weight weight, bool frozen, int64_t batch)
        : operations(operations), source(layer(ROWS, FAN, weight, frozen)), batch(batch) {
        for (size_t i = 0; i < scores.size(); ++i) scores[i] = initial_score(1, 0, i);
    }

    static Source layer(int64_t rows, int64_t fan, Weight weight, bool frozen) {
        return {rows, fan, 1, 0, weight, frozen ? 64 : 0, frozen ? 192 : 256, 0, 0, ceil_div(fan, CALL)};
    }
    Input in(std::vector<float> &v) { return {reinterpret_cast<const char *>(v.data()), Type::FLOAT32}; }
    Result out(std::vector<float> &v) { return {reinterpret_cast<char *>(v.data()), Type::FLOAT32}; }
    int64_t count() {
        int64_t locked;
        operations.count_frozen({source, offsets.data(), &locked}, 1);
        return locked;
    }

    void forward() {
        operations.linear_forward({source, mask.data(), nullptr, in(x), batch, 1, nullptr, out(y), 3}, 1);
    }
    void grad_input() { operations.linear_grad_input({source, mask.data(), in(x), batch, 1, out(y), 3}, 1); }
    void grad_scores() {
        operations.grad_scores({source, window, {in(y), batch, ROWS, 1, 1, true}, {in(x), batch, FAN, 1, 1, true},
                                scores.data(), 1, offsets.data(), y.data(), 3},
                               1);
    }
    void pack() {
        int64_t kept;
        const uint32_t *bits = reinterpret_cast<const uint32_t *>(scores.data()), quarter = 0x3E800000;
        operations.pack({source, bits, quarter, offsets.data(), 0, false, mask.data(), &kept}, 1);
    }
    void expand() {
        std::vector<uint32_t> compact(ROWS * FAN / WORD, 0x5A5A5A5A);
        operations.expand({source, compact.data(), offsets.data(), mask.data()}, 1);
    }
    void select() {
        const uint32_t *all = reinterpret_cast<const uint32_t *>(scores.data());
        const int64_t number = ROWS * FAN;
        uint32_t threshold;
        operations.select({&all, &number, 1, number / 2, &threshold}, 1);
    }
    void convolution(bool depthwise) {
        window = {3, 3, 1, 1, 1, 1, 1, 1, depthwise ? CHANNELS : 1};
        const Source s = layer(CHANNELS, depthwise ? 9 : 9 * CHANNELS, SIGNED_CONSTANT, false);
        operations.conv2d_forward({s, window, mask.data(), {in(x), SAMPLES, CHANNELS, SIDE, SIDE, false}, 1, nullptr,
                                   {out(y), SAMPLES, CHANNELS, SIDE, SIDE, false}, 3},
                                  1);
    }
};

struct Case {
    const char *name;
    Weight weight;
    bool frozen;
    int64_t batch, divisor;
    void (*run)(Run &);
};

constexpr int64_t WEIGHTS = ROWS * FAN, DEPTHWISE = SAMPLES * SIDE * SIDE * CHANNELS * 9;
const Case CASES[] = {
    {"forward, 1 vector", SIGNED_CONSTANT, false, 1, WEIGHTS, [](Run &r) { r.forward(); }},
    {"forward, 1 vector, uniform", UNIFORM, false, 1, WEIGHTS, [](Run &r) { r.forward(); }},
    {"forward, 1 vector, normal", NORMAL, false, 1, WEIGHTS, [](Run &r) { r.forward(); }},
    {"forward, 4 vectors", SIGNED_CONSTANT, false, 4, WEIGHTS * 4, [](Run &r) { r.forward(); }},
    {"forward, 64 vectors", SIGNED_CONSTANT, false, 64, WEIGHTS * 64, [](Run &r) { r.forward(); }},
    {"grad_input, 1 vector", SIGNED_CONSTANT, false, 1, WEIGHTS, [](Run &r) { r.grad_input(); }},
    {"grad_input, 64 vectors", SIGNED_CONSTANT, false, 64, WEIGHTS * 64, [](Run &r) { r.grad_input(); }},
    {"grad_scores, 64 vectors", SIGNED_CONSTANT, false, 64, WEIGHTS * 64, [](Run &r) { r.grad_scores(); }},
    {"conv2d 3x3", SIGNED_CONSTANT, false, 1, DEPTHWISE * CHANNELS, [](Run &r) { r.convolution(false); }},
    {"conv2d 3x3, depthwise", SIGNED_CONSTANT, false, 1, DEPTHWISE, [](Run &r) { r.convolution(true); }},
    {"expand, sixteenths frozen", SIGNED_CONSTANT, true, 1, WEIGHTS, [](Run &r) { r.expand(); }},
    {"pack", SIGNED_CONSTANT, false, 1, WEIGHTS, [](Run &r) { r.pack(); }},
    {"pack, sixteenths frozen", SIGNED_CONSTANT, true, 1, WEIGHTS, [](Run &r) { r.pack(); }},
    {"select", SIGNED_CONSTANT, false, 1, WEIGHTS, [](Run &r) { r.select(); }},
};

}  // namespace

int main(int count, char **arguments) {
    for (const Case &c : CASES) {
        if (count == 1) std::printf("%s\t%ld\n", c.name, long(c.divisor));
        if (count < 4 || strcmp(arguments[1], c.name) != 0) continue;
        for (const InstructionSet &set : instruction_sets()) {
            if (strcmp(arguments[2], set.name) != 0) continue;
            Run run(*set.operations, c.weight, c.frozen, c.batch);
            run.count();
            for (int i = 0; i < std::atoi(arguments[3]); ++i) c.run(run);
            return 0;
        }
    }
    return count > 1;
}
