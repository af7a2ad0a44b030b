"""Coordinates in which a gradient is white."""

import torch

from attacks.tabular.whitening import Whitening

from .people import overhear, people


def heard() -> dict[str, torch.Tensor]:
    seen, _ = overhear(people(4), torch.tensor([0, 1, 0, 1]))
    return dict(seen.update)


def test_every_direction_that_the_rows_span_has_the_same_length() -> None:
    gradient = heard()
    only = {name: gradient[name] for name in ("0.weight", "0.bias")}

    found = Whitening(only, threshold=1e-9, num_rows=4)(only).view(40, 11)

    lengths = torch.linalg.svdvals(found.double())
    assert float(lengths[:4].max() / lengths[:4].min()) < 1.01
    assert float(lengths[4:].max() / lengths[0]) < 1e-2  # four rows span no more


def test_it_is_linear_and_takes_many_gradients_at_once(rng: torch.Generator) -> None:
    gradient = heard()
    others = {name: torch.randn(3, *t.shape, generator=rng) for name, t in gradient.items()}
    white = Whitening(gradient, threshold=1e-4, num_rows=4)

    together = white(others)

    for number in range(3):
        one = white({name: tensor[number] for name, tensor in others.items()})
        torch.testing.assert_close(together[number], one, rtol=1e-4, atol=1e-4)
    sums = {name: tensor.sum(dim=0) for name, tensor in others.items()}
    torch.testing.assert_close(white(sums), together.sum(dim=0), rtol=1e-3, atol=1e-3)


def test_every_layer_counts_alike_however_long_its_gradient_is() -> None:
    gradient = heard()
    louder = {name: t * (1000 if name.startswith("2.") else 1) for name, t in gradient.items()}

    plain, changed = (Whitening(one, threshold=1e-4, num_rows=4)(one) for one in (gradient, louder))

    torch.testing.assert_close(plain, changed, rtol=1e-3, atol=1e-5)


def test_without_a_threshold_gradients_stay_as_they_are() -> None:
    gradient = heard()

    found = Whitening(gradient, threshold=0, num_rows=4)(gradient)

    expected = torch.cat([gradient[name].flatten() for name in sorted(gradient)])
    assert torch.equal(found, expected)


def test_what_is_beyond_the_span_of_the_batch_is_taken_for_noise(rng: torch.Generator) -> None:
    gradient = {name: heard()[name] for name in ("0.weight", "0.bias")}
    noise = 3e-3 * float(gradient["0.weight"].norm())
    noisy = {n: t + noise * torch.randn(t.shape, generator=rng) for n, t in gradient.items()}

    told, untold = (
        torch.linalg.svdvals(
            Whitening(noisy, threshold=1e-9, num_rows=num)(noisy).view(40, 11).double()
        )
        for num in (4, 11)
    )

    assert float(untold[4] / untold[0]) > 0.99  # noise counts as much as any row
    assert float(told[4] / told[0]) < 0.8


def test_kernels_and_parameters_without_a_partner_are_taken_as_well(rng: torch.Generator) -> None:
    gradient = {
        "conv.weight": torch.randn(6, 3, 2, 2, generator=rng),
        "conv.bias": torch.randn(6, generator=rng),
        "scale": torch.randn(5, generator=rng),
        "norm.weight": torch.randn(4, generator=rng),
        "norm.bias": torch.randn(4, generator=rng),
    }

    found = Whitening(gradient, threshold=1e-4, num_rows=4)(gradient)

    assert found.shape == (6 * (3 * 2 * 2 + 1) + 5 + 4 + 4,)
    assert bool(found.isfinite().all())
