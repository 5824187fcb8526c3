// Products of a few rows of activations and weights: y = x W^T + bias, where W has 4, 8, 16 or 32 bits a weight.
//
// Decoding reads every weight once a token, so packed weights stay packed on their way from memory; what is
// computed with them must only keep up. For packed weights, activations are rounded to nearly 16 bits a group
// (relative to the group's largest: 2^-16), products are summed in integers, groups in float32. Weights are
// read from memory once for all rows of activations, and what comes of a row does not depend on the others.
//
// int4: weight (n, k / 2) bytes; of each run of 32 weights, byte i holds weight i below and weight i + 16 above.
//       w = (q - 8) * scale + zero, a scale and a zero (bfloat16) for each group of 32 or 64 weights.
// int8: weight (n, k), w = q * scale, a scale (bfloat16) for each row.
// 16 and 32 bits are bfloat16 and float32.

#pragma once

#include <vector>

#include "vectors.h"

namespace restack {

constexpr int64_t kRun = 32;     // weights of 4 bits whose nibbles lie together
constexpr int64_t kBlock = 64;   // weights of 4 bits that are multiplied at a time: two runs
constexpr int64_t kChunk = 256;  // activations that share a scale where weights have 8 bits
constexpr int64_t kAhead = 2048; // bytes of weights that are asked for before they are needed
constexpr int kRows = 4;         // rows of activations that are multiplied with weights at a time
constexpr int64_t kNear = 1 << 16;  // bytes of weights that stay near while all rows of activations take their turns

struct Matrix {
    int64_t bits, group, n, k;
    const void* weight;
    const uint16_t *scales, *zeros;
    const float* bias;  // or null
};

// Weights of a row in float32, from k, where bits are 4 a whole number of runs before the row's end.
inline void unpack(const Matrix& m, int64_t row, int64_t k, int64_t count, float* values) {
    const int64_t start = row * m.k + k;
    if (m.bits == 32) {
        std::copy_n(static_cast<const float*>(m.weight) + start, count, values);
    } else if (m.bits == 16) {
        const uint16_t* halves = static_cast<const uint16_t*>(m.weight) + start;
        for (int64_t i = 0; i < count; ++i) values[i] = from_bf16(halves[i]);
    } else if (m.bits == 8) {
        const float scale = from_bf16(m.scales[row]);
        const int8_t* bytes = static_cast<const int8_t*>(m.weight) + start;
        for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(bytes[i]) * scale;
    } else {
        const uint8_t* bytes = static_cast<const uint8_t*>(m.weight) + start / 2;
        for (int64_t g = start / m.group, i = 0; i < count; ++g)
            for (int64_t end = i + m.group; i < end; i += kRun, bytes += kRun / 2) {
                const float scale = from_bf16(m.scales[g]), zero = from_bf16(m.zeros[g]);
                for (int j = 0; j < 16; ++j) values[i + j] = static_cast<float>((bytes[j] & 15) - 8) * scale + zero;
                for (int j = 0; j < 16; ++j)
                    values[i + 16 + j] = static_cast<float>((bytes[j] >> 4) - 8) * scale + zero;
            }
    }
}

// Rows of activations, in the form in which weights of some bits are multiplied with them.
//
// For 4 bits a rounded value is 256 h + l, two bytes. Of each block of 64, 64 bytes h come first, then 64 bytes
// l; in each of these the values that meet low nibbles (0..15, 32..47), then those that meet high ones.
class Activations {
   public:
    static constexpr int64_t kTogether = 1;  // rows that are best set by one thread

    Activations(const Matrix& like, int64_t rows)
        : bits_(like.bits),
          group_(bits_ == 8 ? kChunk : like.group),
          k_(like.k),
          blocks_((k_ + kBlock - 1) / kBlock),
          rows_(rows) {
        if (bits_ > 8) {
            wide_.resize(rows * k_);
            return;
        }
        groups_ = (k_ + group_ - 1) / group_;
        scales_.resize(rows * groups_);
        sums_.resize(rows * groups_);
        values_.resize(rows * k_);
        if (bits_ == 4) halves_.resize(rows * blocks_ * 2 * kBlock);
    }

