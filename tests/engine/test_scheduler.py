import pytest

from chattts_serving.engine.scheduler import MIN_SLOT_GROWTH, Scheduler, SchedulerConfig
from chattts_serving.engine.sequence import Kind, Priority, SamplingParams, Sequence
from chattts_serving.errors import ConfigError
from tests.engine.models import launch, read, seat


def sequence(prompt=10, max_new=1_000, priority=Priority.INTERACTIVE):
    params = SamplingParams(1.0, 0.7, 20, 1.0, 0, max_new, seed=0, stream=0)
    return Sequence(Kind.AUDIO, tuple(range(prompt)), params, priority=priority)


class Queue(Scheduler):
    """A scheduler, and those that it lets run, each in steps of its own."""

    def batch(self):
        """The sequences of the next step, by priority, the oldest first."""
        before = list(self._running)
        changes = self.schedule()
        assert set(changes.joined) == set(self._running) - (set(before) - set(changes.left))
        for one in changes.joined:
            seat(one)
        return [one for one in self._running if one.needs_step]

    def go_on(self, num_steps=1):
        """So many steps, in each of which everybody gets a token."""
        for _ in range(num_steps):
            for one in self.batch():
                launch(one)
                read(one)


def scheduler(cache=2_000, max_sequences=64, max_prefill=10_000, moves=None, join_every=1):
    config = SchedulerConfig(max_sequences, max_prefill, cache, max_position_embeddings=2_000, join_every=join_every)
    return Queue(config, lambda *move: moves.append(move) if moves is not None else None)


def test_first_come_first_served():
    queue = scheduler(max_sequences=2)
    first, second, third = sequence(), sequence(), sequence()
    for one in (first, second, third):
        queue.add(one)
    assert queue.batch() == [first, second]
    queue.remove(first)
    assert queue.batch() == [second, third]


def test_who_comes_while_others_run_waits_for_a_group_at_most():
    queue = scheduler(join_every=3)
    first, second, third, fourth, fifth = (sequence() for _ in range(5))
    queue.add(first)
    assert queue.batch() == [first]  # nobody runs
    queue.add(second)
    assert queue.batch() == [first]
    queue.add(third)
    assert queue.batch() == [first]
    assert queue.batch() == [first, second, third]
    for _ in range(5):
        assert queue.batch() == [first, second, third]
    queue.add(fourth)
    assert queue.batch() == [first, second, third, fourth]  # the last group is long ago
    queue.add(fifth)
    for one in (first, second, third, fourth):
        queue.remove(one)
    assert queue.batch() == [fifth]


def test_interactive_sequences_go_first_and_push_the_youngest_of_the_batch_out():
    queue = scheduler(max_sequences=2)
    old, young, waiting = (sequence(priority=Priority.BATCH) for _ in range(3))
    first, second, third = (sequence() for _ in range(3))
    for one in (old, young, waiting):
        queue.add(one)
    assert queue.batch() == [old, young]
    queue.add(first)
    assert queue.batch() == [first, old]
    assert young.slot is None
    for one in (second, third):
        queue.add(one)
    assert queue.batch() == [first, second]
    queue.remove(second)
    assert queue.batch() == [first, third]
    queue.remove(first)
    assert queue.batch() == [third, old]
    queue.remove(third)
    assert queue.batch() == [old, young]
    queue.remove(young)
    assert queue.batch() == [old, waiting]


def test_a_full_cache_makes_room_at_the_cost_of_the_batch():
    queue = scheduler(cache=2_000)
    batch, interactive = sequence(prompt=1_500, max_new=400, priority=Priority.BATCH), sequence(prompt=700)
    queue.add(batch)
    assert queue.batch() == [batch]
    queue.add(interactive)
    assert queue.batch() == [interactive]
    assert (queue.num_running, queue.num_waiting) == (1, 1)
    queue.remove(batch)
    assert queue.num_waiting == 0


def test_a_crowd_of_prompts_is_spread_over_steps():
    queue = scheduler(max_prefill=25)
    crowd = [sequence(prompt=10) for _ in range(3)]
    for one in crowd:
        queue.add(one)
    assert queue.batch() == crowd[:2]
    assert queue.batch() == crowd


def test_one_long_prompt_is_always_let_in():
    queue = scheduler(max_prefill=25)
    long = sequence(prompt=100)
    queue.add(long)
    assert queue.batch() == [long]


def test_slots_of_running_sequences_never_overlap_and_always_fit():
    queue = scheduler(cache=2_000)
    for prompt in (50, 300, 10, 200, 90):
        queue.add(sequence(prompt=prompt))
    for _ in range(600):
        batch = queue.batch()
        taken = [token for one in batch for token in range(one.slot.start, one.slot.end)]
        assert len(taken) == len(set(taken))
        assert all(one.num_tokens <= one.slot.length for one in batch)
        for one in batch:
            launch(one)
            read(one)


