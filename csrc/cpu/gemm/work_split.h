// The split of a product into pieces of work: blocks of outputs whose panel fits the second-level cache, and also parts
// of the vectors if there are too few blocks for the threads. Each piece makes its own panel.
#pragma once

#include "cpu/gemm/gemm.h"

namespace slt::SLT_ISA {
namespace {

constexpr int64_t SCRATCH_BYTES = 1 << 20;  // the most that a thread uses
constexpr int64_t PANEL_BYTES = 768 << 10;  // of SCRATCH_BYTES
constexpr int64_t MOST_LANES = 1024;
constexpr int64_t FEW_VECTORS = 8;          // up to here, making the panel takes most of the time: it should stay in L1
constexpr int64_t MOST_SUMMED = 128;        // vectors of a piece that keeps sums in several parts

struct WorkSplit {
    int64_t most_lanes;  // outputs per piece, whole blocks
    int64_t pieces;

    // `depth`: bytes of an output's weights in a panel of `bytes`. Vectors are multiplied `together` at a time; a piece
    // has at most `most_vectors`.
    WorkSplit(int64_t outputs, int64_t bytes, int64_t depth, int64_t vectors, int threads, int64_t block,
              int64_t together, int64_t most_vectors = INT64_MAX)
        : outputs(outputs), all_vectors(vectors) {
        const int64_t all = ceil_div(outputs, block), fit = least(bytes / (block * depth), MOST_LANES / block);
        // Parts of very many vectors are work enough for all threads; each vector is then read once for all outputs.
        const int64_t share = vectors >= 1024 * threads ? all : ceil_div(all, 4 * threads);
        const int64_t blocks = fit < 1 ? 1 : fit < share || vectors <= FEW_VECTORS ? fit : share;
        most_lanes = least(blocks, all) * block;
        across = ceil_div(outputs, most_lanes);
        const int64_t wanted = threads == 1 ? 1 : ceil_div(4 * threads, across), most = ceil_div(vectors, 64);
        step = least(ceil_div(vectors, least(wanted, most)), most_vectors);
        step = ceil_div(step, together) * together;
        pieces = across * ceil_div(vectors, step);
    }

    int64_t lane(int64_t piece) const { return piece % across * most_lanes; }
    int64_t lanes(int64_t piece) const { return least(outputs - lane(piece), most_lanes); }
    int64_t vector(int64_t piece) const { return piece / across * step; }
    int64_t vectors(int64_t piece) const { return least(all_vectors - vector(piece), step); }

  private:
    int64_t outputs, all_vectors, across, step;
};

}  // namespace
}  // namespace slt::SLT_ISA