    int64_t rows() const { return rows_; }

    // Takes row r, k values.
    void set(int64_t r, const float* x) {
        if (bits_ > 8) {
            std::copy(x, x + k_, wide_.begin() + r * k_);
            return;
        }
        for (int64_t g = 0; g < groups_; ++g) round(r, g, x);
        if (bits_ == 4) halve(r);
    }

    const float* wide(int64_t r) const { return wide_.data() + r * k_; }
    const int16_t* values(int64_t r) const { return values_.data() + r * k_; }
    const int8_t* halves(int64_t r) const { return halves_.data() + r * blocks_ * 2 * kBlock; }
    const float* scales(int64_t r) const { return scales_.data() + r * groups_; }
    const float* sums(int64_t r) const { return sums_.data() + r * groups_; }  // of each group

   private:
    void round(int64_t r, int64_t g, const float* x) {
        const float top = bits_ == 4 ? 127 * 256 + 127 : 32767;  // so that both halves fit into bytes
        const int64_t first = g * group_, last = std::min(k_, first + group_);
        float largest = 0, nothing = 0;
#pragma omp simd reduction(max : largest) reduction(+ : nothing)
        for (int64_t i = first; i < last; ++i) {
            largest = std::max(largest, std::fabs(x[i]));
            nothing += x[i] * 0;  // or NaN, where an activation is not finite
        }
        const float inverse = largest > 0 && nothing == 0 ? top / largest : 0.0f;
        int16_t* values = values_.data() + r * k_;
        int32_t sum = 0;
        for (int64_t i = first; i < last; ++i) {
            values[i] = static_cast<int16_t>(std::nearbyint(x[i] * inverse));
            sum += values[i];
        }
        const float scale = inverse > 0 ? 1.0f / inverse : nothing;
        scales_[r * groups_ + g] = scale;
        sums_[r * groups_ + g] = static_cast<float>(sum) * scale;
    }

    void halve(int64_t r) {
        const int16_t* values = values_.data() + r * k_;
        int8_t* halves = halves_.data() + r * blocks_ * 2 * kBlock;
        for (int64_t run = 0; run < k_ / kRun; ++run) {
            int8_t* high = halves + run / 2 * 2 * kBlock + run % 2 * 16;
            for (int part = 0; part < 2; ++part)
                for (int i = 0; i < 16; ++i) {
                    const int32_t value = values[run * kRun + part * 16 + i];
                    const int32_t upper = (value + 128) >> 8;
                    high[part * kRun + i] = static_cast<int8_t>(upper);
                    high[kBlock + part * kRun + i] = static_cast<int8_t>(value - 256 * upper);
                }
        }
    }

