// Attention over packed documents on a CPU, forward and backward; `mini_chat/native` compiles it.
//
// Each document attends to itself, causally. Documents and key heads are independent of each other and are worked on in
// parallel, so the bits do not depend on the number of threads. Within one, blocks of keys meet blocks of queries as in
// FlashAttention-2 (arXiv:2307.08691): nothing of the size of the scores leaves the cache. Blocks lie keys by queries,
// transposed: the softmax then runs along vectors of queries and needs no sum across a vector, and the weights lie as
// the next product reads them.
//
// Layouts: q, out (T, N, D), k, v (T, K, D), lse float32 (T, N) for T positions, N query and K key heads of width D.

#include <new>
#include <vector>

#include "products.h"

namespace {

constexpr long BLOCK = 64;  // queries, and keys, of a block

struct Sizes {
  long N, K, D;
};

// One document and one key head, with the query heads that share it.
struct Task {
  long first, n, head;
};

std::vector<Task> tasks(const int64_t* bounds, long documents, long heads) {
  std::vector<Task> list;
  for (long d = 0; d < documents; d++)
    for (long h = 0; h < heads; h++) list.push_back({bounds[d], bounds[d + 1] - bounds[d], h});
  std::stable_sort(list.begin(), list.end(), [](const Task& a, const Task& b) { return a.n > b.n; });
  return list;
}

// A thread's memory for its task: grown to the largest, and kept.
struct Memory {
  char* start = nullptr;
  size_t size = 0, used = 0;

