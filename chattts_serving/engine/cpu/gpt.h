/* What a step works on. All memory belongs to the caller (library.py has the same structures). */
#ifndef CHATTTS_GPT_H
#define CHATTTS_GPT_H
#include <stdint.h>

#include "tasks.h"

#if defined __x86_64__
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif

#define MAX_HEAD_DIM 256
#define MAX_CODEBOOKS 8
#define PENALTY_WINDOW 16

enum { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 }; /* weights */
enum { TEXT = 0, AUDIO = 1, NOTHING = -1 }; /* what an entry draws */

typedef struct { /* [panels * 32 outputs, inputs], in panels */
    const void *data;       /* float or bfloat16 [panel][input][32], or int8 [panel][input / 4][32][4] */
    const float *scales;    /* int8 only: of each output */
    const int32_t *offsets; /* int8 only: 128 times the sum of each output's weights */
    int64_t panels;
    int32_t inputs;
} Matrix;

typedef struct {
    Matrix qkv, o, gate_up, down;
    const float *input_norm, *post_norm;
} Layer;

typedef struct {
    int32_t hidden, intermediate, num_layers, heads, head_dim, num_codebooks, num_text_tokens, num_audio_tokens;
    int32_t ebreak, eos;
    int32_t weights;
    float rms_norm_eps;
    int64_t cache_tokens, max_positions;
    const Layer *layers;
    Matrix head_text, head_code;
    const float *norm, *embed_text, *embed_code;
    const float *rope_cos, *rope_sin; /* [max_positions, head_dim] */
    void *keys, *values;              /* [layer, head, token, head_dim]: of the weights' kind */
    float *key_scales, *value_scales; /* int8 only: [layer, head, token] */
    float *hidden_states;             /* [token, hidden] */
    int32_t *tokens;                  /* [token, codebook]: the rows of Batch.tokens that the cache was made from */
    int32_t *looks;                   /* [token, text head]: the token of the text that the head looks at most */
    const int32_t *text_heads;        /* [layer, head]: its place among the text heads, or -1 */
    int64_t num_text_heads;
} Model;

typedef struct { /* one sequence of the batch */
    int64_t cache_start;           /* where its slot begins */
    int64_t num_cached, num_new;   /* tokens */
    int64_t first_row;             /* of its new tokens, in Batch.tokens */
    int64_t text_first, text_end;  /* tokens of the prompt that looks are at; none where the two are equal */
    int64_t seed;
    const float *speaker;          /* [hidden], in place of tokens of -1 */
    int32_t draws;                 /* TEXT, AUDIO or NOTHING */
    int32_t top_k, ban_end;
    int32_t step;                  /* tokens that it has drawn before */
    uint32_t stream;
    float temperature, top_p, repetition_penalty;
    int32_t head_row;              /* its row of logits; rows that draw AUDIO come first */
    int32_t drawn[MAX_CODEBOOKS];  /* the result: -1 where the logits are no numbers */
} Entry;

typedef struct {
    Entry *entries;
    const int32_t *tokens; /* [rows, num_codebooks]: codes; or a text token and -1s; or -1s alone: the speaker */
    int64_t num_entries, num_rows, num_audio, num_text;
} Batch;

typedef struct {
    float *x, *normed, *qkv, *attended, *activated; /* [rows, hidden (qkv: 3 hidden; activated: intermediate)] */
    uint8_t *bytes;                                 /* [rows, the wider of hidden and intermediate] */
    float *scales;                                  /* [rows] */
    float *last;                                    /* [entries, hidden] */
    float *text_logits, *code_logits;               /* [entries, 32 * panels of the head] */
    float *scores;                                  /* [threads, 4, max_positions + 64] */
    float *sampling;                                /* [threads, 4 * the larger vocabulary] */
} Workspace;

/* Every thread goes through it with a turn of its own, and may do so late: outside tasks it reads no entry of the batch. */
typedef void Step(const Model *, const Batch *, Workspace *, Turn *);
extern Step step_avx512, step_avx2, step_plain;

int32_t draw(const Model *model, const Entry *entry, float *logits, int vocabulary, int end_token, int codebook,
             float *scratch);
#endif
