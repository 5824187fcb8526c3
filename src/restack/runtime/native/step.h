// Visits of a decoder of the Llama family over a few new tokens, all in one go: no tensor is made on the way.
//
// Tokens may be of several texts, each with keys and values of its own and a plan of its own: what they have in
// common is the layer whose weights are read, once for all of them. A token's numbers do not depend on the others.
//
// Threads stay together from the first norm to the last product and meet at barriers. Hidden states, and what
// comes of each part of a layer, are rounded to bfloat16 where a model of that type would (`narrow`).

#pragma once

#include <vector>

#include "panels.h"
#include "products.h"

namespace restack {

struct Visit {
    const float *attention_norm, *mlp_norm, *query_norm, *key_norm;  // the latter two: or null
    Matrix q, k, v, o, gate, up, down;  // k and v have n = 0 where the visit reads another's
    const void *keys, *values;   // those it reads: (B, nh_kv, hs, capacity) and (B, nh_kv, capacity, hs)
    void *own_keys, *own_values;  // those it makes
    int64_t window;       // that many tokens are seen, its own included; 0: all
    int64_t is_strictly_past;  // its own token is not seen
    double damp;
};

struct Model {
    int64_t width, heads, kv_heads, head_size, inner, capacity, is_narrow;
    double epsilon, scaling;
    const float *cosines, *sines;  // (positions, head_size)
};

// The new tokens, one a row. Those of one sequence come in their order, and next to each other in the cache.
struct Tokens {
    int64_t rows;
    const Model* const* model;   // all have the same sizes but for the capacity
    const Visit* const* visits;  // those that it takes, one after the other, each of the same weights as the others'
    const int64_t* sequence;  // in the cache
    const int64_t* place;     // in the cache's sequence
    const int64_t* first;     // place that is seen: before it is padding
    const int64_t* position;  // for RoPE
};

inline float narrowed(float value, bool is_narrow) { return is_narrow ? from_bf16(to_bf16(value)) : value; }

// Root mean square norm; in bfloat16, rounded before the weight and after it.
inline void normed(const float* x, const float* weight, int64_t width, double epsilon, bool is_narrow, float* y) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; ++i) squares += x[i] * x[i];
    const float inverse = 1.0f / std::sqrt(squares / width + static_cast<float>(epsilon));
    if (is_narrow)
        for (int64_t i = 0; i < width; ++i) y[i] = narrowed(narrowed(x[i] * inverse, true) * weight[i], true);
    else
        for (int64_t i = 0; i < width; ++i) y[i] = x[i] * inverse * weight[i];
}

// RoPE: turns the pairs (i, i + size / 2).
inline void turn(float* x, const float* cosines, const float* sines, int64_t size, bool is_narrow) {
    const int64_t half = size / 2;
    for (int64_t i = 0; i < half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = narrowed(narrowed(a * cosines[i], is_narrow) - narrowed(b * sines[i], is_narrow), is_narrow);
        x[i + half] = narrowed(
            narrowed(b * cosines[i + half], is_narrow) + narrowed(a * sines[i + half], is_narrow), is_narrow);
    }
}

template <typename Kept>
inline Kept kept(float value);
template <>
inline float kept<float>(float value) {
    return value;
}
template <>
inline uint16_t kept<uint16_t>(float value) {
    return to_bf16(value);
}

constexpr int64_t kSide = 16;  // numbers that are summed side by side

// Rows of numbers, each times a weight, summed: for each of G queries, up to kSide sums.
//
// Weight r of query g is weights[g * weight_stride + r], and row r begins at rows + r * row_stride.
template <int G, typename Kept>
inline void weighted(const float* weights, int64_t weight_stride, const Kept* rows, int64_t row_stride,
                     int64_t count, int64_t some, float (&sums)[G][kSide]) {
    if (some == kSide) {
        for (int64_t r = 0; r < count; ++r, rows += row_stride)
            for (int g = 0; g < G; ++g)
#pragma omp simd
                for (int64_t i = 0; i < kSide; ++i)
                    sums[g][i] += weights[g * weight_stride + r] * as_float(rows[i]);
    } else {
        for (int64_t r = 0; r < count; ++r, rows += row_stride)
            for (int g = 0; g < G; ++g)
                for (int64_t i = 0; i < some; ++i)
                    sums[g][i] += weights[g * weight_stride + r] * as_float(rows[i]);
    }
}

