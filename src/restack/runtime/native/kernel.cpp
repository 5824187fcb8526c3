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

template <typename Kept>
void run(int64_t from, int64_t to, const Tokens& tokens, float* h, int threads) {
    Step<Kept> step(tokens, h, tokens.visits[0][from]);
#pragma omp parallel num_threads(threads)
    for (int64_t number = from; number < to; ++number) step.run(number, this_thread());
}

}  // namespace

extern "C" {

// Several matrices of one width times the same rows of activations x, float32, shape (rows, k).
void restack_products(const Matrix* matrices, int64_t count, int64_t rows, const float* x, float* const* outputs,
                      int threads) {
    const Matrix& like = matrices[0];
    Activations activations(like.bits, like.group, like.k, rows);
    for (int64_t r = 0; r < rows; ++r) activations.set(r, x + r * like.k);
#pragma omp parallel num_threads(threads)
    products(matrices, count, activations, rows, outputs, this_thread());
}

// A packed matrix times many rows of activations x, (rows, k).
void restack_products_of_many(const Matrix* matrix, int64_t rows, const float* x, float* output, int threads) {
    Tiles tiles(rows, matrix->k);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int64_t tile = 0; tile < tiles.count(); ++tile) tiles.set(tile, x);
        Panel panel(*matrix, tiles.count());
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < matrix->n; n += Panel::kWidth) panel.multiply(n, tiles, rows, output);
    }
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
    if (from >= to || tokens->rows == 0) return;
    if (tokens->model[0]->is_narrow)
        run<uint16_t>(from, to, *tokens, h, threads);
    else
        run<float>(from, to, *tokens, h, threads);
}

// The logits (rows, head.n) of hidden states (rows, width): the final norm, and the head.
void restack_logits(const Model* model, const float* norm, const Matrix* head, int64_t rows, const float* h,
                    float* logits, int threads) {
    Activations activations(head->bits, head->group, head->k, rows);
    std::vector<float> y(model->width);
    for (int64_t r = 0; r < rows; ++r) {
        normed(h + r * model->width, norm, model->width, model->epsilon, model->is_narrow, y.data());
        activations.set(r, y.data());
    }
#pragma omp parallel num_threads(threads)
    products(head, 1, activations, rows, &logits, this_thread());
    if (model->is_narrow)
        for (int64_t i = 0; i < rows * head->n; ++i) logits[i] = narrowed(logits[i], true);
}
}
