import pytest
import torch

from chattts_serving.linear import FloatLinear, Int8Linear


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_float_is_the_plain_product():
    weight, x = random(24, 16), random(5, 16, seed=1)
    torch.testing.assert_close(FloatLinear(weight)(x), x @ weight.T)


@pytest.mark.parametrize("rows", [1, 2, 3, 17, 64])
def test_int8_is_within_its_rounding_of_the_product(rows):
    """A factor is off by half a step of its scale at most, and errors of k products add up like a random walk."""
    weight, x = random(48, 64), random(rows, 64, seed=1)
    step = x.abs().amax(1, keepdim=True) / 127 + weight.abs().amax(1) / 127
    error = (Int8Linear(weight)(x) - x @ weight.T).abs()
    assert (error <= step * 64**0.5 * 1.5).all()
    assert error.max() > 0  # it is 8 bits, after all


def test_an_int8_row_is_the_same_bit_for_bit_whatever_is_beside_it():
    linear, x = Int8Linear(random(48, 64)), random(64, 64, seed=1) * torch.logspace(-6, 6, 64).unsqueeze(1)
    together = linear(x)
    for row in (0, 1, 31, 63):
        assert torch.equal(linear(x[row : row + 1])[0], together[row])
        assert torch.equal(linear(x[row : row + 1].repeat(5, 1))[4], together[row])


def test_int8_of_zeros_is_zero():
    assert torch.equal(Int8Linear(random(48, 64))(torch.zeros(3, 64)), torch.zeros(3, 48))