// softmax(q K) V of G queries that share a head of keys and values, places `from` to `to`.
//
// Keys lie across (hs, capacity), so that scores of neighbouring places are summed side by side.
template <int G, typename Kept>
void attend(const float* q, const Kept* keys, const Kept* values, int64_t from, int64_t to, int64_t size,
            int64_t capacity, float scaling, float* scores, float* y) {
    const int64_t count = to - from, stride = (count + kSide - 1) / kSide * kSide;
    for (int64_t p = 0; p < count; p += kSide) {
        float sums[G][kSide] = {};
        weighted<G>(q, size, keys + from + p, capacity, size, std::min(kSide, count - p), sums);
        for (int g = 0; g < G; ++g)
            for (int64_t i = 0; i < kSide; ++i) scores[g * stride + p + i] = sums[g][i] * scaling;
    }
    float inverse[G];
    for (int g = 0; g < G; ++g) {
        float* row = scores + g * stride;
        float largest = row[0], total = 0;
#pragma omp simd reduction(max : largest)
        for (int64_t p = 0; p < count; ++p) largest = std::max(largest, row[p]);
#pragma omp simd reduction(+ : total)
        for (int64_t p = 0; p < count; ++p) {
            row[p] = exponential(row[p] - largest);
            total += row[p];
        }
        inverse[g] = 1.0f / total;
    }
    for (int64_t d = 0; d < size; d += kSide) {
        float sums[G][kSide] = {};
        const int64_t some = std::min(kSide, size - d);
        weighted<G>(scores, stride, values + from * size + d, size, count, some, sums);
        for (int g = 0; g < G; ++g)
            for (int64_t i = 0; i < some; ++i) y[g * size + d + i] = sums[g][i] * inverse[g];
    }
}

// What a crew of threads needs to take tokens through visits: `Rows` are Activations, or Tiles of many tokens.
template <typename Kept, typename Rows>
class Step {
   public:
    Step(const Tokens& tokens, float* h, const Visit& like)
        : m_(*tokens.model[0]),
          t_(tokens),
          h_(h),
          into_attention_(like.q, tokens.rows),
          out_of_attention_(like.o, tokens.rows),
          into_mlp_(like.gate, tokens.rows),
          inside_mlp_(like.down, tokens.rows),
          q_(tokens.rows * like.q.n),
          k_(tokens.rows * m_.kv_heads * m_.head_size),
          v_(k_.size()),
          heads_(q_.size()),
          middle_(tokens.rows * m_.width),
          output_(middle_.size()),
          gate_(tokens.rows * m_.inner),
          up_(gate_.size()) {}

    // Takes all tokens through the visit of each that has this number.
    void run(int64_t number, Thread thread) {
        const Visit& visit = t_.visits[0][number];  // the weights are those of all
        if (visit.damp == 0 && visit.k.n == 0) return;
        norms(h_, visit.attention_norm, into_attention_, thread);
        const Matrix read[] = {visit.q, visit.k, visit.v};
        float* const made[] = {q_.data(), k_.data(), v_.data()};
#pragma omp barrier
        const bool has_own = visit.k.n > 0, asks = visit.damp != 0;
        products(read + !asks, has_own * 2 + asks, into_attention_, made + !asks, thread);
#pragma omp barrier
        place(number, has_own, asks, thread);
#pragma omp barrier
        if (!asks) return;
        attention(number, thread);
#pragma omp barrier
        each_row(thread, [&](int64_t r) {
            float* heads = heads_.data() + r * visit.o.k;
            narrow(heads, visit.o.k);
            out_of_attention_.set(r, heads);
        });
#pragma omp barrier
        float* const output[] = {output_.data()};
        products(&visit.o, 1, out_of_attention_, output, thread);
#pragma omp barrier
        each_row(thread, [&](int64_t r) {
            add(h_ + r * m_.width, output_.data() + r * m_.width, middle_.data() + r * m_.width);
        });
        norms(middle_.data(), visit.mlp_norm, into_mlp_, thread);
#pragma omp barrier
        const Matrix both[] = {visit.gate, visit.up};
        float* const gated[] = {gate_.data(), up_.data()};
        products(both, 2, into_mlp_, gated, thread);
#pragma omp barrier
        const int64_t all = t_.rows * m_.inner;
        activate(thread.first(all), thread.last(all));
#pragma omp barrier
        each_row(thread, [&](int64_t r) { inside_mlp_.set(r, gate_.data() + r * m_.inner); });
#pragma omp barrier
        products(&visit.down, 1, inside_mlp_, output, thread);
#pragma omp barrier
        each_row(thread, [&](int64_t r) { leave(t_.visits[r][number], r); });
        // the same rows are normed next, by the same threads
    }

   private:
    template <typename Body>
    void each_row(Thread thread, Body body) const {
        constexpr int64_t some = Rows::kTogether;
        for (int64_t first = thread.number * some; first < t_.rows; first += thread.of * some)
            for (int64_t r = first; r < std::min(first + some, t_.rows); ++r) body(r);
    }

    void narrow(float* x, int64_t count) const {
        if (m_.is_narrow)
            for (int64_t i = 0; i < count; ++i) x[i] = narrowed(x[i], true);
    }

    void norms(const float* x, const float* weight, Rows& into, Thread thread) const {
        std::vector<float> y(m_.width);
        each_row(thread, [&](int64_t r) {
            normed(x + r * m_.width, weight, m_.width, m_.epsilon, m_.is_narrow, y.data());
            into.set(r, y.data());
        });
    }

    // y = x + added, each rounded.
    void add(const float* x, float* added, float* y) const {
        narrow(added, m_.width);
        for (int64_t i = 0; i < m_.width; ++i) y[i] = x[i] + added[i];
        narrow(y, m_.width);
    }

