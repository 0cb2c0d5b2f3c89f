/* Threads that work on a step together, and the step that fits this CPU. */
#include "gpt.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#if defined __x86_64__
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif

#define SPINS_BEFORE_YIELD 2000 /* tens of microseconds: longer than a part of a step should have to wait */
#define SPINS_BEFORE_SLEEP 5000 /* a fraction of a millisecond: steps follow each other faster than that */

typedef struct {
    int threads; /* the caller's included */
    pthread_t *workers;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    _Atomic unsigned job;
    _Atomic int sleeping, closing;
    Step *step;
    const Model *model;
    const Batch *batch;
    Workspace *work;
    Barrier barrier;
} Pool;

typedef struct {
    Pool *pool;
    int thread;
} Worker;

void wait_for_all(Barrier *barrier, int threads) {
    const unsigned phase = atomic_load_explicit(&barrier->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) + 1 == threads) {
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&barrier->phase, phase + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&barrier->phase, memory_order_acquire) == phase; spins++) {
        if (spins < SPINS_BEFORE_YIELD) PAUSE();
        else sched_yield(); /* another process has our core's neighbour: let it finish */
    }
}

static void wait_for_job(Pool *pool, unsigned last) {
    for (int spins = 0; spins < SPINS_BEFORE_SLEEP; spins++) {
        if (atomic_load(&pool->job) != last) return;
        PAUSE();
    }
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleeping, 1);
    while (atomic_load(&pool->job) == last) pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->sleeping, 1);
    pthread_mutex_unlock(&pool->lock);
}

static void post_job(Pool *pool) {
    atomic_fetch_add(&pool->job, 1);
    if (atomic_load(&pool->sleeping)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
}

static void *work_on_jobs(void *argument) {
    Worker worker = *(Worker *)argument;
    Pool *pool = worker.pool;
    free(argument);
    for (unsigned job = 0;; job++) {
        wait_for_job(pool, job);
        if (atomic_load(&pool->closing)) return NULL;
        pool->step(pool->model, pool->batch, pool->work, worker.thread, pool->threads, &pool->barrier);
    }
}

static const struct {
    const char *name;
    Step *step;
} instruction_sets[] = {
#if defined __x86_64__
    {"avx512", step_avx512},
    {"avx2", step_avx2},
#endif
    {"plain", step_plain},
};

/* "avx512", "avx2" or "plain": the fastest that this CPU does. */
const char *chattts_instruction_set(void) {
#if defined __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return "avx512";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
    return "plain";
}

static Step *step_called(const char *name) {
    for (size_t i = 0; i < sizeof instruction_sets / sizeof *instruction_sets; i++)
        if (!strcmp(name, instruction_sets[i].name)) return instruction_sets[i].step;
    return NULL;
}

void chattts_close(Pool *pool) {
    atomic_store(&pool->closing, 1);
    post_job(pool);
    for (int thread = 1; thread < pool->threads; thread++) pthread_join(pool->workers[thread], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool->workers);
    free(pool);
}

/* `threads` threads, the caller's included, that run steps of `instruction_set`; NULL where that cannot be had. */
Pool *chattts_open(int threads, const char *instruction_set) {
    Pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pool->workers = calloc(threads, sizeof *pool->workers);
    pool->step = step_called(instruction_set);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->threads = 1;
    for (int thread = 1; pool->workers && thread < threads; thread++) {
        Worker *worker = malloc(sizeof *worker);
        if (worker) *worker = (Worker){pool, thread};
        if (!worker || pthread_create(&pool->workers[thread], NULL, work_on_jobs, worker)) {
            free(worker);
            chattts_close(pool);
            return NULL;
        }
        pool->threads = thread + 1; /* read by a worker only when a job has been posted */
    }
    if (!pool->workers || !pool->step) {
        chattts_close(pool);
        return NULL;
    }
    return pool;
}

/* Sizes of the structures that the caller fills, so that it can tell a library that was built from other sources. */
void chattts_sizes(int64_t sizes[4]) {
    sizes[0] = sizeof(Model);
    sizes[1] = sizeof(Batch);
    sizes[2] = sizeof(Workspace);
    sizes[3] = sizeof(Entry);
}

/* One step of every entry of `batch`; returns when it is done. Not for two threads at once. */
void chattts_step(Pool *pool, const Model *model, const Batch *batch, Workspace *work) {
    pool->model = model;
    pool->batch = batch;
    pool->work = work;
    post_job(pool);
    pool->step(model, batch, work, 0, pool->threads, &pool->barrier);
}
