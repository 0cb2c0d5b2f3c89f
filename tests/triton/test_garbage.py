"""What the garbage collector looks at."""

import gc

from chattts_serving.triton.garbage import keep_what_is_loaded


def test_what_is_loaded_is_not_looked_at_again():
    loaded = [[] for _ in range(1_000)]
    try:
        keep_what_is_loaded()
        later = []
        looked_at = {id(one) for one in gc.get_objects()}
        assert id(later) in looked_at
        assert not looked_at & set(map(id, loaded))
    finally:
        gc.unfreeze()