    // Turn queries and keys, and write keys and values into the cache.
    void place(int64_t number, bool has_own, bool asks, Thread thread) {
        const int64_t size = m_.head_size, queries = asks ? m_.heads : 0;
        const int64_t each = queries + (has_own ? m_.kv_heads : 0), all = t_.rows * each;
        for (int64_t task = thread.first(all); task < thread.last(all); ++task) {
            const int64_t r = task / each, head = task % each;
            const Model& model = *t_.model[r];
            const Visit& visit = t_.visits[r][number];
            const float* cosines = model.cosines + t_.position[r] * size;
            const float* sines = model.sines + t_.position[r] * size;
            if (head < queries) {
                float* q = q_.data() + (r * m_.heads + head) * size;
                narrow(q, size);
                if (visit.query_norm) normed(q, visit.query_norm, size, m_.epsilon, m_.is_narrow, q);
                turn(q, cosines, sines, size, m_.is_narrow);
                continue;
            }
            const int64_t own = head - queries;
            float* k = k_.data() + (r * m_.kv_heads + own) * size;
            float* v = v_.data() + (r * m_.kv_heads + own) * size;
            narrow(k, size);
            narrow(v, size);
            if (visit.key_norm) normed(k, visit.key_norm, size, m_.epsilon, m_.is_narrow, k);
            turn(k, cosines, sines, size, m_.is_narrow);
            const int64_t start = (t_.sequence[r] * m_.kv_heads + own) * size * model.capacity;
            Kept* keys = static_cast<Kept*>(visit.own_keys) + start + t_.place[r];
            Kept* values = static_cast<Kept*>(visit.own_values) + start + t_.place[r] * size;
            for (int64_t i = 0; i < size; ++i) keys[i * model.capacity] = kept<Kept>(k[i]);
            for (int64_t i = 0; i < size; ++i) values[i] = kept<Kept>(v[i]);
        }
    }

    void attention(int64_t number, Thread thread) {
        const int64_t group = m_.heads / m_.kv_heads;
        if (group % 4 == 0 && t_.rows * m_.heads / 4 >= thread.of)
            attention_of<4>(number, thread);
        else if (group % 2 == 0 && t_.rows * m_.heads / 2 >= thread.of)
            attention_of<2>(number, thread);
        else
            attention_of<1>(number, thread);
    }

    template <int G>
    void attention_of(int64_t number, Thread thread) {
        const int64_t size = m_.head_size, group = m_.heads / m_.kv_heads, all = t_.rows * m_.heads / G;
        const int64_t longest = *std::max_element(t_.place, t_.place + t_.rows) + 1;
        std::vector<float> scores(G * (longest + 16));
        for (int64_t task = thread.number; task < all; task += thread.of) {  // later tokens see more: in turn
            const int64_t r = task % t_.rows, head = task / t_.rows * G;
            const Visit& visit = t_.visits[r][number];
            const int64_t capacity = t_.model[r]->capacity;
            const float* q = q_.data() + (r * m_.heads + head) * size;
            float* y = heads_.data() + (r * m_.heads + head) * size;
            const int64_t start = (t_.sequence[r] * m_.kv_heads + head / group) * size * capacity;
            const int64_t to = t_.place[r] + 1 - visit.is_strictly_past;
            const int64_t from = visit.window ? std::max(t_.first[r], t_.place[r] + 1 - visit.window) : t_.first[r];
            if (from >= to)
                std::fill(y, y + G * size, 0.0f);
            else
                attend<G, Kept>(q, static_cast<const Kept*>(visit.keys) + start,
                                static_cast<const Kept*>(visit.values) + start, from, to, size, capacity,
                                static_cast<float>(m_.scaling), scores.data(), y);
        }
    }

    // gate = silu(gate) * up
    void activate(int64_t from, int64_t to) {
        float *gate = gate_.data(), *up = up_.data();
        if (m_.is_narrow) {
            for (int64_t i = from; i < to; ++i) {
                const float x = narrowed(gate[i], true);
                gate[i] = narrowed(narrowed(x / (1.0f + exponential(-x)), true) * narrowed(up[i], true), true);
            }
            return;
        }
#pragma omp simd
        for (int64_t i = from; i < to; ++i) gate[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
    }

    // h becomes what the visit makes of it.
    void leave(const Visit& visit, int64_t r) {
        float *h = h_ + r * m_.width, *middle = middle_.data() + r * m_.width;
        add(middle, output_.data() + r * m_.width, middle);
        const float damp = static_cast<float>(visit.damp);
        if (damp == 1)
            std::copy(middle, middle + m_.width, h);
        else
            for (int64_t i = 0; i < m_.width; ++i)
                h[i] = narrowed(h[i] + damp * (middle[i] - h[i]), m_.is_narrow);
    }

    const Model& m_;
    const Tokens& t_;
    float* h_;
    Rows into_attention_, out_of_attention_, into_mlp_, inside_mlp_;
    std::vector<float> q_, k_, v_, heads_, middle_, output_, gate_, up_;
};

}  // namespace restack