    int64_t bits_, group_, k_, blocks_, rows_, groups_ = 0;
    std::vector<float> wide_, scales_, sums_;
    std::vector<int16_t> values_;
    std::vector<int8_t> halves_;
};

// A block of 64 weights of 4 bits, as bytes 0..15, and its products with the two halves of activations.
#if defined(__AVX512BW__)
struct Nibbles {
    __m512i q;
    explicit Nibbles(const uint8_t* weight) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight));
        q = _mm512_and_si512(
            _mm512_inserti64x4(_mm512_castsi256_si512(both), _mm256_srli_epi16(both, 4), 1),
            _mm512_set1_epi8(15));
    }
    Sum times(const int8_t* x) const {
        const __m512i high = _mm512_loadu_si512(x), low = _mm512_loadu_si512(x + kBlock);
#if defined(__AVX512VNNI__)
        return _mm512_add_epi32(_mm512_slli_epi32(_mm512_dpbusd_epi32(zero(), q, high), 8),
                                _mm512_dpbusd_epi32(zero(), q, low));
#else
        return _mm512_add_epi32(_mm512_madd_epi16(_mm512_maddubs_epi16(q, high), _mm512_set1_epi16(256)),
                                _mm512_madd_epi16(_mm512_maddubs_epi16(q, low), _mm512_set1_epi16(1)));
#endif
    }
};
inline Total add_scaled(Total total, Sum sum, float one, float other) {  // a scale for each run
    const __m512 ones = _mm512_set1_ps(one), others = _mm512_set1_ps(other);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mask_blend_ps(0xf0f0, ones, others), total);
}
#elif defined(__AVX2__)
struct Nibbles {
    __m256i low, high;
    explicit Nibbles(const uint8_t* weight) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight));
        low = _mm256_and_si256(both, _mm256_set1_epi8(15));
        high = _mm256_and_si256(_mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
    }
    __m256i pairs(const int8_t* x) const {  // no more than 4 * 15 * 128
        const __m256i* bytes = reinterpret_cast<const __m256i*>(x);
        return _mm256_add_epi16(_mm256_maddubs_epi16(low, _mm256_loadu_si256(bytes)),
                                _mm256_maddubs_epi16(high, _mm256_loadu_si256(bytes + 1)));
    }
    Sum times(const int8_t* x) const {
        return _mm256_add_epi32(_mm256_madd_epi16(pairs(x), _mm256_set1_epi16(256)),
                                _mm256_madd_epi16(pairs(x + kBlock), _mm256_set1_epi16(1)));
    }
};
inline Total add_scaled(Total total, Sum sum, float one, float other) {
    const __m256 scales = _mm256_set_m128(_mm_set1_ps(other), _mm_set1_ps(one));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scales, total);
}
#else
struct Runs {
    int32_t one, other;
};
struct Nibbles {
    const uint8_t* weight;
    explicit Nibbles(const uint8_t* weight_) : weight(weight_) {}
    Runs times(const int8_t* x) const {
        Runs high{}, low{};
        for (int i = 0; i < 16; ++i) {
            high.one += (weight[i] & 15) * x[i] + (weight[i] >> 4) * x[kRun + i];
            low.one += (weight[i] & 15) * x[kBlock + i] + (weight[i] >> 4) * x[kBlock + kRun + i];
        }
        for (int i = 16; i < 32; ++i) {
            high.other += (weight[i] & 15) * x[i] + (weight[i] >> 4) * x[kRun + i];
            low.other += (weight[i] & 15) * x[kBlock + i] + (weight[i] >> 4) * x[kBlock + kRun + i];
        }
        return {256 * high.one + low.one, 256 * high.other + low.other};
    }
};
inline Total add_scaled(Total total, Runs sum, float one, float other) {
    return total + static_cast<float>(sum.one) * one + static_cast<float>(sum.other) * other;
}
inline Total add_scaled(Total total, Runs sum, float scale) { return add_scaled(total, sum, scale, scale); }
#endif

