import math

import pytest

from chattts_serving.errors import ConfigError
from export.parity import ParityResult


@pytest.mark.parametrize("difference", [0.0, 1e-5, 1e-4])
def test_a_difference_up_to_the_allowed_one_passes(difference):
    ParityResult("vocos", difference, 1e-4).check()


@pytest.mark.parametrize("difference", [1.1e-4, math.inf, math.nan])
def test_a_larger_difference_or_nan_is_refused_by_name(difference):
    with pytest.raises(ConfigError, match="'vocos' differs"):
        ParityResult("vocos", difference, 1e-4).check()