def test_a_full_cache_preempts_the_youngest_which_keeps_its_tokens():
    queue = scheduler(cache=2_000)
    old, young = sequence(prompt=700), sequence(prompt=700)
    queue.add(old)
    queue.add(young)
    queue.go_on(MIN_SLOT_GROWTH + 1)
    assert queue.batch() == [old]
    assert young.slot is None
    assert young.num_cached_tokens == 0
    assert len(young.tokens) == MIN_SLOT_GROWTH + 1
    queue.remove(old)
    assert queue.batch() == [young]
    assert young.num_uncached_tokens == young.num_tokens


def test_a_slot_that_cannot_grow_in_place_is_moved():
    moves = []
    queue = scheduler(cache=2_000, moves=moves)
    first, second = sequence(prompt=10), sequence(prompt=10)
    queue.add(first)
    queue.add(second)
    queue.go_on()
    before = first.slot
    queue.remove(second)
    queue.add(sequence(prompt=10, max_new=20))  # behind the first one again, and need not grow
    queue.go_on(MIN_SLOT_GROWTH)
    changes = queue.schedule()
    assert changes.moved == [first]
    assert moves == [(before, first.slot, first.num_cached_tokens)]
    assert first.slot.start != before.start


def test_who_rests_keeps_the_slot_and_goes_on_before_those_who_wait():
    queue = scheduler(max_sequences=2)
    first, second, third = sequence(), sequence(), sequence()
    for one in (first, second, third):
        queue.add(one)
    queue.go_on(5)
    slot = first.slot
    queue.rest(first)
    assert queue.batch() == [second, third]
    assert (queue.num_resting, queue.num_waiting, first.slot) == (1, 0, slot)
    assert (first.num_new_tokens, first.num_uncached_tokens) == (5, 1)
    queue.add(fourth := sequence())
    queue.resume(first)
    queue.go_on()
    assert (queue.num_resting, queue.num_waiting) == (0, 2)
    queue.remove(second)
    assert queue.batch() == [third, first]
    assert first.slot == slot
    queue.remove(third)
    assert queue.batch() == [first, fourth]


def test_who_waits_may_rest_too():
    queue = scheduler(max_sequences=1)
    first, second, third = sequence(), sequence(), sequence()
    for one in (first, second, third):
        queue.add(one)
    assert queue.batch() == [first]
    queue.rest(second)
    queue.remove(first)
    assert queue.batch() == [third]
    queue.remove(second)
    queue.remove(third)
    assert queue.num_resting == queue.num_waiting == queue.num_running == 0
    assert queue.num_free_cache_tokens == 2_000


def test_the_slot_of_one_who_rests_is_taken_where_there_is_no_other():
    queue = scheduler(cache=2_000)
    first, second = sequence(prompt=1_000), sequence(prompt=900)
    queue.add(first)
    queue.go_on(3)
    queue.rest(first)
    queue.add(second)
    queue.go_on()
    assert first.slot is None
    assert first.num_new_tokens == 3
    queue.resume(first)
    queue.remove(second)
    assert queue.batch() == [first]
    assert first.num_uncached_tokens == 1_003


def test_removing_everything_frees_the_whole_cache():
    queue = scheduler(max_sequences=2)
    crowd = [sequence() for _ in range(4)]
    for one in crowd:
        queue.add(one)
    queue.batch()
    for one in crowd:
        queue.remove(one)
        queue.remove(one)  # a second time changes nothing
    assert (queue.num_running, queue.num_waiting, queue.num_free_cache_tokens) == (0, 0, 2_000)


def test_a_sequence_past_the_models_positions_is_refused():
    with pytest.raises(ValueError, match="2000 positions"):
        scheduler().add(sequence(prompt=1_500, max_new=600))


def test_a_cache_too_small_for_one_sequence_is_a_configuration_error():
    with pytest.raises(ConfigError, match="kv_cache_gb"):
        SchedulerConfig(1, 1, kv_cache_tokens=1_999, max_position_embeddings=2_000)


def test_a_sequence_whose_last_token_is_in_flight_is_not_launched_again():
    queue = scheduler()
    last, other = sequence(max_new=2), sequence()
    queue.add(last)
    queue.add(other)
    queue.go_on()
    assert queue.batch() == [last, other]
    launch(last)
    assert queue.batch() == [other]
    assert queue.num_running == 2  # it keeps its slot until its token is read
    read(last)
    assert len(last.tokens) == 2


def test_a_slot_has_room_for_the_token_in_flight():
    queue = scheduler(cache=2_000)
    one = sequence(prompt=10)
    queue.add(one)
    queue.go_on(MIN_SLOT_GROWTH)
    assert one.num_tokens == one.slot.length
    queue.batch()
    launch(one)
    queue.batch()
    assert one.num_tokens <= one.slot.length


def test_a_preempted_sequence_takes_no_token_that_was_in_flight():
    queue = scheduler(cache=2_000)
    old, young = sequence(prompt=700), sequence(prompt=700)
    queue.add(old)
    queue.add(young)
    queue.go_on(MIN_SLOT_GROWTH)
    stay = young.stay
    for one in queue.batch():
        launch(one)
    assert queue.batch() == [old]
    assert stay.is_over
    assert stay.log.take_void(MIN_SLOT_GROWTH) == {Kind.AUDIO: 1}
    assert young.num_generated_tokens == len(young.tokens) == MIN_SLOT_GROWTH
