/* One step of the GPT on a CPU, compiled once for each instruction set: the including file defines VL, ROWS and STEP.

   Every number of a row is summed in an order of its own, whatever rows are beside it and however many threads share
   the work, so that a sequence's result is the same bit for bit in any batch. The compiler must not change that: it is
   told not to contract products and sums, and they are fused where `fused` says so.

   Matrices lie in panels of 32 output columns, which are read once from memory and used for all rows. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "gpt.h"

#define PANEL 32
#define VECTORS (PANEL / VL)
#define GROUP 4 /* rows of a prompt that read the cache together */

typedef float vf __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(2 * VL), aligned(2), may_alias));
typedef uint8_t vb __attribute__((vector_size(VL), aligned(1), may_alias));
typedef int8_t vc __attribute__((vector_size(VL), aligned(1), may_alias));

#define INLINE static inline __attribute__((always_inline))

typedef struct { /* what one thread works with */
    const Model *model;
    const Batch *batch;
    Workspace *work;
    Turn *turn;
} Share;

/* a * b + c, rounded once where the instruction set does so */
INLINE vf fused(vf a, vf b, vf c) {
#if defined __AVX512F__
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined __FMA__
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

INLINE vf all(float x) { return x - (vf){0}; }

INLINE vf choose(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

INLINE vf largest(vf a, vf b) { return choose(a > b, a, b); }

/* Lanes in pairs, so that the order is the same on every call. */
INLINE float sum_of(vf x) {
#if VL == 16
    x += __builtin_shuffle(x, (vi){8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
    x += __builtin_shuffle(x, (vi){4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
    return (x[0] + x[2]) + (x[1] + x[3]);
#elif VL == 8
    x += __builtin_shuffle(x, (vi){4, 5, 6, 7, 0, 1, 2, 3});
    return (x[0] + x[2]) + (x[1] + x[3]);
#else
    return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}

INLINE float largest_of(vf x) {
    float most = x[0];
    for (int lane = 1; lane < VL; lane++) most = x[lane] > most ? x[lane] : most;
    return most;
}

/* Of values that are not negative, by their bits, which have the same order and NaN at its end: it is not lost. */
INLINE vf largest_or_nan(vf a, vf b) { return choose((vi)a > (vi)b, a, b); }

INLINE float largest_or_nan_of(vf x) {
    const vi bits = (vi)x;
    int most = 0;
    for (int lane = 1; lane < VL; lane++) most = bits[lane] > bits[most] ? lane : most;
    return x[most];
}

/* e to the x: range reduction by powers of two, then Cephes' polynomial; relative error about 1e-7. */
INLINE vf exponential(vf x) {
    const vf low = all(-87.0f), high = all(88.0f);
    x = choose(x < low, low, x);
    x = choose(x > high, high, x);
    const float round = 12582912.0f; /* 1.5 * 2^23: adding and subtracting it rounds to an integer */
    const vf n = fused(x, all(1.44269504f), all(round)) - round;
    const vf r = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), x));
    vf p = fused(r, all(1.9875691500e-4f), all(1.3981999507e-3f));
    p = fused(p, r, all(8.3334519073e-3f));
    p = fused(p, r, all(4.1665795894e-2f));
    p = fused(p, r, all(1.6666665459e-1f));
    p = fused(p, r, all(5.0000001201e-1f));
    p = fused(p, r * r, r) + 1.0f;
    vi bits = (__builtin_convertvector(n, vi) + 127) << 23;
    return p * (vf)bits;
}

/* ---- numbers in memory, of a kind that is a constant where this is inlined ---- */

INLINE int size_of(int kind) { return kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1; }

INLINE vf load_numbers(const void *pool, int kind, int64_t at) {
    if (kind == FLOAT32) return *(const vf *)((const float *)pool + at);
    if (kind == INT8) {
#if defined __AVX512F__ /* spelt out, here too */
        return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)((const int8_t *)pool + at))));
#else
        return __builtin_convertvector(__builtin_convertvector(*(const vc *)((const int8_t *)pool + at), vi), vf);
#endif
    }
    const uint16_t *numbers = (const uint16_t *)pool + at;
