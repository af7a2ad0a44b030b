"""Rounding to a grid, summing whole numbers that wrap around, and what comes back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsim.secure_sum.field import Contribution, Elements, Layout, Quantiser, decode, encode

EXACT = Quantiser(8.0, 20, "nearest")
FAIR = Quantiser(8.0, 20, "stochastic")
PARAMETERS = {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}
BUFFERS = {"mean": torch.zeros(3)}


def contribution(seed: int, num_examples: int = 4, scale: float = 1.0) -> Contribution:
    rng = torch.Generator().manual_seed(seed)

    def draw(like: Tensor) -> Tensor:
        return scale * torch.randn(like.shape, generator=rng)

    return Contribution(
        {name: draw(like) for name, like in PARAMETERS.items()},
        {name: draw(like) for name, like in BUFFERS.items()},
        num_examples,
        2.0 + seed,
    )


def mean_of(clients: list[Contribution], quantiser: Quantiser, bits: int = 32) -> Contribution:
    layout = Layout.of(PARAMETERS, BUFFERS)
    parts = [
        encode(
            one, layout, quantiser, quantiser, field_bits=bits, rng=torch.Generator().manual_seed(n)
        )
        for n, one in enumerate(clients)
    ]
    assert all(part.shape == (layout.length,) for part in parts)
    total: Elements = np.sum(parts, axis=0, dtype=parts[0].dtype)
    found = decode(total, layout, quantiser, quantiser)
    assert found is not None
    return found


@pytest.mark.parametrize("quantiser", [EXACT, FAIR])
@pytest.mark.parametrize("bits", [32, 64])
def test_the_mean_is_weighted_and_off_by_no_more_than_rounding(
    quantiser: Quantiser, bits: int
) -> None:
    clients = [contribution(0, 1), contribution(1, 5), contribution(2, 10)]

    found = mean_of(clients, quantiser, bits)

    assert found.num_examples == 16
    assert found.train_loss == pytest.approx((2 + 5 * 3 + 10 * 4) / 16, abs=64 / 2**19)
    for name in PARAMETERS:
        wanted = sum(one.num_examples * one.update[name].double() for one in clients) / 16
        assert (found.update[name] - wanted).abs().max() <= quantiser.bound
    wanted = sum(one.num_examples * one.buffers["mean"].double() for one in clients) / 16
    assert (found.buffers["mean"] - wanted).abs().max() <= quantiser.bound


@given(
    st.floats(-20, 20),
    st.integers(2, 24),
    st.sampled_from([0.5, 8.0]),
    st.booleans(),
)
def test_a_level_is_within_the_bound_of_what_was_clipped(
    value: float, bits: int, clip: float, fair: bool
) -> None:
    quantiser = Quantiser(clip, bits, "stochastic" if fair else "nearest")

    levels = quantiser.levels(torch.tensor([value]), torch.Generator().manual_seed(0))

    assert levels.abs().item() <= quantiser.most
    clipped = min(max(value, -clip), clip)
    error = abs(quantiser.values(levels).item() - clipped)
    assert error <= quantiser.bound * (1 + 1e-6) + 1e-6 * clip  # the value came as float32


def test_nothing_stays_nothing() -> None:
    zeros = torch.zeros(1000)

    assert not FAIR.levels(zeros, torch.Generator().manual_seed(0)).any()


def test_random_rounding_is_right_on_average_where_the_nearest_level_is_not() -> None:
    small = torch.full((200_000,), 0.3 * FAIR.step)
    rng = torch.Generator().manual_seed(0)

    fair = FAIR.values(FAIR.levels(small, rng)).mean()

    # standard error: sqrt(0.3 * 0.7 / 200000) steps = 0.001 steps
    assert float(fair / FAIR.step) == pytest.approx(0.3, abs=0.005)
    assert not EXACT.levels(small, rng).any()


@pytest.mark.parametrize("quantiser", [EXACT, FAIR])
def test_the_error_deviates_as_it_says(quantiser: Quantiser) -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    levels = quantiser.levels(values, torch.Generator().manual_seed(1))

    error = (quantiser.values(levels) - values).std()
    assert float(error) == pytest.approx(quantiser.deviation, rel=0.01)


def test_a_sum_without_examples_is_no_mean() -> None:
    layout = Layout.of(PARAMETERS, BUFFERS)

    assert decode(np.zeros(layout.length, np.uint32), layout, EXACT, EXACT) is None