template <int R>
void int4_rows(const Matrix& m, int64_t from, int64_t to, const Activations& x, int64_t row, float* y) {
    const int64_t groups = m.k / m.group, whole = m.k / kBlock;
    const int8_t* halves[R];
    for (int r = 0; r < R; ++r) halves[r] = x.halves(row + r);
    for (int64_t n = from; n < to; ++n) {
        const uint8_t* weight = static_cast<const uint8_t*>(m.weight) + n * m.k / 2;
        const uint16_t *scales = m.scales + n * groups, *zeros = m.zeros + n * groups;
        Total totals[R], offsets[R];
        for (int r = 0; r < R; ++r) totals[r] = offsets[r] = no_total();
        int64_t g = 0;  // groups whose offsets are taken
        if (m.group == kBlock) {
            for (; g + kLanes <= groups; g += kLanes) {
                const Total of_w = load(scales + g);
                const Total offset = multiplied_and_added(of_w, all(-8), load(zeros + g));
                float both[R][kLanes];
                for (int r = 0; r < R; ++r) {
                    store(both[r], multiplied(of_w, load(x.scales(row + r) + g)));
                    offsets[r] = multiplied_and_added(offset, load(x.sums(row + r) + g), offsets[r]);
                }
                for (int64_t b = g; b < g + kLanes; ++b) {
                    if (b % 2 == 0) __builtin_prefetch(weight + b * kBlock / 2 + kAhead);
                    const Nibbles q(weight + b * kBlock / 2);
                    for (int r = 0; r < R; ++r)
                        totals[r] = add_scaled(totals[r], q.times(halves[r] + b * 2 * kBlock), both[r][b - g]);
                }
            }
            for (int64_t b = g; b < groups; ++b) {
                const Nibbles q(weight + b * kBlock / 2);
                const float scale = from_bf16(scales[b]);
                for (int r = 0; r < R; ++r)
                    totals[r] = add_scaled(totals[r], q.times(halves[r] + b * 2 * kBlock),
                                           scale * x.scales(row + r)[b]);
            }
        } else {
            for (int64_t b = 0; b < whole; ++b) {
                const Nibbles q(weight + b * kBlock / 2);
                const float one = from_bf16(scales[2 * b]), other = from_bf16(scales[2 * b + 1]);
                for (int r = 0; r < R; ++r) {
                    const float* of_x = x.scales(row + r) + 2 * b;
                    totals[r] = add_scaled(totals[r], q.times(halves[r] + b * 2 * kBlock), one * of_x[0],
                                           other * of_x[1]);
                }
            }
            if (m.k % kBlock) {
                uint8_t last[kBlock / 2] = {};
                std::memcpy(last, weight + whole * kBlock / 2, kRun / 2);
                const Nibbles q(last);
                const float scale = from_bf16(scales[groups - 1]);
                for (int r = 0; r < R; ++r)
                    totals[r] = add_scaled(totals[r], q.times(halves[r] + whole * 2 * kBlock),
                                           scale * x.scales(row + r)[groups - 1]);
            }
        }
        for (int r = 0; r < R; ++r) {
            const float* sums = x.sums(row + r);
            float offset = m.bias ? m.bias[n] : 0.0f;
#pragma omp simd reduction(+ : offset)
            for (int64_t i = g; i < groups; ++i)
                offset += (from_bf16(zeros[i]) - 8 * from_bf16(scales[i])) * sums[i];
            y[(row + r) * m.n + n] = reduced(add(totals[r], offsets[r])) + offset;
        }
    }
}

// A run of weights of 8 bits times the activations of R rows; what is left of a row is done one by one.
template <int R>
inline void run_of_bytes(const int8_t* weight, const int16_t* const* x, int64_t at, int64_t count, Sum* sums,
                         int32_t* rest) {
    int64_t i = 0;
#if defined(__AVX512BW__)
    for (; i + 32 <= count; i += 32) {
        const __m512i q =
            _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight + i)));
        for (int r = 0; r < R; ++r) {
            const __m512i values = _mm512_loadu_si512(x[r] + at + i);
#if defined(__AVX512VNNI__)
            sums[r] = _mm512_dpwssd_epi32(sums[r], q, values);
#else
            sums[r] = _mm512_add_epi32(sums[r], _mm512_madd_epi16(q, values));
#endif
        }
    }
#elif defined(__AVX2__)
    for (; i + 16 <= count; i += 16) {
        const __m256i q = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weight + i)));
        for (int r = 0; r < R; ++r) {
            const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x[r] + at + i));
            sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(q, values));
        }
    }
#endif
    for (; i < count; ++i)
        for (int r = 0; r < R; ++r) rest[r] += static_cast<int32_t>(weight[i]) * x[r][at + i];
}

template <int R>
void int8_rows(const Matrix& m, int64_t from, int64_t to, const Activations& x, int64_t row, float* y) {
    const int16_t* values[R];
    for (int r = 0; r < R; ++r) values[r] = x.values(row + r);
    for (int64_t n = from; n < to; ++n) {
        const int8_t* weight = static_cast<const int8_t*>(m.weight) + n * m.k;
        Total totals[R];
        float rests[R] = {};
        for (int r = 0; r < R; ++r) totals[r] = no_total();
        for (int64_t at = 0, g = 0; at < m.k; at += kChunk, ++g) {
            Sum sums[R];
            int32_t rest[R] = {};
            for (int r = 0; r < R; ++r) sums[r] = zero();
            run_of_bytes<R>(weight + at, values, at, std::min(kChunk, m.k - at), sums, rest);
            for (int r = 0; r < R; ++r) {
                totals[r] = add_scaled(totals[r], sums[r], x.scales(row + r)[g]);
                rests[r] += static_cast<float>(rest[r]) * x.scales(row + r)[g];
            }
        }
        const float scale = from_bf16(m.scales[n]), bias = m.bias ? m.bias[n] : 0.0f;
        for (int r = 0; r < R; ++r) y[(row + r) * m.n + n] = (reduced(totals[r]) + rests[r]) * scale + bias;
    }
}