  template <class T> T* take(long count) {
    T* taken = (T*)(start + used);
    used += up(count * sizeof(T), 64);
    return taken;
  }
  void reserve(size_t bytes) {
    used = 0;
    if (bytes <= size) return;
    std::free(start);
    size = up(bytes, 4096);
    start = (char*)std::aligned_alloc(4096, size);
    if (!start) throw std::bad_alloc();
  }
  ~Memory() { std::free(start); }
};
thread_local Memory memory;

// In the block on the diagonal no query sees a key after it.
void hide_later_keys(float* scores, long height, long width) {
  for (long r = 1; r < height; r++)
    for (long c = 0; c < std::min(r, width); c++) scores[r * width + c] = -INFINITY;
}

// Columns (D, width), times a factor of each, to the first `real` rows.
template <class S> void put_turned(const float* from, long width, const float* factors, long real, S* to, Sizes s) {
  for (long c = 0; c < real; c += W)
    for (long d = 0; d < s.D; d += W) {
      V x[W];
      for (long i = 0; i < W; i++) x[i] = load(from + (d + i) * width + c) * load(factors + c);
      turn(x);
      for (long i = 0; i < std::min(W, real - c); i++) store(to + (c + i) * s.N * s.D + d, x[i]);
    }
}

// A position that sees itself alone, such as padding: its result is its value.
template <class S>
void forward_alone(const Task& task, Sizes s, const S* q, const S* k, const S* v, S* out, float* lse) {
  const long D = s.D, G = s.N / s.K, of_key = (task.first * s.K + task.head) * D;
  for (long head = task.head * G; head < (task.head + 1) * G; head++) {
    const long of_query = (task.first * s.N + head) * D;
    V score{};
    for (long d = 0; d < D; d += W) {
      score += load(q + of_query + d) * load(k + of_key + d);
      store(out + of_query + d, load(v + of_key + d));
    }
    lse[task.first * s.N + head] = sum(score);
  }
}

template <class S> void backward_alone(const Task& task, Sizes s, const S* grad, S* dq, S* dk, S* dv) {
  const long D = s.D, G = s.N / s.K, of_key = (task.first * s.K + task.head) * D;
  for (long d = 0; d < D; d += W) {
    V total{};
    for (long head = task.head * G; head < (task.head + 1) * G; head++) {
      total += load(grad + (task.first * s.N + head) * D + d);
      store(dq + (task.first * s.N + head) * D + d, V{});
    }
    store(dk + of_key + d, V{});
    store(dv + of_key + d, total);
  }
}

template <class P, class S>
void forward(const Task& task, Sizes s, const S* q, const S* k, const S* v, S* out, float* lse) {
  typedef typename P::T T;
  const long D = s.D, G = s.N / s.K, n = task.n, padded = up(n, P::PAD), of_keys = (task.first * s.K + task.head) * D;
  if (n == 1) return forward_alone(task, s, q, k, v, out, lse);
  memory.reserve(2 * padded * D * sizeof(T) + BLOCK * D * (sizeof(T) + 4) + BLOCK * BLOCK * 8 + 4096);
  T* keys = memory.take<T>(padded * D);
  T* values = memory.take<T>(padded * D);
  T* query = memory.take<T>(BLOCK * D);
  float* result = memory.take<float>(BLOCK * D);
  float* scores = memory.take<float>(BLOCK * BLOCK);
  T* weights = P::SAME ? (T*)scores : memory.take<T>(BLOCK * BLOCK);
  float* top = memory.take<float>(BLOCK);
  float* total = memory.take<float>(BLOCK);

  P::first(Rows<S>{k + of_keys, s.K * D, n, D}, keys, padded);
  P::first_turned(Rows<S>{v + of_keys, s.K * D, n, D}, values, padded);
  for (long head = task.head * G; head < (task.head + 1) * G; head++) {
    const long of_queries = (task.first * s.N + head) * D;
    const Rows<S> queries{q + of_queries, s.N * D, n, D};
    for (long i = 0; i < n; i += BLOCK) {
      const long width = std::min(BLOCK, padded - i), real = std::min(width, n - i);
      P::second_turned(queries.from(i), query, width);
      for (long c = 0; c < width; c++) top[c] = -INFINITY, total[c] = 0;
      for (long j = 0; j <= i; j += BLOCK) {
        const long height = std::min(BLOCK, padded - j);
        P::multiply(height, width, D, keys + j * D, D, query, width, scores, width, false);
        if (j == i) hide_later_keys(scores, height, width);
        for (long c = 0; c < width; c += W) {
          const V before = load(top + c);
          V now = before;
          for (long r = 0; r < height; r++) now = larger(now, load(scores + r * width + c));
          V added{};
          for (long r = 0; r < height; r += 2) {
            const V even = exponential(load(scores + r * width + c) - now);
            const V odd = exponential(load(scores + (r + 1) * width + c) - now);
            P::put_second(weights + r * width, width, c, even, odd);
            added += even + odd;
          }
          const V shrink = exponential(before - now);
          store(top + c, now);
          store(total + c, load(total + c) * shrink + added);
          if (j > 0)
            for (long d = 0; d < D; d++) store(result + d * width + c, load(result + d * width + c) * shrink);
        }
        P::multiply(D, width, height, values + j, padded, weights, width, result, width, j > 0);
      }
      for (long c = 0; c < real; c++) {
        lse[(task.first + i + c) * s.N + head] = top[c] + std::log(total[c]);
        total[c] = 1 / total[c];
      }
      put_turned(result, width, total, real, out + of_queries + i * s.N * D, s);
    }
  }
}

// With weights P, their gradient is dP = dO·Vᵀ and that of the scores dS = P ∘ (dP - rowsum(dO ∘ O)).
template <class P, class S>
void backward(const Task& task, Sizes s, const S* grad, const S* q, const S* k, const S* v, const S* out,
              const float* lse, S* dq, S* dk, S* dv) {
  typedef typename P::T T;
  const long D = s.D, G = s.N / s.K, n = task.n, padded = up(n, P::PAD), of_keys = (task.first * s.K + task.head) * D;
  if (n == 1) return backward_alone(task, s, grad, dq, dk, dv);
  memory.reserve(padded * D * (3 * sizeof(T) + 8) + BLOCK * D * (4 * sizeof(T) + 4) + BLOCK * BLOCK * 16 + 4096);
  T* keys = memory.take<T>(padded * D);
  T* keys_turned = memory.take<T>(padded * D);
  T* values = memory.take<T>(padded * D);
  float* dkeys = memory.take<float>(padded * D);
  float* dvalues = memory.take<float>(padded * D);
  T* query = memory.take<T>(BLOCK * D);
  T* query_turned = memory.take<T>(BLOCK * D);
  T* gradient = memory.take<T>(BLOCK * D);
  T* gradient_turned = memory.take<T>(BLOCK * D);
  float* dquery = memory.take<float>(BLOCK * D);
  float* scores = memory.take<float>(BLOCK * BLOCK);
  float* dweights = memory.take<float>(BLOCK * BLOCK);
  T* weights = P::SAME ? (T*)scores : memory.take<T>(BLOCK * BLOCK);
  T* dscores_first = P::SAME ? (T*)dweights : memory.take<T>(BLOCK * BLOCK);
  T* dscores_second = P::SAME ? (T*)dweights : memory.take<T>(BLOCK * BLOCK);
  float* level = memory.take<float>(BLOCK);
  float* delta = memory.take<float>(BLOCK);
  float* ones = memory.take<float>(BLOCK);

  const Rows<S> key_rows{k + of_keys, s.K * D, n, D};
  P::first(key_rows, keys, padded);
  P::first_turned(key_rows, keys_turned, padded);
  P::first(Rows<S>{v + of_keys, s.K * D, n, D}, values, padded);
  std::fill(ones, ones + BLOCK, 1.f);
  for (long head = task.head * G; head < (task.head + 1) * G; head++) {
    const long of_queries = (task.first * s.N + head) * D;
    for (long i = 0; i < n; i += BLOCK) {
      const long width = std::min(BLOCK, padded - i), real = std::min(width, n - i);
      const Rows<S> queries = Rows<S>{q + of_queries, s.N * D, n, D}.from(i);
      const Rows<S> gradients = Rows<S>{grad + of_queries, s.N * D, n, D}.from(i);
      const Rows<S> results = Rows<S>{out + of_queries, s.N * D, n, D}.from(i);
      P::second(queries, query, width);
      P::second_turned(queries, query_turned, width);
      P::second(gradients, gradient, width);
      P::second_turned(gradients, gradient_turned, width);
      for (long c = 0; c < width; c++) {
        V dot{};
        for (long d = 0; d < D; d += W) dot += gradients.at(c, d) * results.at(c, d);
        delta[c] = sum(dot);
        level[c] = c < real ? lse[(task.first + i + c) * s.N + head] : 0;
      }
      for (long j = 0; j <= i; j += BLOCK) {
        const long height = std::min(BLOCK, padded - j);
        P::multiply(height, width, D, keys + j * D, D, query_turned, width, scores, width, false);
        P::multiply(height, width, D, values + j * D, D, gradient_turned, width, dweights, width, false);
        if (j == i) hide_later_keys(scores, height, width);
        for (long c = 0; c < width; c += W) {
          const V from = load(level + c), own = load(delta + c);
          for (long r = 0; r < height; r += 2) {
            const long at = r * width + c;
            const V even = exponential(load(scores + at) - from), odd = exponential(load(scores + at + width) - from);
            const V d_even = even * (load(dweights + at) - own), d_odd = odd * (load(dweights + at + width) - own);
            P::put_first(weights + r * width, width, c, even, odd);
            P::put_first(dscores_first + r * width, width, c, d_even, d_odd);
            if (!P::SAME) P::put_second(dscores_second + r * width, width, c, d_even, d_odd);
          }
        }
        P::multiply(height, D, width, weights, width, gradient, D, dvalues + j * D, D, head > task.head * G || i > j);
        P::multiply(height, D, width, dscores_first, width, query, D, dkeys + j * D, D, head > task.head * G || i > j);
        P::multiply(D, width, height, keys_turned + j, padded, dscores_second, width, dquery, width, j > 0);
      }
      put_turned(dquery, width, ones, real, dq + of_queries + i * s.N * D, s);
    }
  }
  for (long r = 0; r < n; r++)
    for (long d = 0; d < D; d += W) {
      store(dk + of_keys + r * s.K * D + d, load(dkeys + r * D + d));
      store(dv + of_keys + r * s.K * D + d, load(dvalues + r * D + d));
    }
}

// Every task, the longest first, each by one thread.
template <class P, class F> void each(const std::vector<Task>& list, long threads, F work) {
#pragma omp parallel num_threads(threads)
  {
    P::begin();
#pragma omp for schedule(dynamic, 1)
    for (size_t t = 0; t < list.size(); t++) work(list[t]);
    P::end();
  }
}

// The fastest products that there are here for a dtype: `work` is called with one of them, and with a number of it.
template <class F> void with_products([[maybe_unused]] Sizes s, bool is_bf16, F work) {
  if (!is_bf16) return work(Float32{}, float{});
#if HAS_AMX
  if (s.D % Tiles::PAD == 0 && Tiles::allowed()) return work(Tiles{}, bf16{});
#endif
#if defined(__AVX512BF16__)
  if (s.D % Dot::PAD == 0) return work(Dot{}, bf16{});
#endif
  return work(Float32{}, bf16{});
}

}  // namespace

