// Positions of images, counted through.
#pragma once

#include <cstdint>

namespace slt::SLT_ISA {
namespace {

// Walks over the positions of all images of a batch, in order.
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
