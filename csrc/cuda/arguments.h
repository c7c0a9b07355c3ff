// The argument of each kernel: one struct, which host and device share. Pointers are to memory of the device, unless
// said otherwise; masks are resolved words [rows, words], or compact where there are free starts.
#pragma once

#include "contract/source.h"
#include "cuda/calls.h"
#include "cuda/generator.h"
#include "cuda/image.h"

namespace slt::cuda {

// Of the elements of x, y or their gradients.
enum Type : int32_t { FLOAT32, BFLOAT16, FLOAT16 };

// `count` 32-bit words of zeros.
struct Clear {
    uint32_t *words;
    int64_t count;
};

// The free weights of each segment, and of a segment before each of its calls. Null where nothing is frozen.
struct CountFree {
    Generator generator;
    int64_t *free;          // [rows, segments]
    int32_t *locked;        // [rows, segments]
    uint16_t *call_starts;  // [rows, calls]
    int32_t lanes;          // per segment: a power of two, up to 32
};

struct Expand {
    Generator generator;
    const int64_t *segment_starts;
    const uint16_t *call_starts;
    const uint32_t *mask;
    uint32_t *out;
};

// int8 [rows, fan]: the masked integer weight.
struct Materialize {
    Generator generator;
    const int64_t *segment_starts;
    const uint16_t *call_starts;
    const uint32_t *mask;
    bool compact;
    int8_t *out;
};

// The compact mask of `count` scores. `kept` must be 0 before if there is more than one block.
struct PackCompact {
    const uint32_t *scores, *threshold;
    int64_t count;
    uint32_t *mask;
    int64_t locked, *kept;
};

// The resolved mask; `kept` as above.
struct PackResolved {
    Generator generator;
    const int64_t *segment_starts;
    const uint16_t *call_starts;
    const uint32_t *scores, *threshold;
    uint32_t *mask;
    int64_t *kept;
};

// Tensors of scores, cut into pieces of `PIECE`. They are a part of the argument: a table in memory would have to be
// copied there for each call, from host memory that outlives a captured graph.
struct ScoreTensors {
    static constexpr int MOST = 192, PIECE = 8192;
    int32_t tensors;
    uint32_t first_piece[MOST + 1];  // of each tensor, and of what follows the last
    const uint32_t *scores[MOST];
    int64_t counts[MOST];
};

// Zero before the first pass.
struct SelectState {
    static constexpr int PASSES = 3, BINS = 2048;
    unsigned long long histogram[PASSES][BINS];
    uint32_t done[PASSES];  // blocks
    uint32_t prefix;        // of the wanted magnitude, found so far
    int64_t below;          // scores below that prefix
};

struct Select {
    ScoreTensors tensors;
    uint32_t blocks;  // of all launches of the pass
    int64_t rank;
    SelectState *state;
    uint32_t *out;  // the bits of a float
};

// y [count, fan].
struct EmbeddingForward {
    Generator generator;
    const int64_t *segment_starts;
    const uint16_t *call_starts;
    const int64_t *index;
    const uint32_t *mask;
    bool compact;
    const float *scale;
    void *y;
    Type type;
    int64_t count;
};

// Look-ups are sorted by row, those of a row in the order of the batch, and cut into chunks of `CHUNK`.
struct EmbeddingGradScores {
    static constexpr int CHUNK = 64;
    Generator generator;
    const int64_t *segment_starts;
    const uint16_t *call_starts;
    const int64_t *index;  // sorted
    const int64_t *order;  // where in the batch
    const void *dy;        // [count, fan]
    Type type;
    const uint32_t *scores;
    const float *scale;
    double *parts;  // [chunks, 2, calls, CALL]: of the row that began before the chunk, of the one that ends after it
    float *out;  // [free], zero before
    int64_t count;
};

// y [batch, rows] = x W^T + bias, for few vectors: forward_small.h.
struct ForwardSmall {
    Generator generator;
    const int64_t *segment_starts;
    const uint16_t *call_starts;
    const uint32_t *mask;
    const void *x;  // [batch, pitch], and 0 past the fan; aligned to 16 bytes, and so is each vector or its half
    const float *scale;
    const float *bias;  // may be null
    void *y;
    uint64_t eight_rows;    // Philox calls of SIGN from a row to the eighth after it
    int32_t batch, pitch;   // pitch: a multiple of 4, at least the fan
    Type element;           // of x and y
    int32_t digits;         // of fixed point: 2 or 3
    int32_t aligned_words;  // whether a call's words of a mask are at a multiple of 16 bytes
    int32_t tiles_log;      // a block has 2^this tiles of 64 rows
    int32_t cluster_log;    // 2^this blocks share k
    int32_t steps;          // of 512 k in all
    int32_t block_steps;    // that a block has
    int32_t sums_at;        // where in shared memory the sums are: where the second operand is, or after it
    int32_t chunk_steps;    // that are in shared memory at once: a multiple of 2 groups / tiles if there are others
};

// The scores' gradient from dL/dW = dy^T x, summed over columns: vectors of a batch, or output pixels of images.
struct GradScores {
    Generator generator;
    Image image;  // of a convolution
    const int64_t *segment_starts;
    const uint16_t *call_starts;
    const void *dy;  // [columns, dy_pitch]; its rows, and those of x, start at multiples of 16 bytes
    const void *x;   // [columns, x_pitch], or channels-last images of x_pitch channels
    const float *scores;
    const float *scale;
    float *parts;  // [column_parts, rows, calls, CALL]: sums over parts of the columns; null if there is one part
    float *out;    // [free]
    int64_t free;  // weights
    int32_t columns, part_columns, column_parts;
    int32_t dy_pitch, x_pitch;
    int32_t group_rows, group_channels;
    int32_t row_tiles;  // per group
    int32_t planes;     // of FREEZE that decide: 0, 4 or 8
};

// Vectors in fixed point, in planes of int8 digits, the lowest first.
struct Digits {
    static constexpr int PIECE = 8192;  // elements that a block converts
    const void *x;                      // [vectors, length]
    uint32_t *largest;                  // [vectors, pieces]: magnitudes, as bits; not used where there is one piece
    int8_t *digits;                     // [planes, vectors, pitch], and 0 past the length
    float *power;                       // [vectors, 2]: their product gives a vector back; NaN if it is not finite
    int64_t length, pitch, plane;       // pitch: a multiple of 16
    Divisor pieces;                     // per vector
    int32_t element, planes;
    int32_t aligned;  // whether each vector of x is at a multiple of 16 bytes, and its length is one of 16 elements
};

// y = x W^T + bias of Linear, or of Conv2d: product.h. A column of the product is an output pixel; a Linear has images
// of one pixel.
struct Product {
    enum Load : int32_t {
        ROWS,    // column c has its k in one run at c * pitch, in whole pieces of 16 bytes
        PIXELS,  // a tap's channels are in whole pieces of 16 bytes
        VALUES   // each value has an address of its own
    };

