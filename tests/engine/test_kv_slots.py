import random

import pytest

from chattts_serving.engine.kv_slots import KVSlots, Slot


def test_slots_lie_one_after_the_other():
    slots = KVSlots(10)
    assert [slots.allocate(4), slots.allocate(6)] == [Slot(0, 4), Slot(4, 6)]
    assert slots.allocate(1) is None


def test_released_neighbours_become_one_run():
    slots = KVSlots(9)
    first, second, third = (slots.allocate(3) for _ in range(3))
    slots.release(first)
    slots.release(third)
    assert slots.allocate(4) is None  # 6 tokens are free, but apart
    slots.release(second)
    assert slots.allocate(9) == Slot(0, 9)


def test_slot_grows_in_place_only_into_free_tokens():
    slots = KVSlots(10)
    first, second = slots.allocate(4), slots.allocate(2)
    assert slots.extend(first, 5) is None
    assert slots.extend(second, 7) is None  # 4 tokens follow it, 5 are wanted
    assert slots.extend(second, 6) == Slot(4, 6)
    assert slots.num_free_tokens == 0


@pytest.mark.parametrize("seed", range(20))
def test_no_token_is_in_two_slots_and_none_gets_lost(seed):
    """Random allocations, growth and releases against a bitmap."""
    rng = random.Random(seed)
    capacity = 64
    slots, held = KVSlots(capacity), []
    for _ in range(500):
        action = rng.random()
        if action < 0.5:
            slot = slots.allocate(rng.randint(1, 12))
            if slot:
                held.append(slot)
        elif held:
            slot = held.pop(rng.randrange(len(held)))
            grown = slots.extend(slot, slot.length + rng.randint(1, 8)) if action < 0.7 else None
            if grown:
                held.append(grown)
            else:
                slots.release(slot)
        used = [token for slot in held for token in range(slot.start, slot.end)]
        assert len(used) == len(set(used))
        assert all(0 <= token < capacity for token in used)
        assert slots.num_free_tokens == capacity - len(used)
    for slot in held:
        slots.release(slot)
    assert slots.allocate(capacity) == Slot(0, capacity)
