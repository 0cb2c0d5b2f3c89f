/* Threads that work on a step together, and the step that fits this CPU. */
#include "gpt.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define SPINS_BEFORE_SLEEP 5000 /* a fraction of a millisecond: steps follow each other faster than that */

typedef struct { /* a step to do */
    unsigned number;
    const Model *model;
    Batch batch; /* a copy: who comes late must not see that of the next step */
    Workspace *work;
    uint64_t phase; /* the last one before it */
    uint32_t target;
} Job;

typedef struct {
    int threads; /* the caller's included */
    pthread_t *workers;
    pthread_mutex_t lock; /* guards job */
    pthread_cond_t wake;
    Job job;
    _Atomic unsigned posted; /* the job's number */
    _Atomic int closing;
    Step *step;
    Team team;
    Turn last; /* where the caller was after the last step */
} Pool;

typedef struct {
    Pool *pool;
    int thread;
} Worker;

/* The job that was posted last, once it is another one than number `last`. */
static Job next_job(Pool *pool, unsigned last) {
    for (int spins = 0; spins < SPINS_BEFORE_SLEEP && atomic_load(&pool->posted) == last; spins++) PAUSE();
    pthread_mutex_lock(&pool->lock);
    while (pool->job.number == last) pthread_cond_wait(&pool->wake, &pool->lock);
    const Job job = pool->job;
    pthread_mutex_unlock(&pool->lock);
    return job;
}

static void post_job(Pool *pool, Job job) {
    pthread_mutex_lock(&pool->lock);
    pool->job = job;
    atomic_store(&pool->posted, job.number);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

static Turn do_job(Pool *pool, const Job *job, int thread) {
    Turn turn = {.team = &pool->team, .thread = thread, .phase = job->phase, .target = job->target};
    pool->step(job->model, &job->batch, job->work, &turn);
    return turn;
}

static void *work_on_jobs(void *argument) {
    Worker worker = *(Worker *)argument;
    free(argument);
    for (Job job = {0};;) {
        job = next_job(worker.pool, job.number);
        if (atomic_load(&worker.pool->closing)) return NULL;
        do_job(worker.pool, &job, worker.thread);
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
    post_job(pool, (Job){.number = pool->job.number + 1});
    for (int thread = 1; thread < pool->threads; thread++) pthread_join(pool->workers[thread], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool->workers);
    free(pool->team.ranges);
    free(pool);
}

/* `threads` threads, the caller's included, that run steps of `instruction_set`; NULL where that cannot be had. */
Pool *chattts_open(int threads, const char *instruction_set) {
    Pool *pool = aligned_alloc(64, (sizeof *pool + 63) / 64 * 64);
    if (!pool) return NULL;
    memset(pool, 0, sizeof *pool);
    pool->workers = calloc(threads, sizeof *pool->workers);
    pool->team.ranges = aligned_alloc(64, threads * sizeof *pool->team.ranges);
    pool->step = step_called(instruction_set);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->threads = 1;
    if (!pool->workers || !pool->team.ranges || !pool->step) {
        chattts_close(pool);
        return NULL;
    }
    memset(pool->team.ranges, 0, threads * sizeof *pool->team.ranges);
    pool->team.threads = threads;
    for (int thread = 1; thread < threads; thread++) {
        Worker *worker = malloc(sizeof *worker);
        if (worker) *worker = (Worker){pool, thread};
        if (!worker || pthread_create(&pool->workers[thread], NULL, work_on_jobs, worker)) {
            free(worker);
            chattts_close(pool);
            return NULL;
        }
        pool->threads = thread + 1;
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
    const Job job = {pool->job.number + 1, model, *batch, work, pool->last.phase, pool->last.target};
    post_job(pool, job);
    pool->last = do_job(pool, &job, 0);
}