    Generator generator;
    const int64_t *segment_starts;
    const uint16_t *call_starts;
    const uint32_t *mask;
    const void *x;         // channels-last; 16-bit floats, or planes of digits
    const float *power;    // of digits: two factors of each image
    const float *scale;
    const float *bias;  // may be null
    void *y;
    void *sums;           // [parts, columns, rows]: int64 of digits, or float; not used where there is one part
    int64_t mask_words;   // of a compact mask
    int64_t plane;        // bytes from one plane of digits to the next
    int64_t image_pitch;  // values of x from image to image
    int64_t y_row, y_pixel, y_image;  // elements of y from row to row, and so on
    Divisor pixels;                   // output pixels per image
    Divisor out_width, group_channels, kernel_w;
    uint32_t columns, group_rows;
    uint32_t row_tiles, column_tiles;  // per group
    uint32_t tiles;                    // of all groups and parts
    uint32_t parts, part_calls;        // of k
    int32_t depth;                     // x is 0 from this k on
    int32_t kernel_h;
    int32_t height, width, pitch;      // of x; pitch: values from pixel to pixel
    int32_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
    int32_t load, element;  // element: of y
    int32_t aligned_words;  // of resolved masks, as in ForwardSmall
    int32_t stages;         // of the ring in shared memory
};

// dx = dy W of Linear, or of Conv2d: grad_input.h. A column of the product is a pixel of dx; a Linear has images of one
// pixel. A summand is a row of the group at a tap: all rows of a tap, then those of the next.
struct GradInput {
    enum Copy : int32_t {
        ROWS,    // column c has its summands in one run at c * pitch, in whole pieces of 16 bytes
        PIECES,  // a tap's rows are in whole pieces of 16 bytes
        VALUES   // each value has an address of its own
    };

