// Cross-entropy of a chunk of logits, and its gradient in the logits' own memory; `mini_chat/native` compiles it.
//
// Row by row, each in the cache: the largest logit, the sum of the exponentials, then softmax minus one at the label.

#include "vectors.h"

namespace {

// Calls `work(x, place, count)` for the vectors of a row; of the last one only `count` numbers are the row's, and the
// others are -inf.
template <class S, class F> inline void vectors(S* row, long size, F work) {
  long at = 0;
  for (; at + W <= size; at += W) work(load(row + at), row + at, W);
  if (at < size) {
    V x = all(-INFINITY);
    for (long i = at; i < size; i++) x[i - at] = to_float(row[i]);
    work(x, row + at, size - at);
  }
}

template <class S> inline void put(S* to, V x, long count) {
  if (count == W) return store(to, x);
  S part[W];
  store(part, x);
  std::copy(part, part + count, to);
}

template <class S> float row_nll(S* logits, long size, long label) {
  if (label < 0 || label >= size) return NAN;
  V top = all(-INFINITY), total{};
  vectors(logits, size, [&](V x, S*, long) { top = larger(x, top); });
  float largest = top[0];
  for (long i = 1; i < W; i++) largest = std::max(largest, top[i]);
  vectors(logits, size, [&](V x, S*, long) { total += exponential(x - largest); });
  const float log_total = std::log(sum(total)), nll = largest - to_float(logits[label]) + log_total;
  vectors(logits, size, [&](V x, S* place, long count) {
    V p = exponential(x - largest - log_total);
    const long here = logits + label - place;
    if (0 <= here && here < count) p[here] -= 1;
    put(place, p, count);
  });
  return nll;
}

template <class S> void all_rows(S* logits, const int64_t* labels, float* nll, long rows, long size, long threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long r = 0; r < rows; r++) nll[r] = row_nll(logits + r * size, size, labels[r]);
}

}  // namespace

extern "C" int vector_width() { return W; }

extern "C" void cross_entropy(void* logits, const int64_t* labels, float* nll, long rows, long size, int is_bf16,
                              long threads) {
  if (is_bf16) all_rows((bf16*)logits, labels, nll, rows, size, threads);
  else all_rows((float*)logits, labels, nll, rows, size, threads);
}