extern "C" void attention_forward(const void* q, const void* k, const void* v, void* out, float* lse,
                                  const int64_t* bounds, long documents, long N, long K, long D, int is_bf16,
                                  long threads) {
  const Sizes s{N, K, D};
  with_products(s, is_bf16, [&](auto products, auto number) {
    typedef decltype(products) P;
    typedef decltype(number) S;
    each<P>(tasks(bounds, documents, K), threads, [&](const Task& task) {
      forward<P, S>(task, s, (const S*)q, (const S*)k, (const S*)v, (S*)out, lse);
    });
  });
}

extern "C" void attention_backward(const void* grad, const void* q, const void* k, const void* v, const void* out,
                                   const float* lse, void* dq, void* dk, void* dv, const int64_t* bounds,
                                   long documents, long N, long K, long D, int is_bf16, long threads) {
  const Sizes s{N, K, D};
  with_products(s, is_bf16, [&](auto products, auto number) {
    typedef decltype(products) P;
    typedef decltype(number) S;
    each<P>(tasks(bounds, documents, K), threads, [&](const Task& task) {
      backward<P, S>(task, s, (const S*)grad, (const S*)q, (const S*)k, (const S*)v, (const S*)out, lse, (S*)dq,
                     (S*)dk, (S*)dv);
    });
  });
}