    Generator generator;
    const uint32_t *mask;  // resolved
    const void *dy;        // channels-last; 16-bit floats, or planes of digits
    const float *power;    // of digits: two factors of each image
    const float *scale;
    void *dx;
    void *sums;           // [parts, columns, channels of all groups], as of `Product`
    int64_t plane;        // bytes from one plane of digits to the next
    int64_t image_pitch;  // values of dy from image to image
    int64_t dx_channel, dx_pixel, dx_image;      // elements of dx from channel to channel, and so on
    Divisor pixels, width;                       // of dx
    Divisor rows, kernel_w, stride_h, stride_w;  // rows: of a group
    uint32_t columns, channels, all_channels;    // channels: of a group
    uint32_t channel_tiles, column_tiles;  // per group
    uint32_t parts, part_steps;            // of the summands
    uint32_t summands;
    int32_t lead;                          // channels that the first tile starts before the first one
    int32_t out_height, out_width, pitch;  // of dy; pitch: values from pixel to pixel
    int32_t padding_h, padding_w, dilation_h, dilation_w;
    int32_t copy;           // of dy
    int32_t whole_calls;    // whether each tap of a tile starts with a call
    int32_t aligned_words;  // as in ForwardSmall
    int32_t element;        // of dx
    int32_t quads;          // whether channels follow each other in dx, a multiple of four of them per group
    int32_t stages;         // of dy in shared memory, or of the ring
    uint32_t tiles;         // of all groups and parts
};

// A convolution with few channels and rows per group, or its grad_input: depthwise.h. The latter is a convolution of
// dy, with zeros between its pixels where the stride is not 1, by the taps in reverse. `in` is what the kernel reads
// and `out` what it writes; sizes are in pixels, and strides of memory in elements.
struct Depthwise {
    Generator generator;
    const uint32_t *mask;     // resolved
    const void *in;           // images, contiguous or channels-last
    const uint32_t *largest;  // [images, pieces] magnitudes of float32, as `Digits` has them
    const float *scale;
    const float *bias;  // may be null
    void *out;          // as `in`
    int64_t in_image, out_image;
    int32_t in_channel, in_pixel, out_channel, out_pixel;
    int32_t channels_last, reverse;  // reverse: grad_input
    int32_t digits, pieces;
    int32_t images, block_images;  // block_images: at most, of a block
    int32_t groups, block_groups;
    Divisor group_blocks, tiles_h, tiles_w;  // of blocks
    Divisor fan, group_rows, group_channels;
    Divisor group_out;  // channels of the output per group
    int32_t group_in;
    int32_t in_height, in_width, out_height, out_width;
    int32_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
    Divisor up_h, up_w;           // pixels of `in` are at multiples of these
    int32_t tile_h;               // output pixels of a tile
    Divisor tile_w;
    int32_t tile_pixels;          // input pixels of a tile
    Divisor tile_row;             // input pixels of a row of a tile
    int32_t every, spacing;       // of the taps, and of the input rows, of which a thread has several: depthwise.h
    Divisor apart;                // rows of its outputs
    int32_t in_lanes_log, out_lanes_log;  // neighbouring threads have neighbours in memory
};

}  // namespace slt::cuda
