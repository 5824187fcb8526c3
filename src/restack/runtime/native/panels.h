// Products of many rows of activations and packed weights, as in reading a prompt: y = x W^T + bias in float32.
//
// A panel of outputs is unpacked, some weights of each at a time, and meets all rows while it is near. What
// comes of a row does not depend on the others.

#pragma once

#include "products.h"

namespace restack {

// Packed weights of a row, from k, a whole number of runs before the row's end.
inline void unpack(const Matrix& m, int64_t row, int64_t k, int64_t count, float* values) {
    if (m.bits == 8) {
        const float scale = from_bf16(m.scales[row]);
        const int8_t* bytes = static_cast<const int8_t*>(m.weight) + row * m.k + k;
        for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(bytes[i]) * scale;
        return;
    }
    const uint8_t* bytes = static_cast<const uint8_t*>(m.weight) + (row * m.k + k) / 2;
    for (int64_t g = (row * m.k + k) / m.group, i = 0; i < count; ++g)
        for (int64_t end = i + m.group; i < end; i += kRun, bytes += kRun / 2) {
            const float scale = from_bf16(m.scales[g]), zero = from_bf16(m.zeros[g]);
            for (int j = 0; j < 16; ++j) values[i + j] = static_cast<float>((bytes[j] & 15) - 8) * scale + zero;
            for (int j = 0; j < 16; ++j) values[i + 16 + j] = static_cast<float>((bytes[j] >> 4) - 8) * scale + zero;
        }
}

constexpr int kAcross = 2;       // vectors of outputs that are summed at a time
constexpr int64_t kTall = 6;     // rows of activations, with these: as many sums as there are registers for
constexpr int64_t kOutputs = kAcross * kLanes;
constexpr int64_t kStrips = 2;   // of kOutputs, that share the rows of activations while those are near
constexpr int64_t kDeep = 256;   // weights of an output that are unpacked at a time

// Rows of activations, kTall of them side by side; the last ones are filled up with nothing.
class Tiles {
   public:
    Tiles(int64_t rows, int64_t k) : rows_(rows), k_(k), values_(count() * kTall * k) {}

    int64_t count() const { return (rows_ + kTall - 1) / kTall; }
    const float* at(int64_t tile, int64_t k) const { return values_.data() + (tile * k_ + k) * kTall; }

    // Takes the rows of a tile.
    void set(int64_t tile, const float* x) {
        float* values = values_.data() + tile * k_ * kTall;
        for (int64_t r = 0; r < std::min(kTall, rows_ - tile * kTall); ++r)
            for (int64_t k = 0; k < k_; ++k) values[k * kTall + r] = x[(tile * kTall + r) * k_ + k];
    }

   private:
    int64_t rows_, k_;
    std::vector<float> values_;
};

// Adds to y, (kTall, kOutputs), the products of a tile and `depth` weights of some outputs.
//
// A function of its own, so that all sums stay in registers.
__attribute__((noinline)) inline void add_products(const float* weights, const float* x, int64_t depth, float* y) {
    Total totals[kTall][kAcross];
    for (int r = 0; r < kTall; ++r)
        for (int a = 0; a < kAcross; ++a) totals[r][a] = load(y + r * kOutputs + a * kLanes);
    for (int64_t k = 0; k < depth; ++k, weights += kOutputs, x += kTall) {
        Total w[kAcross];
        for (int a = 0; a < kAcross; ++a) w[a] = load(weights + a * kLanes);
        for (int r = 0; r < kTall; ++r) {
            const Total value = all(x[r]);
            for (int a = 0; a < kAcross; ++a) totals[r][a] = multiplied_and_added(value, w[a], totals[r][a]);
        }
    }
    for (int r = 0; r < kTall; ++r)
        for (int a = 0; a < kAcross; ++a) store(y + r * kOutputs + a * kLanes, totals[r][a]);
}

// Some outputs of packed weights, and their products with all rows of activations.
class Panel {
   public:
    static constexpr int64_t kWidth = kStrips * kOutputs;

    Panel(const Matrix& m, int64_t tiles)
        : m_(m), tiles_(tiles), weights_(kDeep * kWidth), totals_(tiles * kTall * kWidth) {}

    // The outputs from n, up to kWidth: y is (rows, n).
    void multiply(int64_t n, const Tiles& x, int64_t rows, float* y) {
        const int64_t outputs = std::min(kWidth, m_.n - n), strips = (outputs + kOutputs - 1) / kOutputs;
        std::fill(totals_.begin(), totals_.end(), 0.0f);
        for (int64_t k = 0; k < m_.k; k += kDeep) {
            const int64_t depth = std::min(kDeep, m_.k - k);
            for (int64_t o = 0; o < outputs; ++o)
                spread(n + o, k, depth, weights_.data() + o / kOutputs * kDeep * kOutputs + o % kOutputs);
            for (int64_t tile = 0; tile < tiles_; ++tile)
                for (int64_t s = 0; s < strips; ++s)
                    add_products(weights_.data() + s * kDeep * kOutputs, x.at(tile, k), depth, sums(tile, s));
        }
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t s = 0; s < strips; ++s) {
                const float* found = sums(r / kTall, s) + r % kTall * kOutputs;
                const int64_t first = n + s * kOutputs, last = std::min(m_.n, first + kOutputs);
                for (int64_t o = first; o < last; ++o)
                    y[r * m_.n + o] = *found++ + (m_.bias ? m_.bias[o] : 0.0f);
            }
    }

   private:
    float* sums(int64_t tile, int64_t strip) { return totals_.data() + (tile * kStrips + strip) * kTall * kOutputs; }

    // Some weights of output n, each kOutputs behind the one before.
    void spread(int64_t n, int64_t k, int64_t depth, float* into) const {
        float values[kDeep];
        unpack(m_, n, k, depth, values);
        for (int64_t i = 0; i < depth; ++i) into[i * kOutputs] = values[i];
    }

    const Matrix& m_;
    int64_t tiles_;
    std::vector<float> weights_, totals_;
};

}  // namespace restack
