/* What a thread does that has no task of its own left: it helps, or waits for the others. */
#define _GNU_SOURCE
#include "tasks.h"

#include <limits.h>
#include <linux/futex.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "gpt.h"

#define SPINS_BEFORE_HELP 50    /* a microsecond: others are about to be done, with what their caches have */
#define SPINS_BEFORE_SLEEP 2000 /* tens of microseconds: longer than a task should take */

static int is_over(const Turn *turn) {
    return (int32_t)(atomic_load_explicit(&turn->team->done, memory_order_acquire) - turn->target) >= 0;
}

static void count_done(Turn *turn) {
    if (!turn->uncounted) return;
    const uint32_t done = atomic_fetch_add(&turn->team->done, turn->uncounted) + turn->uncounted;
    turn->uncounted = 0;
    if (done == turn->target && atomic_load(&turn->team->sleeping))
        syscall(SYS_futex, &turn->team->done, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void sleep_until_done(Turn *turn) {
    atomic_fetch_add(&turn->team->sleeping, 1);
    const uint32_t done = atomic_load(&turn->team->done);
    if ((int32_t)(done - turn->target) < 0)
        syscall(SYS_futex, &turn->team->done, FUTEX_WAIT_PRIVATE, done, NULL, NULL, 0);
    atomic_fetch_sub(&turn->team->sleeping, 1);
}

int64_t help_or_wait(Turn *turn) {
    count_done(turn);
    for (int spins = turn->helps ? SPINS_BEFORE_HELP : 0;; spins++) {
        if (is_over(turn)) return -1;
        if (spins == SPINS_BEFORE_HELP) {
            turn->helps = 1;
            for (int other = 1; other < turn->team->threads; other++) {
                const int64_t task = take_task(turn, (turn->thread + other) % turn->team->threads);
                if (task >= 0) {
                    turn->uncounted = 1;
                    return task;
                }
            }
        }
        if (spins < SPINS_BEFORE_SLEEP) PAUSE();
        else sleep_until_done(turn);
    }
}