#if defined __AVX512F__ /* spelt out: the compiler does it in two parts */
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)numbers)), 16);
#else
    return (vf)(__builtin_convertvector(*(const vh *)numbers, vu) << 16);
#endif
}

/* `count` floats as bfloat16, to the nearest, ties to even */
INLINE void store_halves(uint16_t *to, const float *values, int count) {
    for (int i = 0; i < count; i += VL) {
        const vu bits = *(const vu *)(values + i);
        const vu rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
        *(vh *)(to + i) = __builtin_convertvector(rounded, vh);
    }
}

/* ---- rows ---- */

/* RMSNorm of one row (Zhang and Sennrich 2019). */
INLINE void normalise(const Model *model, const float *x, const float *weight, float *out) {
    const int hidden = model->hidden;
    vf squares = {0};
    for (int k = 0; k < hidden; k += VL) {
        vf v = *(const vf *)(x + k);
        squares = fused(v, v, squares);
    }
    float scale = 1.0f / sqrtf(sum_of(squares) / hidden + model->rms_norm_eps);
    for (int k = 0; k < hidden; k += VL) *(vf *)(out + k) = *(const vf *)(x + k) * scale * *(const vf *)(weight + k);
}

/* 8-bit integers of one row, `offset` added, and what they have to be multiplied by: NaN where the row has one. */
INLINE float quantise(const float *x, int count, int offset, uint8_t *out) {
    vf most = {0};
    for (int k = 0; k < count; k += VL) {
        vf v = *(const vf *)(x + k);
        most = largest_or_nan(most, (vf)((vi)v & 0x7FFFFFFF));
    }
    const float scale = largest_or_nan_of(largest_or_nan(most, all(1e-8f))) / 127.0f, round = 12582912.0f;
    for (int k = 0; k < count; k += VL) {
        vf v = (*(const vf *)(x + k) / scale + round) - round;
        vi number = __builtin_convertvector(v, vi) + offset;
        *(vb *)(out + k) = __builtin_convertvector(number, vb);
    }
    return scale;
}

/* Rows as the next product wants them: as they are, or in 8 bits. */
INLINE void prepare(const Share *share, const float *rows, int width, int64_t row) {
    if (share->model->weights == INT8)
        share->work->scales[row] = quantise(rows + row * width, width, OFFSET, share->work->bytes + row * width);
}

/* ---- products ---- */

typedef enum { STORE, ADD, GATE } Epilogue;

/* sum + four values of a row times four weights of each of VL outputs */
INLINE vi dot4(vi sum, const uint8_t *a, const int8_t *w) {
#if defined __AVX512VNNI__
    int32_t four;
    memcpy(&four, a, 4);
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(four), _mm512_loadu_si512(w));
#elif defined __AVX2__
    int32_t four;
    memcpy(&four, a, 4);
    const __m256i weights = _mm256_loadu_si256((const __m256i *)w);
    /* unsigned times signed, and no pair of products passes 16 bits, since none of the factors passes 127 */
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(_mm256_set1_epi32(four), weights));
    return sum + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    const int8_t *values = (const int8_t *)a;
    for (int j = 0; j < VL; j++)
        sum[j] += values[0] * w[4 * j] + values[1] * w[4 * j + 1] + values[2] * w[4 * j + 2] + values[3] * w[4 * j + 3];
    return sum;
#endif
}

/* The weights of one input. With AVX-512 those of bfloat16 are taken apart in pairs, so that each vector has every other output,
   which takes half as many instructions as one after the other; `in_order` puts the sums right. */
