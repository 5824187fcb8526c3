// Products of a few rows of activations and packed weights: y = x W^T + bias, where W has 4 or 8 bits a weight.
//
// Decoding reads every weight once a token, so the weights stay packed on their way from memory; what is
// computed with them must only keep up. Activations are rounded to 16 bits a group (relative to the group's
// largest: 2^-16), products are summed in 32-bit integers, groups in float32. A row of weights is read once for
// up to 4 rows of activations.
//
// int4: weight (n, k / 2) bytes; of each run of 32 weights, byte i holds weight i below and weight i + 16 above.
//       w = (q - 8) * scale + zero, a scale and a zero (bfloat16) for each group of 32 or 64 weights.
// int8: weight (n, k), w = q * scale, a scale (bfloat16) for each row.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

constexpr int64_t kRun = 32;     // weights whose nibbles lie together
constexpr int64_t kChunk = 256;  // activations of an int8 product that share a scale
constexpr int kRows = 4;         // rows of activations for one reading of the weights

inline float from_bf16(uint16_t bits) {
    uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (std::isnan(value)) return 0x7fc0;
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Activations in 16 bits: values, a scale a group, and what a group of zeros (-8 included) adds a unit of.
struct Rounded {
    int64_t k, group;
    std::vector<int16_t> values;
    std::vector<float> scales, sums;

    Rounded(const float* x, int64_t k_, int64_t group_)
        : k(k_), group(group_), values(k_), scales((k_ + group_ - 1) / group_), sums(scales.size()) {
        for (size_t g = 0; g < scales.size(); ++g) {
            const int64_t first = g * group, last = std::min(k, first + group);
            float largest = 0, nothing = 0;
            for (int64_t i = first; i < last; ++i) {
                largest = std::max(largest, std::fabs(x[i]));
                nothing += x[i] * 0;  // or NaN, where an activation is not finite
            }
            const float inverse = largest > 0 && nothing == 0 ? 32767.0f / largest : 0.0f;
            int32_t sum = 0;
            for (int64_t i = first; i < last; ++i) {
                values[i] = static_cast<int16_t>(std::nearbyint(x[i] * inverse));
                sum += values[i];
            }
            scales[g] = inverse > 0 ? 1.0f / inverse : nothing;
            sums[g] = static_cast<float>(sum) * scales[g];
        }
    }
};

#if defined(__AVX512BW__)
using Sum = __m512i;
inline Sum zero() { return _mm512_setzero_si512(); }
inline Sum add_products(Sum sum, __m512i a, const int16_t* b) {
    const __m512i values = _mm512_loadu_si512(b);
#if defined(__AVX512VNNI__)
    return _mm512_dpwssd_epi32(sum, a, values);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, values));
#endif
}
using Total = __m512;
inline Total no_total() { return _mm512_setzero_ps(); }
inline Total add_scaled(Total total, Sum sum, float scale) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scale), total);
}
inline float reduced(Total total) { return _mm512_reduce_add_ps(total); }
#elif defined(__AVX2__)
using Sum = __m256i;
inline Sum zero() { return _mm256_setzero_si256(); }
inline Sum add_products(Sum sum, __m256i a, const int16_t* b) {
    return _mm256_add_epi32(
        sum, _mm256_madd_epi16(a, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b))));
}
using Total = __m256;
inline Total no_total() { return _mm256_setzero_ps(); }
inline Total add_scaled(Total total, Sum sum, float scale) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(scale), total);
}
inline float reduced(Total total) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(total), _mm256_extractf128_ps(total, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}
#else
using Sum = int32_t;
inline Sum zero() { return 0; }
using Total = float;
inline Total no_total() { return 0; }
inline Total add_scaled(Total total, Sum sum, float scale) { return total + static_cast<float>(sum) * scale; }
inline float reduced(Total total) { return total; }
#endif

// 32 weights of 4 bits, 0..15, times the activations of R rows.
template <int R>
inline void run_of_nibbles(const uint8_t* weight, const int16_t* const* x, int64_t at, Sum* sums) {
#if defined(__AVX512BW__)
    const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weight));
    const __m256i bytes = _mm256_and_si256(
        _mm256_inserti128_si256(_mm256_castsi128_si256(both), _mm_srli_epi16(both, 4), 1), _mm256_set1_epi8(15));
    const __m512i q = _mm512_cvtepu8_epi16(bytes);
    for (int r = 0; r < R; ++r) sums[r] = add_products(sums[r], q, x[r] + at);
