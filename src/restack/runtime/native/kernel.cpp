// What Python calls; see products.h, panels.h and step.h.

#include "panels.h"
#include "products.h"
#include "step.h"

#ifdef _OPENMP
#include <omp.h>
#endif

using namespace restack;

namespace {

Thread this_thread() {
#ifdef _OPENMP
    return {omp_get_thread_num(), omp_get_num_threads()};
#else
    return {0, 1};
#endif
}

template <typename Kept, typename Rows>
void take(int64_t from, int64_t to, const Tokens& tokens, float* h, int threads) {
    Step<Kept, Rows> step(tokens, h, tokens.visits[0][from]);
#pragma omp parallel num_threads(threads)
    for (int64_t number = from; number < to; ++number) step.run(number, this_thread());
}

template <typename Rows>
void run(int64_t from, int64_t to, const Tokens& tokens, float* h, int threads) {
    if (from >= to || tokens.rows == 0) return;
    if (tokens.model[0]->is_narrow)
        take<uint16_t, Rows>(from, to, tokens, h, threads);
    else
        take<float, Rows>(from, to, tokens, h, threads);
}

// Rows of activations x, (rows, k), times matrices of one width.
template <typename Rows>
void multiply(const Matrix* matrices, int64_t count, int64_t rows, const float* x, float* const* outputs,
              int threads) {
    Rows activations(matrices[0], rows);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int64_t first = 0; first < rows; first += Rows::kTogether)
            for (int64_t r = first; r < std::min(first + Rows::kTogether, rows); ++r)
                activations.set(r, x + r * matrices[0].k);
        products(matrices, count, activations, outputs, this_thread());
    }
}

}  // namespace

extern "C" {

// Several matrices of one width times the same few rows of activations x, float32, shape (rows, k).
void restack_products(const Matrix* matrices, int64_t count, int64_t rows, const float* x, float* const* outputs,
                      int threads) {
    multiply<Activations>(matrices, count, rows, x, outputs, threads);
}

// A matrix times many rows of activations.
void restack_products_of_many(const Matrix* matrix, int64_t rows, const float* x, float* output, int threads) {
    multiply<Tiles>(matrix, 1, rows, x, &output, threads);
}

// Whether that is quicker than to unpack the weights and have torch multiply.
int restack_is_quick_with_many() {
#if defined(__AVX2__) && !defined(__AVX512F__)
    return 1;
#else
    return 0;
#endif
}

// The weights themselves, (n, k): float32, or bfloat16 if `narrow`.
void restack_unpack(const Matrix* matrix, void* output, int narrow, int threads) {
    const int64_t n = matrix->n, k = matrix->k;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> values(narrow ? k : 0);
#pragma omp for
        for (int64_t row = 0; row < n; ++row) {
            if (!narrow) {
                unpack(*matrix, row, 0, k, static_cast<float*>(output) + row * k);
                continue;
            }
            unpack(*matrix, row, 0, k, values.data());
            uint16_t* into = static_cast<uint16_t*>(output) + row * k;
            for (int64_t i = 0; i < k; ++i) into[i] = to_bf16(values[i]);
        }
    }
}

// Takes h, (rows, width), each row through its visits `from` to `to`.
void restack_step(int64_t from, int64_t to, const Tokens* tokens, float* h, int threads) {
    run<Activations>(from, to, *tokens, h, threads);
}

// The same for many rows, as `restack_products_of_many` multiplies them.
void restack_read(int64_t from, int64_t to, const Tokens* tokens, float* h, int threads) {
    run<Tiles>(from, to, *tokens, h, threads);
}

// The logits (rows, head.n) of hidden states (rows, width): the final norm, and the head.
void restack_logits(const Model* model, const float* norm, const Matrix* head, int64_t rows, const float* h,
                    float* logits, int threads) {
    Activations activations(*head, rows);
    std::vector<float> y(model->width);
    for (int64_t r = 0; r < rows; ++r) {
        normed(h + r * model->width, norm, model->width, model->epsilon, model->is_narrow, y.data());
        activations.set(r, y.data());
    }
#pragma omp parallel num_threads(threads)
    products(head, 1, activations, &logits, this_thread());
    if (model->is_narrow)
        for (int64_t i = 0; i < rows * head->n; ++i) logits[i] = narrowed(logits[i], true);
}
}
