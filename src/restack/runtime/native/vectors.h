// Numbers of 16 bits, and the widest vectors that the machine has: sums in integers, totals in float32.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace restack {

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

// e^x to 2 units in the last place; what is beyond float32 is cut to its ends.
inline float exponential(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    const float n = std::nearbyint(x * 1.44269504f);
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

#if defined(__AVX512BW__)
constexpr int kLanes = 16;
using Sum = __m512i;
using Total = __m512;
inline Sum zero() { return _mm512_setzero_si512(); }
inline Total no_total() { return _mm512_setzero_ps(); }
inline Total load(const float* x) { return _mm512_loadu_ps(x); }
inline Total load(const uint16_t* x) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline Total multiplied_and_added(Total a, Total b, Total c) { return _mm512_fmadd_ps(a, b, c); }
inline Total add(Total a, Total b) { return _mm512_add_ps(a, b); }
inline Total add_scaled(Total total, Sum sum, float scale) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scale), total);
}
inline Total all(float x) { return _mm512_set1_ps(x); }
inline Total multiplied(Total a, Total b) { return _mm512_mul_ps(a, b); }
inline void store(float* y, Total x) { _mm512_storeu_ps(y, x); }
inline float reduced(Total total) { return _mm512_reduce_add_ps(total); }
#elif defined(__AVX2__)
constexpr int kLanes = 8;
using Sum = __m256i;
using Total = __m256;
inline Sum zero() { return _mm256_setzero_si256(); }
inline Total no_total() { return _mm256_setzero_ps(); }
inline Total load(const float* x) { return _mm256_loadu_ps(x); }
inline Total load(const uint16_t* x) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline Total multiplied_and_added(Total a, Total b, Total c) { return _mm256_fmadd_ps(a, b, c); }
inline Total add(Total a, Total b) { return _mm256_add_ps(a, b); }
inline Total add_scaled(Total total, Sum sum, float scale) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(scale), total);
}
inline Total all(float x) { return _mm256_set1_ps(x); }
inline Total multiplied(Total a, Total b) { return _mm256_mul_ps(a, b); }
inline void store(float* y, Total x) { _mm256_storeu_ps(y, x); }
inline float reduced(Total total) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(total), _mm256_extractf128_ps(total, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}
#else
constexpr int kLanes = 1;
using Sum = int32_t;
using Total = float;
inline Sum zero() { return 0; }
inline Total no_total() { return 0; }
inline Total load(const float* x) { return *x; }
inline Total load(const uint16_t* x) { return from_bf16(*x); }
inline Total multiplied_and_added(Total a, Total b, Total c) { return a * b + c; }
inline Total add(Total a, Total b) { return a + b; }
inline Total add_scaled(Total total, Sum sum, float scale) { return total + static_cast<float>(sum) * scale; }
inline Total all(float x) { return x; }
inline Total multiplied(Total a, Total b) { return a * b; }
inline void store(float* y, Total x) { *y = x; }
inline float reduced(Total total) { return total; }
#endif

}  // namespace restack