inline float as_float(float value) { return value; }
inline float as_float(uint16_t value) { return from_bf16(value); }

template <int R, typename Weight>
void float_rows(const Matrix& m, int64_t from, int64_t to, const Activations& x, int64_t row, float* y) {
    // Sums that do not wait for each other: as many for any number of rows, or they would be rounded otherwise.
    constexpr int kTotals = 2;
    constexpr int64_t kStep = kTotals * kLanes;
    const float* values[R];
    for (int r = 0; r < R; ++r) values[r] = x.wide(row + r);
    for (int64_t n = from; n < to; ++n) {
        const Weight* weight = static_cast<const Weight*>(m.weight) + n * m.k;
        Total totals[R][kTotals];
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < kTotals; ++t) totals[r][t] = no_total();
        int64_t i = 0;
        for (; i + kStep <= m.k; i += kStep)
            for (int t = 0; t < kTotals; ++t) {
                const int64_t at = i + t * kLanes;
                const Total w = load(weight + at);
                for (int r = 0; r < R; ++r)
                    totals[r][t] = multiplied_and_added(w, load(values[r] + at), totals[r][t]);
            }
        for (int r = 0; r < R; ++r) {
            float rest = m.bias ? m.bias[n] : 0.0f;
            for (int64_t j = i; j < m.k; ++j) rest += as_float(weight[j]) * values[r][j];
            Total total = totals[r][0];
            for (int t = 1; t < kTotals; ++t) total = add(total, totals[r][t]);
            y[(row + r) * m.n + n] = reduced(total) + rest;
        }
    }
}

template <int R>
void rows_of(const Matrix& m, int64_t from, int64_t to, const Activations& x, int64_t row, float* y) {
    switch (m.bits) {
        case 4: return int4_rows<R>(m, from, to, x, row, y);
        case 8: return int8_rows<R>(m, from, to, x, row, y);
        case 16: return float_rows<R, uint16_t>(m, from, to, x, row, y);
        default: return float_rows<R, float>(m, from, to, x, row, y);
    }
}

// Up to kRows of those rows of activations that are left.
inline void some_rows(const Matrix& m, int64_t from, int64_t to, const Activations& x, int64_t row, int64_t left,
                      float* y) {
    switch (std::min<int64_t>(kRows, left)) {
        case 1: return rows_of<1>(m, from, to, x, row, y);
        case 2: return rows_of<2>(m, from, to, x, row, y);
        case 3: return rows_of<3>(m, from, to, x, row, y);
        default: return rows_of<4>(m, from, to, x, row, y);
    }
}

// A thread of the crew that computes something together.
struct Thread {
    int64_t number, of;

    // Its share of `count` things.
    int64_t first(int64_t count) const { return count * number / of; }
    int64_t last(int64_t count) const { return count * (number + 1) / of; }
};

// A thread's share of the products of several matrices with the same activations: y of each is (rows, n).
inline void products(const Matrix* matrices, int64_t count, const Activations& x, float* const* outputs,
                     Thread thread) {
    int64_t total = 0, start = 0;
    for (int64_t i = 0; i < count; ++i) total += matrices[i].n;
    const int64_t first = thread.first(total), last = thread.last(total);
    for (int64_t i = 0; i < count; start += matrices[i++].n) {
        const Matrix& m = matrices[i];
        const int64_t from = std::max(first - start, int64_t(0)), to = std::min(last - start, m.n);
        const int64_t some = std::max<int64_t>(kRows, kNear * 8 / (m.k * m.bits) / kRows * kRows);
        for (int64_t n = from; n < to; n += some)
            for (int64_t row = 0; row < x.rows(); row += kRows)
                some_rows(m, n, std::min(n + some, to), x, row, x.rows() - row, outputs[i]);
    }
}

}  // namespace restack