INLINE void load_weights(const void *data, int kind, int64_t at, vf weights[VECTORS]) {
#if defined __AVX512F__
    if (kind == BFLOAT16) {
        const __m512i pairs = _mm512_loadu_si512((const uint16_t *)data + at);
        weights[0] = (vf)_mm512_slli_epi32(pairs, 16);
        weights[1] = (vf)_mm512_and_si512(pairs, _mm512_set1_epi32(-65536));
        return;
    }
#endif
    for (int j = 0; j < VECTORS; j++) weights[j] = load_numbers(data, kind, at + VL * j);
}

INLINE void in_order(int kind, vf sums[VECTORS]) {
#if defined __AVX512F__
    if (kind != BFLOAT16) return;
    const vf even = sums[0], odd = sums[1];
    sums[0] = __builtin_shuffle(even, odd, (vi){0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
    sums[1] = __builtin_shuffle(even, odd, (vi){8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
#else
    (void)kind, (void)sums;
#endif
}

/* `count` rows times one panel of float32 or bfloat16 weights; see `tile`. */
INLINE void sum_floats(const Matrix *matrix, const float *a, int count, int64_t panel, const char *ahead, int lines,
                       int kind, vf result[ROWS][VECTORS]) {
    const int depth = matrix->inputs, inputs = 4 / size_of(kind); /* of the two lines that are read at once */
    for (int i = 0; i < count; i++)
        for (int j = 0; j < VECTORS; j++) result[i][j] = (vf){0};
    int64_t at = panel * depth * PANEL;
    for (int k = 0; k < depth; k += inputs, ahead += 64 * lines) {
        if (lines) __builtin_prefetch(ahead, 0, 2);
        if (lines == 2) __builtin_prefetch(ahead + 64, 0, 2);
        for (int input = k; input < k + inputs; input++, at += PANEL) {
            vf weights[VECTORS];
            load_weights(matrix->data, kind, at, weights);
            for (int i = 0; i < count; i++)
                for (int j = 0; j < VECTORS; j++)
                    result[i][j] = fused(all(a[i * depth + input]), weights[j], result[i][j]);
        }
    }
    for (int i = 0; i < count; i++) in_order(kind, result[i]);
}

/* `count` rows (a constant where this is inlined) times one panel; meanwhile half a panel (`lines` 1), a whole one (2), or
   nothing (0) is fetched from `ahead`. */
INLINE void tile(const Share *share, const Matrix *matrix, const float *rows, int64_t row, int count, int64_t panel,
                 const char *ahead, int lines, Epilogue epilogue, float *out, int64_t stride) {
    const int depth = matrix->inputs;
    vf result[ROWS][VECTORS];
    if (share->model->weights == INT8) {
        vi sums[ROWS][VECTORS];
        const int8_t *w = (const int8_t *)matrix->data + panel * depth * PANEL;
        const uint8_t *a = share->work->bytes + row * depth;
        for (int i = 0; i < count; i++)
            for (int j = 0; j < VECTORS; j++) sums[i][j] = (vi){0};
        for (int k = 0; k < depth; k += 4, w += 4 * PANEL, ahead += 64 * lines) {
            if (lines) __builtin_prefetch(ahead, 0, 2);
            if (lines == 2) __builtin_prefetch(ahead + 64, 0, 2);
            for (int i = 0; i < count; i++)
                for (int j = 0; j < VECTORS; j++) sums[i][j] = dot4(sums[i][j], a + i * depth + k, w + 4 * VL * j);
        }
        for (int i = 0; i < count; i++)
            for (int j = 0; j < VECTORS; j++) {
                int64_t column = panel * PANEL + j * VL;
                vi exact = sums[i][j];
                if (OFFSET) exact -= *(const vi *)(matrix->offsets + column);
                result[i][j] = __builtin_convertvector(exact, vf) * share->work->scales[row + i] *
                               *(const vf *)(matrix->scales + column);
            }
    } else if (share->model->weights == BFLOAT16) {
        sum_floats(matrix, rows + row * depth, count, panel, ahead, lines, BFLOAT16, result);
    } else {
        sum_floats(matrix, rows + row * depth, count, panel, ahead, lines, FLOAT32, result);
    }
    for (int i = 0; i < count; i++) {
        float *to = out + (row + i) * stride;
        if (epilogue == GATE) { /* the panel's first half is the gate (SiLU), the second what it gates */
            for (int j = 0; j < VECTORS / 2; j++) {
                vf gate = result[i][j];
                *(vf *)(to + panel * PANEL / 2 + j * VL) =
                    gate / (1.0f + exponential(-gate)) * result[i][j + VECTORS / 2];
            }
        } else {
            for (int j = 0; j < VECTORS; j++) {
                vf *at = (vf *)(to + panel * PANEL + j * VL);
                if (epilogue == ADD) result[i][j] += *at;
                *at = result[i][j];
            }
        }
    }
}

/* Rows x matrix: a phase, whose tasks are panels, each for all rows. */
INLINE void multiply(const Share *share, const Matrix *matrix, const float *rows, int64_t row, int64_t count,
                     Epilogue epilogue, float *out, int64_t stride) {
    const int64_t start = row, end = row + count;
    const size_t size = (size_t)matrix->inputs * PANEL * size_of(share->model->weights); /* of a panel, in bytes */
    /* The last two tiles of a panel fetch the next one, so that memory is read while products are computed. One tile alone
       fetches all of it, but for one or two rows, which wait for memory alone: the core itself fetches a stream quicker. */
    const int lines = count <= 2 ? 0 : count <= ROWS ? 2 : 1;
    FOR_EACH(panel, share->turn, matrix->panels) {
        for (int64_t row = start; row < end;) {
            const int64_t tiles = (end - row + ROWS - 1) / ROWS; /* as even as can be: 16 rows are 8 and 8 */
            const int n = (int)((end - row + tiles - 1) / tiles);
            const char *ahead = (const char *)matrix->data + size * (panel + (tiles <= 2));
#define CASE(N)                                                                                                        \
    if (N <= ROWS && n == N) tile(share, matrix, rows, row, N <= ROWS ? N : 1, panel, ahead, lines, epilogue, out, stride);
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
            row += n;
        }
    }
}

static void multiply_and_store(const Share *share, const Matrix *matrix, const float *rows, int64_t row, int64_t count,
                               float *out, int64_t stride) {
    multiply(share, matrix, rows, row, count, STORE, out, stride);
}

static void multiply_and_add(const Share *share, const Matrix *matrix, const float *rows, int64_t count, float *out,
                             int64_t stride) {
    multiply(share, matrix, rows, 0, count, ADD, out, stride);
}

static void multiply_and_gate(const Share *share, const Matrix *matrix, const float *rows, int64_t count, float *out,
                              int64_t stride) {
    multiply(share, matrix, rows, 0, count, GATE, out, stride);
}

/* ---- attention ---- */

/* Rotary positions (Su et al. 2021), halves as Llama has them. */
INLINE void rotate(const Model *model, const float *x, int64_t position, float *out) {
    const float *cosines = model->rope_cos + position * model->head_dim;
    const float *sines = model->rope_sin + position * model->head_dim;
    const int half = model->head_dim / 2;
    for (int d = 0; d < half; d++) {
        out[d] = x[d] * cosines[d] - x[d + half] * sines[d];
        out[d + half] = x[d + half] * cosines[d + half] + x[d] * sines[d + half];
    }
}

/* Where the cache of one head of one sequence begins, in tokens. */
INLINE int64_t cache_place(const Model *model, const Entry *entry, int layer, int head) {
    return (int64_t)(layer * model->heads + head) * model->cache_tokens + entry->cache_start;
}

INLINE void fetch_cache(const void *pool, int kind, int64_t token, int dim) {
    const char *bytes = (const char *)pool + token * dim * size_of(kind);
    for (int line = 0; line < dim * size_of(kind); line += 64) __builtin_prefetch(bytes + line);
}

/* One head's key or value of one token. */
INLINE void store_in_cache(void *pool, float *scales, int kind, int64_t token, const float *values, int dim) {
    if (kind == INT8) scales[token] = quantise(values, dim, 0, (uint8_t *)pool + token * dim);
    else if (kind == BFLOAT16) store_halves((uint16_t *)pool + token * dim, values, dim);
    else memcpy((float *)pool + token * dim, values, sizeof(float) * dim);
}

/* Notes the token of the text that one row looks at most, by its scores of the `count` tokens that it may see. */
static void note_look(const Model *model, const Entry *entry, int text_head, int64_t row, const float *scores, int64_t count) {
    const int64_t end = entry->text_end < count ? entry->text_end : count;
    int64_t most = entry->text_first;
    for (int64_t t = most + 1; t < end; t++) most = scores[t] > scores[most] ? t : most;
    const int64_t place = entry->cache_start + entry->num_cached + row;
    model->looks[place * model->num_text_heads + text_head] = (int32_t)most;
}

/* `group` (a constant) rows from `row` on, over the cache up to each; `next` is what this thread reads afterwards. */
INLINE void attend_group(const Share *share, const Entry *entry, int64_t place, int head, int text_head, int64_t row,
                         int group, int parts, int kind, int64_t next) {
    const Model *model = share->model;
    const int dim = parts * VL;
    const int64_t longest = entry->num_cached + row + group, stride = model->max_positions + 64;
    const float *queries = share->work->qkv + (entry->first_row + row) * 3 * model->hidden + head * dim;
    float *out = share->work->attended + (entry->first_row + row) * model->hidden + head * dim;
    float *scores = share->work->scores + share->turn->thread * GROUP * stride;
    const float scale = 1.0f / sqrtf((float)dim);
    vf query[GROUP][MAX_HEAD_DIM / VL], result[GROUP][MAX_HEAD_DIM / VL];
    float total[GROUP];
    for (int g = 0; g < group; g++) {
        float rotated[MAX_HEAD_DIM];
        rotate(model, queries + g * 3 * (int64_t)model->hidden, longest - group + g, rotated);
        for (int part = 0; part < parts; part++) query[g][part] = *(const vf *)(rotated + part * VL) * scale;
    }
    for (int64_t t = 0; t < longest; t++) {
        vf sums[GROUP];
        for (int g = 0; g < group; g++) sums[g] = (vf){0};
        for (int part = 0; part < parts; part++) {
            const vf key = load_numbers(model->keys, kind, (place + t) * dim + part * VL);
            for (int g = 0; g < group; g++) sums[g] = fused(query[g][part], key, sums[g]);
        }
        const float size = kind == INT8 ? model->key_scales[place + t] : 1.0f;
        for (int g = 0; g < group; g++) scores[g * stride + t] = sum_of(sums[g]) * size;
        fetch_cache(model->values, kind, place + t, dim);
    }
    for (int g = 0; g < group; g++) { /* softmax over what this row may see; the weight of the rest is 0 */
        float *weights = scores + g * stride;
        const int64_t count = longest - group + g + 1, padded = (longest + VL - 1) / VL * VL;
        if (text_head >= 0) note_look(model, entry, text_head, row + g, weights, count);
        vf most = all(-INFINITY), sums = {0};
        for (int64_t t = count; t < padded; t++) weights[t] = -INFINITY;
        for (int64_t t = 0; t < padded; t += VL) most = largest(most, *(const vf *)(weights + t));
        const float highest = largest_of(most);
        for (int64_t t = 0; t < padded; t += VL)
            *(vf *)(weights + t) = exponential(*(const vf *)(weights + t) - highest);
        for (int64_t t = count; t < padded; t++) weights[t] = 0;
        for (int64_t t = 0; t < padded; t += VL) sums += *(const vf *)(weights + t);
        total[g] = sum_of(sums);
        for (int64_t t = 0; kind == INT8 && t < count; t++) weights[t] *= model->value_scales[place + t];
    }
    for (int g = 0; g < group; g++)
        for (int part = 0; part < parts; part++) result[g][part] = (vf){0};
    for (int64_t t = 0; t < longest; t++) {
        for (int part = 0; part < parts; part++) {
            const vf value = load_numbers(model->values, kind, (place + t) * dim + part * VL);
            for (int g = 0; g < group; g++)
                result[g][part] = fused(all(scores[g * stride + t]), value, result[g][part]);
        }
        fetch_cache(model->keys, kind, next + t, dim);
    }
    for (int g = 0; g < group; g++)
        for (int part = 0; part < parts; part++)
            *(vf *)(out + g * (int64_t)model->hidden + part * VL) = result[g][part] / total[g];
}

/* One head of one sequence: its new keys and values into the cache, then its new rows over all of it. */
INLINE void attend_in(const Share *share, int layer, const Entry *entry, int head, int64_t next, int parts, int kind) {
    const Model *model = share->model;
    const int dim = parts * VL;
    const int64_t place = cache_place(model, entry, layer, head), width = 3 * (int64_t)model->hidden;
    const float *qkv = share->work->qkv + entry->first_row * width + head * dim;
    const int text_head = entry->text_first < entry->text_end ? model->text_heads[layer * model->heads + head] : -1;
    for (int64_t row = 0; row < entry->num_new; row++) {
        float rotated[MAX_HEAD_DIM];
        const int64_t position = entry->num_cached + row;
        rotate(model, qkv + row * width + model->hidden, position, rotated);
        const float *value = qkv + row * width + 2 * model->hidden;
        store_in_cache(model->keys, model->key_scales, kind, place + position, rotated, dim);
        store_in_cache(model->values, model->value_scales, kind, place + position, value, dim);
    }
    int64_t row = 0;
    for (; row + GROUP <= entry->num_new; row += GROUP)
        attend_group(share, entry, place, head, text_head, row, GROUP, parts, kind, next);
    for (; row < entry->num_new; row++)
        attend_group(share, entry, place, head, text_head, row, 1, parts, kind, next);
}

static void attend(const Share *share, int layer, int64_t task) {
    const Model *model = share->model;
    const Entry *entry = &share->batch->entries[task / model->heads];
    const int head = (int)(task % model->heads), parts = model->head_dim / VL, kind = model->weights;
    const int64_t following = task + 1;
    const int64_t next = following >= share->batch->num_entries * model->heads
                             ? cache_place(model, entry, layer, head)
                             : cache_place(model, &share->batch->entries[following / model->heads], layer,
                                           (int)(following % model->heads));
#define OFFICIAL(KIND) if (parts == 64 / VL && kind == KIND) attend_in(share, layer, entry, head, next, 64 / VL, KIND);
    OFFICIAL(INT8) else OFFICIAL(BFLOAT16) else OFFICIAL(FLOAT32) else attend_in(share, layer, entry, head, next, parts, kind);
}

/* ---- the step ---- */

/* Embedding of one row: the speaker's vector, a text token, or the sum of its codes. */
static void embed(const Share *share, int64_t row) {
    const Model *model = share->model;
    const Entry *entry = share->batch->entries;
    while (row >= entry->first_row + entry->num_new) entry++;
    const int32_t *tokens = share->batch->tokens + row * model->num_codebooks;
    float *x = share->work->x + row * model->hidden;
    const size_t size = sizeof(float) * model->hidden;
    const int64_t place = entry->cache_start + entry->num_cached + row - entry->first_row;
    memcpy(model->tokens + place * model->num_codebooks, tokens, sizeof(int32_t) * model->num_codebooks);
    if (tokens[0] < 0) {
        memcpy(x, entry->speaker, size);
    } else if (model->num_codebooks > 1 && tokens[1] < 0) {
        memcpy(x, model->embed_text + (int64_t)tokens[0] * model->hidden, size);
    } else {
        memcpy(x, model->embed_code + (int64_t)tokens[0] * model->hidden, size);
        for (int book = 1; book < model->num_codebooks; book++) {
            const float *code = model->embed_code + ((int64_t)book * model->num_audio_tokens + tokens[book]) * model->hidden;
            for (int k = 0; k < model->hidden; k += VL) *(vf *)(x + k) += *(const vf *)(code + k);
        }
    }
}

/* The final norm of a sequence's rows, kept for the decoder; the last row goes to the heads. */
static void finish(const Share *share, const Entry *entry) {
    const Model *model = share->model;
    for (int64_t row = 0; row < entry->num_new; row++) {
        float *hidden = model->hidden_states + (entry->cache_start + entry->num_cached + row) * model->hidden;
        normalise(model, share->work->x + (entry->first_row + row) * model->hidden, model->norm, hidden);
        if (row == entry->num_new - 1 && entry->draws != NOTHING) {
            memcpy(share->work->last + entry->head_row * (int64_t)model->hidden, hidden, sizeof(float) * model->hidden);
            prepare(share, share->work->last, model->hidden, entry->head_row);
        }
    }
}

static void draw_tokens(const Share *share, Entry *entry, int codebook) {
    const Model *model = share->model;
    Workspace *work = share->work;
    const int larger = model->num_text_tokens > model->num_audio_tokens ? model->num_text_tokens : model->num_audio_tokens;
    float *scratch = work->sampling + (int64_t)share->turn->thread * 4 * larger;
    if (entry->draws == AUDIO) {
        float *logits = work->code_logits + (int64_t)entry->head_row * model->head_code.panels * PANEL;
        logits += (int64_t)codebook * model->num_audio_tokens;
        entry->drawn[codebook] = draw(model, entry, logits, model->num_audio_tokens, model->eos, codebook, scratch);
    } else if (entry->draws == TEXT && codebook == 0) {
        float *logits = work->text_logits + (int64_t)entry->head_row * model->head_text.panels * PANEL;
        entry->drawn[0] = draw(model, entry, logits, model->num_text_tokens, model->ebreak, 0, scratch);
    }
}

void STEP(const Model *model, const Batch *batch, Workspace *work, Turn *turn) {
    const Share share = {model, batch, work, turn};
    const int64_t rows = batch->num_rows, hidden = model->hidden;
    for (int index = 0; index < model->num_layers; index++) {
        const Layer *layer = &model->layers[index];
        FOR_EACH(row, turn, rows) {
            if (index == 0) embed(&share, row);
            normalise(model, work->x + row * hidden, layer->input_norm, work->normed + row * hidden);
            prepare(&share, work->normed, (int)hidden, row);
        }
        multiply_and_store(&share, &layer->qkv, work->normed, 0, rows, work->qkv, 3 * hidden);
        FOR_EACH(task, turn, batch->num_entries * model->heads) attend(&share, index, task);
        if (model->weights == INT8) FOR_EACH(row, turn, rows) prepare(&share, work->attended, (int)hidden, row);
        multiply_and_add(&share, &layer->o, work->attended, rows, work->x, hidden);
        FOR_EACH(row, turn, rows) {
            normalise(model, work->x + row * hidden, layer->post_norm, work->normed + row * hidden);
            prepare(&share, work->normed, (int)hidden, row);
        }
        multiply_and_gate(&share, &layer->gate_up, work->normed, rows, work->activated, model->intermediate);
        if (model->weights == INT8) FOR_EACH(row, turn, rows) prepare(&share, work->activated, model->intermediate, row);
        multiply_and_add(&share, &layer->down, work->activated, rows, work->x, hidden);
    }
    FOR_EACH(i, turn, batch->num_entries) finish(&share, &batch->entries[i]);
    if (batch->num_audio)
        multiply_and_store(&share, &model->head_code, work->last, 0, batch->num_audio, work->code_logits,
                           model->head_code.panels * PANEL);
    if (batch->num_text)
        multiply_and_store(&share, &model->head_text, work->last, batch->num_audio, batch->num_text, work->text_logits,
                           model->head_text.panels * PANEL);
    FOR_EACH(task, turn, batch->num_entries * model->num_codebooks)
        draw_tokens(&share, &batch->entries[task / model->num_codebooks], (int)(task % model->num_codebooks));
}
