import numpy as np
import pytest
import torch

from chattts_serving.engine.gpu.philox import philox4x32, uniform

# Known answers of the Random123 library (kat_vectors, philox4x32 with 10 rounds): counter, key, output.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    assert tuple(philox4x32(torch.tensor([counter]), torch.tensor([key]))[0].tolist()) == expected


def draws(n, seed=7, codebook=0, stream=0):
    steps = torch.arange(n)
    full = torch.full_like
    return uniform(full(steps, seed), steps, full(steps, codebook), full(steps, stream))


def test_draws_are_uniform():
    counts = np.histogram(draws(50_000).numpy(), bins=50, range=(0, 1))[0]
    chi_square = ((counts - 1_000) ** 2 / 1_000).sum()
    assert chi_square < 85.4  # 49 degrees of freedom, p = 0.001


def test_every_part_of_the_address_counts():
    base = draws(100)
    for other in (draws(100, seed=7 + 2**32), draws(100, codebook=1), draws(100, stream=1)):
        assert not torch.isclose(base, other, atol=1e-6).any()


def test_a_draw_does_not_depend_on_its_neighbours():
    assert torch.equal(draws(100)[37:38], uniform(*(torch.tensor([value]) for value in (7, 37, 0, 0))))
