/* From one row of logits to one token: the order of chattts_serving/engine/gpu/sampler.py, which has the reasons. */
#include <math.h>
#include <stdlib.h>

#include "gpt.h"

#define MIN_KEPT 3 /* candidates that top-p and top-k leave at least */

typedef struct {
    float score;
    int32_t token;
} Candidate;

/* First word of Philox4x32-10 (Salmon et al. 2011). */
static uint32_t philox(uint64_t seed, uint32_t step, uint32_t codebook, uint32_t stream) {
    uint32_t c0 = step, c1 = codebook, c2 = stream, c3 = 0;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t first = (uint64_t)0xD2511F53u * c0, second = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(second >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)second;
        c2 = (uint32_t)(first >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)first;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c0;
}

/* Likeliest first; of equals, the larger token. */
static int by_score(const void *a, const void *b) {
    const Candidate *one = a, *other = b;
    if (one->score != other->score) return one->score < other->score ? 1 : -1;
    return other->token - one->token;
}

/* The score that `rank` scores (0: none) lie above; reorders `scores` (Hoare's selection). */
static float score_of_rank(float *scores, int count, int rank) {
    int low = 0, high = count - 1;
    while (low < high) {
        const float pivot = scores[(low + high) / 2];
        int i = low, j = high;
        while (i <= j) {
            while (scores[i] > pivot) i++;
            while (scores[j] < pivot) j--;
            if (i <= j) {
                const float other = scores[i];
                scores[i++] = scores[j];
                scores[j--] = other;
            }
        }
        if (rank <= j) high = j;
        else if (rank >= i) low = i;
        else break;
    }
    return scores[rank];
}

/* Scores divided (or, below 0, multiplied) by penalty**count, count being the token's place in the history. */
static void penalise(const Model *model, const Entry *entry, float *scores, int codebook) {
    const int number = entry->step < PENALTY_WINDOW ? entry->step : PENALTY_WINDOW;
    const int64_t end = entry->cache_start + entry->num_cached + entry->num_new;
    const int32_t *history = model->tokens + (end - number) * model->num_codebooks + codebook;
    for (int i = 0; i < number; i++) {
        const int32_t token = history[i * model->num_codebooks];
        int count = 0, is_first = 1;
        for (int j = 0; j < number; j++) {
            if (history[j * model->num_codebooks] != token) continue;
            count++;
            if (j < i) is_first = 0;
        }
        if (!is_first) continue;
        const float factor = powf(entry->repetition_penalty, (float)count);
        scores[token] = scores[token] < 0 ? scores[token] * factor : scores[token] / factor;
    }
}

/* `scratch` holds 4 * vocabulary floats; `logits` are changed. */
int32_t draw(const Model *model, const Entry *entry, float *logits, int vocabulary, int end_token, int codebook,
             float *scratch) {
    float *copy = scratch;
    Candidate *candidates = (Candidate *)(scratch + vocabulary);
    float check = 0;
    for (int i = 0; i < vocabulary; i++) {
        check += logits[i] * 0; /* not 0 once one is infinite or no number */
        logits[i] /= entry->temperature;
    }
    if (check != 0) return -1;
    penalise(model, entry, logits, codebook);

    int kept = entry->top_k < MIN_KEPT ? MIN_KEPT : entry->top_k;
    if (kept > vocabulary) kept = vocabulary;
    for (int i = 0; i < vocabulary; i++) copy[i] = logits[i];
    const float least = score_of_rank(copy, vocabulary, kept - 1);
    int count = 0;
    for (int i = 0; i < vocabulary; i++)
        if (logits[i] >= least) candidates[count++] = (Candidate){logits[i], i};
    qsort(candidates, count, sizeof *candidates, by_score);

    /* Top-p counts over the whole vocabulary: a candidate goes when it and all less likely ones have 1 - top_p or less. */
    const float highest = candidates[0].score;
    double total = 0, above = 0, sum = 0, cumulative = 0;
    for (int i = 0; i < vocabulary; i++) total += expf(logits[i] - highest);
    const double tail = (double)(float)(1.0 - (double)entry->top_p) * total;
    int number = 0;
    for (int i = 0; i < count; i++) {
        if (i >= MIN_KEPT && total - above <= tail) break;
        above += expf(candidates[i].score - highest);
        if (!entry->ban_end || candidates[i].token != end_token) candidates[number++] = candidates[i];
    }
    const float likeliest = candidates[0].score; /* the end token may have been far above the rest */
    for (int i = 0; i < number; i++) sum += expf(candidates[i].score - likeliest);
    const uint32_t word = philox((uint64_t)entry->seed, (uint32_t)entry->step, (uint32_t)codebook, entry->stream);
    const double threshold = word / 4294967296.0 * sum;
    for (int i = 0; i < number; i++) {
        cumulative += expf(candidates[i].score - likeliest);
        if (cumulative > threshold) return candidates[i].token;
    }
    return candidates[number - 1].token;
}