#elif defined(__AVX2__)
    const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weight));
    const __m128i mask = _mm_set1_epi8(15);
    const __m256i low = _mm256_cvtepu8_epi16(_mm_and_si128(both, mask));
    const __m256i high = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(both, 4), mask));
    for (int r = 0; r < R; ++r) {
        sums[r] = add_products(sums[r], low, x[r] + at);
        sums[r] = add_products(sums[r], high, x[r] + at + 16);
    }
#else
    for (int i = 0; i < 16; ++i)
        for (int r = 0; r < R; ++r)
            sums[r] += (weight[i] & 15) * x[r][at + i] + (weight[i] >> 4) * x[r][at + 16 + i];
#endif
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
        for (int r = 0; r < R; ++r) sums[r] = add_products(sums[r], q, x[r] + at + i);
    }
#elif defined(__AVX2__)
    for (; i + 16 <= count; i += 16) {
        const __m256i q = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weight + i)));
        for (int r = 0; r < R; ++r) sums[r] = add_products(sums[r], q, x[r] + at + i);
    }
#endif
    for (; i < count; ++i)
        for (int r = 0; r < R; ++r) rest[r] += static_cast<int32_t>(weight[i]) * x[r][at + i];
}

struct Matrix {
    const uint8_t* weight;
    const uint16_t* scales;
    const uint16_t* zeros;  // of int4
    const float* bias;      // or null
    float* y;               // (rows, n), float32
    int64_t n;
};

template <int R>
void int4_rows(const Matrix& m, int64_t from, int64_t to, const Rounded* const* x, int64_t k, int64_t group,
               int64_t row) {
    const int64_t groups = k / group;
    const int16_t* values[R];
    for (int r = 0; r < R; ++r) values[r] = x[r]->values.data();
    for (int64_t n = from; n < to; ++n) {
        const uint8_t* weight = m.weight + n * k / 2;
        const uint16_t *scales = m.scales + n * groups, *zeros = m.zeros + n * groups;
        Total totals[R];
        float offsets[R] = {};
        for (int r = 0; r < R; ++r) totals[r] = no_total();
        for (int64_t g = 0; g < groups; ++g) {
            Sum sums[R];
            for (int r = 0; r < R; ++r) sums[r] = zero();
            for (int64_t i = 0; i < group; i += kRun)
                run_of_nibbles<R>(weight + (g * group + i) / 2, values, g * group + i, sums);
            const float scale = from_bf16(scales[g]), offset = from_bf16(zeros[g]) - 8 * scale;
            for (int r = 0; r < R; ++r) {
                totals[r] = add_scaled(totals[r], sums[r], scale * x[r]->scales[g]);
                offsets[r] += offset * x[r]->sums[g];
            }
        }
        const float bias = m.bias ? m.bias[n] : 0.0f;
        for (int r = 0; r < R; ++r) m.y[(row + r) * m.n + n] = reduced(totals[r]) + offsets[r] + bias;
    }
}

template <int R>
void int8_rows(const Matrix& m, int64_t from, int64_t to, const Rounded* const* x, int64_t k, int64_t row) {
    const int16_t* values[R];
    for (int r = 0; r < R; ++r) values[r] = x[r]->values.data();
    for (int64_t n = from; n < to; ++n) {
        const int8_t* weight = reinterpret_cast<const int8_t*>(m.weight) + n * k;
        Total totals[R];
        float rests[R] = {};
        for (int r = 0; r < R; ++r) totals[r] = no_total();
        for (int64_t at = 0, g = 0; at < k; at += kChunk, ++g) {
            Sum sums[R];
            int32_t rest[R] = {};
            for (int r = 0; r < R; ++r) sums[r] = zero();
            run_of_bytes<R>(weight + at, values, at, std::min(kChunk, k - at), sums, rest);
            for (int r = 0; r < R; ++r) {
                totals[r] = add_scaled(totals[r], sums[r], x[r]->scales[g]);
                rests[r] += static_cast<float>(rest[r]) * x[r]->scales[g];
            }
        }
        const float scale = from_bf16(m.scales[n]), bias = m.bias ? m.bias[n] : 0.0f;
        for (int r = 0; r < R; ++r) m.y[(row + r) * m.n + n] = (reduced(totals[r]) + rests[r]) * scale + bias;
    }
}

