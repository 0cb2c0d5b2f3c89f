/* Tasks that threads share, one phase after another. Each thread has a range of them, which it does first, and then it
   helps with those of others. A phase is over when its tasks are done, whoever did them: nobody waits for a thread that
   the machine has no core for, unless it holds a task, and who waits longer than a moment sleeps, so that it gets one. */
#ifndef CHATTTS_TASKS_H
#define CHATTTS_TASKS_H
#include <stdatomic.h>
#include <stdint.h>

#define TASK_BITS 24 /* of Range.next; the others number the phase, for some thousand years */

typedef struct {
    _Alignas(64) _Atomic uint64_t next; /* phase, and the range's first task that nobody has taken */
} Range;

typedef struct {
    Range *ranges; /* one for each thread */
    int threads;
    _Alignas(64) _Atomic uint32_t done; /* tasks, ever; it wraps around */
    _Atomic int sleeping;               /* threads that wait for `done` */
} Team;

typedef struct { /* where one thread is */
    Team *team;
    int thread;
    uint64_t phase;
    uint32_t target; /* what `done` is when the phase is over */
    uint32_t uncounted; /* tasks that this thread has done since it last said so */
    int64_t tasks;
    int helps; /* its own range is done */
} Turn;

/* A task of a thread's range that nobody has taken, or -1. A phase that is over has none. */
static inline int64_t take_task(const Turn *turn, int thread) {
    const int64_t first = turn->tasks * thread / turn->team->threads, end = turn->tasks * (thread + 1) / turn->team->threads;
    _Atomic uint64_t *next = &turn->team->ranges[thread].next;
    uint64_t seen = atomic_load_explicit(next, memory_order_relaxed);
    for (;;) {
        const uint64_t phase = seen >> TASK_BITS;
        const int64_t task = phase < turn->phase ? first : (int64_t)(seen & ((1 << TASK_BITS) - 1));
        if (phase > turn->phase || task >= end) return -1;
        const uint64_t taken = turn->phase << TASK_BITS | (uint64_t)(task + 1);
        if (atomic_compare_exchange_weak_explicit(next, &seen, taken, memory_order_relaxed, memory_order_relaxed))
            return task;
    }
}

int64_t help_or_wait(Turn *turn);

/* The next task for this thread; -1 once all of the phase are done, by all threads. */
static inline int64_t next_task(Turn *turn) {
    if (!turn->helps) {
        const int64_t task = take_task(turn, turn->thread);
        if (task >= 0) {
            turn->uncounted++;
            return task;
        }
    }
    return help_or_wait(turn);
}

/* Begins a phase of `tasks` tasks, once the last one is over; every thread goes through the same ones. */
static inline int64_t first_task(Turn *turn, int64_t tasks) {
    turn->phase++;
    turn->target += (uint32_t)tasks;
    turn->tasks = tasks;
    turn->helps = 0;
    return next_task(turn);
}

#define FOR_EACH(task, turn, tasks) for (int64_t task = first_task(turn, tasks); task >= 0; task = next_task(turn))

#endif
