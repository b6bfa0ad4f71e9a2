/* The best k of all pairs of sub-keys, row by row: see "How it is computed" in README.md.
 *
 * A score's bits, turned so that they order as the score does, are an int32; beside its label, counted
 * from the end, an int64 whose greatest is the best, ties going to the least label. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

enum {
    FEW = 256,     /* keys that are ranked by comparing each with all */
    BY_VALUE = 16, /* steps */
    WIDE = 16,     /* int32 in a vector of AVX-512 */
};

INLINE int32_t ordered(float score) {
    int32_t bits;
    score += 0.0f; /* -0.0 equals 0.0 */
    memcpy(&bits, &score, sizeof bits);
    bits ^= (bits >> 31) & INT32_MAX;
    return score != score ? INT32_MAX : bits; /* a NaN comes first */
}

INLINE float score_of(int32_t bits) {
    float score;
    bits ^= (bits >> 31) & INT32_MAX;
    memcpy(&score, &bits, sizeof score);
    return score;
}

INLINE int64_t key_of(int32_t order, int32_t label) {
    return (int64_t)((uint64_t)(uint32_t)order << 32 | (uint32_t)(INT32_MAX - label));
}

INLINE int32_t order_of(int64_t key) { return (int32_t)(key >> 32); }

INLINE int32_t label_of(int64_t key) { return INT32_MAX - (int32_t)(uint32_t)key; }

static int descending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

/* How many reach a bound. */
INLINE int reaching(const int32_t *order, int count, int32_t least) {
    int found = 0, i = 0;
#ifdef __AVX512F__
    __m512i at_least = _mm512_set1_epi32(least);
    for (; i + WIDE <= count; i += WIDE)
        found += __builtin_popcount(
            _mm512_cmpge_epi32_mask(_mm512_loadu_si512(order + i), at_least));
#endif
    for (; i < count; i++) found += order[i] >= least;
    return found;
}

/* A bound that k reach, or more where some are equal.
 *
 * Halved by value, over which scores are spread evenly enough; then by order, which ends. */
INLINE int32_t bound(const int32_t *order, int count, int k) {
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (int i = 0; i < count; i++) {
        low = order[i] < low ? order[i] : low;
        high = order[i] > high ? order[i] : high;
    }
    for (int step = 0; low < high; step++) {
        int32_t middle = ordered(score_of(low) / 2 + score_of(high) / 2);
        if (step >= BY_VALUE || middle <= low || middle > high)
            middle = (int32_t)(low + ((int64_t)high - low + 1) / 2);
        int reach = reaching(order, count, middle);
        if (reach == k) return middle;
        if (reach < k)
            high = middle - 1;
        else
            low = middle;
    }
    return low;
}

/* Places whose order reaches a bound; returns how many. `at` has room for WIDE more. */
INLINE int places(const int32_t *order, int count, int32_t least, int32_t *at) {
    int found = 0, i = 0;
#ifdef __AVX512F__
    __m512i at_least = _mm512_set1_epi32(least), step = _mm512_set1_epi32(WIDE);
    __m512i here = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (; i + WIDE <= count; i += WIDE, here = _mm512_add_epi32(here, step)) {
        __mmask16 reach = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(order + i), at_least);
        _mm512_storeu_si512(at + found, _mm512_maskz_compress_epi32(reach, here));
        found += __builtin_popcount(reach);
    }
#endif
    for (; i < count; i++) {
        at[found] = i;
        found += order[i] >= least;
    }
    return found;
}

/* The k greatest of `found` keys, no two alike, descending. */
INLINE void rank(int64_t *keys, int found, int k, int64_t *best) {
    if (found > FEW) {
        qsort(keys, (size_t)found, sizeof *keys, descending);
        memcpy(best, keys, (size_t)k * sizeof *keys);
        return;
    }
    int64_t before[FEW];
    for (int i = 0; i < found; i++) {
        before[i] = 0;
        for (int j = 0; j < found; j++) before[i] += keys[j] > keys[i];
    }
    for (int i = 0; i < found; i++)
        if (before[i] < k) best[before[i]] = keys[i];
}

/* 0, or 1 without memory.
 *
 * rows, cols: [count, n] scores of the halves; i, j: [pairs] ranks of those that can win.
 * sums, slots: [count, k], best first. */
int midus_select(const float *rows, const float *cols, int64_t count, int n, int k, const int32_t *i,
                 const int32_t *j, int pairs, float *sums, int64_t *slots) {
    int most = n > pairs ? n : pairs;
    int64_t *keys = malloc((size_t)(most + 2 * k) * sizeof *keys);
    int32_t *order = malloc((size_t)(3 * most + WIDE) * sizeof *order);
    int failed = !keys || !order;
    int64_t *best = keys + most;
    int32_t *slot = order + most, *at = order + 2 * most;
    for (int64_t row = 0; row < count && !failed; row++) {
        for (int half = 0; half < 2; half++) {
            const float *scores = (half ? cols : rows) + row * n;
            for (int a = 0; a < n; a++) order[a] = ordered(scores[a]);
            int found = places(order, n, bound(order, n, k), at);
            for (int a = 0; a < found; a++) keys[a] = key_of(order[at[a]], at[a]);
            rank(keys, found, k, best + half * k);
        }
        for (int a = 0; a < pairs; a++) {
            int64_t left = best[i[a]], right = best[k + j[a]];
            order[a] = ordered(score_of(order_of(left)) + score_of(order_of(right)));
            slot[a] = label_of(left) * n + label_of(right);
        }
        int found = places(order, pairs, bound(order, pairs, k), at);
        for (int a = 0; a < found; a++) keys[a] = key_of(order[at[a]], slot[at[a]]);
        rank(keys, found, k, best);
        for (int a = 0; a < k; a++) {
            sums[row * k + a] = score_of(order_of(best[a]));
            slots[row * k + a] = label_of(best[a]);
        }
    }
    free(keys);
    free(order);
    return failed;
}
