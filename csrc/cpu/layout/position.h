// Iterates over (image, row, column).
#pragma once

#include <cstdint>

namespace slt::SLT_ISA {
namespace {

struct Position {
    int64_t image, h, w, height, width;

    Position(int64_t index, int64_t height, int64_t width)
        : image(index / (height * width)), h(index / width % height), w(index % width), height(height), width(width) {}

    void next() {
        if (++w < width) return;
        w = 0;
        if (++h < height) return;
        h = 0;
        ++image;
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