template <int R>
void rows_of(const Matrix& m, int64_t from, int64_t to, const Rounded* const* x, int64_t k, int bits,
             int64_t group, int64_t row) {
    if (bits == 4)
        int4_rows<R>(m, from, to, x, k, group, row);
    else
        int8_rows<R>(m, from, to, x, k, row);
}

}  // namespace

extern "C" {

// Several matrices of one width times the same rows of activations x, float32, shape (rows, k).
void restack_products(int bits, int64_t group, int64_t k, int64_t rows, const float* x, int64_t count,
                      const void* const* weights, const void* const* scales, const void* const* zeros,
                      const void* const* biases, float* const* outputs, const int64_t* heights, int threads) {
    std::vector<Matrix> matrices(count);
    int64_t total = 0;
    for (int64_t i = 0; i < count; ++i) {
        matrices[i] = {static_cast<const uint8_t*>(weights[i]), static_cast<const uint16_t*>(scales[i]),
                       static_cast<const uint16_t*>(zeros[i]),  static_cast<const float*>(biases[i]),
                       outputs[i],                              heights[i]};
        total += heights[i];
    }
    std::vector<Rounded> rounded;
    rounded.reserve(rows);
    for (int64_t r = 0; r < rows; ++r) rounded.emplace_back(x + r * k, k, bits == 4 ? group : kChunk);
#pragma omp parallel num_threads(threads)
    {
#ifdef _OPENMP
        const int64_t number = omp_get_thread_num(), of = omp_get_num_threads();
#else
        const int64_t number = 0, of = 1;
#endif
        const int64_t first = total * number / of, last = total * (number + 1) / of;
        int64_t start = 0;
        for (const Matrix& m : matrices) {
            const int64_t from = std::max(first - start, int64_t(0)), to = std::min(last - start, m.n);
            for (int64_t row = 0; row < rows && from < to; row += kRows) {
                const Rounded* x_of[kRows];
                const int64_t some = std::min<int64_t>(kRows, rows - row);
                for (int64_t r = 0; r < some; ++r) x_of[r] = &rounded[row + r];
                switch (some) {
                    case 1: rows_of<1>(m, from, to, x_of, k, bits, group, row); break;
                    case 2: rows_of<2>(m, from, to, x_of, k, bits, group, row); break;
                    case 3: rows_of<3>(m, from, to, x_of, k, bits, group, row); break;
                    default: rows_of<4>(m, from, to, x_of, k, bits, group, row);
                }
            }
            start += m.n;
        }
    }
}

// The weights themselves, (n, k): float32, or bfloat16 if `narrow`.
void restack_unpack(int bits, int64_t group, int64_t n, int64_t k, const uint8_t* weight,
                    const uint16_t* scales, const uint16_t* zeros, void* output, int narrow, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < n; ++row) {
        float* wide = static_cast<float*>(output) + row * k;
        uint16_t* short_ = static_cast<uint16_t*>(output) + row * k;
        for (int64_t first = 0; first < k; first += kRun) {
            float values[kRun];
            const int64_t count = std::min(kRun, k - first);
            if (bits == 4) {
                const int64_t g = row * (k / group) + first / group;
                const float scale = from_bf16(scales[g]), zero = from_bf16(zeros[g]);
                const uint8_t* bytes = weight + (row * k + first) / 2;
                for (int i = 0; i < 16; ++i) {
                    values[i] = static_cast<float>((bytes[i] & 15) - 8) * scale + zero;
                    values[i + 16] = static_cast<float>((bytes[i] >> 4) - 8) * scale + zero;
                }
            } else {
                const float scale = from_bf16(scales[row]);
                const int8_t* bytes = reinterpret_cast<const int8_t*>(weight) + row * k + first;
                for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(bytes[i]) * scale;
            }
            if (narrow)
                for (int64_t i = 0; i < count; ++i) short_[first + i] = to_bf16(values[i]);
            else
                std::memcpy(wide + first, values, count * sizeof(float));
        }
    }
}
}
