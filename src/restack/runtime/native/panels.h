// Products of many rows of activations and weights, as in reading a prompt: y = x W^T + bias in float32.
//
// A panel of outputs is unpacked, some weights of each at a time, and meets all rows while it is near. What
// comes of a row does not depend on the others.

#pragma once

#include "products.h"

namespace restack {

constexpr int kAcross = 2;      // vectors of rows that are summed at a time
constexpr int64_t kWide = kAcross * kLanes;
constexpr int64_t kTall = 6;    // outputs, with these: as many sums as there are registers for
constexpr int64_t kStrips = 8;  // of kTall outputs, that share rows of activations while those are near
constexpr int64_t kDeep = 256;  // weights of an output that are unpacked at a time

// Rows of activations, kWide of them side by side; the last ones are filled up with nothing.
class Tiles {
   public:
    static constexpr int64_t kTogether = kWide;  // rows that are best set by one thread

    Tiles(const Matrix& like, int64_t rows) : rows_(rows), k_(like.k), values_(count() * kWide * k_) {}

    int64_t rows() const { return rows_; }
    int64_t count() const { return (rows_ + kWide - 1) / kWide; }
    const float* at(int64_t tile, int64_t k) const { return values_.data() + (tile * k_ + k) * kWide; }

    // Takes row r, k values.
    void set(int64_t r, const float* x) {
        float* values = values_.data() + r / kWide * k_ * kWide + r % kWide;
        for (int64_t k = 0; k < k_; ++k) values[k * kWide] = x[k];
    }

   private:
    int64_t rows_, k_;
    std::vector<float> values_;
};

// Adds to y, (kTall, kWide), the products of some outputs' weights, kDeep of each, and a tile.
//
// A function of its own, so that all sums stay in registers.
__attribute__((noinline)) inline void add_products(const float* weights, const float* x, int64_t depth, float* y) {
    Total totals[kTall][kAcross];
    for (int o = 0; o < kTall; ++o)
        for (int a = 0; a < kAcross; ++a) totals[o][a] = load(y + o * kWide + a * kLanes);
    for (int64_t k = 0; k < depth; ++k, x += kWide) {
        Total values[kAcross];
        for (int a = 0; a < kAcross; ++a) values[a] = load(x + a * kLanes);
        for (int o = 0; o < kTall; ++o) {
            const Total weight = all(weights[o * kDeep + k]);
            for (int a = 0; a < kAcross; ++a) totals[o][a] = multiplied_and_added(weight, values[a], totals[o][a]);
        }
    }
    for (int o = 0; o < kTall; ++o)
        for (int a = 0; a < kAcross; ++a) store(y + o * kWide + a * kLanes, totals[o][a]);
}

// Some outputs of a matrix at a time, and their products with all rows of activations.
class Panel {
   public:
    static constexpr int64_t kOutputs = kStrips * kTall;

    explicit Panel(const Tiles& x)
        : x_(x), weights_(kOutputs * kDeep), totals_(x.count() * kOutputs * kWide) {}

    // The outputs from n, up to kOutputs: y is (rows, n).
    void multiply(const Matrix& m, int64_t n, float* y) {
        const int64_t outputs = std::min(kOutputs, m.n - n);
        std::fill(totals_.begin(), totals_.end(), 0.0f);
        for (int64_t k = 0; k < m.k; k += kDeep) {
            const int64_t depth = std::min(kDeep, m.k - k);
            for (int64_t o = 0; o < outputs; ++o) unpack(m, n + o, k, depth, weights_.data() + o * kDeep);
            for (int64_t tile = 0; tile < x_.count(); ++tile)
                for (int64_t o = 0; o < outputs; o += kTall)
                    add_products(weights_.data() + o * kDeep, x_.at(tile, k), depth, sums(tile, o));
        }
        for (int64_t r = 0; r < x_.rows(); ++r) {
            const float* found = sums(r / kWide, 0) + r % kWide;
            for (int64_t o = 0; o < outputs; ++o)
                y[r * m.n + n + o] = found[o * kWide] + (m.bias ? m.bias[n + o] : 0.0f);
        }
    }

   private:
    float* sums(int64_t tile, int64_t output) { return totals_.data() + (tile * kOutputs + output) * kWide; }

    const Tiles& x_;
    std::vector<float> weights_, totals_;
};

// A crew's products of several matrices with the same activations: y of each is (rows, n).
inline void products(const Matrix* matrices, int64_t count, const Tiles& x, float* const* outputs, Thread) {
    int64_t panels = 0;
    for (int64_t i = 0; i < count; ++i) panels += (matrices[i].n + Panel::kOutputs - 1) / Panel::kOutputs;
    Panel panel(x);
#pragma omp for schedule(dynamic) nowait
    for (int64_t number = 0; number < panels; ++number) {
        int64_t n = number * Panel::kOutputs, i = 0;
        for (; n >= matrices[i].n; ++i)
            n -= (matrices[i].n + Panel::kOutputs - 1) / Panel::kOutputs * Panel::kOutputs;
        panel.multiply(matrices[i], n, outputs[i]);
    }
}

}  // namespace restack
